"""From files to minibatches on the host, as a pure function of seed, step and worker.

The example at position p of epoch e is `epoch_order(seed, e)[p]`; step s of an epoch takes
positions [s·kn, (s + 1)·kn), of which worker j has the slice j·n (`Timeline.place` where kn has
changed). Devices, processes and accumulation do not enter, so a run resumes by starting at a step:
there is no state to save.

Shapes: n images a worker, S the side of the network's input, C channels.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from train.config import Config, DataError, UsageError, unusable
from train.data.builders.digits import Digits
from train.data.images import AUGMENTATIONS, decode
from train.data.reader import read, reader_processes
from train.data.synthetic import CLASSES_AND_IMAGES, Noise
from train.step.workers import Workers
from train.timeline import Timeline

# Of the padding that fills the last minibatch of an evaluation, and of corrupt images in one.
NO_LABEL = -1
SOUND = -1  # in the place of an index, where an image could be decoded

NUM_DRAWS = 100  # of images to replace a corrupt one, until one of them is sound


class Examples(NamedTuple):
    """Images, uint8 (..., S, S, C), and their labels, int32 (...).

    Attributes:
        corrupt: index of the example that belongs here but cannot be decoded, or `SOUND`; int32
            (...). In training another example has taken its place.
    """

    images: Any
    labels: Any
    corrupt: Any


class Records(Protocol):
    """Random access to encoded images and their labels, by index, one or several at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A prepared data set with random access: records of encoded image bytes and a label."""

    name: str
    class_names: Sequence[str]
    train: Records
    evaluation: Records
    evaluation_split: str = "test"

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def open_dataset(config: Config) -> Dataset:
    """Open the run's data set, which only the embedded digits need no preparation for.

    Raises:
        UsageError: if it is not prepared, or is no set of labelled images with random access.
    """
    if config.data == "synthetic":
        return _synthetic(config)
    data_dir = config.data_dir or Path(constants.DATA_DIR)
    if config.dataset == "":
        raise UsageError("--dataset is missing; name a data set, such as --dataset cifar10")
    builder: Any
    try:
        if config.dataset == Digits.name:
            builder = _prepared_digits(data_dir)
        else:
            _refuse_foreign_classes(data_dir / re.split("[/:]", config.dataset)[0])
            builder = read_only_builder.builder_from_files(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise UsageError(
            f"--dataset {config.dataset} is not prepared in {data_dir}; prepare it once with "
            f"'python -m train.prepare {config.dataset} --data-dir {data_dir}' or set --data-dir"
        ) from None
    except ValueError as error:
        raise UsageError(
            f"--dataset {config.dataset} cannot be opened; a name is NAME, NAME/CONFIG or "
            f"NAME/CONFIG:VERSION ({str(error).splitlines()[0]})"
        ) from None
    except OSError as error:
        raise unusable("--data-dir", data_dir, error) from None
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        found = ", ".join(
            f"{name} ({type(kind).__name__})" for name, kind in sorted(features.items())
        )
        raise UsageError(
            f"--dataset {config.dataset} has the features {found}; needed are image (Image) and "
            "label (ClassLabel)"
        )
    splits = builder.info.splits
    held_out = next((name for name in ("validation", "test") if name in splits), None)
    if "train" not in splits or held_out is None:
        raise UsageError(
            f"--dataset {config.dataset} has the splits {sorted(splits)}; needed are 'train' and "
            "'validation' or 'test'"
        )
    undecoded = {"image": tfds.decode.SkipDecoding()}
    try:
        train, evaluation = (
            builder.as_data_source(split, decoders=undecoded) for split in ("train", held_out)
        )
    except NotImplementedError:
        raise UsageError(
            f"--dataset {config.dataset} is prepared as {builder.info.file_format.value}, which "
            f"has no random access; 'python -m train.prepare {config.dataset} --data-dir DIR' "
            "prepares it as array_record in another folder"
        ) from None
    for split, records in (("train", train), (held_out, evaluation)):
        if len(records) and records.__getitems__([0])[0]["label"] < 0:
            raise UsageError(
                f"--dataset {config.dataset} has no labels in its split '{split}' (its first label "
                "is negative); needed are labels in 'train' and in 'validation' or 'test'"
            )
    return Dataset(
        name=config.dataset,
        class_names=features["label"].names,
        train=train,
        evaluation=evaluation,
        evaluation_split=held_out,
    )


def _refuse_foreign_classes(folder: Path) -> None:
    """Tensorflow-datasets imports whatever modules a data set's features.json names."""
    for path in folder.rglob("features.json"):

        def check(fields: dict[str, Any], path: Path = path) -> dict[str, Any]:
            for field in ("pythonClassName", "python_class_name"):
                if not str(fields.get(field, "tensorflow_datasets.")).startswith(
                    "tensorflow_datasets."
                ):
                    raise UsageError(
                        f"{path} asks to import {fields[field]}; a data set may name classes of "
                        "tensorflow_datasets alone"
                    )
            return fields

        json.loads(path.read_text(), object_hook=check)


