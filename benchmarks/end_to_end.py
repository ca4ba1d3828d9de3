"""From JPEGs to updated parameters: what bounds the rate, and how long the device waits.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train]'
    .venv-bench/bin/python benchmarks/end_to_end.py [--out benchmarks/end_to_end.json]
        [--settings resnet50/224/32/float32 ...] [--rounds 3] [--seconds 5]

Prints a table and writes the same numbers as JSON; four minutes on two cores. Each round of a
setting, MODEL/SIZE/MINIBATCH/DTYPE, measures three things one after the other, because a shared
machine's speed drifts:

- the input pipeline alone: from ArrayRecord with the JPEGs of benchmarks/input_pipeline.py to
  minibatches on the device;
- the step alone: training with --data synthetic, the same minibatch at every step;
- both: training on those JPEGs.

Training is made of the trainer's parts, in the order of train/loop.py: each step is started before
the metrics of the one before it are read. The device waits from the end of a step until the next
one has been started and its minibatch lies on the device; of the step alone that is what the host
costs. The slower of the two parts alone bounds the rate. On a CPU both share the cores: what
decoding takes from the step shows in the rates, not in the waiting.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from input_pipeline import make_images
from step import BATCH_SIZE_PER_WORKER, LEARNING_RATE, NUM_CLASSES, hardware, version

PACKAGES = ["jax", "flax", "optax", "grain", "simplejpeg", "opencv-python-headless"]
ON_CPU = ["resnet50/224/32/float32", "resnet8/16/128/float32"]
ELSEWHERE = ["resnet50/224/256/bfloat16"]
STEPS_FIRST = 2  # that start with what was read before them, and are not counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on what."""

    model: str
    image_size: int
    batch_size: int
    dtype: str

    @classmethod
    def named(cls, name: str) -> Setting:
        """Read MODEL/SIZE/MINIBATCH/DTYPE."""
        model, image_size, batch_size, dtype = name.split("/")
        return cls(model=model, image_size=int(image_size), batch_size=int(batch_size), dtype=dtype)


