"""Kinds of work of a compiled program's instructions, and the device time spent on each kind."""

import collections
import re
from typing import Any

# Instructions whose contents are counted instead.
CONTAINERS = {"call", "while", "conditional"}
MOVES = {
    "copy", "copy-start", "copy-done", "transpose", "bitcast", "bitcast-convert", "reshape",
    "parameter", "tuple", "get-tuple-element", "constant", "broadcast", "concatenate", "slice",
    "dynamic-slice", "dynamic-update-slice", "pad", "reverse",
}  # fmt: skip
NOT_ELEMENTWISE = {"custom-call", "sort", "rng", "rng-bit-generator", "infeed", "outfeed"}


def kinds_of(hlo: str) -> dict[str, str]:
    """Return the kind of work of each instruction of a compiled program, by name.

    A fusion has the first of these kinds that it contains: convolution or matrix product,
    reduction, elementwise arithmetic, copy or transpose.

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
        return {opcode_of(target[1]) if target else opcode}

    return {
        name: kind_of(inside(opcode, rest))
        for body in bodies.values()
        for name, opcode, rest in body
        if opcode not in CONTAINERS
    }


def kind_of(opcodes: set[str]) -> str:
    """Return the kind of work of an instruction that contains these opcodes."""
    if any(re.match("all-|reduce-scatter|collective", opcode) for opcode in opcodes):
        return "all-reduce"
    if opcodes & {"convolution", "dot"}:
        return "convolution or matrix product"
    if opcodes & {"reduce", "reduce-window", "select-and-scatter", "scatter"}:
        return "reduction"
    if opcodes <= MOVES:
        return "copy or transpose"
    return "other" if opcodes & NOT_ELEMENTWISE else "elementwise"


def opcode_of(kernel: str) -> str:
    """Guess the opcode of a library's kernel, or of the function that calls it, from its name."""
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


def device_time(trace: Any, hlo: str) -> tuple[collections.Counter[tuple[str, str]], int]:
    """Sum up the device time of a trace.

    Args:
        trace: `jax.profiler.ProfileData`.
        hlo: text of the program that was traced.

    Returns:
        Nanoseconds by kind of work and name of instruction, and the number of kernels.
    """
    [module] = re.findall(r"^HloModule ([\w.-]+)", hlo)
    kinds = kinds_of(hlo)
    # A kernel is named after its instruction; the trace of a CUDA graph has no other name.
    by_kernel = {name.replace(".", "_").replace("-", "_"): name for name in kinds}
    lines = [(plane.name, line) for plane in trace.planes for line in plane.lines]
    # A GPU's kernels are on the lines of its streams. The host's lines name instructions as well:
    # when they run on a CPU, and otherwise when they are launched.
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
            if on_streams or name in kinds:
                kind = kinds.get(name) or kind_of({opcode_of(event.name)})
                spent[kind, name] += event.duration_ns
                num_kernels += 1
    return spent, num_kernels
