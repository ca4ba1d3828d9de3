"""Data order and augmentation: pure functions, no matter which process loads the data."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Config
from train.data.augmentation import AUGMENTATIONS
from train.data.dataset import open_dataset
from train.data.minibatches import epoch_order, evaluation_minibatches, training_minibatches
from train.data.records import Dataset
from train.errors import DataError
from train.plan import make_plan
from train.recipes import digits
from train.step.examples import NO_LABEL, Examples
from train.step.workers import Workers, make_workers

REPOSITORY = Path(__file__).parents[3]

seeds = st.integers(0, 2**32 - 1)
property_test = settings(deadline=None, derandomize=True, max_examples=50)


class Numbered:
    """In-memory noise images, each with its own index as its label."""

    def __init__(self, num_examples: int) -> None:
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(1, 256, size=(num_examples, 8, 8, 1), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": cv2.imencode(".png", self.pixels[index])[1].tobytes(), "label": index}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def numbered(num_train: int = 37, num_evaluation: int = 13) -> Dataset:
    return Dataset(
        name="numbered",
        class_names=[str(label) for label in range(max(num_train, num_evaluation))],
        train=Numbered(num_train),
        evaluation=Numbered(num_evaluation),
    )


def small_config(**changes: Any) -> Config:
    """Minibatches of k = 4 times n = 3: three steps per epoch of 37 images."""
    return digits().replace(num_workers=4, batch_size_per_worker=3, **changes)


def workers_of(config: Config, num_devices: int = 1) -> Workers:
    return make_workers(config, jax.devices()[:num_devices])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneHost(Workers):
    """The workers from the view of one of several processes, which feeds only its own."""

    fed_here: tuple[int, ...]

    @property
    def local(self) -> np.ndarray:
        return np.asarray(self.fed_here)


def as_host(workers: Workers, fed_here: Sequence[int]) -> OneHost:
    fields = {field.name: getattr(workers, field.name) for field in dataclasses.fields(workers)}
    return OneHost(**fields, fed_here=tuple(fed_here))


def sorted_by_worker(rows: Examples, workers: Workers) -> Examples:
    """Rows of a minibatch with shape (worker, image, ...), worker 0 first."""

    def reorder(column: np.ndarray) -> np.ndarray:
        by_worker = column.reshape(len(workers.local), -1, *column.shape[1:])
        return by_worker[np.argsort(workers.local)]

    return Examples(*map(reorder, rows))


def training_steps(
    config: Config, first: int, last: int, workers: Workers | None = None
) -> list[Examples]:
    workers = workers or workers_of(config)
    minibatches = training_minibatches(make_plan(config, numbered(), workers), first, last)
    return [sorted_by_worker(rows, workers) for rows in minibatches]


def assert_same(left: Examples, right: Examples) -> None:
    for column, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(column, other)


def augmented(config: Config, epoch: int) -> dict[int, bytes]:
    """Augmented image of each example in an epoch of 36 images, by label."""
    steps_per_epoch = 37 // (
        config.experiment.num_workers * config.experiment.batch_size_per_worker
    )
    steps = training_steps(config, epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
    return {
        int(label): image.tobytes()
        for step in steps
        for images, labels in zip(step.images, step.labels, strict=True)
        for image, label in zip(images, labels, strict=True)
    }


@given(seeds, st.integers(0, 1000), st.integers(1, 500))
@property_test
def test_an_epoch_is_a_permutation(seed: int, epoch: int, num_examples: int):
    order = epoch_order(seed, epoch, num_examples)
    assert sorted(order.tolist()) == list(range(num_examples))


def test_the_order_differs_between_epochs_and_seeds():
    orders = {tuple(epoch_order(s, e, 50).tolist()) for s in range(20) for e in range(20)}
    assert len(orders) == 400


def test_the_order_depends_only_on_seed_and_epoch():
    order = epoch_order(1, 2, 50).tolist()
    epoch_order.cache_clear()
    np.random.seed(3)
    epoch_order(1, 3, 50)
    assert epoch_order(1, 2, 50).tolist() == order


def test_each_worker_gets_its_slice_of_the_epoch_order():
    """Worker j's part of step s begins at position s·kn + j·n of the epoch."""
    steps = training_steps(small_config(seed=5), 0, 6)
    for step, (epoch, place) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        order = epoch_order(5, epoch, 37)[12 * place : 12 * (place + 1)]
        np.testing.assert_array_equal(steps[step].labels, order.reshape(4, 3))


def test_workers_cover_an_epoch_without_overlap():
    steps = training_steps(small_config(), 0, 6)
    for epoch in (steps[:3], steps[3:]):
        examples = np.concatenate([step.labels.ravel() for step in epoch])
        assert len(examples) == len(set(examples.tolist())) == 36
        assert set(examples.tolist()) < set(range(37))


