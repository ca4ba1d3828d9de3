"""Reading ahead: deterministic bytes, bounded memory, and readers that end with the run."""

import gc
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from train.config import Config
from train.data.dataset import open_dataset
from train.data.minibatches import epoch_order, training_minibatches
from train.data.reader import on_devices, reader_processes, reader_threads
from train.data.records import Dataset
from train.plan import Plan, make_plan
from train.recipes import digits, imagenet
from train.step.examples import Examples
from train.step.workers import Workers, make_workers

REPOSITORY = Path(__file__).parents[3]


class Photographs:
    """In-memory JPEGs, with a count of the reads."""

    def __init__(self, num_examples: int) -> None:
        pixels = np.random.default_rng(0).integers(256, size=(8, 40, 50, 3), dtype=np.uint8)
        self.files = [cv2.imencode(".jpg", image)[1].tobytes() for image in pixels]
        self.num_examples, self.num_reads = num_examples, 0

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.num_reads += 1
        return {"image": self.files[index % 8], "label": index % 1000}

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def opened(num_examples: int = 100, **changes: Any) -> tuple[Dataset, Config, Workers]:
    """Photographs for k = 4 workers with n = 5 each: five steps per epoch of 100."""
    defaults = {"num_workers": 4, "batch_size_per_worker": 5, "image_size": 16}
    config = imagenet().replace(**defaults | changes)
    photographs = Photographs(num_examples)
    classes = [str(label) for label in range(1000)]
    dataset = Dataset(
        name="photographs", class_names=classes, train=photographs, evaluation=photographs
    )
    return dataset, config, make_workers(config, jax.devices()[:1])


def planned(**changes: Any) -> Plan:
    dataset, config, workers = opened(**changes)
    return make_plan(config, dataset, workers)


def digest(minibatches: Iterable[Examples]) -> str:
    """SHA-256 of every byte, in order."""
    sha = hashlib.sha256()
    for column in itertools.chain.from_iterable(minibatches):
        sha.update(np.asarray(column).tobytes())
    return sha.hexdigest()


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until other threads or processes make a condition true; return False after a minute."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_100_minibatches_are_byte_identical_for_any_number_of_threads():
    digests = {
        digest(training_minibatches(planned(num_reader_threads=threads), 0, 100))
        for threads in (1, 2, 4)
    }
    assert len(digests) == 1


def test_late_start_reads_no_earlier_steps():
    """Any work for each of the earlier steps would never finish."""
    dataset, config, workers = opened()
    (rows,) = training_minibatches(make_plan(config, dataset, workers), 10**15, 10**15 + 1)
    assert rows.images.shape == (20, 16, 16, 3)
    order = epoch_order(
        config.experiment.seed, 10**15 // 5, 100
    )  # 10**15 is the first step of its epoch
    np.testing.assert_array_equal(rows.labels, order[:20])
    assert dataset.train.num_reads == 20  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("prefetch_steps", [1, 3])
def test_reading_ahead_is_limited_to_prefetch_steps(prefetch_steps: int):
    dataset, config, workers = opened(num_reader_threads=1, prefetch_steps=prefetch_steps)
    photographs: Any = dataset.train
    minibatches = training_minibatches(make_plan(config, dataset, workers), 0, 100)
    next(minibatches)
    assert eventually(lambda: photographs.num_reads == 20 * (1 + prefetch_steps))
    time.sleep(0.2)
    assert photographs.num_reads == 20 * (1 + prefetch_steps)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc is Linux's")
