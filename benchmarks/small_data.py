"""Throughput of the input pipeline for small images on one core, decoded once or at each step.

    python -m benchmarks.small_data

The images are the digits of scikit-learn, repeated to 50,000, which is the size of CIFAR-10, and
resized to each size. The process is pinned to one core. In each round, all settings take turns:

- `array`: minibatches of 128 from the decoded array.
- `array, to the device`: the same until they are on JAX's device.
- `records`: the same minibatches with `--max-decoded-gb 0`, decoded by one thread.

It also measures how long the first start decodes and how long the next start opens the array.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import environment, make_parser, save
from benchmarks.tables import small_data as table_of

NUM_IMAGES = 50_000
SIZES = ((8, 1, "shift"), (14, 1, "shift-flip"), (28, 1, "shift-flip"), (32, 3, "shift-flip"))
SECONDS_PER_TURN = 0.5
PACKAGES = ["jax", "numpy", "grain", "pillow", "opencv-python-headless"]


class Repeated:
    """Records, repeated to another number."""

    def __init__(self, records: Any, number: int) -> None:
        self._records, self._number = records, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Any:
        return self._records[index % len(self._records)]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self._records.__getitems__([index % len(self._records) for index in indices])


def subjects(
    folder: Path, size: int, num_channels: int, augmentation: str
) -> tuple[dict[str, Callable[[], Iterator[Any]]], dict[str, float]]:
    """Build the pipelines of one setting; each starts anew and yields minibatches without end.

    Returns:
        The pipelines by name, and the seconds that decoding and opening the array take.
    """
    from train.data.dataset import open_dataset
    from train.data.in_memory import decode_once
    from train.data.minibatches import training_minibatches
    from train.data.reader import on_devices
    from train.plan import make_plan
    from train.recipes import digits
    from train.step.workers import make_workers

    config = digits().replace(
        data_dir=folder,
        image_size=size,
        augmentation=augmentation,
        mean=(0.5,) * num_channels,
        std=(0.25,) * num_channels,
        num_reader_threads=1,
    )
    digits_dataset, workers = open_dataset(config), make_workers(config)
    kept = folder / f"{size}"
    kept.mkdir()
    dataset = dataclasses.replace(
        digits_dataset, train=Repeated(digits_dataset.train, NUM_IMAGES), folder=kept
    )
    spent: dict[str, float] = {}
    in_array = dataset
    for name in ("decode_s", "open_s"):
        began = time.perf_counter()
        in_array = decode_once(config, dataset, lambda _: None)
        spent[name] = time.perf_counter() - began
    with_array, without = (make_plan(config, each, workers) for each in (in_array, dataset))
    return {
        "array": lambda: training_minibatches(with_array, 0, 10**9),
        "array, to the device": lambda: on_devices(
            training_minibatches(with_array, 0, 10**9), workers
        ),
        "records": lambda: training_minibatches(without, 0, 10**9),
    }, spent


def turn(start: Callable[[], Iterator[Any]]) -> tuple[float, float]:
    """Read minibatches for half a second; return images per second, by the clock and CPU time."""
    import jax

    minibatches = start()
    jax.block_until_ready(next(minibatches))
    began, cpu, images, passed = time.perf_counter(), time.process_time(), 0, 0.0
    while passed < SECONDS_PER_TURN:
        for minibatch in itertools.islice(minibatches, 4):
            jax.block_until_ready(minibatch.images)
            images += len(minibatch.labels.reshape(-1))
        passed = time.perf_counter() - began
    rates = images / passed, images / (time.process_time() - cpu)
    minibatches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return rates


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure the input pipeline for small images on one core.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each subject; default: 7")
    options = parser.parse_args()
    report = environment(PACKAGES) | {"rounds": options.rounds, "settings": []}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with tempfile.TemporaryDirectory() as temporary:
        built = {size: subjects(Path(temporary), *size) for size in SIZES}
        rates: dict[Any, list[tuple[float, float]]] = collections.defaultdict(list)
        for _ in range(options.rounds):
            for size, (pipelines, _) in built.items():
                for name, start in pipelines.items():
                    rates[size, name].append(turn(start))
        for (side, num_channels, augmentation), (pipelines, spent) in built.items():
            key = (side, num_channels, augmentation)
            report["settings"].append(
                {"size": side, "num_channels": num_channels, "augmentation": augmentation}
                | spent
                | {
                    name: {
                        "images_per_second": statistics.median(r for r, _ in rates[key, name]),
                        "images_per_cpu_second": statistics.median(r for _, r in rates[key, name]),
                    }
                    for name in pipelines
                }
            )
    print(table_of(report["settings"]))
    save(options.out, report)


if __name__ == "__main__":
    main()
