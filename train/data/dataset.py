"""A prepared data set with random access to encoded images and their labels."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from train.config import Config, JsonObject
from train.data.builders.digits import Digits
from train.data.synthetic import CLASSES_AND_IMAGES, Noise
from train.errors import UsageError, unusable_folder


class Records(Protocol):
    """Random access to records, by one index or several: encoded `image` bytes and a `label`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> JsonObject: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[JsonObject]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and evaluation records of one data set."""

    name: str
    class_names: Sequence[str]
    train: Records
    evaluation: Records
    evaluation_split: str = "test"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def open_dataset(config: Config) -> Dataset:
    """Open a run's data set. Only the embedded digits need not be prepared first.

    Args:
        config: configuration of the run.

    Raises:
        UsageError: if the data set is not prepared, or does not consist of labeled images with
            random access.
    """
    experiment, data_dir = config.experiment, config.machine.data_dir
    name = experiment.dataset
    if experiment.data == "synthetic":
        return _synthetic(name, experiment.batch_size)
    if name == "":
        raise UsageError("--dataset is missing; name a data set, such as --dataset cifar10")
    builder = _open_builder(name, data_dir or Path(constants.DATA_DIR))
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        found = ", ".join(
            f"{name} ({type(kind).__name__})" for name, kind in sorted(features.items())
        )
        raise UsageError(
            f"--dataset {name} has the features {found}; it must have image (Image) and label "
            "(ClassLabel)"
        )
    splits = builder.info.splits
    held_out = next((name for name in ("validation", "test") if name in splits), None)
    if "train" not in splits or held_out is None:
        raise UsageError(
            f"--dataset {name} has the splits {sorted(splits)}; it must have 'train' and "
            "'validation' or 'test'"
        )
    encoded = {"image": tfds.decode.SkipDecoding()}
    try:
        train, evaluation = (
            builder.as_data_source(split, decoders=encoded) for split in ("train", held_out)
        )
    except NotImplementedError:
        raise UsageError(
            f"--dataset {name} is prepared as {builder.info.file_format.value}, which has no "
            f"random access; 'python -m train.prepare {name} --data-dir DIR' prepares it as "
            "array_record in another folder"
        ) from None
    for split, records in (("train", train), (held_out, evaluation)):
        if len(records) and records.__getitems__([0])[0]["label"] < 0:
            raise UsageError(
                f"--dataset {name} has no labels in its split '{split}' (the first label is "
                "negative); it must have labels in 'train' and in 'validation' or 'test'"
            )
    return Dataset(
        name=name,
        class_names=features["label"].names,
        train=train,
        evaluation=evaluation,
        evaluation_split=held_out,
    )


def _open_builder(name: str, data_dir: Path) -> Any:
    try:
        if name == Digits.name:
            return _prepared_digits(data_dir)
        _reject_foreign_classes(data_dir / re.split("[/:]", name)[0])
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UsageError(
            f"--dataset {name} is not prepared in {data_dir}; prepare it once with "
            f"'python -m train.prepare {name} --data-dir {data_dir}' or pass --data-dir"
        ) from None
    except ValueError as error:
        raise UsageError(
            f"--dataset {name} cannot be opened; a name is NAME, NAME/CONFIG or "
            f"NAME/CONFIG:VERSION ({str(error).splitlines()[0]})"
        ) from None
    except OSError as error:
        raise unusable_folder("--data-dir", data_dir, error) from None


def _reject_foreign_classes(folder: Path) -> None:
    """Check features.json: tensorflow-datasets imports any module that it names."""
    for path in folder.rglob("features.json"):

        def check(fields: JsonObject, path: Path = path) -> JsonObject:
            for field in ("pythonClassName", "python_class_name"):
                if not str(fields.get(field, "tensorflow_datasets.")).startswith(
                    "tensorflow_datasets."
                ):
                    raise UsageError(
                        f"{path} asks to import {fields[field]}; a data set may only name classes "
                        "of tensorflow_datasets"
                    )
            return fields

        json.loads(path.read_text(), object_hook=check)


def _synthetic(name: str, num_test_images: int) -> Dataset:
    """Noise instead of a data set."""
    if name not in CLASSES_AND_IMAGES:
        raise UsageError(
            f"--data synthetic can replace {', '.join(CLASSES_AND_IMAGES)}; --dataset is "
            f"{name or 'missing'}"
        )
    num_classes, num_images = CLASSES_AND_IMAGES[name]
    return Dataset(
        name=f"synthetic {name}",
        class_names=[str(label) for label in range(num_classes)],
        train=Noise(num_images, num_classes),
        evaluation=Noise(num_test_images, num_classes),
    )


def _prepared_digits(data_dir: Path) -> Digits:
    builder = Digits(data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except OSError:
        # Another process may have prepared them at the same time.
        builder = Digits(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return builder
