"""Common description of labeled images, which every format returns and `store.write` takes."""

import dataclasses
import datetime
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.hashing import Hasher

from train.errors import UsageError, check_folder, check_number

TRAIN, VALIDATION, TEST = "train", "validation", "test"

SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
"""Splits by the lowercase words that files use for them."""


class Example(NamedTuple):
    """One labeled image whose bytes are read later."""

    split: str
    """One of `TRAIN`, `VALIDATION` and `TEST`."""
    name: str
    """Unique in its split, and independent of where the files are, such as roses/1.jpg."""
    label: int
    location: Any
    """Whatever `Source.read` needs to find the bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set to be written.

    Attributes:
        origin: what it is prepared from, such as "the folder /data/flowers".
        class_names: names of the classes, in the order of their labels.
        examples: every example, in the order in which they are written.
        read: the encoded bytes of an example's image. It is called from several threads.
        image_shape: height, width and channels as tensorflow-datasets records them; None if they
            differ between images.
        skipped: number of files that were left out, by reason.
        warnings: one line for each oddity that the user should know about.
        version: version of the data set.
    """

    origin: str
    class_names: Sequence[str]
    examples: Sequence[Example]
    read: Callable[[Example], bytes]
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()
    version: str = "1.0.0"

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have examples; `TRAIN` comes first."""
        present = {example.split for example in self.examples}
        return [split for split in (TRAIN, VALIDATION, TEST) if split in present]

    def class_counts(self) -> dict[str, list[int]]:
        """Number of examples of each class, by split."""
        counts = {split: [0] * len(self.class_names) for split in self.splits}
        for example in self.examples:
            counts[example.split][example.label] += 1
        return counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags that all formats share."""

    name: str = dataclasses.field(metadata={"metavar": "NAME"})
    """Name of the data set, for `python -m train tfds --dataset NAME`."""

    held_out: float = 0.1
    """Fraction of each class to hold out for testing if the files have no such split."""

    shorter_side: int | None = None
    """Store larger images reduced to this many pixels on their shorter side, as JPEG of quality
    95. Default: store every file unchanged."""

    skip_corrupt: bool = False
    """List corrupt images and leave them out of training instead of failing."""

    overwrite: bool = False
    """Replace a data set of this name."""

    data_dir: Path = Path(constants.DATA_DIR)
    """Folder to write the prepared data set to."""

    def __post_init__(self) -> None:
        """Check everything that needs no files."""
        check_number("held_out", self.held_out, above=0, below=1)
        check_number("shorter_side", self.shorter_side, minimum=8)
        check_folder("data_dir", self.data_dir)

    @property
    def published_name(self) -> str | None:
        """Name of the published data set that these files are, if they are known to be one."""
        return None


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """Order examples as tensorflow-datasets does, which hashes the key of each.

    Data sets that its builders could prepare as well get the same order here, so that runs on
    either are the same. The name of an example is its key.
    """
    hashers = {split: Hasher(split) for split in (TRAIN, VALIDATION, TEST)}
    return sorted(
        examples,
        key=lambda example: (example.split, hashers[example.split].hash_key(example.name)),
    )


def hold_out(source: Source, share: float) -> Source:
    """Move a random but reproducible share of each class from `TRAIN` to `VALIDATION`.

    Args:
        source: a data set without held-out examples.
        share: fraction to hold out, above 0 and below 1. Of each class, at least one example is
            held out and at least one remains.

    Raises:
        UsageError: if a class has only one example.
    """
    check_number("held_out", share, above=0, below=1)
    indices: list[list[int]] = [[] for _ in source.class_names]
    for index, example in enumerate(source.examples):
        indices[example.label].append(index)
    single = [name for name, some in zip(source.class_names, indices, strict=True) if len(some) < 2]
    if single:
        raise UsageError(
            f"class(es) {shortened(single)} of {source.origin} have fewer than two images; each "
            "needs two, to train and to test on: add images, remove the class, or supply a "
            "validation split"
        )
    examples = list(source.examples)
    for label, some in enumerate(indices):
        order = np.random.default_rng((0, label)).permutation(len(some))
        num_held_out = min(max(1, round(share * len(some))), len(some) - 1)
        for place in order[:num_held_out]:
            index = some[place]
            examples[index] = examples[index]._replace(split=VALIDATION)
    return dataclasses.replace(source, examples=examples)


