"""Lines that fit a terminal."""

import io
import sys

import pytest

from train.run.terminal import terminal_width, wrapped

PLAN = (
    "data            digits 1.0.0: 1437 training and 360 test images, 10 classes\n\n"
    "  PUBLISHED     Name of a data set of tensorflow-datasets\n"
    "a line without a label that is longer than forty columns\n"
    "writes to       /a/path/that/is/longer/than/the/terminal/is/wide"
)


def test_without_a_terminal_lines_stay():
    assert wrapped(PLAN, None) == PLAN
    assert terminal_width() is None  # pytest captures the output


def test_a_value_hangs_below_itself_and_no_word_is_broken():
    assert wrapped(PLAN, 40) == (
        "data            digits 1.0.0: 1437\n"
        "                training and 360 test\n"
        "                images, 10 classes\n"
        "\n"
        "  PUBLISHED     Name of a data set of\n"
        "                tensorflow-datasets\n"
        "a line without a label that is longer\n"
        "  than forty columns\n"
        "writes to\n"
        "                /a/path/that/is/longer/than/the/terminal/is/wide"
    )


@pytest.mark.parametrize("width", [10, 25, 60, 200])
def test_every_word_is_shown_at_any_width(width: int):
    lines = wrapped(PLAN, width).split("\n")
    assert " ".join(lines).split() == PLAN.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch):
    stdout = io.StringIO()
    monkeypatch.setattr(stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("COLUMNS", "37")
    assert terminal_width() == 37
