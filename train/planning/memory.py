"""Memory of a compiled training step, and the search for the largest step that fits."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable

import jax
import optax

from train.config import Config
from train.data.in_memory import available_bytes
from train.errors import UsageError
from train.run.workarounds import QUIET_COMPILATION
from train.step.examples import abstract_minibatch
from train.step.optimizer import make_optimizer
from train.step.state import abstract_state
from train.step.train_step import make_train_step
from train.step.workers import Device, make_workers

MINIBATCHES_AHEAD = 2  # minibatches on their way to the devices during a step; see data/reader
FIRST = 32  # the paper's n


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that a training step needs on each device."""

    state: int
    """Parameters, statistics and optimizer state. The new state replaces the donated one."""
    activations: int
    """Everything that lives no longer than the step, and the program."""
    minibatch: int

    @property
    def step(self) -> int:
        """Bytes of one step."""
        return self.state + self.activations + self.minibatch

    @property
    def training(self) -> int:
        """Bytes of one step and of the minibatches on their way to the device."""
        return self.step + MINIBATCHES_AHEAD * self.minibatch


def compile_step(
    config: Config, num_classes: int, schedule: optax.Schedule, devices: list[Device]
) -> tuple[jax.stages.Compiled, StepMemory]:
    """Compile a run's training step for devices that need not exist; nothing is allocated."""
    experiment, workers = config.experiment, make_workers(config, devices)
    optimizer = make_optimizer(
        schedule,
        experiment.optimizer,
        momentum=experiment.momentum,
        weight_decay=experiment.weight_decay,
    )
    state = abstract_state(experiment, num_classes, optimizer, workers)
    minibatch = abstract_minibatch(experiment, workers)
    train_step = make_train_step(experiment, num_classes, optimizer, workers)
    # Only a CPU has memory for minibatches so large that they raise the alarm.
    options = QUIET_COMPILATION if devices[0].platform == "cpu" else None
    program = train_step.lower(state, minibatch).compile(compiler_options=options)
    memory = program.memory_analysis()
    assert memory is not None
    minibatch_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(minibatch))
    minibatch_bytes //= len(devices)
    return program, StepMemory(
        state=memory.argument_size_in_bytes - minibatch_bytes,
        activations=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes,
        minibatch=minibatch_bytes,
    )


def largest_that_fits(
    num_bytes: Callable[[int], float], limit: int, bound: int = sys.maxsize - 1
) -> int:
    """Find the largest n that needs at most `limit` bytes, in few calls.

    Bytes grow almost linearly with n. The line through the two sizes nearest to the limit gives
    the next n, until one fits and its successor does not. If the compiler only reports
    out-of-memory, the search bisects.

    Args:
        num_bytes: bytes needed for n; `inf` if the compiler only reports out-of-memory.
        limit: available bytes.
        bound: largest n to consider.

    Returns:
        n, at most `bound`; 0 if not even 1 fits.
    """
    known: dict[int, float] = {}
    fits, too_large, n = 0, bound + 1, min(FIRST, bound)
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
            is_line = known.get(too_large, 0.0) < math.inf  # the bound itself is never compiled
            n = too_large - 1 if is_line else (fits + too_large) // 2
    return fits


def memory_of(device: Device, num_devices: int) -> tuple[int, str]:
    """Bytes that a device may allocate, and where the number comes from.

    Raises:
        UsageError: if it cannot be determined.
    """
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return limit, f"{device.device_kind}: JAX's bytes_limit"
    if device.platform == "cpu":
        with contextlib.suppress(OSError, ValueError):  # not Linux
            source = "available here; XLA's CPU libraries need some more than is counted"
            return available_bytes() // num_devices, source
    raise UsageError(f"cannot determine the memory of {device.device_kind}; pass --memory-bytes")


def gigabytes(num_bytes: float) -> str:
    """Bytes for people: GB, or MB below one."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.2f} MB"
