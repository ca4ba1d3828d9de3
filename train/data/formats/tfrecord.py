"""Data sets that tensorflow-datasets prepared, as TFRecord or in another of its formats."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.file_adapters import FileFormat

from train.config import JsonObject
from train.data.formats.source import TEST, TRAIN, VALIDATION, Example, Source
from train.data.formats.source import Options as SourceOptions
from train.data.records import image_name, parse_example
from train.data.stored import check_features, open_records, reject_foreign_classes
from train.errors import UsageError
from train.run.workarounds import quiet_tensorflow_datasets

METADATA = "dataset_info.json"
# Around each record of a TFRecord file: its length (uint64) and the CRC of that, and its own CRC.
BYTES_BEFORE, BYTES_AFTER = 12, 4
RECORDS_AT_ONCE = 64

Scan = Callable[[str], Iterator[tuple[JsonObject, Any]]]
"""Function from a split to its records, and to where `read` finds each of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Convert a data set that tensorflow-datasets prepared as TFRecord or in another format.

    TFRecord needs the extra `prepare`. NAME may be the name that the data set has already.
    """

    path: Path = dataclasses.field(metadata={"positional": "PATH"})
    """Folder with dataset_info.json, such as ~/tensorflow_datasets/cifar10/3.0.2."""

    @property
    def published_name(self) -> str | None:
        """Name under which tensorflow-datasets prepared it."""
        return _metadata(self.path).get("name")


def open_source(options: Options) -> Source:
    """Read the labels and names of all images.

    Raises:
        UsageError: if it is not such a folder, or is damaged, or TensorFlow is missing.
    """
    path = options.path
    _metadata(path)
    reject_foreign_classes(path)
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # from any feature that the data set has
        raise UsageError(f"{path} cannot be opened: {_line(error)}") from None
    return source_of(builder, f"the data set in {path.absolute()}")


def source_of(builder: DatasetBuilder, origin: str) -> Source:
    """Describe a data set of tensorflow-datasets as one that is to be written.

    Splits without labels are left out, and so are those that are not for training or testing.

    Args:
        builder: the data set, in any format.
        origin: what it is, for people.

    Raises:
        UsageError: if its features are not those of labeled images, or it is damaged.
    """
    class_names = check_features(builder)
    features: Any = builder.info.features
    scan, read = _random_access(builder) if _has_random_access(builder) else _tfrecord(builder)
    examples: list[Example] = []
    skipped: dict[str, int] = {}
    for split in builder.info.splits:
        if not (num_images := builder.info.splits[split].num_examples):
            continue
        if split not in (TRAIN, VALIDATION, TEST):
            skipped[f"image(s) of the split '{split}', which is not used"] = num_images
            continue
        some: list[Example] = []
        for index, (record, location) in enumerate(scan(split)):
            name = image_name(record) or str(index)
            some.append(Example(split, name, record["label"], location))
        if all(example.label < 0 for example in some):
            skipped[f"image(s) of the split '{split}', which has no labels"] = num_images
            continue
        for example in some:
            if not 0 <= example.label < len(class_names):
                raise UsageError(
                    f"{origin}: the image {example.name} of the split '{split}' has the label "
                    f"{example.label}, but there are {len(class_names)} classes, from 0; prepare "
                    "it again with correct labels"
                )
        examples += _with_unique_names(some)
    return Source(
        origin=origin,
        class_names=class_names,
        examples=examples,
        read=lambda example: read(example.location),
        image_shape=features["image"].shape,
        skipped=skipped,
        version=str(builder.version),
    )


def _metadata(path: Path) -> JsonObject:
    try:
        return json.loads((path / METADATA).read_text())
    except (FileNotFoundError, NotADirectoryError):
        inner = sorted(file.parent for file in path.glob(f"**/{METADATA}")) if path.is_dir() else []
        hint = f"; name one of {', '.join(map(str, inner[:5]))}" if inner else ""
        raise UsageError(
            f"{path} is not a folder of a data set of tensorflow-datasets: it does not contain "
            f"{METADATA}{hint}"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path / METADATA} is damaged: {_line(error)}") from None


def _has_random_access(builder: DatasetBuilder) -> bool:
    return builder.info.file_format in FileFormat.with_random_access()


def _random_access(builder: DatasetBuilder) -> tuple[Scan, Callable[[Any], bytes]]:
    splits = [split for split in builder.info.splits if builder.info.splits[split].num_examples]
    records = {split: open_records(builder, split) for split in splits}

    def scan(split: str) -> Iterator[tuple[JsonObject, Any]]:
        for index in range(len(records[split])):
            yield records[split][index], (split, index)

    return scan, lambda location: records[location[0]][location[1]]["image"]


def _tfrecord(builder: DatasetBuilder) -> tuple[Scan, Callable[[Any], bytes]]:
    """Read TFRecord files: with TensorFlow once, which checks all CRCs, and then by offset."""
    file_format: Any = builder.info.file_format
    if file_format != FileFormat.TFRECORD:
        raise UsageError(
            f"{builder.data_dir} is prepared as {file_format.value}, which cannot be read; "
            "prepare it again as TFRecord"
        )
    require_tensorflow(f"reading TFRecord files of {builder.data_dir}")

    def scan(split: str) -> Iterator[tuple[JsonObject, Any]]:
        info = builder.info.splits[split]
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            if not Path(path).is_file():
                raise UsageError(f"{path} is missing; copy the whole folder")
            number, offset = 0, 0
            for serialized in _with_tensorflow(str(path)):
                start = offset + BYTES_BEFORE
                yield parse_example(serialized), (str(path), start, len(serialized))
                number, offset = number + 1, start + len(serialized) + BYTES_AFTER
            if number != length:
                raise UsageError(
                    f"{path} has {number} images, but {METADATA} says {length}; copy it again"
                )

    def read(location: tuple[str, int, int]) -> bytes:
        path, start, size = location
        with open(path, "rb") as file:
            file.seek(start)
            return parse_example(file.read(size))["image"]

    return scan, read


def require_tensorflow(what: str, other_way: str = "") -> None:
    """Check that TensorFlow is installed.

    Args:
        what: what needs it, such as "preparing cifar10".
        other_way: how to do without, if there is a way.

    Raises:
        UsageError: if it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"{what} needs TensorFlow, which is not installed: pip install -e '.[prepare]' "
            f"(training does not need it){other_way}"
        )


def _with_tensorflow(path: str) -> Iterator[bytes]:
    with quiet_tensorflow_datasets():
        tensorflow: Any = importlib.import_module("tensorflow")  # it has no types
        records = tensorflow.data.TFRecordDataset(path).as_numpy_iterator()
    while True:
        try:
            with quiet_tensorflow_datasets():
                some = list(itertools.islice(records, RECORDS_AT_ONCE))
        except tensorflow.errors.OpError as error:
            found = re.search(r"\w+ record at \d+", error.message)
            reason = found[0] if found else _line(error.message)
            raise UsageError(f"{path} is damaged: {reason}; copy it again") from None
        if not some:
            return
        yield from some


def _with_unique_names(examples: list[Example]) -> list[Example]:
    """Number the examples whose name is not unique: nobody can rename them."""
    counts = Counter(example.name for example in examples)
    return [
        example._replace(name=f"{example.name}#{index}") if counts[example.name] > 1 else example
        for index, example in enumerate(examples)
    ]


def _line(error: object) -> str:
    return " ".join(str(error).split())
