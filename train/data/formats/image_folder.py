"""Images in folders: one folder per class, in split folders such as train/ or at the top level."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from train.data.formats.image_files import Folder, portable, reason_to_skip, scan, walk
from train.data.formats.kaggle import SOLUTION, SYNSET, find_solution, label_images
from train.data.formats.layout import KAGGLE, OUTSIDE, Layout, find_layout, shown
from train.data.formats.source import (
    TEST,
    TRAIN,
    Example,
    Source,
    in_brackets,
    normalized,
    shortened,
)
from train.data.formats.source import Options as SourceOptions
from train.errors import UsageError

CSV_ADVICE = "list paths, labels and splits in a CSV file: 'python -m train.prepare csv FILE'"

Images = dict[str, list[str]]
"""Paths of images, relative to the folder of their split, by class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Prepare your own images: PATH/train/CLASS/*.jpg and PATH/validation/CLASS/*.jpg.

    PATH/CLASS/*.jpg without splits works too, as does Kaggle's archive of ImageNet.
    """

    path: Path = dataclasses.field(metadata={"positional": "PATH"})
    """Folder that contains train/ and validation/ or test/, or one folder per class."""


def open_source(options: Options) -> Source:
    """Find the images of a folder.

    Raises:
        UsageError: if the folder has another layout.
    """
    path = options.path
    if not path.is_dir():
        raise UsageError(
            f"{path} is a file, not a folder; unpack an archive first, and pass its folder"
            if path.exists()
            else f"{path} is not a folder that exists"
        )
    try:
        return _open(path)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None


def _open(path: Path) -> Source:
    skipped: Counter[str] = Counter()
    layout = find_layout(path, skipped)
    found: dict[str, Images] = {}
    for split, folder in layout.splits.items():
        if images := _find(split, folder, found.get(TRAIN, {}), layout, skipped):
            found[split] = images
    class_names = sorted(set[str]().union(*found.values()))
    examples: list[Example] = []
    for split, images in found.items():
        for label, class_name in enumerate(class_names):
            paths = images.pop(class_name, [])  # a million of them need memory
            named = sorted((_name(class_name, path), path) for path in paths)
            examples += [Example(split, name, label, path) for name, path in named]
    # If the caller holds examples out, they are in the training folder too.
    train = layout.splits[TRAIN].path
    folders = {split: layout.splits[split].path for split in found}

    def read(example: Example) -> bytes:
        with open(os.path.join(folders.get(example.split, train), example.location), "rb") as file:
            return file.read()

    return Source(
        origin=f"the folder {portable(os.path.abspath(path))}",
        class_names=class_names,
        examples=examples,
        read=read,
        skipped=+skipped,
        warnings=layout.warnings,
    )


def _name(class_name: str, path: str) -> str:
    """Name of an example: CLASS/FILE even if the file is not in the folder of its class."""
    folder, _, file = path.partition("/")
    return portable(path if normalized(folder) == class_name else f"{class_name}/{file or folder}")


def _find(
    split: str, folder: Folder, train: Images, layout: Layout, skipped: Counter[str]
) -> Images:
    """Find the images of a split.

    Args:
        split: the split.
        folder: its folder.
        train: images of the training set, once they were found.
        layout: the folders of the data set.
        skipped: number of skipped files by reason; it is updated.
    """
    outside, folders = scan(folder, skipped)
    images: Images = {}
    for inner in folders:
        class_name = normalized(inner.name)
        if class_name in images:
            raise UsageError(
                f"{shown(folder)} has several folders for the class {class_name!a}, which differ "
                "only in spaces or in the composition of letters; merge them"
            )
        images[class_name] = list(walk(inner, skipped, f"{inner.name}/"))
    has_classes = any(images.values())
    if split != TRAIN and len(images) == 1 and not images.keys() & train.keys():
        has_classes = False  # such as test/unknown, which other loaders need
    if not has_classes:
        unlabeled = [*outside, *(path for paths in images.values() for path in paths)]
        return _label(split, folder, unlabeled, train, layout, skipped)
    if empty := [portable(name) for name, paths in images.items() if not paths]:
        raise UsageError(
            f"the folder(s) {shortened(empty)} of {shown(folder)} contain no images"
            f"{in_brackets(skipped)}; each folder is a class, so add images or remove it"
        )
    if outside:
        skipped[OUTSIDE] += len(outside)
    return images


def _label(
    split: str,
    folder: Folder,
    unlabeled: Sequence[str],
    train: Images,
    layout: Layout,
    skipped: Counter[str],
) -> Images:
    """Find labels for images that are not in class folders. The arguments are those of `_find`."""
    if split == TRAIN or not unlabeled:
        if unlabeled:
            skipped[OUTSIDE] += len(unlabeled)
        what = "no images in class folders" if split == TRAIN else "no images"
        advice = (
            f"make a folder for each class, or {CSV_ADVICE}"
            if split == TRAIN
            else "add images or remove the folder"
        )
        raise UsageError(f"{shown(folder)} contains {what}{in_brackets(skipped)}; {advice}")
    if split == TEST:
        skipped[f"images in the folder {portable(folder.name)}, without labels"] += len(unlabeled)
        return {}
    outer = [inner.path for inner in layout.outer]
    solution = find_solution(outer, [inner.path for inner in layout.splits.values()])
    if solution is None:
        is_imagenet = KAGGLE[-1] in outer[-1] or all(map(SYNSET.fullmatch, train))
        advice = (
            f"put Kaggle's {SOLUTION}, which labels them, into {portable(outer[-1])}"
            if is_imagenet
            else CSV_ADVICE
        )
        raise UsageError(
            f"{shown(folder)} has {len(unlabeled)} images that are not in folders of the training "
            f"classes; move them into a folder for each class, or {advice}"
        )
    if str(solution.parent) in outer:  # it was counted with the files that are not images
        skipped[reason_to_skip(SOLUTION) or ""] -= 1
    return label_images(unlabeled, solution)
