"""Reading ahead: in threads or processes on the host, and from there to the devices.

What is read is a pure function of step and worker, so no number here changes it.
"""

import collections
import gc
import itertools
import multiprocessing
import os
import signal
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

from train.config import Config
from train.data.images import AUGMENTATIONS
from train.step.workers import Workers

T = TypeVar("T")


def on_devices(minibatches: Iterator[T], workers: Workers) -> Iterator[T]:
    """Put minibatches together on the devices: the next two while the training step runs.

    Args:
        minibatches: trees of this process's rows.
        workers: whose devices they go to, by `Workers.to_devices`.
    """

    def put() -> T | None:
        rows = next(minibatches, None)
        return None if rows is None else jax.tree.map(workers.to_devices, rows)

    # A thread of its own, so that copying is no part of the time between two steps.
    with ThreadPoolExecutor(1) as pool:
        ahead = collections.deque(pool.submit(put) for _ in range(2))
        try:
            while (minibatch := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(put))
                yield minibatch
        finally:
            pool.shutdown(cancel_futures=True)


def reader_threads(config: Config) -> int:
    """How many threads decode, in all processes: one for each core that this process may use."""
    return config.num_reader_threads or joblib.cpu_count()


def reader_processes(config: Config) -> int:
    """Among how many processes the reader threads are divided; 0 is this one.

    What a thread does under Python's lock for a photograph, a sixth of the whole, keeps more than
    about six from running side by side; small images are too quickly done to need several.
    """
    if config.num_reader_processes is not None:
        return config.num_reader_processes
    threads = reader_threads(config)
    photographs = AUGMENTATIONS[config.augmentation].for_photographs
    return threads // 4 if photographs and threads >= 8 else 0


def read(
    load: Callable[[int, int], T],
    config: Config,
    workers: Workers,
    first_step: int,
    last_step: int,
    num_processes: int = 0,
) -> Iterator[T]:
    """Load one worker's rows at a time in Grain's threads and put each step's together, in order.

    Args:
        load: makes a worker's rows of a minibatch, a tree of arrays, of step and worker; a pure
            function that can be pickled where there are processes.
        config: of the run.
        workers: of whom this process loads its own.
        first_step: whose minibatch comes first.
        last_step: before which the last one comes.
        num_processes: among which the threads are divided, or 0.
    """
    local = workers.local.tolist()

    def load_item(item: int) -> T:
        step, place = divmod(item, len(local))
        return load(step, local[place])

    def concatenate(parts: Sequence[T]) -> T:
        return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)

    parts = max(1, num_processes)
    threads = -(-reader_threads(config) // parts)
    ahead = -(-config.prefetch_steps * len(local) // parts)
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
            gc.collect()  # Grain's last items hang in cycles, and keep shared memory


def _first(minibatches: Iterator[T]) -> list[T]:
    """Take the first minibatch, which starts the processes, deaf to signals that ask for a stop.

    A terminal sends Ctrl-C to them too, and the process that trains shall have its last minibatch.
    """
    if not flags.FLAGS.is_parsed():  # Grain asks for its own, which are no flags of ours
        flags.FLAGS.mark_as_parsed()
    resource_tracker.ensure_running()  # else it starts with them, and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return list(itertools.islice(minibatches, 1))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """End this reader process with the one that trains, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
