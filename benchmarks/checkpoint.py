"""What checkpoints cost: how long a save holds up training, and how soon a run goes on.

    python -m benchmarks.checkpoint

The state is ResNet-50's with momentum, 205 MB; a step is one minibatch of 32 images of 224 pixels
on whatever device there is. Each round makes steps alone, then a save and the steps during which it
is written in the background, so that what else the machine does falls on both alike.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.data.dataset import open_dataset
from train.data.minibatches import training_minibatches
from train.plan import make_plan
from train.recipes import digits, imagenet
from train.run.checkpoint import Checkpoints, load_network
from train.step.examples import Examples, abstract_minibatch
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.train_step import make_train_step
from train.step.workers import make_workers
from train.timeline import Phase


def seconds_since(began: float) -> float:
    """Since a reading of the same clock."""
    return time.perf_counter() - began


def saving(rounds: int, steps_a_round: int, folder: Path) -> dict[str, Any]:
    """Measure steps, saves and the way back, in seconds; for each save, in its round's steps."""
    config = imagenet().replace(num_workers=1, keep_checkpoints=1)
    workers = make_workers(config, jax.devices()[:1])
    optimizer = make_optimizer(lambda step: 0.1, config.experiment.optimizer)
    train_step = make_train_step(config.experiment, 1000, optimizer, workers)
    state = initial_state(config.experiment, 1000, optimizer, workers)
    shapes = abstract_minibatch(config.experiment, workers)
    rng = np.random.default_rng(0)
    minibatch = Examples(
        *(jax.device_put(rng.integers(0, 2, x.shape).astype(x.dtype), x.sharding) for x in shapes)
    )
    train_step = train_step.lower(state, shapes).compile()

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = train_step(state, minibatch)
        jax.block_until_ready((state, metrics))
        return seconds_since(began)

    step()
    phases = (Phase(first_step=0, num_workers=1, batch_size_per_worker=32),)
    checkpoints = Checkpoints(folder / "checkpoints", config)
    rows: list[dict[str, float]] = []
    for number in range(rounds + 1):
        alone = statistics.median(step() for _ in range(steps_a_round))
        began = time.perf_counter()
        checkpoints.save(number + 1, state, phases, {})
        blocked = seconds_since(began)
        beside = statistics.median(step() for _ in range(steps_a_round))
        if number:  # the first save of a process prepares more than the others
            rows.append({"step": alone, "blocked": blocked, "step_while_writing": beside})
            print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    began = time.perf_counter()
    checkpoints.save(rounds + 2, state, phases, {})
    checkpoints.close()
    save_and_wait = seconds_since(began)
    began = time.perf_counter()
    reopened = Checkpoints(folder / "checkpoints", config)
    open_and_compare = seconds_since(began)
    began = time.perf_counter()
    jax.block_until_ready(reopened.restore(state))
    restore = seconds_since(began)
    reopened.close()
    began = time.perf_counter()
    load_network(folder / "checkpoints" / str(rounds + 2), workers)
    network = seconds_since(began)
    files = (folder / "checkpoints" / str(rounds + 2)).rglob("*")
    return {
        "bytes": sum(path.stat().st_size for path in files if path.is_file()),
        "step_s": statistics.median(row["step"] for row in rows),
        "blocked_s": statistics.median(row["blocked"] for row in rows),
        "blocked_steps": statistics.median(row["blocked"] / row["step"] for row in rows),
        "blocked_steps_most": max(row["blocked"] / row["step"] for row in rows),
        "step_while_writing_ratio": statistics.median(
            row["step_while_writing"] / row["step"] for row in rows
        ),
        "save_until_on_disk_s": save_and_wait,
        "open_and_compare_digests_s": open_and_compare,
        "restore_s": restore,
        "load_network_s": network,
        "rounds": rows,
    }


def first_minibatch() -> dict[str, float]:
    """Seconds until the first minibatch of a run on the digits, from its start and from far on."""
    config = digits()
    dataset = open_dataset(config)
    workers = make_workers(config, jax.devices()[:1])
    readings: dict[str, list[float]] = {"from_step_0_s": [], "from_step_1000000_s": []}
    for _ in range(5):
        for name, step in zip(readings, (0, 1_000_000), strict=True):
            began = time.perf_counter()
            next(iter(training_minibatches(make_plan(config, dataset, workers), step, step + 1)))
            readings[name].append(seconds_since(began))
    return {name: statistics.median(values) for name, values in readings.items()}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures what checkpoints cost.")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-a-round", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report: dict[str, Any] = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "first_minibatch": first_minibatch(),
            "saving": saving(options.rounds, options.steps_a_round, Path(folder)),
            "load_average": os.getloadavg()[1],  # of the last five minutes; above the cores: busy
        }
    for part in ("first_minibatch", "saving"):
        for name, value in report[part].items():
            if not isinstance(value, list):
                print(f"{name:<28}{value:>14.3f}")
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
