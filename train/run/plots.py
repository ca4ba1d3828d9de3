"""Plot of a run: errors, losses and learning rate over epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.run.metrics import Record, means

MARGIN = 0.04  # of an axis, so that a line at its end is drawn in full


def plot_curves(records: list[Record], path: Path, title: str) -> None:
    """Write the plot of a run as a PNG.

    Args:
        records: records of metrics.jsonl.
        path: path of the PNG.
        title: title of the plot.
    """
    draw_curves(records, title).savefig(path, dpi=100)


def draw_curves(records: list[Record], title: str) -> Figure:
    """Plot training and test error (paper, figure 2), both losses, and the learning rate."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    errors, losses, rates = figure.subplots(3, sharex=True, height_ratios=(3, 3, 2))
    _draw_pair(errors, records, "error", metric="top1_error", scale=100, form=".2f", unit=" %")
    errors.set(ylabel="top-1 error (%)", title=title)
    _draw_pair(losses, records, "loss", metric="loss", scale=1, form=".4g", unit="")
    losses.set(ylabel="loss")

    applied = [r for r in records if "train/learning_rate" in r]
    values = [r["train/learning_rate"] for r in applied]
    if applied:
        # The rate of a record is that of the update before it: a step ends there.
        rates.plot(
            [0, *(r["epoch"] for r in applied)],
            [values[0], *values],
            color="tab:green",
            drawstyle="steps-pre",
        )
    is_logarithmic = bool(values) and min(values) > 0
    rates.set(ylabel="learning rate", xlabel="epoch", yscale="log" if is_logarithmic else "linear")
    for axes in (errors, losses, rates):
        axes.grid(alpha=0.3)
    return figure


def _draw_pair(
    axes: Axes, records: list[Record], noun: str, *, metric: str, scale: float, form: str, unit: str
) -> None:
    """Draw the mean over each epoch of training, and each evaluation, from 0 to the largest."""
    train = [(epoch, scale * mean) for epoch, mean in means(records, f"train/{metric}")]
    name = f"eval/{metric}"
    test = [(r["epoch"], scale * r[name]) for r in records if r.get(name) is not None]
    _draw(axes, train, color="tab:blue", ls="--", label=f"training {noun}")
    if test:
        label = f"test {noun}, last {test[-1][1]:{form}}{unit}"
        _draw(axes, test, color="tab:orange", label=label)
    top = max((value for _, value in train + test), default=0) or 1
    axes.set_ylim(-MARGIN * top, (1 + MARGIN) * top)
    axes.legend()


def _draw(axes: Axes, points: Sequence[tuple[float, float]], **style: Any) -> None:
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    # A line through a single point is invisible.
    axes.plot(epochs, values, marker="." if len(points) == 1 else "", **style)
