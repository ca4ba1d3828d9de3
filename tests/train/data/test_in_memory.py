"""Small images decoded once: the same bytes, one copy in memory, and a file for the next start."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from train.config import Config
from train.data import in_memory
from train.data.dataset import open_dataset
from train.data.in_memory import decode_once
from train.data.minibatches import epoch_order, evaluation_minibatches, training_minibatches
from train.data.records import Dataset
from train.data.synthetic import Noise
from train.errors import DataError
from train.plan import Plan, make_plan
from train.recipes import digits, imagenet
from train.run.predictions import EvaluationMinibatches
from train.step.examples import Examples
from train.step.workers import make_workers

ROOT = Path(__file__).parents[3]


class Images:
    """In-memory PNG files of different sizes, with a count of the reads."""

    def __init__(self, num_examples: int, faults: Sequence[int] = ()) -> None:
        self.rng, self.num_reads, self.faults = np.random.default_rng(0), 0, faults
        sides = self.rng.integers(5, 50, size=(num_examples, 2)).tolist()
        pixels = [self.rng.integers(256, size=(*side, 3), dtype=np.uint8) for side in sides]
        self.files = [cv2.imencode(".png", image)[1].tobytes() for image in pixels]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.num_reads += 1
        image = b"a text" if index in self.faults else self.files[index]
        return {"image": image, "label": index % 10}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def color_config(**changes: Any) -> Config:
    """Minibatches of k = 4 times n = 5 of color images, which are resized."""
    defaults: dict[str, Any] = {
        "num_workers": 4, "batch_size_per_worker": 5, "image_size": 16,
        "augmentation": "shift-flip", "mean": (0.5,) * 3, "std": (0.2,) * 3,
    }  # fmt: skip
    return digits().replace(**defaults | changes)


def color_images(folder: Path | None = None, faults: Sequence[int] = ()) -> Dataset:
    return Dataset(
        name="color",
        class_names=[str(label) for label in range(10)],
        train=Images(130, faults),
        evaluation=Images(27),
        folder=folder,
    )


def planned(config: Config, dataset: Dataset, num_devices: int = 1) -> Plan:
    return make_plan(config, dataset, make_workers(config, jax.devices()[:num_devices]))


def read(plan: Plan, first: int = 0, last: int = 100) -> list[Examples[np.ndarray]]:
    return [*training_minibatches(plan, first, last), *evaluation_minibatches(plan)]


def assert_same(some: Sequence[Examples], others: Sequence[Examples]) -> None:
    assert len(some) == len(others)
    for left, right in zip(some, others, strict=True):
        for column, other in zip(left, right, strict=True):
            assert column.dtype == other.dtype
            np.testing.assert_array_equal(column, other)


def decoded(config: Config, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The data set after `decode_once`, and the lines that were printed."""
    lines: list[str] = []
    return decode_once(config, dataset, lines.append), lines


