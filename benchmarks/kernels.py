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


def device_time(trace: Any, hlo: str) -> collections.Counter[tuple[str, str]]:
    """Sum up the device time of a trace.

    Args:
        trace: `jax.profiler.ProfileData`.
        hlo: text of the program that was traced.

    Returns:
        Nanoseconds by kind of work and name of instruction.
    """
    [module] = re.findall(r"^HloModule ([\w.-]+)", hlo)
    kinds = kinds_of(hlo)
    # A kernel is named after its instruction if the trace does not name the instruction itself.
    by_kernel = {name.replace(".", "_").replace("-", "_"): name for name in kinds}
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    for plane in trace.planes:
        on_device = plane.name.startswith("/device:")  # on a CPU, host planes have the operations
        for line in plane.lines:
            if on_device and not line.name.startswith(("Stream", "XLA Ops")):
                continue  # the other lines summarize these
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op") or by_kernel.get(event.name, event.name))
                of_step = str(stats.get("hlo_module", module)).startswith(module)
                if of_step and (on_device or name in kinds):
                    kind = kinds.get(name) or kind_of({opcode_of(event.name)})
                    spent[kind, name] += event.duration_ns
    return spent
