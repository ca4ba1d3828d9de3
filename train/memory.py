"""`python -m train.memory RECIPE`: the largest n that fits a device's memory, found by compiling.

XLA reports the memory of a compiled training step, so nothing is allocated. n is the number of
images per worker. More workers with more accumulation steps need no more memory.
"""

import dataclasses
import math
import sys

import jax

from train import command_line
from train.cluster.joining import check_platforms
from train.errors import RunError, UsageError, check_number
from train.planning.memory import (
    MINIBATCHES_AHEAD,
    StepMemory,
    compile_step,
    gigabytes,
    largest_that_fits,
    memory_of,
)
from train.planning.options import StepOptions
from train.run.terminal import terminal_width, wrapped

PROG = "python -m train.memory"
COLUMN = 15  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StepOptions):
    """Find the largest number n of images per worker for which a training step fits."""

    memory_bytes: int | None = None
    """Memory of a device. Default: what JAX may allocate; on a CPU the machine's free memory."""

    num_devices: int | None = None
    """Simulate this many CPU devices. Default: use all devices of the machine."""

    def __post_init__(self) -> None:
        """Check everything that needs no devices."""
        super().__post_init__()
        check_number("memory_bytes", self.memory_bytes, minimum=1)
        check_number("num_devices", self.num_devices, minimum=1)


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        command_line.simulate_devices(options.num_devices)
        check_platforms()
        jax.config.update("jax_enable_compilation_cache", False)  # no n is compiled twice
        return _search(options)

    return command_line.run(PROG, command)


def _search(options: Options) -> int:
    devices = jax.devices()
    if options.memory_bytes is not None:
        limit, source = options.memory_bytes, "--memory-bytes"
    else:
        limit, source = memory_of(devices[0], len(devices))
    data, k = options.data(), len(devices) * options.workers_per_device
    bound = sys.maxsize - 1 if data.num_images is None else data.num_images // k
    if bound == 0:
        raise UsageError(
            f"{data.name} has {data.num_images} training images, fewer than the {k} workers; use a "
            "smaller --workers-per-device"
        )
    tried: dict[int, StepMemory] = {}
    width = terminal_width()

    def say(line: str) -> None:
        print(wrapped(line, width))

    def row(*cells: object) -> None:
        """Print a row of the table; a narrow terminal gets only its first and last column."""
        is_narrow = width is not None and width < COLUMN * len(cells)
        shown = (cells[0], cells[-1]) if is_narrow else cells
        print("".join(f"{cell!s:>{COLUMN}}" for cell in shown), flush=True)

    say(
        f"{options.workers_per_device} worker(s) on each of {len(devices)} device(s); limit: "
        f"{gigabytes(limit)} ({source})"
    )
    row("n", "state", "activations", f"{1 + MINIBATCHES_AHEAD} minibatches", "together")

    def num_bytes(n: int) -> float:
        config = options.config_for(len(devices), n)
        try:
            _, memory = compile_step(config, data.num_classes, lambda _: 0.1, devices)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):  # the TPU compiler's out-of-memory
                raise
            say(f"{n:>{COLUMN}}  out of memory, by the compiler")
            return math.inf
        tried[n] = memory
        minibatches = memory.training - memory.step + memory.minibatch
        sizes = (memory.state, memory.activations, minibatches, memory.training)
        row(n, *map(gigabytes, sizes))
        return memory.training

    n = largest_that_fits(num_bytes, limit, bound)
    if n == bound:
        say(
            f"n = {n} is the largest: {data.name} has {data.num_images} training images for k = "
            f"{k} worker(s). The data set is the bound, not the memory, of which "
            f"{gigabytes(limit - tried[n].training)} are to spare."
        )
        return 0
    more = tried.get(n + 1)
    reason = f"{gigabytes(more.training - limit)} too much" if more else "more than there is"
    if n == 0:
        raise RunError(f"not even n = 1 fits: it needs {reason}; use a smaller --model")
    say(
        f"n = {n} is the largest that fits, with {gigabytes(limit - tried[n].training)} to spare; "
        f"n = {n + 1} needs {reason}.\n"
        "For a larger minibatch multiply --num-workers and --accumulation-steps by the same number."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