def _synthetic(config: Config) -> Dataset:
    """Noise in the place of the run's data set, with as many test images as a minibatch has."""
    if config.dataset not in CLASSES_AND_IMAGES:
        raise UsageError(
            f"--data synthetic takes the place of {', '.join(CLASSES_AND_IMAGES)}; --dataset is "
            f"{config.dataset or 'missing'}"
        )
    num_classes, num_images = CLASSES_AND_IMAGES[config.dataset]
    return Dataset(
        name=f"synthetic {config.dataset}",
        class_names=[str(label) for label in range(num_classes)],
        train=Noise(num_images, num_classes),
        evaluation=Noise(config.batch_size, num_classes),
    )


def _prepared_digits(data_dir: Path) -> Digits:
    builder = Digits(data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except OSError:
        # Another process may have begun at the same time and been first: then they are there now.
        builder = Digits(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return builder


@functools.lru_cache(maxsize=2)  # around the end of an epoch two are in use
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """One random order of the whole training set for each epoch (paper, section 3, remark 4)."""
    return np.random.default_rng((seed, epoch, 0)).permutation(num_examples)


def example_rng(seed: int, epoch: int, example: int) -> np.random.Generator:
    """Make the generator that augments one example in one epoch, whoever loads it."""
    return np.random.default_rng((seed, epoch, 1 + example))


def training_minibatches(
    dataset: Dataset,
    config: Config,
    workers: Workers,
    first_step: int,
    last_step: int,
    timeline: Timeline | None = None,
) -> Iterator[Examples]:
    """Yield this process's rows of the minibatches of steps first_step to last_step - 1.

    Each is (len(workers.local) · n, ...), in the order of `workers.local`. Without a timeline they
    are those of a run whose minibatch has always been the same.
    """
    num_examples = len(dataset.train)
    # No workers, but numbers alone: devices cannot be sent to reader processes.
    n = workers.batch_size_per_worker
    place = (timeline or Timeline(config, num_examples)).place
    augmentation = AUGMENTATIONS[config.augmentation]

    def load(step: int, worker: int) -> Examples:
        epoch, position = place(step)
        first = position + worker * n
        order = epoch_order(config.seed, epoch, num_examples)
        rows = _padding(n, config)
        for row, example in enumerate(order[first : first + n].tolist()):
            rng = example_rng(config.seed, epoch, example)
            record = dataset.train[example]
            try:
                image = decode(record["image"], num_channels=len(config.mean))
            except ValueError as error:
                rows.corrupt[row] = example
                image, record = _replacement(dataset, example, error, config, rng)
            rows.images[row] = augmentation.augment(image, config.image_size, rng)
            rows.labels[row] = record["label"]
        return rows

    if config.data == "synthetic":  # which shall cost the host nothing
        return itertools.repeat(next(read(load, config, workers, 0, 1)), last_step - first_step)
    return read(load, config, workers, first_step, last_step, reader_processes(config))


def evaluation_minibatches(
    dataset: Dataset, config: Config, workers: Workers
) -> Iterator[Examples]:
    """Yield this process's rows of minibatches that hold each evaluation image once, in order.

    The last minibatch is filled up with images whose label is `NO_LABEL`; the label of a corrupt
    image is the same, since another would count twice.
    """
    num_examples = len(dataset.evaluation)
    kn, n = workers.batch_size, workers.batch_size_per_worker
    augmentation = AUGMENTATIONS[config.augmentation]

    def load(step: int, worker: int) -> Examples:
        first = step * kn + worker * n
        rows = _padding(n, config)
        for row, example in enumerate(range(first, min(first + n, num_examples))):
            record = dataset.evaluation[example]
            try:
                image = decode(record["image"], num_channels=len(config.mean))
            except ValueError:
                rows.corrupt[row] = example
            else:
                rows.images[row] = augmentation.evaluation_crop(image, config.image_size)
                rows.labels[row] = record["label"]
        return rows

    return read(load, config, workers, 0, -(-num_examples // kn))


def _padding(n: int, config: Config) -> Examples:
    """Rows to be filled one by one, so that each image is small work on memory that is near."""
    return Examples(
        np.zeros((n, config.image_size, config.image_size, len(config.mean)), np.uint8),
        np.full(n, NO_LABEL, np.int32),
        np.full(n, SOUND, np.int32),
    )


def _replacement(
    dataset: Dataset, example: int, why: ValueError, config: Config, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw another training image, and its record, for an example that is corrupt."""
    for other in rng.integers(len(dataset.train), size=NUM_DRAWS).tolist():
        record = dataset.train[other]
        with contextlib.suppress(ValueError):
            return decode(record["image"], num_channels=len(config.mean)), record
    raise DataError(
        f"image {example} of the split 'train' of {dataset.name} is {why}; nor are {NUM_DRAWS} "
        "others that were drawn to take its place"
    )
