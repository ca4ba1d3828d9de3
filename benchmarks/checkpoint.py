"""Cost of a checkpoint: how long saving blocks training, and how soon a run resumes.

    python -m benchmarks.checkpoint

The state is that of ResNet-50 with momentum, 205 MB in memory. A step is one minibatch of 32 images
of 224 pixels. Each round measures steps alone, then a save and the steps during which it is written
in the background, so that both see the same load of the machine.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.report import environment, make_parser, save
from benchmarks.tables import checkpoint as table_of
from benchmarks.trainer import make_trainer, random_minibatch
from train.data.dataset import open_dataset
from train.data.minibatches import training_minibatches
from train.plan import make_plan
from train.recipes import digits, imagenet
from train.run.checkpoint import Checkpoints, load_network
from train.step.examples import abstract_minibatch
from train.step.workers import make_workers
from train.timeline import Phase

PHASES = (Phase(first_step=0, num_workers=1, batch_size_per_worker=32),)


def seconds_since(began: float) -> float:
    """Return the seconds since a value of `time.perf_counter`."""
    return time.perf_counter() - began


def saving(rounds: int, steps_per_round: int, folder: Path) -> dict[str, Any]:
    """Measure steps, saves and restores, in seconds, and saves relative to their round's steps."""
    config = imagenet().replace(num_workers=1, keep_checkpoints=1)
    workers, train_step, state = make_trainer(config, jax.devices()[:1])
    minibatch = random_minibatch(config, workers)
    shapes = abstract_minibatch(config.experiment, workers)
    train_step = train_step.lower(state, shapes).compile()

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = train_step(state, minibatch)
        jax.block_until_ready((state, metrics))
        return seconds_since(began)

    step()
    checkpoints = Checkpoints(folder / "checkpoints", config)
    rows: list[dict[str, float]] = []
    for number in range(rounds + 1):
        alone = statistics.median(step() for _ in range(steps_per_round))
        began = time.perf_counter()
        checkpoints.save(number + 1, state, PHASES, {})
        blocked = seconds_since(began)
        writing = statistics.median(step() for _ in range(steps_per_round))
        if number:  # the first save of a process sets up more than the others
            rows.append({"step": alone, "blocked": blocked, "step_while_writing": writing})
            print({name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    began = time.perf_counter()
    checkpoints.save(rounds + 2, state, PHASES, {})
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
    """Measure the seconds until the first minibatch of the digits, at step 0 and a late step."""
    config = digits()
    dataset = open_dataset(config)
    plan = make_plan(config, dataset, make_workers(config, jax.devices()[:1]))
    results: dict[str, list[float]] = {"from_step_0_s": [], "from_step_1000000_s": []}
    for _ in range(5):
        for name, step in zip(results, (0, 1_000_000), strict=True):
            began = time.perf_counter()
            next(iter(training_minibatches(plan, step, step + 1)))
            results[name].append(seconds_since(began))
    return {name: statistics.median(values) for name, values in results.items()}


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure what checkpoints cost.")
    parser.add_argument("--rounds", type=int, default=5, help="saves to measure; default: 5")
    parser.add_argument("--steps-per-round", type=int, default=3, help="steps before and during "
                        "each save; default: 3")  # fmt: skip
    options = parser.parse_args()
    report = environment(["jax"]) | {"rounds": options.rounds}
    report["first_minibatch"] = first_minibatch()
    with tempfile.TemporaryDirectory() as folder:
        report["saving"] = saving(options.rounds, options.steps_per_round, Path(folder))
    print(table_of(report))
    save(options.out, report)


if __name__ == "__main__":
    main()
