"""`python -m train.memory RECIPE`: the largest n that fits a device's memory, found by compiling.

XLA says what a compiled training step takes, so nothing is allocated. n is images per worker; the
minibatch is divided among the workers, so more of them with more accumulation steps take no more.
"""

import contextlib
import dataclasses
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import optax
import tyro

from train import command_line
from train.config import Config, Model, RunError, UsageError, flag
from train.recipes import RECIPES
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state
from train.step.train_step import abstract_minibatch, make_steps
from train.step.workers import Workers, make_workers

PROG = "python -m train.memory"
MINIBATCHES_AHEAD = 2  # on their way to the devices while a step runs; see train.data.reader
FIRST = 32  # the paper's n


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Whose training step is compiled, and in what size."""

    recipe: Annotated[Literal["digits", "fashion-mnist", "imagenet", "tfds"], tyro.conf.Positional]
    """Whose step it is."""

    workers_per_device: int = 1
    """Workers on each chip or GPU: k grows with the devices."""

    accumulation_steps: int = 1
    """Parts in which a minibatch goes through a device."""

    model: Model | None = None
    """The recipe's if left out."""

    image_size: int | None = None
    """The recipe's if left out."""

    num_classes: int = 1000
    """Of the data set."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the network's arithmetic; the recipe's if left out."""

    def __post_init__(self) -> None:
        """Check what `Config` does not."""
        for name in ("workers_per_device", "num_classes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} is {getattr(self, name)}; it must be at least 1")

    def run_of(self, num_devices: int, batch_size_per_worker: int) -> Config:
        """The run on so many devices with so many images per worker."""
        config = RECIPES[self.recipe]()
        return dataclasses.replace(
            config,
            num_workers=num_devices * self.workers_per_device,
            batch_size_per_worker=batch_size_per_worker,
            accumulation_steps=self.accumulation_steps,
            model=self.model or config.model,
            image_size=self.image_size or config.image_size,
            dtype=self.dtype or config.dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StepOptions):
    """Find the largest number n of images per worker with which a training step fits."""

    memory_bytes: int | None = None
    """Of a device; left out, what JAX says that it may take, on a CPU what the machine has free."""

    num_devices: int | None = None
    """Simulate this many CPU devices; left out, all devices of the machine are used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that a training step takes of each device."""

    state: int
    """Parameters, statistics and the optimizer's state; the new one takes the place of the old."""
    activations: int
    """And all else that lives no longer than the step, with the program."""
    minibatch: int

    @property
    def step(self) -> int:
        """All of one step."""
        return self.state + self.activations + self.minibatch

    @property
    def training(self) -> int:
        """The same beside the minibatches that are on their way."""
        return self.step + MINIBATCHES_AHEAD * self.minibatch


def compile_step(
    config: Config, num_classes: int, schedule: optax.Schedule, devices: list[Any]
) -> tuple[Any, StepMemory]:
    """Compile a run's training step for devices, which need not be there; nothing is allocated."""
    workers = make_workers(config, devices)
    optimizer = make_optimizer(schedule, config.optimizer)
    state = abstract_state(config, num_classes, optimizer, workers)
    minibatch = abstract_minibatch(config, workers)
    steps = make_steps(config, num_classes, optimizer, workers)
    program = steps.train.lower(state, minibatch).compile()
    memory = program.memory_analysis()
    of_minibatch = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(minibatch))
    of_minibatch //= len(devices)
    return program, StepMemory(
        state=memory.argument_size_in_bytes - of_minibatch,
        activations=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        minibatch=of_minibatch,
    )


def abstract_state(
    config: Config, num_classes: int, optimizer: Any, workers: Workers
) -> TrainState:
    """Shapes, types and shardings of the state before the first step."""
    shapes = jax.eval_shape(lambda: initial_state(config, num_classes, optimizer, workers))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=workers.replicated), shapes
    )


