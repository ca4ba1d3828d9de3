"""Minibatches on the host, as a pure function of seed, step and worker.

The example at position p of epoch e is `epoch_order(seed, e)[p]`. Step s of an epoch takes
positions [s·kn, (s + 1)·kn), of which worker j has the slice j·n (`Timeline.place` covers a changed
batch size). Devices, processes and accumulation do not enter, so a run resumes by starting at a
step: there is no state to save.

Shapes: n images per worker, S the side of the network's input, C channels.
"""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from train.config import Config, Experiment
from train.data.images import AUGMENTATIONS, decode
from train.data.reader import read, reader_processes
from train.data.records import Dataset, image_name
from train.errors import DataError
from train.plan import Plan
from train.step.examples import NO_LABEL, Examples


@functools.lru_cache(maxsize=2)  # around the end of an epoch two are in use
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """One random order of the whole training set per epoch (paper, section 3, remark 4)."""
    return np.random.default_rng((seed, epoch, 0)).permutation(num_examples)


def example_rng(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The generator that augments one example in one epoch, whoever loads it."""
    return np.random.default_rng((seed, epoch, 1 + example))


def training_minibatches(
    plan: Plan, first_step: int, last_step: int
) -> Iterator[Examples[np.ndarray]]:
    """Yield this process's rows of the minibatches of steps first_step to last_step - 1.

    Rows have the shape (len(workers.local) · n, ...), in the order of `workers.local`.

    Raises:
        DataError: at a record that `_read_example` rejects.
    """
    config, dataset, place = plan.config, plan.dataset, plan.timeline.place
    experiment = config.experiment
    augmentation = AUGMENTATIONS[experiment.augmentation]
    num_examples = len(dataset.train)
    n = experiment.batch_size_per_worker

    # The closure must not hold the plan: devices cannot be sent to reader processes.
    def load(step: int, worker: int) -> Examples[np.ndarray]:
        epoch, position = place(step)
        first = position + worker * n
        order = epoch_order(experiment.seed, epoch, num_examples)
        rows = _padding(n, experiment)
        for row, example in enumerate(order[first : first + n].tolist()):
            rng = example_rng(experiment.seed, epoch, example)
            image, rows.labels[row] = _read_example(dataset, "train", example, config)
            rows.images[row] = augmentation.augment(image, experiment.image_size, rng)
        return rows

    if experiment.data == "synthetic":  # so that the host does no work
        return itertools.repeat(next(read(load, plan, 0, 1)), last_step - first_step)
    return read(load, plan, first_step, last_step, reader_processes(config))


def evaluation_minibatches(plan: Plan) -> Iterator[Examples[np.ndarray]]:
    """Yield this process's rows of minibatches that hold each evaluation image once, in order.

    The last minibatch is padded with images whose label is `NO_LABEL`.

    Raises:
        DataError: at a record that `_read_example` rejects.
    """
    config, dataset = plan.config, plan.dataset
    experiment, split = config.experiment, dataset.evaluation_split
    augmentation = AUGMENTATIONS[experiment.augmentation]
    num_examples = len(dataset.evaluation)
    kn, n = experiment.batch_size, experiment.batch_size_per_worker

    def load(step: int, worker: int) -> Examples[np.ndarray]:
        first = step * kn + worker * n
        rows = _padding(n, experiment)
        for row, example in enumerate(range(first, min(first + n, num_examples))):
            image, rows.labels[row] = _read_example(dataset, split, example, config)
            rows.images[row] = augmentation.evaluation_crop(image, experiment.image_size)
        return rows

    return read(load, plan, 0, -(-num_examples // kn))


def _padding(n: int, experiment: Experiment) -> Examples[np.ndarray]:
    """Rows to fill one by one, so that each image is written to memory that is in the cache."""
    side = experiment.image_size
    return Examples(
        np.zeros((n, side, side, experiment.num_channels), np.uint8),
        np.full(n, NO_LABEL, np.int32),
    )


def _read_example(
    dataset: Dataset, split: str, index: int, config: Config
) -> tuple[np.ndarray, int]:
    """Read one record of a split: its decoded image and its label.

    Raises:
        DataError: in one line, if the label is not a class of the data set, or if the image cannot
            be decoded.
    """
    record = (dataset.train if split == "train" else dataset.evaluation)[index]
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
