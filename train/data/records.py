"""Random access to the encoded images and labels of a data set."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from train.config import JsonObject
from train.data.fingerprint import Fingerprint

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

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def stored_index(self, split: str, index: int) -> int:
        """Index in the stored split, which may hold images that training omits."""
        records = self.train if split == "train" else self.evaluation
        return int(getattr(records, "stored_indices", np.arange(len(records)))[index])