def test_training_images_match_their_labels():
    pixels = Numbered(37).pixels
    for step in training_steps(small_config(), 0, 3):
        for image, label in zip(
            step.images.reshape(-1, 8, 8, 1), step.labels.ravel().tolist(), strict=True
        ):
            # A shift moves the middle of an image by at most one pixel.
            windows = np.lib.stride_tricks.sliding_window_view(pixels[label], (6, 6, 1))
            assert (windows.reshape(-1, 6, 6, 1) == image[1:7, 1:7]).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(("num_devices", "accumulation_steps"), [(4, 1), (2, 2), (1, 4), (2, 1)])
def test_minibatches_do_not_depend_on_devices_or_accumulation(
    num_devices: int, accumulation_steps: int
):
    whole = training_steps(small_config(), 0, 4)
    config = small_config(accumulation_steps=accumulation_steps)
    parts = training_steps(config, 0, 4, workers_of(config, num_devices))
    for left, right in zip(whole, parts, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("hosts", [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(3,), (2, 0), (1,)]])
def test_minibatches_of_all_hosts_together_match_a_single_host(hosts: list[tuple[int, ...]]):
    config = small_config()
    whole = training_steps(config, 0, 100)
    of_hosts = [training_steps(config, 0, 100, as_host(workers_of(config), h)) for h in hosts]
    place = {
        worker: (h, i) for h, host in enumerate(hosts) for i, worker in enumerate(sorted(host))
    }
    for step, expected in enumerate(whole):
        assert sum(len(host[step].labels) for host in of_hosts) == 4
        for worker in range(4):
            host, row = place[worker]
            found = of_hosts[host][step]
            assert_same(
                Examples(*(column[row] for column in found)),
                Examples(*(column[worker] for column in expected)),
            )


def test_resumed_run_continues_with_the_same_minibatches():
    config = small_config()
    whole = training_steps(config, 0, 100)
    for first in (1, 3, 50, 98, 100):  # within epochs, at their ends, and at the end of the run
        later = training_steps(config, first, 100)
        for left, right in zip(whole[first:], later, strict=True):
            assert_same(left, right)


def test_augmentation_depends_only_on_seed_epoch_and_example():
    config = small_config(seed=1)
    once = augmented(config, epoch=1)
    for k, n in [(12, 1), (1, 12), (2, 9)]:
        other = augmented(config.replace(num_workers=k, batch_size_per_worker=n), epoch=1)
        assert once == other


@pytest.mark.parametrize(("seed", "epoch"), [(1, 2), (2, 1)], ids=["another epoch", "another seed"])
def test_augmentation_differs_between_epochs_and_seeds(seed: int, epoch: int):
    once, other = augmented(small_config(seed=1), 1), augmented(small_config(seed=seed), epoch)
    both = once.keys() & other.keys()
    # One shift in nine is the same by chance.
    assert sum(once[example] != other[example] for example in both) > len(both) / 2


def test_examples_of_one_epoch_are_augmented_differently():
    """Zeros at the borders reveal the shift of an image."""
    borders = set()
    for step in training_steps(small_config(), 0, 3):
        for image in step.images.reshape(-1, 8, 8):
            edges = (image[0], image[-1], image[:, 0], image[:, -1])
            borders.add(tuple(not edge.any() for edge in edges))
    assert len(borders) == 9


