"""What a person sees on the terminal: the plan, the progress, the end."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import jax
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from train.config import Config
from train.data.minibatches import Dataset
from train.run.metrics import Record
from train.step.workers import Workers
from train.timeline import Timeline

SECONDS_BETWEEN_LINES = 5.0  # where there is no terminal to draw a bar on
SECONDS_OF_SPEED = 3600.0  # from which the time left is estimated, however slow a step is


class Display:
    """A progress bar on a terminal, a line now and then elsewhere; silent but on process 0.

    Args:
        num_steps: length of the run.
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

    def say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        encoding = self._console.encoding  # which may have no η: better "?" than no training
        text = text.encode(encoding, errors="replace").decode(encoding)
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, record: Record) -> None:
        """Bring the bar, or the next line, up to a record of the metrics."""
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
    """A bar as wide as the terminal, and below it, in as many lines as it takes, the numbers."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.description) for task in self.tasks)


def plan(config: Config, timeline: Timeline, dataset: Dataset, workers: Workers) -> str:
    """Say what is about to happen: machine, workers, data, rates, and where it is written."""
    devices = workers.mesh.devices.size
    return "\n".join(
        [
            f"network         {config.model}, {config.dtype}, {config.image_size} x "
            f"{config.image_size} pixels",
            f"devices         {devices} x {jax.devices()[0].device_kind}, "
            f"{jax.process_count()} process(es)",
            f"workers         {workers.num_workers // workers.num_parts} on each device at a time, "
            f"{config.accumulation_steps} accumulation step(s)",
            f"data            {dataset.name}: {len(dataset.train)} training and "
            f"{len(dataset.evaluation)} test images, {dataset.num_classes} classes",
            f"starts from     {config.init_from or f'seed {config.seed}'}, with {config.optimizer}",
            f"writes to       {config.workdir}",
            timeline.describe(),
            *([f"stops after     {config.num_steps} steps"] if config.num_steps else []),
        ]
    )


def outcome(workdir: Path, summary: Record) -> str:
    """Say how a run ended and where its results are."""
    return (
        f"finished: {summary['num_steps']} steps, {summary['num_examples_seen']} images seen, "
        f"test error {100 * summary['top1_error_median_last5']:.2f} % "
        f"(median of the last 5 epochs)\n"
        f"results: {workdir}/summary.json, curves.png, metrics.jsonl, tensorboard, checkpoints"
    )
