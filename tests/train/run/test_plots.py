"""The picture of a run."""

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
    """The points of each line with a label, and of the learning rate."""
    errors, rate = figure.axes
    lines = {str(line.get_label()): line for line in errors.lines} | {"rate": rate.lines[0]}
    return {
        label: (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for label, line in lines.items()
    }


def test_the_training_error_is_the_mean_of_each_epoch_at_its_end():
    epochs, percent = lines_of(draw_curves(RUN, "t"))["training error"]
    assert epochs == [1, 2, 2.5]  # the run ends in the middle of its third epoch
    np.testing.assert_allclose(percent, [80, 40, 20], rtol=1e-12)


def test_the_test_error_is_drawn_where_it_was_taken_and_the_last_is_named():
    lines = lines_of(draw_curves(RUN, "t"))
    epochs, percent = lines["test error, last 25.00 %"]
    assert epochs == [1, 2, 2.5]
    np.testing.assert_allclose(percent, [80, 30, 25], rtol=1e-12)


def test_the_learning_rate_is_that_of_each_record():
    epochs, rates = lines_of(draw_curves(RUN, "t"))["rate"]
    assert epochs == [0.5, 1, 1.25, 1.75, 2, 2.5]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.125, 0.175, 0.2, 0.25], rtol=1e-12)
    assert draw_curves(RUN, "t").axes[1].get_yscale() == "log"


def test_axes_and_title_say_what_is_shown():
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
def test_a_png_is_written_whatever_is_on_record(tmp_path: Path, records: list[Record]):
    """A run stopped in its first steps has nothing on record; it ends without a warning too."""
    plot_curves(records, tmp_path / "curves.png", "t")
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert (height, width) == (600, 800)


def test_a_single_point_can_be_seen(tmp_path: Path):
    plot_curves([record_of(1, 0.5, 0.5)], tmp_path / "one.png", "t")
    errors, rate = draw_curves([record_of(1, 0.5, 0.5)], "t").axes
    assert all(line.get_marker() == "." for line in [*errors.lines, *rate.lines])
    # Green is the colour of the rate alone.
    pixels = imread(tmp_path / "one.png")[:, :, :3]
    green = (pixels[:, :, 1] > pixels[:, :, 0] + 0.3) & (pixels[:, :, 1] > pixels[:, :, 2] + 0.3)
    assert green.any()
