"""Reading ahead: in threads or processes on the host, and from there to the devices.

Whatever is read is a pure function of step and worker, so no number here changes a result.
"""

import collections
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TypeVar

import grain
import jax
import joblib
import numpy as np
from absl import flags

from train.config import Config, Machine
from train.data.augmentation import AUGMENTATIONS
from train.plan import Plan
from train.step.examples import Examples
from train.step.workers import Workers

T = TypeVar("T")


def on_devices(
    minibatches: Iterator[Examples[np.ndarray]], workers: Workers
) -> Iterator[Examples[jax.Array]]:
    """Assemble minibatches on the devices: the next two while the training step runs.

    Args:
        minibatches: this process's rows.
        workers: layout over the devices.
    """

    def put() -> Examples[jax.Array] | None:
        rows = next(minibatches, None)
        return None if rows is None else jax.tree.map(workers.to_devices, rows)

    # A separate thread, so that copying does not delay the next step.
    with ThreadPoolExecutor(1) as pool:
        ahead = collections.deque(pool.submit(put) for _ in range(2))
        try:
            while (minibatch := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(put))
                yield minibatch
        finally:
            pool.shutdown(cancel_futures=True)


def reader_threads(machine: Machine) -> int:
    """Number of decoding threads in all reader processes: one per available core by default."""
    return machine.num_reader_threads or joblib.cpu_count()


def reader_processes(config: Config) -> int:
    """Number of processes that the reader threads are divided among; 0 is this process.

    A photograph spends a sixth of its decoding under Python's lock, which keeps more than about six
    threads from running in parallel. Small images decode too quickly to need several processes.
    """
    if config.machine.num_reader_processes is not None:
        return config.machine.num_reader_processes
    threads = reader_threads(config.machine)
    augmentation = AUGMENTATIONS[config.experiment.augmentation]
    return threads // 4 if augmentation.for_photographs and threads >= 8 else 0


def read(
    load: Callable[[int, np.ndarray], T],
    plan: Plan,
    first_step: int,
    last_step: int,
    num_processes: int = 0,
) -> Iterator[T]:
    """Load rows worker by worker in Grain's threads and yield them step by step, in order.

    Args:
        load: pure function from step and indices of workers to the workers' rows, a tree of arrays.
            It must be picklable if there are reader processes.
        plan: plan of the run; this process loads the rows of `plan.workers.local`.
        first_step: first step.
        last_step: step after the last one.
        num_processes: processes among which the threads are divided, or 0.
    """
    local = plan.workers.local

    def load_item(item: int) -> T:
        step, place = divmod(item, len(local))
        return load(step, local[place : place + 1])

    def concatenate(parts: Sequence[T]) -> T:
        return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)

    parts = max(1, num_processes)
    threads = -(-reader_threads(plan.config.machine) // parts)
    ahead = -(-plan.config.machine.prefetch_steps * len(local) // parts)
    items = (
        grain.MapDataset.range(first_step * len(local), last_step * len(local))
        .map(load_item)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
        )
    )
    if num_processes:
        items = items.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_processes),
            worker_init_fn=_end_with_parent,
        )
    minibatches = iter(items.batch(len(local), batch_fn=concatenate))
    try:
        if num_processes:
            yield from _first(minibatches)
        yield from minibatches
    finally:
        minibatches.close()
        if num_processes:
            del minibatches
            gc.collect()  # Grain's last items are part of reference cycles and hold shared memory


def _first(minibatches: Iterator[T]) -> list[T]:
    """Read the first minibatch, which starts the processes, with SIGINT and SIGTERM blocked.

    A terminal sends Ctrl-C to the reader processes too, but the last step needs their minibatch.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which we do not define
        flags.FLAGS.mark_as_parsed()
    # The tracker also removes what a failed run leaves in shared memory; it need not report that.
    sys.warnoptions.append("ignore:resource_tracker")
    resource_tracker.ensure_running()  # otherwise it starts with them, and unblocks the signals
    sys.warnoptions.pop()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return list(itertools.islice(minibatches, 1))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """End this reader process when the training process ends for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
