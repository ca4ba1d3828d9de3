"""How long a step takes: what its compiled program says, and formulas for what it does not.

Times are seconds, sizes bytes, bandwidths bytes a second. Nothing here needs a TPU or its compiler.
"""

import dataclasses
import math
import re

BYTES_OF = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What a kind of TPU is assumed to do."""

    hbm_bytes: int
    """Memory of a chip."""
    clock_hz: float
    """Of the cycles that the compiler counts."""
    link_bandwidth: float
    """Of one link between chips, in one direction."""


# Memory as in cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Clocks are the published peak in bfloat16
# over what all matrix units do in a cycle: for v5e 197e12 / (4 · 128² · 2). Links are 90 % of the
# published bandwidth.
CHIPS = {
    "v4": Chip(hbm_bytes=32 * 2**30, clock_hz=1.05e9, link_bandwidth=45e9),
    "v5e": Chip(hbm_bytes=16 * 2**30, clock_hz=1.5e9, link_bandwidth=45e9),
    "v5p": Chip(hbm_bytes=95 * 2**30, clock_hz=1.75e9, link_bandwidth=90e9),
    "v6e": Chip(hbm_bytes=32 * 2**30, clock_hz=1.75e9, link_bandwidth=90e9),
}


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """One reduction over all chips, as scheduled."""

    num_bytes: int
    """That each chip gives and gets."""
    overlapped_cycles: int
    """Of compute between its start and its end; 0 if the chip waits for it."""
    estimated_cycles: int | None
    """Of its own, if the compiler says so."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What one chip does in a step, in order."""

    compute_cycles: int
    """As the compiler estimates them."""
    all_reduces: tuple[AllReduce, ...]

    @property
    def num_bytes(self) -> int:
        """Reduced in a step."""
        return sum(reduction.num_bytes for reduction in self.all_reduces)


def read_schedule(hlo: str) -> Schedule:
    """Read the compute and the all-reduces out of a scheduled program for TPUs.

    Cycles are those of each operation's `estimated_cycles`; a loop's body counts as often as it is
    known to run.

    Args:
        hlo: text of the compiled program.

    Raises:
        ValueError: if it is not scheduled, or estimates nothing.
    """
    if "is_scheduled=true" not in hlo.partition("\n")[0]:
        raise ValueError("the program is not scheduled")
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if heading := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            lines = bodies["ENTRY" if heading[1] else heading[2]] = []
        else:
            lines.append(line)

    def cycles_of(line: str) -> int:
        total = _number(r'"estimated_cycles":"(\d+)"', line) or 0
        if loop := re.search(r" while\(.*body=%?([\w.-]+)", line):
            times = _number(r'"known_trip_count":\{"n":"(\d+)"', line) or 1
            total += times * sum(cycles_of(line) for line in bodies[loop[1]])
        return total

    elapsed = 0
    started: dict[str, int] = {}  # when each all-reduce did, by its name
    reductions: dict[str, AllReduce] = {}
    for line in bodies["ENTRY"]:
        found = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) all-reduce(-start|-done)?\((.*)", line)
        if not found:
            elapsed += cycles_of(line)
            continue
        name, shapes, half, rest = found.groups()
        if half == "-done":
            start = rest[1 : rest.index(")")]  # its only operand, without the %
            overlapped = elapsed - started[start]
            reductions[start] = dataclasses.replace(reductions[start], overlapped_cycles=overlapped)
        else:
            started[name] = elapsed
            cycles = _number(r'"estimated_cycles":"(\d+)"', line)
            reductions[name] = AllReduce(_bytes_of(shapes), 0, cycles)
    if not elapsed:
        raise ValueError("the program has no estimated cycles")
    return Schedule(elapsed, tuple(reductions.values()))


def _number(pattern: str, line: str) -> int | None:
    found = re.search(pattern, line)
    return int(found[1]) if found else None


def _bytes_of(shapes: str) -> int:
    return sum(
        BYTES_OF[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def ring_all_reduce_seconds(
    num_bytes: float, num_devices: int, bandwidth: float, latency: float
) -> float:
    """2 (N - 1) / N · bytes / bandwidth + 2 (N - 1) · latency.

    Each device sends its share N - 1 times to be summed and N - 1 times to be copied.

    Args:
        num_bytes: of what is reduced.
        num_devices: N.
        bandwidth: with which each sends to the next.
        latency: of one sending.
    """
    times = 2 * (num_devices - 1)
    return times * (num_bytes / num_devices / bandwidth + latency)


def torus_all_reduce_seconds(
    num_bytes: float, shape: tuple[int, ...], bandwidth: float, latency: float
) -> float:
    """The bytes as on a ring of all chips, the latency as along one axis after the other.

    Args:
        num_bytes: of what is reduced.
        shape: chips along each axis of the slice.
        bandwidth: with which a chip sends over all links that it uses at once.
        latency: from chip to chip.
    """
    hops = 2 * sum(size - 1 for size in shape)
    return ring_all_reduce_seconds(num_bytes, math.prod(shape), bandwidth, 0) + hops * latency


def node_all_reduce_seconds(
    num_bytes: float,
    num_gpus: int,
    *,
    gpus_per_node: int,
    intra_node_bandwidth: float,
    inter_node_bandwidth: float,
    latency: float,
) -> float:
    """A ring within each node, then for each GPU's share one over the nodes.

    Args:
        num_bytes: of what is reduced.
        num_gpus: altogether: at most `gpus_per_node`, or a multiple of it.
        gpus_per_node: that share the faster links.
        intra_node_bandwidth: of a GPU to another in its node, in one direction.
        inter_node_bandwidth: of a GPU to one in another node, likewise.
        latency: of one sending.
    """
    local = min(num_gpus, gpus_per_node)
    return ring_all_reduce_seconds(
        num_bytes, local, intra_node_bandwidth, latency
    ) + ring_all_reduce_seconds(num_bytes / local, num_gpus // local, inter_node_bandwidth, latency)


def exposed_seconds(seconds: list[float], hidden: list[float], overlap: float | None) -> float:
    """How long a step waits for its reductions.

    Args:
        seconds: that each takes.
        hidden: of each, how long the schedule computes meanwhile.
        overlap: fraction of all that is hidden, in place of what the schedule says.
    """
    if overlap is not None:
        return (1 - overlap) * sum(seconds)
    return sum(max(0.0, a - b) for a, b in zip(seconds, hidden, strict=True))
