"""The picture of a run: errors and learning rate over epochs."""

import itertools
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from train.metrics import Record


def plot_curves(records: list[Record], path: Path, title: str) -> None:
    """Draw training and test error, and the learning rate, over epochs (paper, figure 2).

    Args:
        records: of metrics.jsonl.
        path: of the PNG.
        title: of the picture.
    """
    train = [r for r in records if "train/top1_error" in r]
    evaluations = [r for r in records if "eval/top1_error" in r]
    # Single minibatches are noisy: the mean of those logged in an epoch stands at its end.
    epochs = [
        (epoch, statistics.mean(100 * r["train/top1_error"] for r in group))
        for epoch, group in itertools.groupby(train, key=lambda r: -int(-r["epoch"] // 1))
    ]

    figure = Figure(figsize=(8, 6), layout="constrained")
    errors, rate = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    if epochs:
        errors.plot(*zip(*epochs, strict=True), color="tab:blue", ls="--", label="training error")
    if evaluations:
        errors.plot(
            [r["epoch"] for r in evaluations],
            [100 * r["eval/top1_error"] for r in evaluations],
            color="tab:orange",
            label=f"test error, last {100 * evaluations[-1]['eval/top1_error']:.2f} %",
        )
    errors.set(ylabel="top-1 error (%)", title=title, ylim=(0, None))
    errors.legend()
    errors.grid(alpha=0.3)
    rate.plot(
        [r["epoch"] for r in train], [r["train/learning_rate"] for r in train], color="tab:green"
    )
    rate.set(ylabel="learning rate", xlabel="epoch", yscale="log")
    rate.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
