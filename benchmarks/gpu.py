"""Single-GPU benchmark suite (up to 14 minutes): six parts, each in a process of its own.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,cuda13]' torch transformers
    .venv-bench/bin/python benchmarks/gpu.py [--parts step bounds ...] [--out benchmarks/gpu.json]

Where there is no network, the packages travel: on a machine with one and the same Python,

    pip wheel -w wheels -c constraints.txt '.[train,cuda13]' torch transformers

and there, from a checkout into which the folder `wheels` was copied,

    .venv-bench/bin/pip install --no-index -f wheels 'optax-warmup[train,cuda13]' torch transformers

Prints the page's section and writes the same numbers as JSON after each part, so that a time limit
costs only the parts that were not yet measured. A part that fails or exceeds its limit is recorded
with the last line of its error and its results so far; the others still run, and the exit code is
1. With `--parts`, the other parts of an existing file are kept if device and versions are the same.
On a CPU the sizes are small: that tests the script, and says nothing about a GPU.

- `step`: benchmarks/step.py at several batch sizes, this trainer (n = 32) beside Flax's BatchNorm
  and torch with channels_last, autocast and torch.compile. They take turns while all of them fit
  the memory; at larger batch sizes each has the GPU to itself.
- `bounds`: the model's operations as a share of the GPU's peak (MFU), and the throughput at which
  the step's bytes, as XLA counts them, would pass at the bandwidth of a copy.
- `profile`: device time by kind of operation.
- `digits`: `python -m train` with its defaults.
- `end_to_end`: benchmarks/end_to_end.py, half a minute of it.
- `checkpointing`: 1,000 steps of ResNet-50 with a checkpoint every 100.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import page
import step

ROOT = Path(__file__).parents[1]

# A multiplication and an addition are two operations, and the backward pass takes twice the forward
# one's; 4.1e9 multiplications for an image of 224x224 in ResNet-50 (He et al. 2016, table 1, and
# the strides on its 3x3 convolutions).
MODEL_FLOPS = 3 * 2 * 4.1e9
# Dense bfloat16, from the makers' data sheets; the first name that is part of the device's.
PEAK_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12,
    "H100": 989e12, "H200": 989e12, "A100": 312e12,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything is measured."""

    dtype: str
    image_size: int
    batch_sizes: tuple[int, ...]
    """In the order of their weight, since the last may be cut off; the first is profiled."""
    shared_batch_size: int
    """The largest of which all subjects fit the memory together."""
    rounds: int
    timed_steps: int
    """In each of them, and in the profile."""
    copy_bytes: int
    end_to_end: str
    """A setting of benchmarks/end_to_end.py."""
    end_to_end_seconds: float
    checkpointing: tuple[str, ...]
    digits: tuple[str, ...]
    checkpoint_every_steps: int
    num_steps: int

    def setting(self, batch_size: int) -> step.Setting:
        """The setting of benchmarks/step.py at a batch size."""
        return step.Setting(image_size=self.image_size, batch_size=batch_size, dtype=self.dtype)


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