def largest_that_fits(num_bytes: Callable[[int], float], limit: int) -> int:
    """Find the largest n of at most `limit` bytes in few calls, since they grow evenly, or nearly.

    The line through the two nearest to the limit says which n is next, until one fits and the one
    after it does not.

    Args:
        num_bytes: of n; infinity where nobody knows by how much it is too large.
        limit: in bytes.

    Returns:
        n; 0 if not even 1 fits.
    """
    known: dict[int, float] = {}
    fits, too_large, n = 0, sys.maxsize, FIRST
    while too_large - fits > 1:
        known[n] = num_bytes(n)
        if known[n] <= limit:
            fits = n
        else:
            too_large = n
        near = sorted((abs(size - limit), m) for m, size in known.items() if size < math.inf)
        n = (fits + too_large) // 2 if too_large < sys.maxsize else 2 * fits
        if len(near) > 1:
            (_, one), (_, other) = near[:2]
            slope = (known[one] - known[other]) / (one - other)
            if slope > 0:
                n = one + int((limit - known[one]) // slope)
        n = max(n, fits + 1)
        if n >= too_large:
            n = too_large - 1 if known[too_large] < math.inf else (fits + too_large) // 2
    return fits


def memory_of(device: Any, num_devices: int) -> tuple[int, str]:
    """How many bytes a device may take, and who says so.

    Raises:
        UsageError: if nobody does.
    """
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit, f"{device.device_kind}: JAX's bytes_limit"
    if device.platform == "cpu":
        with contextlib.suppress(OSError, ValueError):  # no Linux
            whose = "available here; XLA's libraries for CPUs take some beside what is counted"
            return available_bytes() // num_devices, whose
    raise UsageError(f"nobody says what memory {device.device_kind} has; give --memory-bytes")


def available_bytes() -> int:
    """Of this machine's memory what is free or would be, within the bound of a container."""
    [free] = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    free, group = 1024 * int(free), Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or its bound is the word max
        [used] = re.findall(r"^anon (\d+)$", (group / "memory.stat").read_text(), re.M)
        free = min(free, int((group / "memory.max").read_text()) - int(used))
    return free


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse(lambda: tyro.cli(Options, prog=PROG, args=args))
        command_line.simulate_devices(options.num_devices)
        jax.config.update("jax_enable_compilation_cache", False)  # each n is compiled but once
        return _search(options)

    return command_line.run(PROG, command)


def _search(options: Options) -> int:
    devices = jax.devices()
    if options.memory_bytes is not None:
        limit, whose = options.memory_bytes, "--memory-bytes"
    else:
        limit, whose = memory_of(devices[0], len(devices))
    tried: dict[int, StepMemory] = {}
    print(f"{options.workers_per_device} worker(s) on each of {len(devices)} device(s); limit: "
          f"{gigabytes(limit)} ({whose})")  # fmt: skip
    columns = ("n", "state", "activations", f"{1 + MINIBATCHES_AHEAD} minibatches", "together")
    print("".join(f"{column:>15}" for column in columns), flush=True)

    def num_bytes(n: int) -> float:
        config = options.run_of(len(devices), n)
        try:
            _, memory = compile_step(config, options.num_classes, lambda _: 0.1, devices)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):  # said by the compiler for TPUs
                raise
            print(f"{n:>15}  the compiler finds no room", flush=True)
            return math.inf
        tried[n] = memory
        parts = (memory.state, memory.activations, memory.training - memory.step + memory.minibatch)
        cells = [n, *map(gigabytes, (*parts, memory.training))]
        print("".join(f"{cell:>15}" for cell in cells), flush=True)
        return memory.training

    n = largest_that_fits(num_bytes, limit)
    more = tried.get(n + 1)
    reason = f"{gigabytes(more.training - limit)} too much" if more else "more than there is"
    if n == 0:
        raise RunError(f"not even n = 1 fits: it takes {reason}; take a smaller --model")
    print(
        f"n = {n} is the largest that fits, with {gigabytes(limit - tried[n].training)} to spare; "
        f"n = {n + 1} takes {reason}.\n"
        "For a larger minibatch take more workers, in parts that are as large as this: A times "
        "--num-workers with --accumulation-steps A."
    )
    return 0


def gigabytes(num_bytes: float) -> str:
    """For people; megabytes where there are few."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
