"""Training from JPEGs: what limits the throughput, and how long the device waits.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train]'
    .venv-bench/bin/python -m benchmarks.end_to_end

It prints a table and writes the same numbers as JSON, in four minutes on two cores. Each round of a
setting, MODEL/SIZE/MINIBATCH/DTYPE, measures three things one after the other:

- the input pipeline alone: from ArrayRecord with the JPEGs of benchmarks/photographs.py to
  minibatches on the device;
- the step alone: training with --data synthetic, the same minibatch at every step;
- both: training on those JPEGs.

Training runs the trainer's parts in the order of train/loop.py: it dispatches each step before it
reads the metrics of the previous one. The device waits from the end of a step until the next one
has been dispatched and its minibatch is on the device; with the step alone, the host alone causes
this. The slower of the two parts limits the throughput. On a CPU both parts share the cores, so
decoding slows the step down instead of letting the device wait.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.networks import BATCH_SIZE_PER_WORKER
from benchmarks.photographs import make_images
from benchmarks.report import environment, make_parser, save
from benchmarks.tables import end_to_end as table_of
from benchmarks.trainer import make_trainer
from train.config import Config
from train.data.dataset import open_dataset
from train.data.minibatches import training_minibatches
from train.data.reader import on_devices
from train.plan import make_plan
from train.recipes import imagenet
from train.step.examples import abstract_minibatch

PACKAGES = ["jax", "flax", "optax", "grain", "simplejpeg", "opencv-python-headless"]
ON_CPU = ["resnet50/224/32/float32", "resnet8/16/128/float32"]
ELSEWHERE = ["resnet50/224/256/bfloat16"]
UNCOUNTED_STEPS = 2  # the first steps start with minibatches that were prefetched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A network and its minibatches."""

    model: str
    image_size: int
    batch_size: int
    dtype: str

    @classmethod
    def named(cls, name: str) -> Setting:
        """Parse MODEL/SIZE/MINIBATCH/DTYPE."""
        model, image_size, batch_size, dtype = name.split("/")
        return cls(model=model, image_size=int(image_size), batch_size=int(batch_size), dtype=dtype)


