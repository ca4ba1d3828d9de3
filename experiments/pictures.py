"""Pictures of the runs, for the page."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.effects import LARGE_TRIAL, REFERENCE_TRIAL, Runs, breaking_size
from experiments.plan import ALL_SIZES, EXPERIMENTS, LARGER, SQRT_SIZES, base, variant
from experiments.setting import LARGE, REFERENCE

INK, BLUE, RED, GREEN = "#6b7280", "#2458d3", "#d1495b", "#2a9d6f"


def style(axes: Axes, **labels: str) -> None:
    """Apply the common style, and set labels."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_warmup(runs: Runs) -> Figure:
    """Training and test error of the large minibatch and of the reference (figure 2)."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    all_axes = figure.subplots(1, 3, sharey=True)
    panels = [
        ("no warmup", variant(LARGE, "none"), RED),
        ("constant warmup", variant(LARGE, "constant"), RED),
        ("gradual warmup", LARGE_TRIAL, BLUE),
    ]
    for axes, (title, name, color) in zip(all_axes, panels, strict=True):
        for trial, kn, line_color in ((REFERENCE_TRIAL, REFERENCE, INK), (name, LARGE, color)):
            label = f"kn = {kn}: {runs.score(trial)}"
            draw_curve(axes, runs, trial, "train_error", line_color, "", width=1.0)
            draw_curve(axes, runs, trial, "test_error", line_color, label, width=2.0)
        axes.set(ylim=(5, 92))
        axes.legend(frameon=False)
        style(axes, title=title, xlabel="epoch")
    all_axes[0].set_ylabel("error (%): thin training, thick test")
    return figure


def draw_curve(
    axes: Axes, runs: Runs, name: str, metric: str, color: str, label: str, width: float
) -> None:
    """Draw the mean over the runs of a trial, and their range."""
    epochs, values = runs.curve(name, metric)
    means = [100 * statistics.mean(points) for points in values]
    low, high = ([100 * pick(points) for points in values] for pick in (min, max))
    axes.plot(epochs, means, color=color, lw=width, label=label or None)
    axes.fill_between(epochs, low, high, color=color, alpha=0.15, lw=0)


def draw_minibatch(runs: Runs) -> Figure:
    """Test error against the minibatch (figures 1 and 3)."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: list[tuple[str, Callable[[int], str], Sequence[int], str, str]] = [
        ("linear scaling, no warmup", lambda kn: variant(kn, "none"), LARGER, RED, "s:"),
        ("√k scaling, gradual warmup", lambda kn: variant(kn, "sqrt"), SQRT_SIZES, GREEN, "^--"),
        ("linear scaling, gradual warmup", base, ALL_SIZES, BLUE, "o-"),
    ]
    for label, name_of, sizes, color, marks in lines:
        known = [kn for kn in sizes if runs.has(name_of(kn))]
        errors = [runs.errors(name_of(kn)) for kn in known]
        axes.errorbar(
            known,
            [statistics.mean(some) for some in errors],
            [statistics.stdev(some) if len(some) > 1 else 0 for some in errors],
            fmt=marks, color=color, label=label, capsize=3, ms=5,
        )  # fmt: skip
    axes.axhline(statistics.mean(runs.errors(REFERENCE_TRIAL)), color=INK, lw=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ALL_SIZES, [str(kn) for kn in ALL_SIZES])
    axes.set_yscale("log")  # a linear scale would hide the small differences below the break
    ticks = [10, 11, 12, 15, 20, 30, 50, 80]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False)
    style(axes, xlabel="minibatch kn", ylabel="test error (%)")
    return figure


def draw_noise_scale(runs: Runs) -> Figure:
    """The noise scale over epochs, and the minibatch at which linear scaling breaks."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    for kn, color in ((REFERENCE, INK), (LARGE, BLUE)):
        epochs, values = runs.curve(variant(kn, "noise-scale"), "noise_scale")
        first = [math.nan if points[0] is None else points[0] for points in values]
        axes.plot(epochs, first, color=color, label=f"measured at kn = {kn}")
    if breaks := breaking_size(runs):
        axes.axhline(breaks, color=RED, ls=":", label=f"kn = {breaks}: linear scaling breaks")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    style(axes, xlabel="epoch", ylabel="noise scale (images)")
    return figure


# Each picture, with the trials that it needs.
PICTURES: dict[str, tuple[Callable[[Runs], Figure], tuple[str, ...]]] = {
    "warmup.png": (draw_warmup, EXPERIMENTS["warmup"].trials),
    "minibatch.png": (draw_minibatch, (REFERENCE_TRIAL, LARGE_TRIAL, base(LARGER[0]))),
    "noise_scale.png": (draw_noise_scale, EXPERIMENTS["noise-scale"].trials),
}


def save_pictures(runs: Runs, folder: Path) -> None:
    """Draw each picture whose trials have been run."""
    for name, (draw, trials) in PICTURES.items():
        if runs.has(*trials):
            draw(runs).savefig(folder / name, dpi=110, metadata={"Source": runs.digest})
