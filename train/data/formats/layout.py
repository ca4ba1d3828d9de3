"""Layout of a folder of images: which folders are splits and which are classes."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from train.data.formats.image_files import (
    Folder,
    contains_image,
    count_files,
    open_folder,
    portable,
    scan,
    walk,
)
from train.data.formats.source import SPLITS, TRAIN, in_brackets, shortened
from train.errors import UsageError

# Names such as test, seg_test, "Test Set", testset or test2017, but not contest.
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?=sets?(?![a-z])|[^a-z]|$)")
PLAIN = "*"  # the pattern of a folder whose whole name is the word

# Where Kaggle's archive of ImageNet has the images; Annotations and ImageSets are next to them.
KAGGLE = ("ILSVRC", "Data", "CLS-LOC")

OUTSIDE = "images outside class folders"


class Layout(NamedTuple):
    """Folders of a data set."""

    splits: dict[str, Folder]
    """The folder of each split, which contains the class folders. `TRAIN` comes first."""
    outer: list[Folder]
    """The folder that the user named, and those inside it that contain everything."""
    warnings: list[str]
    """One line for each oddity."""


def find_layout(path: Path, skipped: Counter[str]) -> Layout:
    """Find the split folders of a data set, or else the one folder of all classes.

    Args:
        path: the folder that the user named.
        skipped: number of skipped files by reason; it is updated.

    Raises:
        UsageError: if it is unclear what the folders are.
    """
    outer = _unwrap(open_folder(path), None, skipped)
    root = outer[-1]
    here: Counter[str] = Counter()
    images, folders = scan(root, here)
    splits = _split_folders(root, folders)
    warnings: list[str] = []
    if splits and not _has_class_folders(splits[TRAIN]):
        neighbors = [
            folder for folder in folders if folder not in splits.values() and contains_image(folder)
        ]
        _reject_unlabeled_train(splits, neighbors)
        warnings.append(
            f"{shown(splits[TRAIN])} is a class, since its images are directly inside, and "
            f"{shown(neighbors[0])} is next to it"
        )
        splits = {}
    if not splits:
        warnings += _check_inner_folders(root, folders)
        return Layout({TRAIN: root}, outer, warnings)
    skipped.update(here)
    if images:
        skipped[OUTSIDE] += len(images)
    skip_folders([folder for folder in folders if folder not in splits.values()], skipped)
    inner = {split: _unwrap(folder, split, skipped)[-1] for split, folder in splits.items()}
    return Layout(inner, outer, warnings)


def shown(folder: Folder) -> str:
    """The path of a folder, for messages."""
    return portable(folder.path)


def skip_folders(folders: Sequence[Folder], skipped: Counter[str]) -> None:
    """Count the files of folders that are not part of a data set."""
    for folder in folders:
        if count := count_files(folder):
            skipped[f"files in the folder {portable(folder.name)}"] += count


def _unwrap(folder: Folder, split: str | None, skipped: Counter[str]) -> list[Folder]:
    """The folder, and each single folder inside that contains everything.

    Args:
        folder: the folder.
        split: the split that it contains; None if it contains all.
        skipped: number of skipped files by reason; it is updated.
    """
    outer = [folder]
    while True:
        here: Counter[str] = Counter()
        images, folders = scan(outer[-1], here)
        inner = _wrapped(images, folders, split)
        if inner is None:
            return outer
        skipped.update(here)
        if images:
            skipped[OUTSIDE] += len(images)
        skip_folders([other for other in folders if other is not inner], skipped)
        outer.append(inner)


def _wrapped(images: Sequence[str], folders: Sequence[Folder], split: str | None) -> Folder | None:
    """The one folder that contains all images, if they are in folders there."""
    for folder in folders:
        for start, name in enumerate(KAGGLE):
            rest = KAGGLE[start + 1 :]
            if folder.name == name and os.path.isdir(os.path.join(folder.path, *rest)):
                return folder
    if images or len(folders) != 1:
        return None
    if _is_split(folders[0]) and _split_of(folders[0])[0] != split:  # not such as train/train
        return None
    inner_images, inner_folders = scan(folders[0], Counter())
    if any(_is_split(folder) for folder in inner_folders):
        return folders[0]
    if inner_images or not inner_folders:
        return None
    if len(inner_folders) > 1 or _wrapped(inner_images, inner_folders, split) is not None:
        return folders[0]
    return None


def _split_of(folder: Folder) -> tuple[str, str]:
    """The split in a folder's name, and the rest of the name as a pattern; empty if none is."""
    name = folder.name.lower()
    if (word := SPLIT_WORD.search(name)) is None:
        return "", ""
    return SPLITS[word.group()], f"{name[: word.start()]}*{name[word.end() :]}"