class Training:
    """The trainer's parts, built once for all measurements of a setting.

    Args:
        setting: network and minibatches.
        folder: folder with the data set of `make_images`.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        n = min(BATCH_SIZE_PER_WORKER, setting.batch_size)
        synthetic = imagenet().replace(
            model=setting.model,
            image_size=setting.image_size,
            dtype=setting.dtype,
            num_workers=setting.batch_size // n,
            batch_size_per_worker=n,
            data="synthetic",
        )
        self._synthetic = synthetic
        self._photographs = synthetic.replace(
            data="prepared", dataset="photographs", data_dir=folder
        )
        self._workers, train_step, self._state = make_trainer(synthetic, jax.devices()[:1])
        shapes = abstract_minibatch(synthetic.experiment, self._workers)
        self._step = train_step.lower(self._state, shapes).compile()

    def _minibatches(self, config: Config) -> Iterator[Any]:
        plan = make_plan(config, open_dataset(config), self._workers)
        read = training_minibatches(plan, 0, 1_000_000)
        return on_devices(read, self._workers)

    def pipeline(self, seconds: float) -> float:
        """Measure the images per second of the input pipeline alone, for this many seconds."""
        config, number, passed = self._photographs, 0, 0.0
        minibatches = self._minibatches(config)
        # Skip the minibatches that may have been prefetched when the first one arrived.
        for _ in range(config.machine.prefetch_steps + 3):
            jax.block_until_ready(next(minibatches))
        began = time.perf_counter()
        while passed < seconds:
            jax.block_until_ready(next(minibatches))
            number, passed = number + 1, time.perf_counter() - began
        return number * config.experiment.batch_size / passed

    def train(self, seconds: float, *, synthetic: bool) -> dict[str, float]:
        """Train for about this long; measure images per second and the share of time waited."""

        def watch(minibatch: Any, metrics: Any) -> tuple[float, float]:
            jax.block_until_ready(minibatch)
            begins = time.perf_counter()
            jax.block_until_ready(metrics)
            return begins, time.perf_counter()

        steps: list[Future[tuple[float, float]]] = []
        metrics, counted_from = None, 0.0
        config = self._synthetic if synthetic else self._photographs
        # One thread, so that it looks at a step only after the previous one has ended.
        with ThreadPoolExecutor(1) as watcher:
            for minibatch in self._minibatches(config):
                before = metrics
                self._state, metrics = self._step(self._state, minibatch)
                steps.append(watcher.submit(watch, minibatch, metrics))
                jax.device_get(before)  # while the step that was just dispatched runs
                if len(steps) == UNCOUNTED_STEPS + 1:
                    counted_from = time.perf_counter()
                elif counted_from and time.perf_counter() - counted_from >= seconds:
                    break
            times = [step.result() for step in steps]
        counted = times[UNCOUNTED_STEPS - 1 :]
        return {
            "images_per_second": (len(counted) - 1) * config.experiment.batch_size / spent(counted),
            "waited": waited(counted) / spent(counted),
            "num_steps": len(counted) - 1,
        }


def spent(steps: list[tuple[float, float]]) -> float:
    """Return the seconds from the end of the first step to the end of the last one."""
    return steps[-1][1] - steps[0][1]


def waited(steps: list[tuple[float, float]]) -> float:
    """Return how many of the seconds of `spent` pass without a running step.

    Args:
        steps: begin and end of each step, in order; a step begins after the previous one has ended
            and its own minibatch is on the device.
    """
    return sum(begin - end for (_, end), (begin, _) in itertools.pairwise(steps))


def measure(setting: Setting, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure one setting; return the medians of the rounds."""
    load = os.getloadavg()[0]
    training = Training(setting, folder)
    pipeline: list[float] = []
    alone: list[dict[str, float]] = []
    both: list[dict[str, float]] = []
    for _ in range(rounds):
        pipeline.append(training.pipeline(min(seconds, 5)))
        alone.append(training.train(seconds, synthetic=True))
        both.append(training.train(seconds, synthetic=False))

    def median(results: list[dict[str, float]], key: str) -> float:
        return statistics.median(result[key] for result in results)

    of_pipeline, of_step = statistics.median(pipeline), median(alone, "images_per_second")
    return dataclasses.asdict(setting) | {
        "load_average_before": load,
        "pipeline_images_per_second": of_pipeline,
        "step_images_per_second": of_step,
        "images_per_second": median(both, "images_per_second"),
        "over_step": statistics.median(
            b["images_per_second"] / a["images_per_second"]
            for a, b in zip(alone, both, strict=True)
        ),
        "bound_by": "the step" if of_step <= of_pipeline else "the input pipeline",
        "waited_percent": 100 * median(both, "waited"),
        "waited_percent_step_alone": 100 * median(alone, "waited"),
        "num_steps": sum(result["num_steps"] for result in both),
    }


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure training from JPEGs to parameters.")
    add = parser.add_argument
    add(
        "--settings",
        type=Setting.named,
        nargs="+",
        metavar="SETTING",
        help=f"settings, as MODEL/SIZE/MINIBATCH/DTYPE; default: {' '.join(ON_CPU)} on a CPU, else "
        f"{' '.join(ELSEWHERE)}",
    )
    add("--rounds", type=int, default=3, help="rounds per setting; default: 3")
    add("--seconds", type=float, default=5.0, help="seconds per measurement; default: 5")
    options = parser.parse_args()
    report = environment(PACKAGES) | {"rounds": options.rounds, "settings": []}
    names = ON_CPU if report["hardware"]["platform"] == "cpu" else ELSEWHERE
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        for setting in options.settings or map(Setting.named, names):
            result = measure(setting, Path(folder), options.rounds, options.seconds)
            report["settings"].append(result)
            print(table_of([result]), flush=True)
    save(options.out, report)


if __name__ == "__main__":
    main()
