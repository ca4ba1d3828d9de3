"""Minibatches on the host, as a pure function of seed, step and worker.

The example at position p of epoch e is `epoch_order(seed, e)[p]`. Step s of an epoch takes
positions [s·kn, (s + 1)·kn), of which worker j has the slice j·n (`Timeline.place` covers a changed
batch size). Devices, processes and accumulation do not enter, so a run resumes by starting at a
step: there is no state to save.

Shapes: n images per worker, S the side of the network's input, C channels.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from train.config import Experiment, JsonObject
from train.data.dataset import Dataset
from train.data.images import AUGMENTATIONS, decode
from train.data.reader import read, reader_processes
from train.errors import DataError
from train.plan import Plan
from train.step.examples import INTACT, NO_LABEL, Examples

NUM_DRAWS = 100  # replacements to try for a corrupt image until one of them is intact


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
    """
    experiment, dataset, place = plan.config.experiment, plan.dataset, plan.timeline.place
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
            record = dataset.train[example]
            try:
                image = decode(record["image"], experiment.num_channels)
            except ValueError as error:
                rows.corrupt[row] = example
                image, record = _replacement(dataset, example, error, experiment, rng)
            rows.images[row] = augmentation.augment(image, experiment.image_size, rng)
            rows.labels[row] = record["label"]
        return rows

    if experiment.data == "synthetic":  # so that the host does no work
        return itertools.repeat(next(read(load, plan, 0, 1)), last_step - first_step)
    return read(load, plan, first_step, last_step, reader_processes(plan.config))


def evaluation_minibatches(plan: Plan) -> Iterator[Examples[np.ndarray]]:
    """Yield this process's rows of minibatches that hold each evaluation image once, in order.

    The last minibatch is padded with images whose label is `NO_LABEL`. A corrupt image has the same
    label, since a replacement would count twice.
    """
    experiment, dataset = plan.config.experiment, plan.dataset
    augmentation = AUGMENTATIONS[experiment.augmentation]
    num_examples = len(dataset.evaluation)
    kn, n = experiment.batch_size, experiment.batch_size_per_worker

    def load(step: int, worker: int) -> Examples[np.ndarray]:
        first = step * kn + worker * n
        rows = _padding(n, experiment)
        for row, example in enumerate(range(first, min(first + n, num_examples))):
            record = dataset.evaluation[example]
            try:
                image = decode(record["image"], experiment.num_channels)
            except ValueError:
                rows.corrupt[row] = example
            else:
                rows.images[row] = augmentation.evaluation_crop(image, experiment.image_size)
                rows.labels[row] = record["label"]
        return rows

    return read(load, plan, 0, -(-num_examples // kn))


def _padding(n: int, experiment: Experiment) -> Examples[np.ndarray]:
    """Rows to fill one by one, so that each image is written to memory that is in the cache."""
    side = experiment.image_size
    return Examples(
        np.zeros((n, side, side, experiment.num_channels), np.uint8),
        np.full(n, NO_LABEL, np.int32),
        np.full(n, INTACT, np.int32),
    )


def _replacement(
    dataset: Dataset,
    example: int,
    error: ValueError,
    experiment: Experiment,
    rng: np.random.Generator,
) -> tuple[np.ndarray, JsonObject]:
    """Draw another training image, and its record, for a corrupt example."""
    for other in rng.integers(len(dataset.train), size=NUM_DRAWS).tolist():
        record = dataset.train[other]
        with contextlib.suppress(ValueError):
            return decode(record["image"], experiment.num_channels), record
    raise DataError(
        f"image {example} of the split 'train' of {dataset.name} is {error}; {NUM_DRAWS} random "
        "replacements are corrupt too"
    )
