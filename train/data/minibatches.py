"""Minibatches on the host, as a pure function of seed, step and worker.

The example at position p of epoch e is `epoch_order(seed, e)[p]`. Step s of an epoch takes
positions [s·kn, (s + 1)·kn), of which worker j has the slice j·n (`Timeline.place` covers a changed
batch size). Devices, processes and accumulation do not enter, so a run resumes at any step without
a saved position in the data. Images that were decoded beforehand give the same bytes.

Shapes: N training examples, n images per worker, W workers, S the side of the network's input,
C channels.
"""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from train.config import Config, Experiment
from train.data.augmentation import AUGMENTATIONS, Shifts, random_shifts, shift
from train.data.reader import read, reader_processes
from train.data.records import Dataset, read_example
from train.plan import Plan
from train.step.examples import NO_LABEL, Examples


@functools.lru_cache(maxsize=2)  # around the end of an epoch two are in use
def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """One random order of the whole training set per epoch (paper, section 3, remark 4)."""
    return np.random.default_rng((seed, epoch, 0)).permutation(num_examples)


@functools.lru_cache(maxsize=2)
def epoch_shifts(seed: int, epoch: int, num_examples: int, size: int, flip: bool) -> Shifts:
    """One random shift of every example per epoch, whoever loads it; arrays of shape (N,)."""
    rng = np.random.default_rng((seed, epoch, 1))
    return random_shifts(num_examples, size, flip=flip, rng=rng)


def example_rng(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The generator that crops one photograph in one epoch, whoever loads it."""
    return np.random.default_rng((seed, epoch, 1 + example))


def training_minibatches(
    plan: Plan, first_step: int, last_step: int
) -> Iterator[Examples[np.ndarray]]:
    """Yield this process's rows of the minibatches of steps first_step to last_step - 1.

    Rows have the shape (len(workers.local) · n, ...), in the order of `workers.local`.

    Raises:
        DataError: at a record that `read_example` rejects.
    """
    config, dataset, place = plan.config, plan.dataset, plan.timeline.place
    experiment = config.experiment
    augmentation = AUGMENTATIONS[experiment.augmentation]
    seed, size, num_examples = experiment.seed, experiment.image_size, len(dataset.train)
    n = experiment.batch_size_per_worker

    # The closure must not hold the plan: devices cannot be sent to reader processes.
    def load(step: int, workers: np.ndarray) -> Examples[np.ndarray]:
        epoch, position = place(step)
        order = epoch_order(seed, epoch, num_examples)
        examples = order[position + _positions(workers, n)]
        if not augmentation.random_crop:
            rows = _without_augmentation(dataset, "train", examples, config)
            shifts = epoch_shifts(seed, epoch, num_examples, size, augmentation.flip)
            return Examples(shift(rows.images, shifts.of(examples)), rows.labels)
        rows = _padding(len(examples), experiment)
        for row, example in enumerate(examples.tolist()):
            image, rows.labels[row] = read_example(dataset, "train", example, config)
            rng = example_rng(seed, epoch, example)
            rows.images[row] = augmentation.crop(image, size, rng)
        return rows

    if experiment.data == "synthetic":  # so that the host does no work
        return itertools.repeat(next(read(load, plan, 0, 1)), last_step - first_step)
    if dataset.decoded:
        local = plan.workers.local
        return (load(step, local) for step in range(first_step, last_step))
    return read(load, plan, first_step, last_step, reader_processes(config))


def evaluation_minibatches(plan: Plan) -> Iterator[Examples[np.ndarray]]:
    """Yield this process's rows of minibatches that hold each evaluation image once, in order.

    The last minibatch is padded with images whose label is `NO_LABEL`.

    Raises:
        DataError: at a record that `read_example` rejects.
    """
    config, dataset = plan.config, plan.dataset
    experiment, split = config.experiment, dataset.evaluation_split
    num_examples = len(dataset.evaluation)
    kn, n = experiment.batch_size, experiment.batch_size_per_worker
    num_steps = -(-num_examples // kn)

    def load(step: int, workers: np.ndarray) -> Examples[np.ndarray]:
        examples = step * kn + _positions(workers, n)
        rows = _padding(len(examples), experiment)
        is_example = examples < num_examples
        images, labels = _without_augmentation(dataset, split, examples[is_example], config)
        rows.images[is_example], rows.labels[is_example] = images, labels
        return rows

    if dataset.decoded:
        return (load(step, plan.workers.local) for step in range(num_steps))
    return read(load, plan, 0, num_steps)


def _positions(workers: np.ndarray, n: int) -> np.ndarray:
    """Positions in a minibatch of some workers' images, (W·n,)."""
    return (workers[:, None] * n + np.arange(n)).reshape(-1)


def _padding(num_images: int, experiment: Experiment) -> Examples[np.ndarray]:
    side = experiment.image_size
    return Examples(
        np.zeros((num_images, side, side, experiment.num_channels), np.uint8),
        np.full(num_images, NO_LABEL, np.int32),
    )


def _without_augmentation(
    dataset: Dataset, split: str, examples: np.ndarray, config: Config
) -> Examples[np.ndarray]:
    """Images of the network's size and labels of some examples; nothing is random."""
    experiment = config.experiment
    crop = AUGMENTATIONS[experiment.augmentation].evaluation_crop
    if (decoded := dataset.decoded.get(split)) is None:
        rows = _padding(len(examples), experiment)
    else:
        some = decoded[examples]
        rows = Examples(some["image"], some["label"])
    # Rows are filled one by one, so that each image is written to memory that is in the cache.
    for row in np.flatnonzero(rows.labels == NO_LABEL).tolist():
        image, rows.labels[row] = read_example(dataset, split, int(examples[row]), config)
        rows.images[row] = crop(image, experiment.image_size)
    return rows