@pytest.mark.parametrize("num_evaluation", [1, 11, 12, 13, 24, 29])
def test_each_evaluation_example_appears_once_before_the_padding(num_evaluation: int):
    dataset, config = numbered(num_evaluation=num_evaluation), small_config()
    workers = workers_of(config)
    minibatches = list(evaluation_minibatches(make_plan(config, dataset, workers)))
    assert len(minibatches) == -(-num_evaluation // 12)
    assert all(rows.images.shape == (12, 8, 8, 1) for rows in minibatches)
    assert all(rows.images.dtype == np.uint8 for rows in minibatches)
    labels = np.concatenate([rows.labels for rows in minibatches])
    assert labels.dtype == np.int32
    padding = [NO_LABEL] * (len(labels) - num_evaluation)
    assert labels.tolist() == list(range(num_evaluation)) + padding
    images = np.concatenate([rows.images for rows in minibatches])
    np.testing.assert_array_equal(images[:num_evaluation], Numbered(num_evaluation).pixels)


def test_hosts_split_the_evaluation_examples():
    dataset, config = numbered(num_evaluation=29), small_config()
    labels = [
        rows.labels
        for fed_here in [(0, 2), (3,), (1,)]
        for rows in evaluation_minibatches(
            make_plan(config, dataset, as_host(workers_of(config), fed_here))
        )
    ]
    seen = np.concatenate(labels)
    assert len(seen) == 36
    assert sorted(seen[seen != NO_LABEL].tolist()) == list(range(29))


def test_evaluation_images_are_cropped_as_configured():
    dataset = numbered(num_evaluation=5)
    config = small_config(augmentation="crop-flip", image_size=16)
    (rows,) = evaluation_minibatches(make_plan(config, dataset, workers_of(config)))
    for image, pixels in zip(rows.images[:5], Numbered(5).pixels, strict=True):
        np.testing.assert_array_equal(image, AUGMENTATIONS["crop-flip"].evaluation_crop(pixels, 16))


def test_digits_are_read_as_uint8_images_and_int32_labels(
    digits_config: Callable[..., Config],
):
    config = digits_config(num_workers=4, batch_size_per_worker=3)
    dataset, workers = open_dataset(config), workers_of(config)
    for rows in training_minibatches(make_plan(config, dataset, workers), 0, 2):
        assert (rows.images.shape, rows.images.dtype) == ((12, 8, 8, 1), np.uint8)
        assert (rows.labels.shape, rows.labels.dtype) == ((12,), np.int32)
        assert 0 <= rows.labels.min() <= rows.labels.max() <= 9
        assert rows.images.max() > 200


class Faulty(Numbered):
    """`Numbered`, in which some records have other fields."""

    def __init__(self, num_examples: int, faults: dict[int, dict[str, Any]]) -> None:
        super().__init__(num_examples)
        self.faults = faults

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | self.faults.get(index, {})


def data_error(split: str, faults: dict[int, dict[str, Any]], **changes: Any) -> str:
    """The error of reading a split in which some of the 37 or 13 records have other fields."""
    config, dataset = small_config(**changes), numbered()
    if split == "train":
        dataset = dataclasses.replace(dataset, train=Faulty(37, faults))
        minibatches = training_minibatches(make_plan(config, dataset, workers_of(config)), 0, 9)
    else:
        dataset = dataclasses.replace(dataset, evaluation=Faulty(13, faults))
        minibatches = evaluation_minibatches(make_plan(config, dataset, workers_of(config)))
    with pytest.raises(DataError) as error:
        list(minibatches)
    return str(error.value)


READERS = [("train", 0), ("train", 2), ("test", 0)]
"""Each split, and the number of reader processes."""


@pytest.mark.parametrize(("split", "num_reader_processes"), READERS)
def test_corrupt_image_is_reported_with_its_name_and_the_command(
    split: str, num_reader_processes: int
):
    fault = {"image": b"a text", "file_name": "7/caf\ufffd.png"}
    assert data_error(split, {12: fault}, num_reader_processes=num_reader_processes) == (
        f"numbered, split '{split}', image 12 (7/caf\ufffd.png): not an image that can be decoded: "
        "unknown format (6 bytes); 'python -m train.prepare verify numbered --skip-corrupt' omits "
        "corrupt images from training"
    )


@pytest.mark.parametrize(("split", "num_reader_processes"), READERS)
@pytest.mark.parametrize("label", [-1, 37])
def test_label_that_is_not_a_class_is_reported(split: str, num_reader_processes: int, label: int):
    """Labels are checked first, so that the reason does not depend on the image."""
    faults = {12: {"label": label, "image": b"a text", "file_name": "99"}}
    assert data_error(split, faults, num_reader_processes=num_reader_processes) == (
        f"numbered, split '{split}', image 12 (99): its label is {label}, but the data set has 37 "
        "classes, 0 to 36; prepare the data set again with correct labels"
    )


def test_corrupt_image_without_a_name_is_reported_with_the_data_dir(tmp_path: Path):
    message = data_error("train", {12: {"image": b""}}, data_dir=tmp_path)
    assert message.startswith("numbered, split 'train', image 12: not an image that can be decoded")
    assert f" verify numbered --data-dir {tmp_path} --skip-corrupt' omits" in message


READ_DIGITS = """
import dataclasses, pathlib, sys
import train.__main__, train.loop
from train.data.minibatches import evaluation_minibatches, training_minibatches
from train.data.dataset import open_dataset
from train.plan import make_plan
from train.recipes import digits
from train.step.workers import make_workers

config = digits().replace(data_dir=pathlib.Path(sys.argv[1]))
dataset, workers = open_dataset(config), make_workers(config)
minibatches = training_minibatches(make_plan(config, dataset, workers), 0, 1)
print(sum(len(rows.labels) for rows in minibatches))
minibatches = evaluation_minibatches(make_plan(config, dataset, workers))
print(sum(len(rows.labels) for rows in minibatches))
print(sorted(name for name in sys.modules if name.split(".")[0] == "tensorflow"))
"""


def test_tensorflow_is_not_imported_even_if_it_is_installed(tmp_path: Path, digits_dir: Path):
    # With an empty package of that name an import would succeed and be found in sys.modules.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").touch()
    run = subprocess.run(
        [sys.executable, "-c", READ_DIGITS, digits_dir],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["128", "384", "[]"]
