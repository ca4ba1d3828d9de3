"""The parts of benchmarks/gpu.py; each yields its results so far, the last time all of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kernels import device_time
from benchmarks.networks import Setting, trainer
from benchmarks.step import measure
from benchmarks.subject import ROOT

# ResNet-50 takes 4.1e9 multiplications for an image of 224x224 (He et al. 2016, table 1, with the
# strides on the 3x3 convolutions). Each comes with an addition, and the backward pass takes twice
# as many as the forward pass.
MODEL_FLOPS = 3 * 2 * 4.1e9
# Dense bfloat16 peak of the data sheets, by the first name that is part of the device's name.
PEAK_FLOPS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12,
    "H100": 989e12, "H200": 989e12, "A100": 312e12,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        batch_sizes: most important first, as a time limit cuts off the last; the first is profiled.
        shared_batch_size: largest batch size at which the memory holds all subjects.
        timed_steps: steps in each round, and in the profile.
        end_to_end: setting of benchmarks/end_to_end.py.
        checkpointing: flags of the run that saves checkpoints.
        digits: flags of the run on the digits.
        num_steps: steps of the run that saves checkpoints.
    """

    dtype: str
    image_size: int
    batch_sizes: tuple[int, ...]
    shared_batch_size: int
    rounds: int
    timed_steps: int
    copy_bytes: int
    end_to_end: str
    end_to_end_seconds: float
    checkpointing: tuple[str, ...]
    digits: tuple[str, ...]
    checkpoint_every_steps: int
    num_steps: int

    def setting(self, batch_size: int) -> Setting:
        """Return the setting of benchmarks/step.py at a batch size."""
        return Setting(image_size=self.image_size, batch_size=batch_size, dtype=self.dtype)


def steps(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure the subjects in turns, one batch size after the other."""
    names = ["optax-warmup", "flax", "torch, compiled"]
    settings: list[dict[str, Any]] = []
    for batch_size in sizes.batch_sizes:
        shared = batch_size <= sizes.shared_batch_size
        for group in [names] if shared else [[name] for name in names]:
            settings.append(measure(sizes.setting(batch_size), sizes.rounds, group))
            yield {"settings": settings}


def compiled_step(sizes: Sizes) -> tuple[Any, Any, Any]:
    """Compile the trainer's step at the first batch size; return it with its arguments."""
    train, state, minibatch = trainer(sizes.setting(sizes.batch_sizes[0]))
    return train.lower(state, minibatch).compile(), state, minibatch


def bounds(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure steps and copies in turns, and compare them with the limits of the device."""
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


def profile(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Sum up the device time in a trace of a few steps."""
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
        spent, num_kernels = device_time(ProfileData.from_file(str(file)), train.as_text())
    total = spent.total()
    shares: dict[str, float] = {}
    for (kind, _), nanoseconds in spent.most_common():
        shares[kind] = shares.get(kind, 0.0) + nanoseconds / total
    yield {
        "batch_size": sizes.batch_sizes[0],
        "num_steps": num_steps,
        "step_seconds": seconds / num_steps,
        "device_seconds_per_step": total / num_steps / 1e9,
        "kernels_per_step": num_kernels / num_steps,
        "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "longest": [
            {"name": name, "kind": kind, "share": nanoseconds / total}
            for (kind, name), nanoseconds in spent.most_common(20)
        ],
    }


def end_to_end(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Train on JPEGs."""
    from benchmarks import end_to_end
    from benchmarks.photographs import make_images

    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        setting = end_to_end.Setting.named(sizes.end_to_end)
        yield end_to_end.measure(setting, Path(folder), 1, sizes.end_to_end_seconds)


def train(*flags: str) -> float:
    """Run the trainer, and return the seconds that it takes.

    Raises:
        RuntimeError: if it fails; with the last line of its output.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "train", *flags]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError((run.stderr or run.stdout).strip().splitlines()[-1])
    return time.perf_counter() - start


def checkpointing(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Measure how long each checkpoint blocks training."""
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
    """Return the seconds that each save blocked training.

    `train/seconds` includes the save between two records; `train/images_per_second` does not.

    Args:
        records: records of metrics.jsonl.
        every: number of steps between checkpoints.
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
    """Train on the digits."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = train(*sizes.digits, "--workdir", folder)
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
    yield {
        "seconds": seconds,
        "num_steps": summary["num_steps"],
        "top1_error": summary["top1_error_median_last5"],
    }
