"""Throughput of a training step on one device, compared with other libraries.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,bench]'
    .venv-bench/bin/python -m benchmarks.step

It measures ResNet-50 and then small networks: resnet8 at 8, 14, 28 and 32 pixels, on a CPU.
`--networks` selects one of them; the results of the other are kept if they are of the same machine
and versions.

It prints tables and writes the same numbers as JSON. Each subject is a process of its own, and the
processes take turns. A subject that cannot be imported or does not fit the device is reported as
missing and left out.

The subjects train on the same random images, which are on the device already. For ResNet-50:

- `optax-warmup`: this trainer, n = 32. It alone normalizes uint8 pixels within its step; the others
  get normalized images.
- `flax`: nnx.BatchNorm over the whole minibatch, with the data-parallel step of JAX's examples:
  plain `jit`, the minibatch sharded over a mesh, donated parameters.
- `torch`: the ResNet of transformers in the usual loop; under autocast for bfloat16.
- `torch, channels_last`: the same in that memory format.
- `torch, compiled`: the same, in that memory format, with torch.compile as well.
- `keras`: keras.applications.ResNet50 on its JAX backend. It has the strides on 1x1 convolutions,
  which takes 7 % fewer multiplications.

For resnet8, which has a 3x3 stem and one basic block in each of three stages:

- `optax-warmup`: this trainer, n = 16.
- `torch`, `torch, channels_last`, `torch, compiled`, and `torch, both` of them: the same layers,
  but BatchNorm2d over the whole minibatch, as users of PyTorch train.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.networks import NETWORKS, Setting
from benchmarks.report import environment, make_parser, save
from benchmarks.subject import Subject, answer, median_ratio
from benchmarks.tables import small_networks, steps
from train.run.startup import HUGE_PAGES, TUNABLES

PACKAGES = ["jax", "flax", "optax", "torch", "transformers", "keras"]


def serve(name: str, setting: Setting) -> None:
    """Run a subject's process: time as many steps as each line of standard input asks for."""
    start = time.perf_counter()
    try:
        run = NETWORKS[setting.network][name](setting)
        run(1)
    except Exception as error:  # not installed, no C++ compiler, out of memory, ...
        reason = " ".join(str(error).split())[:200]
        answer(missing=f"{type(error).__name__}: {reason}")
        return
    first, start = time.perf_counter() - start, time.perf_counter()
    run(1)
    answer(missing=None, first_step_s=first, step_s=time.perf_counter() - start)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        answer(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)


def start(name: str, setting: Setting) -> Subject:
    """Start a subject's process."""
    flags = {"subject": name, "dtypes": setting.dtype}
    flags |= {"batch-sizes": setting.batch_size, "image-sizes": setting.image_size}
    flags["networks"] = setting.network
    variables = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes share a GPU's memory
        TUNABLES: HUGE_PAGES,  # as `python -m train` sets it; PyTorch gets them too
    }
    return Subject.start(name, "benchmarks.step", flags, variables)


