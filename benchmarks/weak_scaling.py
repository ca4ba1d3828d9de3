"""Weak scaling over processes: images a second of two on two cores against one on one core.

    python benchmarks/weak_scaling.py [--rounds 5] [--steps 2] [--image-size 128]
        [--out benchmarks/weak_scaling.json]

Prints a table and writes the same numbers as JSON. Takes four minutes on two cores, and needs them
for itself. Each process is pinned to a core of its own and trains ResNet-50 with n = 32, float32:

- `one`: one process on the first core, k = 1.
- `apart`: one on each core at the same time, which do not know of each other. What these lose
  against `one` is the machine's: caches, memory and clock that two cores share.
- `together`: two processes of one run, k = 2, whose gradients (102 MB) gloo adds up over loopback.

All are compiled before any is measured, and take turns in each round, because a shared machine's
speed drifts by more than what is to be measured. The efficiency is the median over rounds of the
images a second of two processes over twice those of one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH_SIZE_PER_WORKER, NUM_CLASSES = 32, 1000
BAR = 0.90


def work(options: argparse.Namespace) -> None:
    """Be one process: make as many steps as each line of the input says, and print the seconds."""
    # Before JAX is imported, so that it makes one thread and not one for each core.
    os.sched_setaffinity(0, {options.core})
    sys.path.insert(0, str(ROOT))

    import jax
    import jax.numpy as jnp
    import numpy as np

    if options.num_processes > 1:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            cluster_detection_method="deactivate",
        )
    from train.recipes import imagenet
    from train.step.examples import abstract_minibatch
    from train.step.optimizer import make_optimizer
    from train.step.state import initial_state
    from train.step.train_step import make_train_step
    from train.step.workers import make_workers

    config = imagenet().replace(
        image_size=options.image_size,
        num_workers=options.num_processes,
        batch_size_per_worker=BATCH_SIZE_PER_WORKER,
    )
    workers = make_workers(config)
    optimizer = make_optimizer(lambda _: jnp.float32(0.1))
    train_step = make_train_step(config.experiment, NUM_CLASSES, optimizer, workers)
    state = initial_state(config.experiment, NUM_CLASSES, optimizer, workers)
    rng = np.random.default_rng(options.process_id)
    # Shapes of the whole minibatch; each process gives its own rows.
    minibatch = jax.tree.map(
        lambda of: workers.to_devices(
            rng.integers(0, 256, (BATCH_SIZE_PER_WORKER, *of.shape[2:])).astype(of.dtype)
        ),
        abstract_minibatch(config.experiment, workers),
    )
    state, _ = jax.block_until_ready(train_step(state, minibatch))
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            state, _ = train_step(state, minibatch)
        jax.block_until_ready(state)
        print(time.perf_counter() - start, flush=True)


def start(core: int, image_size: int, *cluster: str) -> subprocess.Popen[str]:
    """Start one process of `work` on a core."""
    return subprocess.Popen(
        [
            *(sys.executable, __file__, "--core", str(core), "--image-size", str(image_size)),
            *cluster,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
    )


def listen(process: subprocess.Popen[str]) -> str:
    """Read the next line that is not gloo's."""
    assert process.stdout is not None
    while (line := process.stdout.readline()).startswith("[Gloo]"):
        pass
    if not line:
        raise SystemExit("a process ended by itself; see above")
    return line.strip()


def images_per_second(processes: list[subprocess.Popen[str]], steps: int) -> float:
    """Have processes make steps at the same time; count the images of all by the slowest."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
    slowest = max(float(listen(process)) for process in processes)
    return len(processes) * steps * BATCH_SIZE_PER_WORKER / slowest


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures weak scaling over processes.")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=128)
    # What one of the measured processes is told.
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--num-processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--process-id", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.core is not None:
        work(options)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    apart = [start(core, options.image_size) for core in cores]
    together = [
        start(
            *(core, options.image_size, "--coordinator", address),
            *("--num-processes", "2", "--process-id", str(number)),
        )
        for number, core in enumerate(cores)
    ]
    subjects = {"one": apart[:1], "apart": apart, "together": together}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    try:
        for process in [*apart, *together]:
            listen(process)
        for number in range(options.rounds):
            names = list(subjects)
            for name in names[number % 3 :] + names[: number % 3]:
                rates[name].append(images_per_second(subjects[name], options.steps))
        for process in [*apart, *together]:
            assert process.stdin is not None
            process.stdin.close()  # which ends it
        for process in [*apart, *together]:
            process.wait(timeout=60)
    finally:
        for process in [*apart, *together]:
            process.kill()
            process.wait()
    report: dict[str, Any] = {
        "network": "resnet50",
        "image_size": options.image_size,
        "batch_size_per_worker": BATCH_SIZE_PER_WORKER,
        "machine": platform.machine(),
        "load_before": os.getloadavg()[2],
        "images_per_second": rates,
    }
    for name in ("apart", "together"):
        each = [two / (2 * one) for two, one in zip(rates[name], rates["one"], strict=True)]
        report[f"efficiency_{name}"] = statistics.median(each)
        report[f"efficiency_{name}_rounds"] = each
    print(f"{'':<12}{'images/s':>10}{'efficiency':>12}")
    for name, each in rates.items():
        efficiency = report.get(f"efficiency_{name}", 1.0)
        print(f"{name:<12}{statistics.median(each):>10.2f}{efficiency:>12.3f}")
    print(f"at least {BAR:.2f}: {'yes' if report['efficiency_together'] >= BAR else 'no'}")
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
