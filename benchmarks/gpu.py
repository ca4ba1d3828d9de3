"""Single-GPU benchmark suite (up to 14 minutes): six parts, each in a process of its own.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,cuda13]' torch transformers
    .venv-bench/bin/python -m benchmarks.gpu

Without a network, carry the packages. On a connected machine with the same Python, run

    pip wheel -w wheels -c constraints.txt '.[train,cuda13]' torch transformers

and then, in a checkout with that folder `wheels`,

    .venv-bench/bin/pip install --no-index -f wheels 'optax-warmup[train,cuda13]' torch transformers

It prints its tables and writes the same numbers as JSON after each part, so that a time limit costs
only the parts that were not yet measured. A part that fails or exceeds its limit is recorded with
the last line of its error and its results so far; the others still run, and the exit code is 1.
With `--parts`, the other parts of an existing file are kept if device and versions are the same. On
a CPU the sizes are small: that tests the script, and says nothing about a GPU.

- `step`: benchmarks/step.py at several batch sizes, for this trainer (n = 32), Flax's BatchNorm and
  torch with channels_last, autocast and torch.compile. They take turns while all of them fit the
  memory; at larger batch sizes each has the GPU to itself.
- `bounds`: the model's operations as a share of the GPU's peak (MFU), and the throughput at which
  the step's bytes, as XLA counts them, would pass at the bandwidth of a copy.
- `profile`: device time by kind of work.
- `end_to_end`: benchmarks/end_to_end.py, half a minute of it.
- `checkpointing`: 1,000 steps of ResNet-50 with a checkpoint every 100.
- `digits`: `python -m train` with its defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import (
    Sizes,
    bounds,
    checkpointing,
    digits,
    end_to_end,
    profile,
    steps,
)
from benchmarks.report import environment, make_parser, save
from benchmarks.step import PACKAGES
from benchmarks.subject import ROOT
from benchmarks.tables import gpu as gpu_tables

ON_GPU = Sizes(
    dtype="bfloat16",
    image_size=224,
    batch_sizes=(256, 32, 512),
    shared_batch_size=256,
    rounds=4,
    timed_steps=10,
    copy_bytes=2**30,
    end_to_end="resnet50/224/256/bfloat16",
    end_to_end_seconds=6,
    checkpointing=("imagenet", "--dtype", "bfloat16", "--num-workers", "1"),
    digits=(),
    checkpoint_every_steps=100,
    num_steps=1000,
)
ON_CPU = Sizes(
    dtype="float32",
    image_size=32,
    batch_sizes=(2,),
    shared_batch_size=2,
    rounds=1,
    timed_steps=1,
    copy_bytes=2**25,
    end_to_end="resnet8/32/32/float32",
    end_to_end_seconds=0.5,
    checkpointing=("digits",),
    digits=("--num-steps", "11"),
    checkpoint_every_steps=10,
    num_steps=20,
)


# Parts with their time limits in seconds. torch.compile takes over a minute per batch size.
PARTS: dict[str, tuple[int, Callable[[Sizes], Iterator[dict[str, Any]]]]] = {
    "step": (450, steps),
    "bounds": (50, bounds),
    "profile": (60, profile),
    "digits": (100, digits),
    "end_to_end": (85, end_to_end),
    "checkpointing": (90, checkpointing),
}


def run_part(name: str, on_cpu: bool, folder: Path) -> dict[str, Any]:
    """Run one part in a process group of its own; return its results or its error."""
    limit, _ = PARTS[name]
    limit *= 10 if on_cpu else 1  # a CPU may be busy, and its times mean nothing
    # Three parts compile the same step.
    variables = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")} | os.environ
    if on_cpu:
        variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling would take most of the time
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(out)]
    command += ["--on-cpu"] if on_cpu else []
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.write_text(f"timeout after {limit} s")
        except BaseException:  # Ctrl-C does not reach its process group
            os.killpg(process.pid, signal.SIGKILL)
            raise
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if process.returncode:
        lines = [f"exit code {process.returncode}", *log.read_text().strip().splitlines()]
        result["error"] = lines[-1]
    return result | {"took_seconds": time.perf_counter() - start}


def earlier_parts(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an existing file, if its device and versions are those of the report."""
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    same = all(old[key] == report[key] for key in ("hardware", "versions", "python", "rounds"))
    return old["parts"] if same else {}


def main() -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        __file__,
        "Measure one GPU; on a CPU, with --out, test the script at small sizes.",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
        help=f"parts to measure; default: {' '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--on-cpu", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        _, measure = PARTS[options.part]
        for result in measure(ON_CPU if options.on_cpu else ON_GPU):
            save(options.out, result)
        return 0
    report = environment(PACKAGES)
    on_cpu = report["hardware"]["platform"] == "cpu"
    if on_cpu and options.out == parser.get_default("out"):
        parser.error("JAX finds no GPU; pass --out FILE to run at small sizes on the CPU")
    report |= {"rounds": (ON_CPU if on_cpu else ON_GPU).rounds, "parts": {}}
    report["parts"] = earlier_parts(options.out, report)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts:
            result = run_part(name, on_cpu, Path(folder))
            report["parts"][name] = result
            print(f"{name}: {result['took_seconds']:.0f} s", result.get("error", ""), flush=True)
            save(options.out, report)
    print("\n\n".join(["", *gpu_tables(report).values()]))
    return int(any("error" in result for result in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