def test_memory_stays_flat_over_20_000_images():
    dataset, config, workers = opened(num_examples=20 * 1300, batch_size_per_worker=50)
    minibatches = on_devices(
        training_minibatches(make_plan(config, dataset, workers), 0, 130), workers
    )

    def resident_after(num_images: int) -> int:
        for minibatch in itertools.islice(minibatches, num_images // 200):
            jax.block_until_ready(minibatch)
        gc.collect()
        return resident_bytes()

    before = resident_after(4_000)
    growth = resident_after(20_000) - before
    assert growth < 10_000_000  # half a kilobyte per image


def numbered_rows(workers: Workers, number: int) -> Iterator[Examples[np.ndarray]]:
    for step in range(number):
        labels = np.arange(workers.batch_size, dtype=np.int32) + step
        yield Examples(labels.astype(np.uint8).reshape(-1, 1, 1, 1), labels)


def test_devices_get_every_minibatch_in_order():
    config = imagenet().replace(num_workers=8, batch_size_per_worker=2)
    workers = make_workers(config, jax.devices()[:4])
    on_their_way: Iterator[Any] = on_devices(numbered_rows(workers, 5), workers)
    for fed, rows in zip(on_their_way, numbered_rows(workers, 5), strict=True):
        for column, array in zip(rows, fed, strict=True):
            assert array.sharding.is_equivalent_to(workers.sharded, array.ndim)
            np.testing.assert_array_equal(np.asarray(array).reshape(column.shape), column)


def test_two_minibatches_are_prefetched_while_one_is_used():
    _, _, workers = opened()
    taken: list[int] = []

    def rows() -> Iterator[Examples[np.ndarray]]:
        for step, each in enumerate(numbered_rows(workers, 100)):
            taken.append(step)
            assert threading.current_thread() is not threading.main_thread()
            yield each

    fed = on_devices(rows(), workers)
    for used in range(1, 10):
        next(fed)
        assert eventually(lambda used=used: len(taken) == used + 2)
    time.sleep(0.1)
    assert len(taken) == 11


def test_closing_ends_the_reader_threads():
    dataset, config, workers = opened(num_reader_threads=3)
    before = set(threading.enumerate())
    fed: Any = on_devices(
        training_minibatches(make_plan(config, dataset, workers), 0, 10**6), workers
    )
    next(fed)
    readers = set(threading.enumerate()) - before
    assert len(readers) >= 4
    fed.close()
    del fed
    assert eventually(lambda: not any(thread.is_alive() for thread in readers))


def test_read_error_is_raised_at_its_position():
    _, _, workers = opened()

    def rows() -> Iterator[Examples[np.ndarray]]:
        yield from numbered_rows(workers, 3)
        raise OSError("disk gone")

    fed = on_devices(rows(), workers)
    assert len(list(itertools.islice(fed, 3))) == 3
    with pytest.raises(OSError, match="disk gone"):
        next(fed)


def test_default_number_of_threads_respects_cpu_affinity():
    allowed = os.sched_getaffinity(0)
    assert reader_threads(imagenet().machine) <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert reader_threads(imagenet().machine) == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert reader_threads(imagenet().replace(num_reader_threads=7).machine) == 7


@pytest.mark.parametrize(
    ("recipe", "threads", "processes", "expected"),
    [
        (imagenet, 7, None, 0), (imagenet, 8, None, 2), (imagenet, 64, None, 16),
        (imagenet, 64, 0, 0), (imagenet, 1, 3, 3), (digits, 64, None, 0), (digits, 2, 2, 2),
    ],
)  # fmt: skip
def test_processes_are_used_if_faster_or_requested(
    recipe: Callable[[], Config], threads: int, processes: int | None, expected: int
):
    config = recipe().replace(num_reader_threads=threads, num_reader_processes=processes)
    assert reader_processes(config) == expected


READ_IN_PROCESSES = """
import itertools, multiprocessing, pathlib, signal, sys
from train.data.dataset import open_dataset
from train.data.minibatches import training_minibatches
from train.plan import make_plan
from train.recipes import digits
from train.step.workers import make_workers
from tests.train.data.test_reader import digest

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)  # as in a run, which saves before it ends
    config = digits().replace(
        data_dir=pathlib.Path(sys.argv[1]), num_reader_threads=2, num_reader_processes=2
    )
    dataset, workers = open_dataset(config), make_workers(config)
    minibatches = training_minibatches(make_plan(config, dataset, workers), 0, 10**6)
    print("starting", flush=True)
    first = next(minibatches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    input()
    print(digest([first, *itertools.islice(minibatches, 99)]), flush=True)
    input()
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc is Linux's")
def test_reader_processes_survive_ctrl_c_and_end_with_the_run(tmp_path: Path, digits_dir: Path):
    script = tmp_path / "read_in_processes.py"
    script.write_text(READ_IN_PROCESSES)
    with subprocess.Popen(
        [sys.executable, script, digits_dir],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where the readers report the kill
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdin
        assert run.stdout
        try:
            assert run.stdout.readline() == "starting\n"
            for _ in range(10):  # while the readers start
                os.killpg(run.pid, signal.SIGINT)
                time.sleep(0.1)
            readers = [int(pid) for pid in run.stdout.readline().split()]
            assert len(readers) == 2
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
            run.stdin.write("\n")
            run.stdin.flush()
            config = digits().replace(data_dir=digits_dir)
            dataset, workers = open_dataset(config), make_workers(config, jax.devices()[:1])
            expected = digest(training_minibatches(make_plan(config, dataset, workers), 0, 100))
            assert run.stdout.readline() == expected + "\n"
            assert all(map(is_running, readers))
        finally:
            run.kill()
        assert eventually(lambda: not any(map(is_running, readers)))
