"""Output of a run, on terminals of several widths and without a terminal."""

import os
import pty
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jax
import pytest

from train.run import display
from train.run.display import Display, outcome
from train.run.metrics import Record

ESCAPE = "\x1b"


def record_of(step: int, test_error: float | None = None) -> Record:
    record = {
        "step": step, "epoch": step / 11, "train/loss": 1.2345, "train/top1_error": 0.4321,
        "train/learning_rate": 0.0125, "train/images_per_second": 6789.1,
    }  # fmt: skip
    return record if test_error is None else record | {"eval/top1_error": test_error}


def words(shown: str) -> str:
    """Output on one line, without escape codes."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", shown).split())


Terminal = Callable[[int], AbstractContextManager[list[str]]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Context manager that makes stdout a real terminal; afterwards the list holds its output."""

    @contextmanager
    def make(columns: int) -> Iterator[list[str]]:
        here, there = pty.openpty()
        heard, shown = bytearray(), []

        def listen() -> None:
            try:
                while heard_now := os.read(here, 4096):
                    heard.extend(heard_now)
            except OSError:  # the other end is closed
                pass

        listener = threading.Thread(target=listen)
        listener.start()
        with open(there, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setenv("TERM", "xterm-256color")
            patch.setenv("COLUMNS", str(columns))
            yield shown
        listener.join()
        os.close(here)
        shown.append(heard.decode())

    return make


@pytest.mark.parametrize("columns", [30, 40, 80, 100, 200])
def test_the_bar_shows_every_number_at_any_terminal_width(terminal: Terminal, columns: int):
    with terminal(columns) as shown, Display(1000) as on_screen:
        on_screen.show(record_of(100, test_error=0.0578))
        on_screen.show(record_of(500))
    assert ESCAPE in shown[0]
    text = words(shown[0])
    last = text[text.rindex(" 50 %") :]
    assert re.match(r" 50 % \d+:\d\d:\d\d left", last)
    for number in ("epoch 45.5", "loss 1.234", " error 43.2 %", "test error 5.78 %", "rate 0.0125"):
        assert number in last
    assert "6789 images/s" in last
    assert "…" not in text
    assert "/1000" not in text  # only in lines without a terminal


def time_left(shown: str) -> str:
    return re.findall(r"(\S+) left", words(shown))[-1]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock that rich uses; only the test advances it."""
    now = [0.0]
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds", [0.5, 100])
def test_time_left_is_correct_for_fast_and_slow_steps(
    terminal: Terminal, clock: list[float], seconds: float
):
    with terminal(80) as shown, Display(1000) as on_screen:
        for record in range(11):
            on_screen.show(record_of(10 * record))
            clock[0] += 10 * seconds
    left = 900 * seconds
    hours, minutes = divmod(left // 60, 60)
    assert time_left(shown[0]) == f"{hours:.0f}:{minutes:02.0f}:{left % 60:02.0f}"


def test_time_left_ignores_steps_before_the_resume(terminal: Terminal, clock: list[float]):
    with terminal(80) as shown, Display(1000) as on_screen:
        for step in (900, 910, 920):  # one second per step
            clock[0] += 10
            on_screen.show(record_of(step))
    assert time_left(shown[0]) == "0:01:20"


def test_a_line_is_printed_above_the_bar(terminal: Terminal):
    with terminal(80) as shown, Display(10) as on_screen:
        on_screen.say("resuming after step 5")
    assert "resuming after step 5" in shown[0]  # without color codes


def test_lines_are_broken_between_words_on_a_terminal(terminal: Terminal):
    with terminal(40) as shown, Display(10) as on_screen:
        assert on_screen.width == 40
        on_screen.say("data            digits 1.0.0: 1437 training and 360 test images")
    assert "data            digits 1.0.0: 1437\r\n                training and 360" in shown[0]


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]):
    with Display(20) as on_screen:
        for step in range(1, 21):
            on_screen.show(record_of(step, test_error=0.0578 if step == 11 else None))
    said = capsys.readouterr().out
    assert ESCAPE not in said
    # The first and the last record are printed at once, the others at intervals of seconds.
    first, last = said.splitlines()
    assert first == ("step 1/20  epoch 0.1  loss 1.234  error 43.2 %  rate 0.0125  6789 images/s")
    assert last == (
        "step 20/20  epoch 1.8  loss 1.234  error 43.2 %  test error 5.78 %  rate 0.0125  "
        "6789 images/s"
    )


def test_slow_run_without_a_terminal_prints_every_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
    with Display(20) as on_screen:
        for step in (5, 10, 15):
            on_screen.show(record_of(step))
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["5/20", "10/20", "15/20"]


def test_long_lines_are_not_wrapped_without_a_terminal(capsys: pytest.CaptureFixture[str]):
    with Display(20) as on_screen:
        assert on_screen.width is None
        on_screen.say("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str]):
    with Display(20) as on_screen:
        on_screen.say("writes to runs/[bold]x[/bold] [/]")
    assert capsys.readouterr().out == "writes to runs/[bold]x[/bold] [/]\n"


def test_only_the_first_process_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Display(20) as on_screen:
        on_screen.say("plan")
        on_screen.show(record_of(20))
    assert capsys.readouterr().out == ""


OLD = {"num_steps": 990, "num_examples_seen": 126_720, "top1_error_median_last5": 0.01389}
NEW = OLD | {
    "num_epochs_in_median": 3, "top1_error_last": 0.02, "top1_error_best": 0.0125,
    "epoch_of_best": 2.0, "top5_error_last": 0.001, "eval_loss_last": 0.04567, "seconds": 65.2,
    "images_per_second": 1943.6,
}  # fmt: skip


def test_outcome_has_the_errors_in_percent_and_lists_the_results():
    text = outcome(Path("runs/digits"), NEW)
    assert text == (
        "finished: 990 steps, 126720 images seen, test error 1.39 % (median of the last 3 epochs)\n"
        "test error of the last epoch 2.00 % (top-5 0.10 %), best 1.25 % (epoch 2); test loss "
        "0.04567; 65 s of training, 1944 images/s\n"
        "results: runs/digits/summary.json, curves.png, metrics.jsonl, tensorboard, checkpoints"
    )


def test_outcome_of_few_classes_or_one_epoch_has_no_empty_numbers():
    few = {name: value for name, value in NEW.items() if name != "top5_error_last"}
    text = outcome(Path("runs"), few | {"num_epochs_in_median": 1, "eval_loss_last": None})
    assert "test error 1.39 % (last epoch)" in text
    assert "last epoch 2.00 %, best" in text
    assert "test loss not finite;" in text


def test_outcome_of_an_earlier_version_is_shown():
    text = outcome(Path("runs/digits"), OLD)
    assert (
        "990 steps, 126720 images seen, test error 1.39 % (median of at most the last 5 epochs)"
        in text
    )
    assert len(text.splitlines()) == 2
