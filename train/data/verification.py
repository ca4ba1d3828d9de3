"""Verification of a prepared data set: every image is decoded once, every label is checked.

The result is kept next to the data: `verified.json`, and `corrupt_images.jsonl` if images were
omitted. Training trusts both.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grain
import joblib
import numpy as np

from train.config import JsonObject
from train.data.images import Facts, examine
from train.data.records import Records, image_name
from train.errors import DataError, RunError
from train.run.atomic import write_atomically

VERIFIED, CORRUPT = "verified.json", "corrupt_images.jsonl"
AT_ONCE = 32  # images that a thread takes at a time
DIGEST_BYTES = 32


@dataclasses.dataclass(frozen=True)
class CorruptImage:
    """An image that training omits."""

    split: str
    index: int
    """Index in the stored split."""
    file_name: str | None
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifiedSplit:
    """Facts about the intact images of a split."""

    num_images: int
    class_counts: Sequence[int]
    contents: str
    """SHA-256 of all labels and encoded images, in their order."""
    num_gray: int
    """Images whose file has a single channel."""
    formats: Mapping[str, int]
    """Number of images by file format."""
    sizes: Mapping[str, int]
    """Number of images by "width x height" of the upright image; the most frequent ones."""
    shorter_sides: Sequence[int]
    """Minimum, median and maximum of the images' shorter sides, in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What is known about a verified data set.

    Attributes:
        origin: what the data set was prepared from.
        date: when it was verified.
        files: the `files_digest` of its files at that time.
        splits: facts by split.
        skipped: number of files that preparation left out, by reason.
        num_in_several_splits: images of the evaluation split that are training images too.
    """

    origin: str
    date: str
    files: str
    splits: Mapping[str, VerifiedSplit]
    skipped: Mapping[str, int]
    num_in_several_splits: int = 0

    @property
    def is_gray(self) -> bool:
        """Whether no image has color."""
        return all(split.num_gray == split.num_images for split in self.splits.values())


def verify_split(
    split: str,
    records: Records,
    num_classes: int,
    is_used: bool,
    advance: Callable[[int], None],
) -> tuple[VerifiedSplit, list[CorruptImage], np.ndarray]:
    """Decode every image of a split on all cores.

    Args:
        split: name of the split.
        records: its records.
        num_classes: classes of the data set.
        is_used: whether runs train or evaluate on this split, so that its labels must be right.
        advance: called with the number of images after each few of them.

    Returns:
        Facts about the intact images, the corrupt images, and the SHA-256 of every image, uint8
        (N, 32).

    Raises:
        DataError: if a label is outside the class range.
    """
    num_images = len(records)
    labels = np.zeros(num_images, np.int64)
    digests = np.zeros((num_images, DIGEST_BYTES), np.uint8)
    sides = np.zeros(num_images, np.int32)
    is_intact = np.ones(num_images, bool)
    formats, sizes = Counter[str](), Counter[str]()
    num_gray = 0
    corrupt: list[CorruptImage] = []

    def facts_of(record: JsonObject) -> tuple[int, bytes, Facts | str]:
        """Label, digest, and either format, whether it is gray and its size, or what is wrong."""
        encoded = record["image"]
        digest = hashlib.sha256(encoded).digest()
        try:
            return record["label"], digest, examine(encoded)
        except ValueError as error:
            return record["label"], digest, str(error)

    def facts_of_several(part: int) -> list:
        indices = range(part * AT_ONCE, min((part + 1) * AT_ONCE, num_images))
        return [facts_of(records[index]) for index in indices]

    threads = joblib.cpu_count()
    parts = (
        grain.MapDataset.range(-(-num_images // AT_ONCE))
        .map(facts_of_several)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads))
    )
    index = 0
    for part in parts:
        for label, digest, facts in part:
            if is_used and not 0 <= label < num_classes:
                raise DataError(
                    f"{describe_image(split, index, records)}: its label is {label}, but the data "
                    f"set has {num_classes} classes, 0 to {num_classes - 1}; prepare the data set "
                    "again with correct labels"
                )
            labels[index] = label
            digests[index] = np.frombuffer(digest, np.uint8)
            if isinstance(facts, str):
                is_intact[index] = False
                name = image_name(records[index])
                corrupt.append(CorruptImage(split, index, name, facts))
            else:
                formats[facts.format] += 1
                num_gray += facts.is_gray
                sizes[f"{facts.width} x {facts.height}"] += 1
                sides[index] = min(facts.height, facts.width)
            index += 1
        advance(len(part))

    labels, sides = labels[is_intact], sides[is_intact]
    contents = hashlib.sha256(labels.astype("<i8").tobytes())
    contents.update(digests[is_intact].tobytes())
    facts = VerifiedSplit(
        num_images=len(labels),
        class_counts=np.bincount(
            labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes
        ).tolist(),
        contents=contents.hexdigest(),
        num_gray=num_gray,
        formats=dict(formats.most_common()),
        sizes=dict(sizes.most_common(5)),
        shorter_sides=[int(value) for value in np.quantile(sides, (0, 0.5, 1))]
        if len(sides)
        else [],
    )
    return facts, corrupt, digests


def common(digests: np.ndarray, others: np.ndarray) -> list[int]:
    """Indices of the images, given by their digests, that are among the others too."""
    known = {row.tobytes() for row in others}
    return [index for index, row in enumerate(digests) if row.tobytes() in known]


def describe_image(split: str, index: int, records: Records) -> str:
    """Name an image by split, index and, if it has one, its file name."""
    name = image_name(records[index])
    return f"image {index} of the split '{split}'{f' ({name})' if name else ''}"


def save(folder: Path, verified: Verified, corrupt: Sequence[CorruptImage]) -> None:
    """Write both files next to the data; the list only if there are corrupt images.

    The list is written first: whoever sees `verified.json` sees the list that belongs to it.
    """
    forget(folder)
    if corrupt:
        lines = "".join(json.dumps(dataclasses.asdict(image)) + "\n" for image in corrupt)
        write_atomically(folder / CORRUPT, lines)
    write_atomically(folder / VERIFIED, json.dumps(dataclasses.asdict(verified), indent=1) + "\n")


def forget(folder: Path) -> None:
    """Delete both files: the data set no longer counts as verified."""
    (folder / VERIFIED).unlink(missing_ok=True)
    (folder / CORRUPT).unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Check that the result can be kept next to the data, before hours of decoding.

    Raises:
        RunError: if the folder is read-only.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written to ({error.strerror}), but verification keeps its result "
            "there; verify a copy, or have its owner verify it"
        ) from None


def load(folder: Path) -> Verified | None:
    """Read what is known about a data set; None if it was not verified.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / VERIFIED
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        splits = {name: VerifiedSplit(**facts) for name, facts in fields.pop("splits").items()}
        return Verified(splits=splits, **fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path} is damaged; verify the data set again") from None


def load_corrupt(folder: Path, split: str) -> list[int]:
    """Indices of the images of a split that training omits.

    Raises:
        DataError: if the list is damaged.
    """
    path = folder / CORRUPT
    if not path.exists():
        return []
    try:
        images = [CorruptImage(**json.loads(line)) for line in path.read_text().splitlines()]
        return [image.index for image in images if image.split == split]
    except (ValueError, TypeError):
        raise DataError(f"{path} is damaged; verify the data set again") from None
