"""Plot of a run: errors and learning rate over epochs."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.run.metrics import Record, means


def plot_curves(records: list[Record], path: Path, title: str) -> None:
    """Write the plot of a run as a PNG.

    Args:
        records: records of metrics.jsonl.
        path: path of the PNG.
        title: title of the plot.
    """
    draw_curves(records, title).savefig(path, dpi=100)


def draw_curves(records: list[Record], title: str) -> Figure:
    """Plot training error, test error and learning rate over epochs (paper, figure 2)."""
    train = [r for r in records if "train/top1_error" in r]
    evaluations = [r for r in records if "eval/top1_error" in r]
    by_epoch = means(train, "train/top1_error")

    figure = Figure(figsize=(8, 6), layout="constrained")
    errors, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    _draw(
        errors,
        [epoch for epoch, _ in by_epoch],
        [100 * error for _, error in by_epoch],
        color="tab:blue",
        ls="--",
        label="training error",
    )
    if evaluations:
        _draw(
            errors,
            [r["epoch"] for r in evaluations],
            [100 * r["eval/top1_error"] for r in evaluations],
            color="tab:orange",
            label=f"test error, last {100 * evaluations[-1]['eval/top1_error']:.2f} %",
        )
    errors.set(ylabel="top-1 error (%)", title=title, ylim=(0, None))
    errors.legend()
    errors.grid(alpha=0.3)
    _draw(
        rate,
        [r["epoch"] for r in train],
        [r["train/learning_rate"] for r in train],
        color="tab:green",
    )
    rate.set(ylabel="learning rate", xlabel="epoch", yscale="log")
    rate.grid(alpha=0.3)
    return figure


def _draw(axes: Axes, epochs: list[float], values: list[float], **style: Any) -> None:
    # A line through a single point is invisible.
    axes.plot(epochs, values, marker="." if len(values) == 1 else "", **style)
