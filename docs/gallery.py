"""Draw `docs/schedules.png`: all schedules of the library.

    python docs/gallery.py

The script needs matplotlib, which the extra `plot` installs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import optax_warmup as ow

# η and kη for k = 8. Only the recipe uses those of the paper, 0.1 and 3.2.
LOW, PEAK, W, T = 0.4, 3.2, 200, 900
STEPS = np.arange(T + 1)
INK, FAINT, ACCENTS = "#1f2430", "#8a90a0", ("#2458d3", "#d1495b", "#2a9d6f")


def cosine(t: Any) -> Any:
    """Decay after most of the warmups."""
    return optax.cosine_decay_schedule(PEAK, T - W)(t)


def recipe(warmup: Any) -> optax.Schedule:
    """The paper's recipe with ten updates per epoch."""
    return ow.LargeMinibatchRecipe(num_examples=81920, num_workers=256, warmup=warmup).schedule()


def plateau() -> np.ndarray[Any, Any]:
    """Learning rates for a loss with two plateaus."""
    losses = np.interp(STEPS, [0, 350, 500, 600, 900], [3, 1, 1, 0.5, 0.5])
    optimizer = ow.warmup_then_plateau(LOW, PEAK, W, factor=0.4, patience=80)
    state, rates = optimizer.init(jnp.float32(0)), []
    for loss in losses:
        _, state = optimizer.update(jnp.float32(1), state, value=loss)
        rates.append(float(ow.current_learning_rate(state)))
    return np.asarray(rates)


def phases() -> optax.Schedule:
    """Three batch sizes, each with a warmup from the previous learning rate."""
    sizes = [(300, 1024), (300, 4096), (301, 8192)]
    plan = ow.BatchSizePhases(
        num_examples=8192,
        phases=tuple(
            ow.BatchSizePhase(batch_size=size, num_steps=steps, warmup_steps=80)
            for steps, size in sizes
        ),
        base_learning_rate=LOW,
        base_batch_size=1024,
    )
    return plan.schedule()


def curve(schedule: optax.Schedule) -> np.ndarray[Any, Any]:
    """Learning rates at all steps of the figure."""
    return np.asarray(jax.vmap(schedule)(jnp.asarray(STEPS)))


Curves = dict[str, Callable[[], np.ndarray[Any, Any]]]
PANELS: dict[str, tuple[Curves, bool]] = {
    "LargeMinibatchRecipe: 8k, epochs": (
        {"gradual": lambda: curve(recipe("gradual")), "constant": lambda: curve(recipe("constant")),
         "none": lambda: curve(recipe("none"))},
        True,
    ),
    "gradual_warmup": (
        {"from η": lambda: curve(ow.gradual_warmup(LOW, PEAK, W, cosine)),
         "from 0": lambda: curve(ow.gradual_warmup(0.0, PEAK, W, cosine))},
        False,
    ),
    "constant_warmup": ({"": lambda: curve(ow.constant_warmup(LOW, W, cosine))}, False),
    "exponential_warmup": ({"": lambda: curve(ow.exponential_warmup(LOW, PEAK, W, cosine))}, False),
    "ramp_warmup": (
        {"x²": lambda: curve(ow.ramp_warmup(LOW, PEAK, W, jnp.square, cosine)),
         "half a cosine": lambda: curve(
             ow.ramp_warmup(LOW, PEAK, W, lambda x: (1 - jnp.cos(jnp.pi * x)) / 2, cosine))},
        False,
    ),
    "damped_warmup": (
        {"linear": lambda: curve(ow.damped_warmup(optax.cosine_decay_schedule(PEAK, T),
                                                  ow.gradual_warmup(0.0, 1.0, W))),
         "exponential": lambda: curve(ow.damped_warmup(optax.cosine_decay_schedule(PEAK, T),
                                                       ow.exponential_damping(80.0)))},
        False,
    ),
    "warmup_piecewise_decay": (
        {"": lambda: curve(ow.warmup_piecewise_decay(
            LOW, PEAK, W, dict.fromkeys((400, 600, 800), 0.4)))},
        False,
    ),
    "piecewise_values": (
        {"": lambda: curve(ow.gradual_warmup(LOW, PEAK, W, ow.piecewise_values(
            [PEAK, 2.0, 2.6, 0.5], [150, 300, 500])))},
        False,
    ),
    "warmup_stable_decay": (
        {name: (lambda name=name: curve(ow.warmup_stable_decay(
            LOW, PEAK, W, 300, 400, decay=name))) for name in ("linear", "cosine", "sqrt")},
        False,
    ),
    "inverse_sqrt_decay": (
        {"": lambda: curve(ow.gradual_warmup(LOW, PEAK, W, ow.inverse_sqrt_decay(PEAK, W)))},
        False,
    ),
    "optax: cosine restarts": (
        {"": lambda: curve(ow.gradual_warmup(LOW, PEAK, W, optax.sgdr_schedule([
            {"init_value": PEAK, "peak_value": PEAK, "warmup_steps": 0, "decay_steps": n}
            for n in (100, 200, 401)])))},
        False,
    ),
    "optax: polynomial, exponential": (
        {"power 2": lambda: curve(ow.gradual_warmup(
            LOW, PEAK, W, optax.polynomial_schedule(PEAK, 0.0, 2.0, T - W))),
         "exponential": lambda: curve(ow.gradual_warmup(
            LOW, PEAK, W, optax.exponential_decay(PEAK, 200, 0.4)))},
        False,
    ),
    "gradual_warmup_scheduler": (
        {"multiplier 8": lambda: curve(ow.gradual_warmup_scheduler(LOW, 8.0, W, cosine)),
         "multiplier 1": lambda: curve(ow.gradual_warmup_scheduler(1.6, 1.0, W))},
        False,
    ),
    "warmup_then_plateau": ({"": plateau}, False),
    "BatchSizePhases: 1k, 4k, 8k": ({"": lambda: curve(phases())}, False),
}  # fmt: skip


def draw(axes: Axes, title: str, curves: Curves, *, log: bool) -> None:
    """Draw one panel."""
    for (name, make), color in zip(curves.items(), ACCENTS, strict=False):
        axes.plot(STEPS, make(), color=color, label=name, linewidth=1.8, drawstyle="steps-post")
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold")
    axes.set(xlim=(-20, T + 20), yscale="log" if log else "linear")
    if log:
        epochs = [0, 5, 30, 60, 80, 90]
        axes.set_xticks([10 * epoch for epoch in epochs], list(map(str, epochs)))
    else:
        axes.set_xticks([0, W, T], ["0", "W", ""])
        axes.set(ylim=(-0.15, 3.6))
        axes.set_yticks([0, LOW, 1.6, PEAK], ["", "η", "", "kη"])
        if not title.startswith("BatchSizePhases"):
            axes.axvline(W, color=FAINT, linewidth=0.7, linestyle=":")
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    if len(curves) > 1:
        axes.legend(fontsize=8.5, frameon=False, loc="best", handlelength=1.2, labelcolor=INK)


def main() -> None:
    """Write the figure next to this file."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    for axes, (title, (curves, log)) in zip(
        figure.subplots(5, 3).flat, PANELS.items(), strict=True
    ):
        draw(axes, title, curves, log=log)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, hspace=0.05, wspace=0.02)  # pyright: ignore
    figure.savefig(Path(__file__).with_name("schedules.png"), dpi=110)


if __name__ == "__main__":
    main()