class Training:
    """The trainer's parts, put together once.

    Args:
        setting: what is trained.
        folder: where `make_images` has put the data set.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        import jax
        import jax.numpy as jnp

        from train.recipes import imagenet
        from train.step.examples import abstract_minibatch
        from train.step.optimizer import make_optimizer
        from train.step.state import initial_state
        from train.step.train_step import make_train_step
        from train.step.workers import make_workers

        n = min(BATCH_SIZE_PER_WORKER, setting.batch_size)
        synthetic = imagenet().replace(
            model=setting.model,  # pyright: ignore[reportArgumentType]
            image_size=setting.image_size,
            dtype=setting.dtype,  # pyright: ignore[reportArgumentType]
            num_workers=setting.batch_size // n,
            batch_size_per_worker=n,
            data="synthetic",
        )
        self._synthetic = synthetic
        self._photographs = synthetic.replace(
            data="prepared", dataset="photographs", data_dir=folder
        )
        self._workers = make_workers(synthetic, jax.devices()[:1])
        optimizer = make_optimizer(lambda _: jnp.float32(LEARNING_RATE))
        train_step = make_train_step(synthetic.experiment, NUM_CLASSES, optimizer, self._workers)
        self._state = initial_state(synthetic.experiment, NUM_CLASSES, optimizer, self._workers)
        shapes = abstract_minibatch(synthetic.experiment, self._workers)
        self._step = train_step.lower(self._state, shapes).compile()

    def _minibatches(self, config: Any) -> Iterator[Any]:
        from train.data.dataset import open_dataset
        from train.data.minibatches import training_minibatches
        from train.data.reader import on_devices
        from train.plan import make_plan

        dataset = open_dataset(config)
        read = training_minibatches(make_plan(config, dataset, self._workers), 0, 1_000_000)
        return on_devices(read, self._workers)

    def pipeline(self, seconds: float) -> float:
        """Images a second that the input pipeline delivers by itself, over that many seconds."""
        import jax

        config, number, passed = self._photographs, 0, 0.0
        minibatches = self._minibatches(config)
        # As many as may have been on their way when the first arrived.
        for _ in range(config.machine.prefetch_steps + 3):
            jax.block_until_ready(next(minibatches))
        began = time.perf_counter()
        while passed < seconds:
            jax.block_until_ready(next(minibatches))
            number, passed = number + 1, time.perf_counter() - began
        return number * config.experiment.batch_size / passed

    def train(self, seconds: float, *, synthetic: bool) -> dict[str, float]:
        """Train for about that long: images a second, and the share of time the device waited."""
        import jax

        def watch(minibatch: Any, metrics: Any) -> tuple[float, float]:
            jax.block_until_ready(minibatch)
            begins = time.perf_counter()
            jax.block_until_ready(metrics)
            return begins, time.perf_counter()

        steps: list[Future[tuple[float, float]]] = []
        metrics, counted_from = None, 0.0
        config = self._synthetic if synthetic else self._photographs
        # One thread, so it looks at a step only when the one before has ended.
        with ThreadPoolExecutor(1) as watcher:
            for minibatch in self._minibatches(config):
                before = metrics
                self._state, metrics = self._step(self._state, minibatch)
                steps.append(watcher.submit(watch, minibatch, metrics))
                jax.device_get(before)  # while the step that was just started runs
                if len(steps) == STEPS_FIRST + 1:
                    counted_from = time.perf_counter()
                elif counted_from and time.perf_counter() - counted_from >= seconds:
                    break
            times = [step.result() for step in steps]
        counted = times[STEPS_FIRST - 1 :]
        return {
            "images_per_second": (len(counted) - 1) * config.experiment.batch_size / spent(counted),
            "waited": waited(counted) / spent(counted),
            "num_steps": len(counted) - 1,
        }


def spent(steps: list[tuple[float, float]]) -> float:
    """Seconds from the end of the first step to that of the last."""
    return steps[-1][1] - steps[0][1]


def waited(steps: list[tuple[float, float]]) -> float:
    """Seconds of those in which no step runs.

    Args:
        steps: when each could begin and when it ended, in their order; none begins before the one
            before it has ended.
    """
    return sum(begin - end for (_, end), (begin, _) in itertools.pairwise(steps))


def measure(setting: Setting, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure one setting; medians of the rounds."""
    load = os.getloadavg()[0]  # what else the machine is doing
    training = Training(setting, folder)
    pipeline: list[float] = []
    alone: list[dict[str, float]] = []
    both: list[dict[str, float]] = []
    for _ in range(rounds):
        pipeline.append(training.pipeline(min(seconds, 5)))
        alone.append(training.train(seconds, synthetic=True))
        both.append(training.train(seconds, synthetic=False))

    def median(readings: list[dict[str, float]], key: str) -> float:
        return statistics.median(reading[key] for reading in readings)

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
        "num_steps": sum(reading["num_steps"] for reading in both),
    }


def main() -> None:
    """Makes the images, measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures training from JPEGs to parameters.")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--settings", type=Setting.named, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of training, in each round")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    machine = hardware()
    names = ON_CPU if machine["platform"] == "cpu" else ELSEWHERE
    report: dict[str, Any] = {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": machine,
        "rounds": options.rounds,
        "settings": [],
    }
    print(f"{'images a second':<30}{'pipeline':>10}{'step':>10}{'both':>10}{'device waits':>15}")
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        for setting in options.settings or map(Setting.named, names):
            result = measure(setting, Path(folder), options.rounds, options.seconds)
            report["settings"].append(result)
            print(
                f"{'/'.join(map(str, dataclasses.astuple(setting))):<30}"
                f"{result['pipeline_images_per_second']:>10.1f}"
                f"{result['step_images_per_second']:>10.1f}"
                f"{result['images_per_second']:>10.1f}{result['waited_percent']:>13.2f} %"
            )
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