def steps(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Let the subjects take turns, one batch size after the other."""
    names = ["optax-warmup", "flax", "torch, compiled"]
    settings: list[dict[str, Any]] = []
    for batch_size in sizes.batch_sizes:
        setting = sizes.setting(batch_size)
        shared = batch_size <= sizes.shared_batch_size
        for group in [names] if shared else [[name] for name in names]:
            settings.append(step.measure(setting, sizes.rounds, group))
            yield {"settings": settings}


def compiled_step(sizes: Sizes) -> tuple[Any, Any, Any]:
    """The trainer's compiled step at the first batch size, and its arguments."""
    train, state, minibatch = step.trainer(sizes.setting(sizes.batch_sizes[0]))
    return train.lower(state, minibatch).compile(), state, minibatch


def bounds(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure steps and copies in turns, and compare them with what the device could do."""
    import jax
    import jax.numpy as jnp

    train, state, minibatch = compiled_step(sizes)
    cost = train.cost_analysis() or {}  # XLA may not count a GPU's library calls
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros(sizes.copy_bytes // 4, jnp.float32)
    repeats = sizes.timed_steps
    rates: list[float] = []
    bandwidths: list[float] = []
    for number in range(sizes.rounds + 1):
        start = time.perf_counter()
        for _ in range(repeats):
            array = copy(array)
        array.block_until_ready()
        middle = time.perf_counter()
        for _ in range(repeats):
            state, metrics = train(state, minibatch)
            del metrics
        jax.block_until_ready(state)
        end = time.perf_counter()
        if number:  # the first round compiles
            bandwidths.append(repeats * 2 * array.nbytes / (middle - start))
            rates.append(repeats * sizes.batch_sizes[0] / (end - middle))
    rate, bandwidth = statistics.median(rates), statistics.median(bandwidths)
    kind = jax.devices()[0].device_kind
    flops = MODEL_FLOPS * (sizes.image_size / 224) ** 2
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in kind), None)
    bytes_per_image = cost.get("bytes accessed", 0) / sizes.batch_sizes[0]
    yield {
        "batch_size": sizes.batch_sizes[0],
        "images_per_second": rate,
        "model_flops_per_image": flops,
        "xla_flops_per_image": cost.get("flops", 0) / sizes.batch_sizes[0] or None,
        "peak_flops": peak,
        "mfu": peak and rate * flops / peak,
        "bytes_per_image": bytes_per_image or None,
        "copy_bytes_per_second": bandwidth,
        "bandwidth_bound_images_per_second": (
            bandwidth / bytes_per_image if bytes_per_image else None
        ),
    }


CONTAINERS = {"call", "while", "conditional"}  # whose contents are counted by themselves
MOVES = {
    "copy", "copy-start", "copy-done", "transpose", "bitcast", "bitcast-convert", "reshape",
    "parameter", "tuple", "get-tuple-element", "constant", "broadcast", "concatenate", "slice",
    "dynamic-slice", "dynamic-update-slice", "pad", "reverse",
}  # fmt: skip
NO_LOOPS = {"custom-call", "sort", "rng", "rng-bit-generator", "infeed", "outfeed"}


def kinds_of(hlo: str) -> dict[str, str]:
    """What kind of work each instruction of a compiled program is, by its name.

    A fusion is the first of these that it has inside: convolutions and matrix products, reductions,
    elementwise arithmetic; else copies and transposes.

    Args:
        hlo: text of the program.
    """
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    body: list[tuple[str, str, str]] = []
    for line in hlo.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            body = bodies[heading[1]] = []
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\((.*)", line):
            body.append((found[1], found[2], found[3]))

    def inside(opcode: str, rest: str) -> set[str]:
        if called := opcode == "fusion" and re.search(r"calls=%?([\w.-]+)", rest):
            return set().union(*(inside(*each[1:]) for each in bodies[called[1]]))
        target = re.search(r'custom_call_target="([^"]*)"', rest)
        return {named(target[1]) if target else opcode}

    return {
        name: kind_of(inside(opcode, rest))
        for body in bodies.values()
        for name, opcode, rest in body
        if opcode not in CONTAINERS
    }


def kind_of(opcodes: set[str]) -> str:
    """The kind of work of an instruction with these opcodes inside."""
    if any(re.match("all-|reduce-scatter|collective", opcode) for opcode in opcodes):
        return "all-reduce"
    if opcodes & {"convolution", "dot"}:
        return "convolution or matrix product"
    if opcodes & {"reduce", "reduce-window", "select-and-scatter", "scatter"}:
        return "reduction"
    if opcodes <= MOVES:
        return "copy or transpose"
    return "other" if opcodes & NO_LOOPS else "elementwise"


def named(kernel: str) -> str:
    """The opcode that a library's kernel, or the function that calls it, does the work of."""
    patterns = {
        "convolution": "conv(?!ert)|gemm|cudnn|cublas|cutlass|xmma|dot|matmul",
        "reduce": "reduc",
        "copy": "copy|transpose|memcpy",
        "add": "loop|fusion|elementwise",
    }
    for opcode, pattern in patterns.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return opcode
    return "custom-call"


def profile(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Add up the device's time in a trace of a few steps."""
    import jax
    from jax.profiler import ProfileData

    num_steps = sizes.timed_steps
    train, state, minibatch = compiled_step(sizes)
    state, _ = train(state, minibatch)
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(num_steps):
                state, _ = train(state, minibatch)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - start
        [file] = Path(folder).rglob("*.xplane.pb")
        trace = ProfileData.from_file(str(file))
    yield {
        "batch_size": sizes.batch_sizes[0],
        "num_steps": num_steps,
        "step_seconds": seconds / num_steps,
        **time_by_kind(trace, train.as_text(), num_steps),
    }


def time_by_kind(trace: Any, hlo: str, num_steps: int) -> dict[str, Any]:
    """Add up a trace's device time by kind of operation.

    Args:
        trace: a `jax.profiler.ProfileData`.
        hlo: text of the program that was traced.
        num_steps: number of times that it ran.
    """
    [module] = re.findall(r"^HloModule ([\w.-]+)", hlo)
    kinds = kinds_of(hlo)
    # A kernel has its instruction's name; a trace of a CUDA graph names nothing else.
    by_kernel = {name.replace(".", "_").replace("-", "_"): name for name in kinds}
    lines = [(plane.name, line) for plane in trace.planes for line in plane.lines]
    # A GPU's kernels are on the lines of its streams. The host's lines name instructions too: on a
    # CPU when they run, else when they are launched.
    on_streams = [
        line
        for plane, line in lines
        if plane.startswith("/device:") and line.name.startswith("Stream")
    ]
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    num_kernels = 0
    for line in on_streams or [line for _, line in lines]:
        for event in line.events:
            stats = dict(event.stats)
            if not str(stats.get("hlo_module", module)).startswith(module):
                continue
            name = str(stats.get("hlo_op"))
            if name not in kinds:
                name = by_kernel.get(event.name) or str(event.name)
            if not (on_streams or name in kinds):
                continue
            kind = kinds.get(name) or kind_of({named(event.name)})
            spent[kind, name] += event.duration_ns
            num_kernels += 1
    total = spent.total()
    shares: collections.Counter[str] = collections.Counter()
    for (kind, _), nanoseconds in spent.items():
        shares[kind] += nanoseconds / total  # pyright: ignore[reportArgumentType]
    return {
        "device_seconds_per_step": total / num_steps / 1e9,
        "kernels_per_step": num_kernels / num_steps,
        "shares": dict(shares.most_common()),
        "longest": [
            {"name": name, "kind": kind, "share": nanoseconds / total}
            for (kind, name), nanoseconds in spent.most_common(20)
        ],
    }


def end_to_end(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Train on JPEGs."""
    import end_to_end
    from input_pipeline import make_images

    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        setting = end_to_end.Setting.named(sizes.end_to_end)
        yield end_to_end.measure(setting, Path(folder), 1, sizes.end_to_end_seconds)


def train(*flags: str) -> float:
    """Run the trainer; the seconds it takes.

    Raises:
        RuntimeError: with its last line, if it fails.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "train", *flags]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError((run.stderr or run.stdout).strip().splitlines()[-1])
    return time.perf_counter() - start


def checkpointing(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Train with checkpoints; how long each of them holds up training."""
    every = sizes.checkpoint_every_steps
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(
            *sizes.checkpointing, "--data", "synthetic", "--num-steps", str(sizes.num_steps),
            "--checkpoint-every-steps", str(every), "--workdir", folder,
        )  # fmt: skip
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
    records = [record for record in map(json.loads, lines) if "train/seconds" in record]
    saves = save_seconds(records, every)
    yield {
        "command": " ".join(["python -m train", *sizes.checkpointing]),
        "num_steps": summary["num_steps"],
        "seconds": seconds,
        "images_per_second": statistics.median(r["train/images_per_second"] for r in records),
        "checkpoint_every_steps": every,
        "save_seconds": statistics.median(saves),
        "longest_save_seconds": max(saves),
    }


def save_seconds(records: list[dict[str, Any]], every: int) -> list[float]:
    """How long each save held training up, by the records around it.

    Their rate leaves saves out, their seconds do not.

    Args:
        records: of metrics.jsonl.
        every: so many steps a checkpoint was saved.
    """
    images_per_step = records[-1]["train/num_examples_seen"] / records[-1]["step"]
    return [
        after["train/seconds"]
        - before["train/seconds"]
        - (after["step"] - before["step"]) * images_per_step / after["train/images_per_second"]
        for before, after in itertools.pairwise(records)
        if before["step"] % every == 0
    ]


def digits(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Run the main job on the digits."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(*sizes.digits, "--workdir", folder)
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
    yield {
        "seconds": seconds,
        "num_steps": summary["num_steps"],
        "top1_error": summary["top1_error_median_last5"],
    }


# Each part's time limit in seconds. On an H200 torch.compile takes most of the first one's time.
PARTS: dict[str, tuple[int, Callable[[Sizes], Iterator[dict[str, Any]]]]] = {
    "step": (450, steps),
    "bounds": (50, bounds),
    "profile": (60, profile),
    "digits": (100, digits),
    "end_to_end": (85, end_to_end),
    "checkpointing": (90, checkpointing),
}


def run_part(name: str, on_cpu: bool, folder: Path) -> dict[str, Any]:
    """Run one part in a process of its own, with those that it starts; what it came to."""
    limit, _ = PARTS[name]
    limit *= 10 if on_cpu else 1  # there nothing depends on the time, and a machine may be busy
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")} | os.environ
    environment["PYTHONPATH"] = str(ROOT)
    if on_cpu:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling would take longest
    out, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, __file__, "--part", name, "--out", str(out)]
    start = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, *(["--on-cpu"] if on_cpu else [])],
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,
        )
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.write_text(f"not done after {limit} s")
        except BaseException:  # Ctrl-C does not reach it
            os.killpg(process.pid, signal.SIGKILL)
            raise
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if process.returncode:
        lines = [f"exit code {process.returncode}", *log.read_text().strip().splitlines()]
        result["error"] = lines[-1]
    return result | {"took_seconds": time.perf_counter() - start}


def earlier_parts(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The parts of an existing file, if it agrees with the report in everything else."""
    if not path.exists():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    parts = old.pop("parts")
    return parts if old == {key: of for key, of in report.items() if key != "parts"} else {}


def write(path: Path, report: dict[str, Any]) -> None:
    """Write JSON whole, or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


def main() -> int:
    """Runs the parts, and writes after each."""
    parser = argparse.ArgumentParser(description="Measures one GPU.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--on-cpu", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        _, measure = PARTS[options.part]
        for result in measure(ON_CPU if options.on_cpu else ON_GPU):
            write(options.out, result)
        return 0
    machine = step.hardware()
    on_cpu = machine["platform"] == "cpu"
    if on_cpu and not options.out:
        parser.error("there is no GPU; with --out FILE it runs at small sizes on the CPU")
    path = options.out or Path(__file__).with_suffix(".json")
    report: dict[str, Any] = {
        "versions": {name: step.version(name) for name in step.PACKAGES},
        "python": platform.python_version(),
        "hardware": machine,
        "rounds": (ON_CPU if on_cpu else ON_GPU).rounds,
        "parts": {},
    }
    report["parts"] = earlier_parts(path, report)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts:
            result = run_part(name, on_cpu, Path(folder))
            report["parts"][name] = result
            write(path, report)
            print(f"{name}: {result['took_seconds']:.0f} s", result.get("error", ""), flush=True)
    print(f"wrote {path}\n\n{page.gpu(report, {})}")
    return int(any("error" in result for result in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