@pytest.mark.parametrize("augmentation", ["shift", "shift-flip"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_minibatches_are_byte_identical_with_and_without_the_array(
    augmentation: str, num_channels: int
):
    colors = {"mean": (0.5,) * num_channels, "std": (0.2,) * num_channels}
    config = color_config(augmentation=augmentation, **colors)
    expected = read(planned(config, color_images()))
    in_array, _ = decoded(config, color_images())
    assert in_array.decoded.keys() == {"train", "test"}
    assert_same(read(planned(config, in_array)), expected)
    for changes in ({"num_reader_threads": 1}, {"num_reader_threads": 4}):
        assert_same(read(planned(config.replace(**changes), color_images())), expected)
    assert_same(read(planned(config, in_array), 61), expected[61:])  # as after resuming
    parts = config.replace(accumulation_steps=2)
    for num_devices in (1, 2):
        with_array = read(planned(parts, in_array, num_devices))
        assert_same(with_array, read(planned(parts, color_images(), num_devices)))


def test_reader_processes_read_the_same_bytes(digits_dir: Path):
    config = digits().replace(data_dir=digits_dir, augmentation="shift-flip")
    dataset = open_dataset(config)
    in_array, _ = decoded(config, dataset)
    processes = config.replace(num_reader_processes=2)
    from_processes = [*training_minibatches(planned(processes, dataset), 0, 100)]
    assert_same([*training_minibatches(planned(processes, in_array), 0, 100)], from_processes)


def test_no_process_and_no_thread_is_started_to_read_the_array():
    config = color_config(num_reader_processes=2, num_reader_threads=4)
    in_array, _ = decoded(config, color_images())
    minibatches = training_minibatches(planned(config, in_array), 0, 100)
    threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 0
    next(minibatches)
    assert multiprocessing.active_children() == []
    if threads:
        assert len(os.listdir("/proc/self/task")) == threads


def test_each_image_is_decoded_once(tmp_path: Path):
    dataset, again = color_images(tmp_path), color_images(tmp_path)
    config = color_config()
    in_array, lines = decoded(config, dataset)
    read(planned(config, in_array))
    assert dataset.train.num_reads == 130  # pyright: ignore[reportAttributeAccessIssue]
    assert dataset.evaluation.num_reads == 27  # pyright: ignore[reportAttributeAccessIssue]
    assert [line.split(" once: ")[0] for line in lines] == [
        "decoding the 130 images of the split 'train'",
        "decoding the 27 images of the split 'test'",
    ]
    next_start, lines = decoded(config, again)
    assert lines == []
    assert again.train.num_reads == 0  # pyright: ignore[reportAttributeAccessIssue]
    assert_same(read(planned(config, next_start)), read(planned(config, in_array)))


def is_memory_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def test_arrays_are_memory_mapped_and_hold_no_second_copy(tmp_path: Path):
    decoded(color_config(), color_images(tmp_path))
    in_array, _ = decoded(color_config(), color_images(tmp_path))
    sizes = {path.name.split("-")[0]: path.stat().st_size for path in tmp_path.glob("decoded/*-*")}
    for split, array in in_array.decoded.items():
        assert is_memory_mapped(array)
        assert array.nbytes < sizes[split] < array.nbytes + 1000


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("decoded/*") if path.name != "lock"}


def test_other_sizes_and_changed_data_are_decoded_again(tmp_path: Path):
    data = tmp_path / "color-train.array_record-00000-of-00001"
    data.touch()
    decoded(color_config(), color_images(tmp_path))
    first = files(tmp_path)
    decoded(color_config(image_size=8), color_images(tmp_path))
    assert len(files(tmp_path)) == 4
    os.utime(data, (1, 1))  # as after a change in the middle of the file
    _, lines = decoded(color_config(), color_images(tmp_path))
    assert len(lines) == 2
    assert len(files(tmp_path)) == 4, "stale files of the same size are deleted"
    assert not first & files(tmp_path)


def test_other_decoders_decode_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoded(color_config(), color_images(tmp_path))
    monkeypatch.setattr(in_memory.simplejpeg, "__version__", "0.0.1")
    _, lines = decoded(color_config(), color_images(tmp_path))
    assert len(lines) == 2


@pytest.mark.parametrize("size", [0, 50, 100_000])
def test_a_part_of_a_file_is_decoded_again(tmp_path: Path, size: int):
    config = color_config()
    expected = read(planned(config, decoded(config, color_images(tmp_path))[0]))
    [path] = tmp_path.glob("decoded/train-*")
    os.truncate(path, size)
    in_array, lines = decoded(config, color_images(tmp_path))
    assert len(lines) == 1
    assert_same(read(planned(config, in_array)), expected)


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(lambda folder: folder.touch(), id="a file has the folder's name"),
        pytest.param(lambda folder: (folder / "lock").mkdir(parents=True), id="no lock"),
    ],
)
def test_a_folder_that_cannot_be_used_keeps_the_images_in_memory_only(
    tmp_path: Path, obstacle: Callable[[Path], None]
):
    config = color_config()
    obstacle(tmp_path / "decoded")
    in_array, lines = decoded(config, color_images(tmp_path))
    assert_same(read(planned(config, in_array)), read(planned(config, color_images())))
    assert sum("cannot be used: " in line and "decode again" in line for line in lines) == 2


def test_a_full_disk_keeps_the_images_in_memory_only(tmp_path: Path):
    """A write beyond the limit of file sizes fails as on a full disk."""
    program = DECODE.replace("#", "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))")
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("cannot be used: File too large") == 1  # the test images fit
    assert "[130, 27]" in run.stdout
    assert [name.split("-")[0] for name in files(tmp_path)] == ["test"]


DECODE = """
import pathlib, resource, sys
sys.path.insert(0, "tests/train/data")
import test_in_memory as tests
#
dataset, lines = tests.decoded(tests.color_config(), tests.color_images(pathlib.Path(sys.argv[1])))
print(*lines, [len(array) for array in dataset.decoded.values()], sep="\\n", flush=True)
"""

