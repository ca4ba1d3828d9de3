"""Cost of a schedule: instructions, a million steps at once, and time in a training step.

    python -m benchmarks.schedule

It prints a table and writes the same numbers as JSON, in 15 s on two cores.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_warmup as ow
from benchmarks import tables
from benchmarks.report import environment, make_parser, save

LOW, PEAK, W, T = 0.1, 3.2, 780, 14040
DROPS = {4680: 0.1, 9360: 0.1, 12480: 0.1}
RELATIVE = {step - W: scale for step, scale in DROPS.items()}
WARMUP_ROUNDS = 5

# The same rates, from this library and from optax alone.
PAIRS: dict[str, tuple[optax.Schedule, optax.Schedule]] = {
    "warmup, hold": (
        ow.gradual_warmup(LOW, PEAK, W),
        optax.warmup_constant_schedule(LOW, PEAK, W),
    ),
    "warmup, piecewise": (
        ow.warmup_piecewise_decay(LOW, PEAK, W, DROPS),
        optax.join_schedules(
            [
                optax.linear_schedule(LOW, PEAK, W),
                optax.piecewise_constant_schedule(PEAK, RELATIVE),
            ],
            [W],
        ),
    ),
    "warmup, cosine": (
        ow.gradual_warmup(LOW, PEAK, W, optax.cosine_decay_schedule(PEAK, T - W)),
        optax.warmup_cosine_decay_schedule(LOW, PEAK, W, T),
    ),
}


def instructions(function: Callable[..., Any]) -> int:
    """Count the instructions of the compiled program, including those inside fusions."""
    text = jax.jit(function).lower(jnp.int32(0)).compile().as_text() or ""
    found = re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = \S+ ([\w-]+)\(", text, re.MULTILINE)
    return sum(name not in ("parameter", "constant", "fusion", "call") for name in found)


def seconds(function: Callable[[], Any]) -> float:
    """Measure the wall time of a call and of the computations that it starts."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def million(schedule: optax.Schedule) -> dict[str, float]:
    """Measure a million steps in one vmapped call: with compilation, then the best of 5."""
    evaluate = jax.jit(jax.vmap(schedule))
    steps = jnp.arange(1_000_000, dtype=jnp.int32)
    first = seconds(lambda: evaluate(steps))
    return {"first_s": first, "then_s": min(seconds(lambda: evaluate(steps)) for _ in range(5))}


def training_step(rate: float | optax.Schedule) -> Callable[[], Any]:
    """Return a function that runs 20 steps of SGD on a small linear model, and keeps its state."""
    optimizer = optax.sgd(rate, momentum=0.9)
    images = jax.random.normal(jax.random.key(0), (64, 512))
    params = jnp.zeros((512, 512))
    state = optimizer.init(params)

    @jax.jit
    def step(params: jax.Array, state: Any) -> Any:
        gradient = jax.grad(lambda w: jnp.mean((images @ w - 1.0) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    held = step(params, state)

    def steps() -> Any:
        nonlocal held
        for _ in range(20):
            held = step(*held)
        return held

    return steps


def ratios(rounds: int) -> dict[str, dict[str, float]]:
    """Compare the time of a step with each schedule to that with a constant rate, by round.

    "constant again" is the same program a second time; its distance from 1 is noise.
    """
    ours, theirs = PAIRS["warmup, piecewise"]
    runs = {
        "constant": training_step(0.1),
        "constant again": training_step(0.1),
        "optax_warmup": training_step(ours),
        "optax": training_step(theirs),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + WARMUP_ROUNDS):
        # Rotate the order, so that no subject always follows the same other one.
        names = list(runs)
        names = names[number % len(names) :] + names[: number % len(names)]
        for name in names:
            spent = seconds(runs[name])
            if number >= WARMUP_ROUNDS:
                times[name].append(spent / 20)
    result = {"constant": {"microseconds": statistics.median(times["constant"]) * 1e6}}
    for name in list(runs)[1:]:
        each = [a / b for a, b in zip(times[name], times["constant"], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        result[name] = {"ratio": middle, "quarter": low, "three_quarters": high}
    return result


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure what a schedule costs.")
    parser.add_argument("--rounds", type=int, default=300, help="rounds of steps; default: 300")
    options = parser.parse_args()
    report = environment(["jax", "optax"]) | {
        "rounds": options.rounds,
        # `optax.sgd` evaluates a schedule once per step; a constant rate takes no instructions.
        "instructions": {
            name: {"optax_warmup": instructions(ours), "optax": instructions(theirs)}
            for name, (ours, theirs) in PAIRS.items()
        },
        "million_steps": {name: million(ours) for name, (ours, _) in PAIRS.items()},
        "step": ratios(options.rounds),
    }
    print(tables.instructions(report["instructions"]), "\n")
    print(tables.million(report["million_steps"]), "\n")
    print(tables.schedule_times(report["step"]))
    save(options.out, report)


if __name__ == "__main__":
    main()
