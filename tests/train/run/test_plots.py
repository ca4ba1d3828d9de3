"""The plot of a run."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from train.run.metrics import Record
from train.run.plots import draw_curves, plot_curves


def record_of(epoch: float, error: float, evaluated: float | None = None) -> Record:
    record = {
        "epoch": epoch, "train/top1_error": error, "train/loss": 3 * error,
        "train/learning_rate": 0.1 * epoch,
    }  # fmt: skip
    if evaluated is None:
        return record
    return record | {"eval/top1_error": evaluated, "eval/loss": 2 * evaluated}


RUN = [
    record_of(0.5, 0.9), record_of(1, 0.7, 0.8), record_of(1.25, 0.6), record_of(1.75, 0.5),
    record_of(2, 0.1, 0.3), record_of(2.5, 0.2, 0.25),
]  # fmt: skip


def lines_of(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Points of each labeled line, and of the learning rate."""
    errors, losses, rate = figure.axes
    lines = {str(line.get_label()): line for line in [*errors.lines, *losses.lines]}
    lines |= {"rate": rate.lines[0]}
    return {
        label: (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for label, line in lines.items()
    }


def test_the_training_error_is_the_mean_of_each_epoch_drawn_at_its_end():
    epochs, percent = lines_of(draw_curves(RUN, "t"))["training error"]
    assert epochs == [1, 2, 2.5]  # the run ends within its third epoch
    np.testing.assert_allclose(percent, [80, 40, 20], rtol=1e-12)


def test_each_evaluation_is_drawn_and_the_last_is_in_the_legend():
    lines = lines_of(draw_curves(RUN, "t"))
    epochs, percent = lines["test error, last 25.00 %"]
    assert epochs == [1, 2, 2.5]
    np.testing.assert_allclose(percent, [80, 30, 25], rtol=1e-12)


def test_both_losses_are_drawn():
    lines = lines_of(draw_curves(RUN, "t"))
    epochs, losses = lines["training loss"]
    assert epochs == [1, 2, 2.5]
    np.testing.assert_allclose(losses, [2.4, 1.2, 0.6], rtol=1e-12)
    epochs, losses = lines["test loss, last 0.5"]
    assert epochs == [1, 2, 2.5]
    np.testing.assert_allclose(losses, [1.6, 0.6, 0.5], rtol=1e-12)


def test_the_learning_rate_is_drawn_in_steps_that_end_at_each_record():
    epochs, rates = lines_of(draw_curves(RUN, "t"))["rate"]
    assert epochs == [0, 0.5, 1, 1.25, 1.75, 2, 2.5]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.1, 0.125, 0.175, 0.2, 0.25], rtol=1e-12)
    axes = draw_curves(RUN, "t").axes[2]
    assert axes.lines[0].get_drawstyle() == "steps-pre"
    assert axes.get_yscale() == "log"


def test_axes_and_title_are_labeled():
    errors, losses, rate = draw_curves(RUN, "digits: resnet8").axes
    assert errors.get_title() == "digits: resnet8"
    labels = [axes.get_ylabel() for axes in (errors, losses, rate)]
    assert labels == ["top-1 error (%)", "loss", "learning rate"]
    assert rate.get_xlabel() == "epoch"


PERFECT = [
    record | {"train/top1_error": 0.0, "train/loss": None, "train/learning_rate": 0.0}
    for record in RUN
]
SPIKE = [record_of(0.5, 0.9), record_of(1, 1.0, 1.0) | {"train/loss": 1e6}]


@pytest.mark.parametrize(
    "records",
    [RUN, RUN[:1], RUN[:2], PERFECT, SPIKE],
    ids=["all", "one record", "one epoch", "zeros", "spike"],
)
def test_lines_stay_within_their_axes(records: list[Record]):
    figure = draw_curves(records, "t")
    figure.canvas.draw()
    for axes in figure.axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            assert all(left < x < right for x in np.asarray(line.get_xdata()))
            assert all(bottom < y < top for y in np.asarray(line.get_ydata()))
        if axes is not figure.axes[2]:
            assert bottom < 0  # errors and losses are compared with zero


def test_a_learning_rate_of_zero_is_drawn_on_a_linear_axis():
    assert draw_curves(PERFECT, "t").axes[2].get_yscale() == "linear"


@pytest.mark.parametrize(
    "records",
    [[], RUN[:1], RUN[1:2], [r for r in RUN if "eval/top1_error" not in r], PERFECT, RUN],
    ids=["no records", "one record", "one evaluation", "no evaluations", "zeros", "all"],
)
def test_a_png_is_written_for_any_records(tmp_path: Path, records: list[Record]):
    """A run that stops in its first steps has no records; that must not cause a warning."""
    plot_curves(records, tmp_path / "curves.png", "t")
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert (height, width) == (800, 800)


def test_a_single_point_is_visible(tmp_path: Path):
    plot_curves([record_of(1, 0.5, 0.5)], tmp_path / "one.png", "t")
    errors, losses, _ = draw_curves([record_of(1, 0.5, 0.5)], "t").axes
    assert all(line.get_marker() == "." for line in [*errors.lines, *losses.lines])
    # Only the learning rate is green.
    pixels = imread(tmp_path / "one.png")[:, :, :3]
    green = (pixels[:, :, 1] > pixels[:, :, 0] + 0.3) & (pixels[:, :, 1] > pixels[:, :, 2] + 0.3)
    assert green.any()
