"""Progress and outcome of a run on the terminal."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import jax
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from train.run.metrics import Record
from train.run.terminal import wrapped

SECONDS_BETWEEN_LINES = 5.0  # without a terminal to draw a bar on
SECONDS_OF_SPEED = 3600.0  # window for the estimate of the time left; steps may be slow


class Display:
    """A progress bar on a terminal, a line every few seconds elsewhere; only process 0 prints.

    Args:
        num_steps: number of completed updates at which the run ends.
    """

    def __init__(self, num_steps: int) -> None:
        self._console = Console(highlight=False, quiet=jax.process_index() != 0)
        self._bar = _BarAboveText(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            speed_estimate_period=SECONDS_OF_SPEED,
        )
        self._task = self._bar.add_task("", total=num_steps)
        self._num_steps = num_steps
        self._last_line = 0.0
        self._test_error = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None without one."""
        return self._console.width if self._console.is_terminal else None

    def say(self, text: str) -> None:
        """Print lines, above the bar if there is one, and broken between words on a terminal."""
        self._console.print(wrapped(text, self.width), markup=False, soft_wrap=True)

    def show(self, record: Record) -> None:
        """Update the bar, or print the next line, from a record of the metrics."""
        if "eval/top1_error" in record:
            self._test_error = f"  test error {100 * record['eval/top1_error']:.2f} %"
        loss = record["train/loss"]
        text = (
            f"epoch {record['epoch']:.1f}  "
            f"loss {'not finite' if loss is None else f'{loss:.3f}'}  "
            f"error {100 * record['train/top1_error']:.1f} %{self._test_error}  "
            f"rate {record['train/learning_rate']:.4g}  "
            f"{record['train/images_per_second']:.0f} images/s"
        )
        self._bar.update(self._task, completed=record["step"], description=text)
        now, is_last = time.monotonic(), record["step"] == self._num_steps
        if not self._console.is_terminal and (
            is_last or now - self._last_line > SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            self.say(f"step {record['step']}/{self._num_steps}  {text}")


class _BarAboveText(Progress):
    """A bar as wide as the terminal, with the metrics below it, wrapped."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description) for task in self.tasks)


def outcome(workdir: Path, summary: Record) -> str:
    """How a run ended and where its results are.

    Args:
        workdir: workdir of the run.
        summary: its summary; one of an earlier version lacks the details.
    """
    lines = [
        f"finished: {summary['num_steps']} steps, {summary['num_examples_seen']} images seen, "
        f"test error {_percent(summary['top1_error_median_last5'])} ({median_of(summary)})"
    ]
    if "top1_error_last" in summary:
        loss = summary["eval_loss_last"]
        top5 = summary.get("top5_error_last")
        lines.append(
            f"test error of the last epoch {_percent(summary['top1_error_last'])}"
            f"{'' if top5 is None else f' (top-5 {_percent(top5)})'}, "
            f"best {_percent(summary['top1_error_best'])} (epoch {summary['epoch_of_best']:.4g}); "
            f"test loss {'not finite' if loss is None else f'{loss:.4g}'}; "
            f"{summary['seconds']:.0f} s of training, "
            f"{summary['images_per_second']:.0f} images/s"
        )
    results = "summary.json, curves.png, metrics.jsonl, tensorboard, checkpoints"
    return "\n".join([*lines, f"results: {workdir}/{results}"])


def median_of(summary: Record) -> str:
    """The epochs that the median error of a summary covers, in words."""
    number = summary.get("num_epochs_in_median")  # earlier versions did not record it
    if number == 1:
        return "last epoch"
    return f"median of {'at most the last 5' if number is None else f'the last {number}'} epochs"


def _percent(error: float) -> str:
    return f"{100 * error:.2f} %"