def check(source: Source) -> list[str]:
    """Reject a data set that cannot be trained on or whose names collide.

    Returns:
        One line for each oddity.

    Raises:
        UsageError: in one line that says what to do.
    """
    if not source.examples:
        raise UsageError(f"{source.origin} has no labeled images{in_brackets(source.skipped)}")
    splits = source.splits
    if TRAIN not in splits:
        raise UsageError(
            f"{source.origin} has images only in the split(s) {', '.join(splits)}; it must have "
            "training images"
        )
    names: dict[str, set[str]] = {split: set() for split in splits}
    for example in source.examples:
        if example.name in names[example.split]:
            raise UsageError(
                f"{source.origin} has several images named {example.name} in the split "
                f"'{example.split}'; rename or remove all but one"
            )
        names[example.split].add(example.name)
    warnings = _check_class_names(source.class_names)
    if VALIDATION in splits and TEST in splits:
        warnings.append(
            "runs evaluate on the split 'validation'; the split 'test' is stored but not used"
        )
    return warnings


def _check_class_names(class_names: Sequence[str]) -> list[str]:
    """Reject names that tensorflow-datasets would change, which keeps one name per line."""
    distinct: dict[str, str] = {}
    alike: dict[str, list[str]] = {}
    for name in class_names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"the class name {name!a} is not valid UTF-8; rename the class"
            ) from None
        if not name.strip() or len(name.splitlines()) > 1:
            raise UsageError(
                f"the class name {name!a} is blank or has a line break; rename the class"
            )
        other = distinct.setdefault(normalized(name), name)
        if other is not name:
            raise UsageError(
                f"the class names {other!a} and {name!a} look the same; rename one of the classes, "
                "or merge them"
            )
        alike.setdefault(normalized(name).casefold(), []).append(name)
    return [
        f"the classes {shortened(names)} differ only in upper and lower case"
        for names in alike.values()
        if len(names) > 1
    ]


def normalized(name: str) -> str:
    """A name without surrounding spaces, in Unicode's composed form (NFC).

    macOS decomposes accented letters in the names of files, other systems do not.
    """
    return unicodedata.normalize("NFC", name.strip())


def in_brackets(skipped: Mapping[str, int]) -> str:
    """What was skipped, in brackets to append to an error; empty if nothing was."""
    parts = [f"{count} {reason}" for reason, count in skipped.items()]
    return f" (skipped: {', '.join(parts)})" if parts else ""


def check_classes(
    class_names: Sequence[str], counts: Mapping[str, Sequence[int]], evaluation: str
) -> list[str]:
    """Check the classes of a data set.

    Args:
        class_names: names of the classes, in the order of their labels.
        counts: number of images of each class, by split.
        evaluation: the split that errors are measured on.

    Returns:
        One line for each class that is suspicious.

    Raises:
        UsageError: if the classes cannot be trained on.
    """
    train, held_out = counts[TRAIN], counts[evaluation]
    if len(class_names) < 2:
        raise UsageError(
            f"there is only one class, {shortened(class_names)}, so there is nothing to learn; put "
            "the images of each class into a folder of its own, or label them differently"
        )
    numbered = list(enumerate(class_names))
    for split, some in counts.items():
        if untrained := [name for label, name in numbered if some[label] and not train[label]]:
            raise UsageError(
                f"class(es) {shortened(untrained)} have images only in the split '{split}'; add "
                "training images or remove them"
            )
    if empty := [name for label, name in numbered if not held_out[label] and not train[label]]:
        raise UsageError(f"class(es) {shortened(empty)} have no images; add some or remove them")
    warnings: list[str] = []
    if untested := [name for label, name in numbered if not held_out[label]]:
        warnings.append(
            f"class(es) {shortened(untested)} have no images in the split '{evaluation}', so their "
            "error is not measured; add some"
        )
    if single := [name for label, name in numbered if train[label] == 1]:
        warnings.append(
            f"class(es) {shortened(single)} have fewer than two training images; add more or "
            "remove them"
        )
    return warnings


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def date_and_time(seconds: float) -> str:
    """A moment in local time, to the minute, from its seconds since 1970."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
