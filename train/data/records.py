"""Random access to the encoded images and labels of a data set."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from train.config import Config, JsonObject
from train.data.fingerprint import Fingerprint
from train.data.images import decode
from train.errors import DataError

NAMES = ("id", "file_name")
"""Features that hold an image's name, in data sets of tensorflow-datasets and of this project."""


class Records(Protocol):
    """Random access to records, by one index or several: encoded `image` bytes and a `label`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> JsonObject: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[JsonObject]: ...


class StoredRecords:
    """Records of a data set of tensorflow-datasets, without features that training does not use.

    The parser of tensorflow-datasets checks and converts every feature, in ten times the time.

    Args:
        examples: random access to serialized `tf.train.Example` messages.
    """

    def __init__(self, examples: Sequence[bytes]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> JsonObject:
        return parse_example(self._examples[index])

    def __getitems__(self, indices: Sequence[int]) -> Sequence[JsonObject]:
        some: Any = self._examples
        return [parse_example(example) for example in some.__getitems__(indices)]


def parse_example(example: bytes) -> JsonObject:
    """Parse a serialized `tf.train.Example` into `image`, `label` and perhaps `file_name`."""
    message: Any = tf_example_pb2
    features = message.Example.FromString(example).features.feature
    record = {
        "image": features["image"].bytes_list.value[0],
        "label": features["label"].int64_list.value[0],
    }
    for name in NAMES:
        if name in features:
            texts = features[name].bytes_list.value
            names = [text.decode(errors="replace") for text in texts]
            names += map(str, features[name].int64_list.value)  # some data sets number images
            if names:
                record["file_name"] = names[0]
    return record


class WithoutOmitted:
    """Records without those that verification listed as corrupt.

    Args:
        records: all records of a split.
        omitted: indices to omit.
    """

    def __init__(self, records: Records, omitted: Sequence[int]) -> None:
        self._records = records
        self.stored_indices = np.setdiff1d(np.arange(len(records)), omitted)

    def __len__(self) -> int:
        return len(self.stored_indices)

    def __getitem__(self, index: int) -> JsonObject:
        return self._records[int(self.stored_indices[index])]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[JsonObject]:
        return self._records.__getitems__(self.stored_indices[list(indices)].tolist())


def image_name(record: JsonObject) -> str | None:
    """The file name that a record has for its image, if any."""
    return record.get("file_name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and evaluation records of one data set."""

    name: str
    class_names: Sequence[str]
    train: Records
    evaluation: Records
    evaluation_split: str = "test"
    version: str = ""
    fingerprint: Fingerprint | None = None
    """None for synthetic data."""
    folder: Path | None = None
    """Folder with its files; None for synthetic data."""
    decoded: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Decoded examples of each split, if they are kept in memory; see `data/in_memory`."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def stored_index(self, split: str, index: int) -> int:
        """Index in the stored split, which may hold images that training omits."""
        records = self.records(split)
        return int(getattr(records, "stored_indices", np.arange(len(records)))[index])

    def records(self, split: str) -> Records:
        """Records of the training split or of the evaluation split."""
        return self.train if split == "train" else self.evaluation


def read_example(
    dataset: Dataset, split: str, index: int, config: Config
) -> tuple[np.ndarray, int]:
    """Read one record of a split: its decoded image and its label.

    Raises:
        DataError: in one line, if the label is not a class of the data set, or if the image cannot
            be decoded.
    """
    record = dataset.records(split)[index]
    label, num_classes = int(record["label"]), dataset.num_classes
    try:
        if 0 <= label < num_classes:
            return decode(record["image"], config.experiment.num_channels), label
        reason = (
            f"its label is {label}, but the data set has {num_classes} classes, 0 to "
            f"{num_classes - 1}; prepare the data set again with correct labels"
        )
    except ValueError as error:
        folder = f" --data-dir {config.machine.data_dir}" if config.machine.data_dir else ""
        reason = (
            f"{error}; 'python -m train.prepare verify {dataset.name}{folder} --skip-corrupt' "
            "omits corrupt images from training"
        )
    name = image_name(record)
    place = f"image {dataset.stored_index(split, index)}{'' if name is None else f' ({name})'}"
    raise DataError(f"{dataset.name}, split '{split}', {place}: {reason}")
