"""Step-time model: compute from the compiled program, communication from formulas.

Units are seconds, bytes and bytes per second. Neither a TPU nor its compiler is needed.
"""

import dataclasses
import math
import re

BYTES_OF = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Assumed properties of one kind of TPU."""

    hbm_bytes: int
    """Memory of a chip, in bytes."""
    clock_hz: float
    """Clock rate that converts the compiler's cycles to seconds."""
    link_bandwidth: float
    """Bandwidth of one link between chips, in one direction."""


# Memory is from cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Clock rates are the published bfloat16
# peak divided by the FLOPs of all matrix units per cycle: for v5e, 197e12 / (4 · 128² · 2). Links
# have 90 % of the published bandwidth.
CHIPS = {
    "v4": Chip(hbm_bytes=32 * 2**30, clock_hz=1.05e9, link_bandwidth=45e9),
    "v5e": Chip(hbm_bytes=16 * 2**30, clock_hz=1.5e9, link_bandwidth=45e9),
    "v5p": Chip(hbm_bytes=95 * 2**30, clock_hz=1.75e9, link_bandwidth=90e9),
    "v6e": Chip(hbm_bytes=32 * 2**30, clock_hz=1.75e9, link_bandwidth=90e9),
}


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """An all-reduce over all chips, as scheduled."""

    num_bytes: int
    """Bytes that each chip contributes and receives."""
    overlapped_cycles: int
    """Compute cycles between its start and its end; 0 if the chip blocks on it."""
    estimated_cycles: int | None
    """Cycles of the all-reduce itself; None if the compiler does not estimate them."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Compute and all-reduces of one chip in a step."""

    compute_cycles: int
    """Cycles of all other operations, as estimated by the compiler."""
    all_reduces: tuple[AllReduce, ...]
    """All-reduces in the order of their start."""

    @property
    def num_bytes(self) -> int:
        """Bytes that each chip reduces in a step."""
        return sum(reduction.num_bytes for reduction in self.all_reduces)


def read_schedule(hlo: str) -> Schedule:
    """Read the compute cycles and the all-reduces of a scheduled TPU program.

    Cycles are the sum of the operations' `estimated_cycles`; the body of a loop counts once per
    known iteration.

    Args:
        hlo: text of the compiled program.

    Raises:
        ValueError: if the program is not scheduled or has no estimated cycles.
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
    started: dict[str, int] = {}  # elapsed cycles when each all-reduce started
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
    """Time of a ring all-reduce: 2 (N - 1) / N · bytes / bandwidth + 2 (N - 1) · latency.

    Each device sends an N-th of the bytes N - 1 times to be summed and N - 1 times to be copied.

    Args:
        num_bytes: bytes to reduce.
        num_devices: number of devices N.
        bandwidth: bandwidth from each device to the next.
        latency: latency of one transfer.
    """
    times = 2 * (num_devices - 1)
    return times * (num_bytes / num_devices / bandwidth + latency)


def torus_all_reduce_seconds(
    num_bytes: float, shape: tuple[int, ...], bandwidth: float, latency: float
) -> float:
    """Time of a torus all-reduce: bytes as on a ring of all chips, latency axis by axis.

    Args:
        num_bytes: bytes to reduce.
        shape: number of chips along each axis of the slice.
        bandwidth: bandwidth of a chip over all links that it uses at once.
        latency: latency from one chip to the next.
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
    """Time of a ring all-reduce in each node, then of one across nodes for each GPU's share.

    Args:
        num_bytes: bytes to reduce.
        num_gpus: total number of GPUs: at most `gpus_per_node`, or a multiple of it.
        gpus_per_node: number of GPUs that share the faster links.
        intra_node_bandwidth: bandwidth between two GPUs of a node, in one direction.
        inter_node_bandwidth: bandwidth between GPUs of two nodes, in one direction.
        latency: latency of one transfer.
    """
    local = min(num_gpus, gpus_per_node)
    return ring_all_reduce_seconds(
        num_bytes, local, intra_node_bandwidth, latency
    ) + ring_all_reduce_seconds(num_bytes / local, num_gpus // local, inter_node_bandwidth, latency)


def exposed_seconds(seconds: list[float], hidden: list[float], overlap: float | None) -> float:
    """Time that a step waits for its all-reduces.

    Args:
        seconds: duration of each all-reduce.
        hidden: compute time that the schedule overlaps with each.
        overlap: fraction of the total that is hidden; None to use `hidden`.
    """
    if overlap is not None:
        return (1 - overlap) * sum(seconds)
    return sum(max(0.0, a - b) for a, b in zip(seconds, hidden, strict=True))