def _is_split(folder: Folder) -> bool:
    return _split_of(folder)[1] == PLAIN


def _split_folders(root: Folder, folders: Sequence[Folder]) -> dict[str, Folder]:
    """Folders by the split that their names mean. Empty if all are classes."""
    patterns: dict[str, dict[str, list[Folder]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        split, pattern = _split_of(folder)
        if split:
            patterns[pattern][split].append(folder)
    named: Mapping[str, list[Folder]] = patterns.get(PLAIN, {})
    if not named:  # names such as seg_train and seg_test
        several = [group for group in patterns.values() if TRAIN in group and len(group) > 1]
        if len(several) > 1:
            names = [portable(group[TRAIN][0].name) for group in several]
            raise UsageError(
                f"{shown(root)} has several training folders, {shortened(names)}, each with a "
                "folder to test on; move one pair into a folder of its own"
            )
        named = several[0] if several else {}
    for split, some in named.items():
        if len(some) > 1:
            names = [portable(folder.name) for folder in some]
            raise UsageError(
                f"{shown(root)} has the folders {' and '.join(names)} for the split '{split}'; "
                "merge them or remove all but one"
            )
    if named and TRAIN not in named:
        names = [portable(some[0].name) for some in named.values()]
        raise UsageError(
            f"{shown(root)} has the folder(s) {' and '.join(names)}, but no folder 'train'; move "
            "the class folders to train on into 'train', or rename a class that has such a name"
        )
    order = sorted(named, key=list(SPLITS.values()).index)
    return {split: named[split][0] for split in order}


def _has_class_folders(folder: Folder) -> bool:
    _, folders = scan(folder, Counter())
    return any(contains_image(inner) for inner in folders)


def _reject_unlabeled_train(splits: Mapping[str, Folder], neighbors: Sequence[Folder]) -> None:
    """Reject a training folder without class folders, unless it is a class among others."""
    train = splits[TRAIN]
    skipped: Counter[str] = Counter()
    images = list(walk(train, skipped))
    if not images:
        raise UsageError(
            f"{shown(train)} contains no images{in_brackets(skipped)}; add images or remove it"
        )
    if not neighbors or len(splits) > 1:
        raise UsageError(
            f"{shown(train)} has {len(images)} images, but no class folders; move them into a "
            "folder for each class, or list paths and labels in a CSV file: 'python -m "
            "train.prepare csv FILE'"
        )


def _check_inner_folders(root: Folder, folders: Sequence[Folder]) -> list[str]:
    """Reject class folders that contain splits or classes: different images would be mixed.

    Returns:
        One line if they may be something else than classes.
    """
    mixed: list[Folder] = []
    names = [{inner.name: inner for inner in scan(folder, Counter())[1]} for folder in folders]
    for folder, inner in zip(folders, names, strict=True):
        splits = {_split_of(some)[0] for some in inner.values() if _is_split(some)}
        if TRAIN in splits and len(splits) > 1:
            mixed.append(folder)
        if len(repeated := sorted(inner.keys() & {other.name for other in folders})) > 1:
            raise UsageError(
                f"{shown(folder)} contains the folders {shortened(list(map(portable, repeated)))}, "
                "which are also classes next to it; move or remove it, or them"
            )
    if mixed:
        advice = (
            f"pass {shown(mixed[0])} instead"
            if len(mixed) == 1
            else "the splits must be outside, such as train/CLASS and test/CLASS"
        )
        raise UsageError(
            f"the folder(s) {shortened([portable(folder.name) for folder in mixed])} of "
            f"{shown(root)} contain training and test folders, so they are not classes; {advice}"
        )
    common = sorted(set[str].intersection(*map(set, names))) if len(folders) > 1 else []
    if len(common) < 2:
        return []
    return [
        f"each class folder of {shown(root)} contains the folders "
        f"{shortened(list(map(portable, common)))}, whose images are mixed; if these are the "
        "classes, rename the folders around them to train and test"
    ]