SLOW = """
import time
read = tests.in_memory.read_example
tests.in_memory.read_example = lambda *arguments: [time.sleep(0.02), read(*arguments)][1]
print("ready", flush=True)
"""


def start(program: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_a_kill_leaves_no_part_and_the_next_start_decodes(tmp_path: Path):
    with start(DECODE.replace("#", SLOW), tmp_path) as run:
        deadline = time.monotonic() + 60
        while not files(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    assert [name.split(".")[-1] for name in files(tmp_path)] == ["incomplete"]
    in_array, lines = decoded(color_config(), color_images(tmp_path))
    assert len(lines) == 2
    assert {name.split(".")[-1] for name in files(tmp_path)} == {"npy"}
    assert_same(
        read(planned(color_config(), in_array)), read(planned(color_config(), color_images()))
    )


def test_two_processes_decode_once(tmp_path: Path):
    """Both find nothing; one decodes while the other waits for its lock."""
    both = [start(DECODE.replace("#", SLOW), tmp_path) for _ in range(2)]
    outputs = [run.communicate(timeout=100)[0] for run in both]
    assert all("[130, 27]" in output for output in outputs)
    assert all(run.returncode == 0 for run in both)
    assert {name.split(".")[-1] for name in files(tmp_path)} == {"npy"}
    assert len(files(tmp_path)) == 2


def test_a_corrupt_image_is_reported_when_the_run_needs_it(tmp_path: Path):
    config = color_config()
    in_array, _ = decoded(config, color_images(tmp_path, faults=[99]))
    order = epoch_order(config.experiment.seed, 0, 130)
    step = int(np.flatnonzero(order == 99)[0]) // 20
    minibatches = training_minibatches(planned(config, in_array), 0, 100)
    before = [next(minibatches) for _ in range(step)]
    assert_same(before, read(planned(config, color_images()))[:step])
    with pytest.raises(DataError, match=r"^color, split 'train', image 99: not an image that can"):
        next(minibatches)


def test_an_image_that_can_be_decoded_later_is_used(tmp_path: Path):
    """A package that decodes it may have been installed."""
    config = color_config()
    decoded(config, color_images(tmp_path, faults=[99]))
    later, lines = decoded(config, color_images(tmp_path))
    assert lines == []
    assert_same(read(planned(config, later)), read(planned(config, color_images())))


@pytest.mark.parametrize("max_decoded_gb", [0, 1e-5])
def test_the_bound_disables_the_array(max_decoded_gb: float, tmp_path: Path):
    config = color_config(max_decoded_gb=max_decoded_gb)
    dataset, lines = decoded(config, color_images(tmp_path))
    assert dataset.decoded == {}
    assert files(tmp_path) == set()
    expected = (
        "the decoded images would take 0.00012 GB, more than 1e-05 GB (--max-decoded-gb, by "
        "default half of the free memory): images are decoded whenever they are needed"
    )
    assert lines == ([] if max_decoded_gb == 0 else [expected])


def test_the_default_bound_is_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch):
    for available, fits in ((240_000, False), (250_000, True)):
        monkeypatch.setattr(in_memory, "available_bytes", lambda available=available: available)
        dataset, _ = decoded(color_config(), color_images())
        assert bool(dataset.decoded) == fits


def test_photographs_and_noise_are_not_decoded_beforehand():
    photographs = imagenet().replace(image_size=16)
    assert decoded(photographs, color_images())[0].decoded == {}
    synthetic = color_config(data="synthetic")
    noise = dataclasses.replace(color_images(), train=Noise(50, 10), evaluation=Noise(20, 10))
    assert decoded(synthetic, noise)[0].decoded == {}


@pytest.mark.parametrize("stay", [True, False])
def test_decoded_test_images_stay_on_the_devices(stay: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.run.predictions.MOST_BYTES_ON_A_DEVICE", 10**6 if stay else 10)
    config = color_config()
    test = EvaluationMinibatches(planned(config, decoded(config, color_images())[0]))
    first, second = list(test), list(test)
    for left, right in zip(first, second, strict=True):
        assert (left.images is right.images) == stay
        np.testing.assert_array_equal(left.images, right.images)
    expected = list(EvaluationMinibatches(planned(config, color_images())))
    for left, right in zip(first, expected, strict=True):
        np.testing.assert_array_equal(left.images, right.images)
        np.testing.assert_array_equal(left.labels, right.labels)
