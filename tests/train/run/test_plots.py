"""The plot of a run."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from train.run.metrics import Record
from train.run.plots import draw_curves, plot_curves


def record_of(epoch: float, error: float, evaluated: float | None = None) -> Record:
    record = {"epoch": epoch, "train/top1_error": error, "train/learning_rate": 0.1 * epoch}
    return record if evaluated is None else record | {"eval/top1_error": evaluated}


RUN = [
    record_of(0.5, 0.9), record_of(1, 0.7, 0.8), record_of(1.25, 0.6), record_of(1.75, 0.5),
    record_of(2, 0.1, 0.3), record_of(2.5, 0.2, 0.25),
]  # fmt: skip


def lines_of(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Points of each labeled line, and of the learning rate."""
    errors, rate = figure.axes
    lines = {str(line.get_label()): line for line in errors.lines} | {"rate": rate.lines[0]}
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


def test_the_learning_rate_is_drawn_for_each_record():
    epochs, rates = lines_of(draw_curves(RUN, "t"))["rate"]
    assert epochs == [0.5, 1, 1.25, 1.75, 2, 2.5]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.125, 0.175, 0.2, 0.25], rtol=1e-12)
    assert draw_curves(RUN, "t").axes[1].get_yscale() == "log"


def test_axes_and_title_are_labeled():
    errors, rate = draw_curves(RUN, "digits: resnet8").axes
    assert errors.get_title() == "digits: resnet8"
    assert (errors.get_ylabel(), rate.get_ylabel(), rate.get_xlabel()) == (
        "top-1 error (%)", "learning rate", "epoch",
    )  # fmt: skip
    assert errors.get_ylim()[0] == 0


@pytest.mark.parametrize(
    "records",
    [[], RUN[:1], RUN[1:2], [r for r in RUN if "eval/top1_error" not in r], RUN],
    ids=["no records", "one record", "one evaluation", "no evaluations", "all"],
)
def test_a_png_is_written_for_any_records(tmp_path: Path, records: list[Record]):
    """A run that stops in its first steps has no records; that must not cause a warning."""
    plot_curves(records, tmp_path / "curves.png", "t")
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert (height, width) == (600, 800)


def test_a_single_point_is_visible(tmp_path: Path):
    plot_curves([record_of(1, 0.5, 0.5)], tmp_path / "one.png", "t")
    errors, rate = draw_curves([record_of(1, 0.5, 0.5)], "t").axes
    assert all(line.get_marker() == "." for line in [*errors.lines, *rate.lines])
    # Only the learning rate is green.
    pixels = imread(tmp_path / "one.png")[:, :, :3]
    green = (pixels[:, :, 1] > pixels[:, :, 0] + 0.3) & (pixels[:, :, 1] > pixels[:, :, 2] + 0.3)
    assert green.any()