def measure(setting: Setting, rounds: int, names: list[str]) -> dict[str, Any]:
    """Measure the subjects in turns with one setting."""
    load = os.getloadavg()[0]
    missing: dict[str, str] = {}
    first: dict[str, float] = {}
    num_steps: dict[str, int] = {}
    subjects: list[Subject] = []
    for name in names:
        subject = start(name, setting)
        try:
            ready = subject.read()
        except RuntimeError as error:  # killed for its memory, for example
            ready: dict[str, Any] = {"missing": str(error)}
        if ready["missing"]:
            missing[name] = ready["missing"]
            subject.stop()
            continue
        first[name] = ready["first_step_s"]
        # At least half a second, to make the overhead of a turn negligible.
        num_steps[name] = max(1, round(0.5 / ready["step_s"]))
        subjects.append(subject)
    rates: dict[str, dict[str, list[float]]] = {
        subject.name: {"seconds": [], "cpu_seconds": []} for subject in subjects
    }
    for _ in range(rounds):
        for subject in subjects:
            spent = subject.turn(num_steps[subject.name])
            for clock, each in rates[subject.name].items():
                each.append(setting.batch_size * num_steps[subject.name] / spent[clock])
    for subject in subjects:
        subject.stop()
    report: dict[str, Any] = dataclasses.asdict(setting) | {
        "rounds": rounds,
        "load_average_before": load,
        "missing": missing,
        "subjects": {},
    }
    for name, rate in rates.items():
        report["subjects"][name] = entry = {
            "images_per_second": statistics.median(rate["seconds"]),
            "images_per_cpu_second": statistics.median(rate["cpu_seconds"]),
            "first_step_s": first[name],
        }
        if ours := rates.get("optax-warmup"):
            entry["optax_warmup_ratio"] = median_ratio(ours["seconds"], rate["seconds"])
            entry["optax_warmup_ratio_cpu"] = median_ratio(ours["cpu_seconds"], rate["cpu_seconds"])
    return report


def settings_of(network: str, options: argparse.Namespace, *, on_cpu: bool) -> list[Setting]:
    """The settings in which a network is measured."""
    is_small = network == "resnet8"
    sizes = [8, 14, 28, 32] if is_small else [128, 224] if on_cpu else [224]
    batch_sizes = [128, 512] if is_small else [32] if on_cpu else [32, 64, 128, 256, 512]
    dtypes = ["float32"] if on_cpu or is_small else ["bfloat16", "float32"]
    return [
        Setting(network=network, image_size=image_size, batch_size=batch_size, dtype=dtype)
        for dtype, image_size, batch_size in itertools.product(
            options.dtypes or dtypes,
            options.image_sizes or sizes,
            options.batch_sizes or batch_sizes,
        )
    ]


def earlier_settings(path: Path, report: dict[str, Any], networks: list[str]) -> list[Any]:
    """Results in a file for other networks than these, if machine and versions are the same."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if any(earlier[name] != report[name] for name in ("hardware", "versions", "python")):
        return []
    return [of for of in earlier["settings"] if of.get("network", "resnet50") not in networks]


def main() -> None:
    """Run the command."""
    names = list(dict.fromkeys(name for of in NETWORKS.values() for name in of))
    parser = make_parser(__file__, "Measure training steps in several libraries.")
    add = parser.add_argument
    add("--rounds", type=int, default=4, help="turns of each subject; default: 4")
    add(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        metavar="NAME",
        help=f"networks to measure; default: {' '.join(NETWORKS)}",
    )
    add(
        "--image-sizes",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="image sizes; default: 128 and 224 on a CPU, else 224; resnet8: 8, 14, 28 and 32",
    )
    add(
        "--batch-sizes",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="batch sizes; default: 32 on a CPU, else 32 to 512; resnet8: 128 and 512",
    )
    add(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16"],
        help="types of the network's arithmetic; default: float32 on a CPU, else both",
    )
    add(
        "--subjects",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"libraries to compare; default: {'; '.join(names)}",
    )
    add("--subject", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        [network] = options.networks
        [setting] = settings_of(network, options, on_cpu=True)
        serve(options.subject, setting)
        return
    report = environment(PACKAGES)
    report["settings"] = earlier_settings(options.out, report, options.networks)
    on_cpu = report["hardware"]["platform"] == "cpu"
    for network in options.networks:
        subjects = [name for name in NETWORKS[network] if name in options.subjects]
        for setting in settings_of(network, options, on_cpu=on_cpu):
            result = measure(setting, options.rounds, subjects)
            report["settings"].append(result)
            print((small_networks if network == "resnet8" else steps)([result]), flush=True)
            for name, reason in result["missing"].items():
                print(f"{name} is missing: {reason}", flush=True)
    save(options.out, report)


if __name__ == "__main__":
    main()
