"""Weak scaling over processes: two processes on two cores, compared with one on one core.

    python -m benchmarks.weak_scaling

It prints a table and writes the same numbers as JSON. It takes four minutes and needs two idle
cores. Each process is pinned to a core of its own and trains ResNet-50 with n = 32, float32:

- `one`: one process on the first core, k = 1.
- `apart`: two independent processes at the same time, one per core. They lose against `one` because
  the cores share caches, memory and clock.
- `together`: two processes of one run, k = 2. Gloo reduces their gradients (102 MB) over loopback.

All processes compile before any is measured, and take turns in each round. The efficiency is the
median over rounds of the images per second of two processes over twice those of one.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from typing import Any

from benchmarks.report import environment, make_parser, save
from benchmarks.subject import Subject, answer
from benchmarks.tables import weak_scaling as table_of

BATCH_SIZE_PER_WORKER = 32


def serve(options: argparse.Namespace) -> None:
    """Run a measured process: time as many steps as each line of standard input asks for."""
    # Before JAX is imported, which starts a thread for each core of the process.
    os.sched_setaffinity(0, {options.core})

    import jax

    if options.num_processes > 1:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            cluster_detection_method="deactivate",
        )
    from benchmarks.trainer import make_trainer, random_minibatch
    from train.recipes import imagenet

    config = imagenet().replace(
        image_size=options.image_size,
        num_workers=options.num_processes,
        batch_size_per_worker=BATCH_SIZE_PER_WORKER,
    )
    workers, train_step, state = make_trainer(config)
    minibatch = random_minibatch(config, workers, seed=options.process_id)
    state, _ = jax.block_until_ready(train_step(state, minibatch))
    answer(ready=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            state, _ = train_step(state, minibatch)
        jax.block_until_ready(state)
        answer(seconds=time.perf_counter() - start)


def start(core: int, image_size: int, **flags: Any) -> Subject:
    """Start a measured process on a core."""
    flags = {"core": core, "image-size": image_size} | flags
    return Subject.start(f"core {core}", "benchmarks.weak_scaling", flags, {"JAX_PLATFORMS": "cpu"})


def images_per_second(subjects: list[Subject], steps: int) -> float:
    """Let processes run at the same time; return their throughput until the slowest is done."""
    for subject in subjects:
        subject.ask(steps)
    slowest = max(subject.read()["seconds"] for subject in subjects)
    return len(subjects) * steps * BATCH_SIZE_PER_WORKER / slowest


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure weak scaling over processes.")
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="turns of each subject; default: 5")
    add("--steps", type=int, default=2, help="steps per turn; default: 2")
    add("--image-size", type=int, default=128, help="image size; default: 128")
    # Flags of a measured process.
    add("--core", type=int, help=argparse.SUPPRESS)
    add("--coordinator", help=argparse.SUPPRESS)
    add("--num-processes", type=int, default=1, help=argparse.SUPPRESS)
    add("--process-id", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.core is not None:
        serve(options)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this benchmark needs two cores")
    report = environment(["jax", "jaxlib"]) | {
        "rounds": options.rounds,
        "network": "resnet50",
        "image_size": options.image_size,
        "batch_size_per_worker": BATCH_SIZE_PER_WORKER,
    }
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    apart = [start(core, options.image_size) for core in cores]
    together = [
        start(
            core,
            options.image_size,
            **{"coordinator": address, "num-processes": 2, "process-id": number},
        )
        for number, core in enumerate(cores)
    ]
    subjects = {"one": apart[:1], "apart": apart, "together": together}
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    try:
        for process in [*apart, *together]:
            process.read()
        for number in range(options.rounds):
            names = list(subjects)
            for name in names[number % 3 :] + names[: number % 3]:
                rates[name].append(images_per_second(subjects[name], options.steps))
    finally:
        for process in [*apart, *together]:
            process.close()  # the processes of one run wait for each other as they end
        for process in [*apart, *together]:
            process.stop()
    report["images_per_second"] = rates
    for name in ("apart", "together"):
        each = [two / (2 * one) for two, one in zip(rates[name], rates["one"], strict=True)]
        report[f"efficiency_{name}"] = statistics.median(each)
        report[f"efficiency_{name}_rounds"] = each
    print(table_of(report))
    save(options.out, report)


if __name__ == "__main__":
    main()
