"""Metrics of a run's steps: one record every few steps, read one step late."""

import math
import statistics
import time

import jax

from train.errors import RunError
from train.plan import Plan
from train.run.display import Display
from train.run.metrics import MetricsLog, Record
from train.step.train_step import StepMetrics


class Report:
    """Reads the metrics of each step while the next one runs, and writes those of logging steps.

    Args:
        plan: plan of the run.
        log: destination of the records.
        display: destination of messages and progress.
        step: completed updates of the restored state.
    """

    def __init__(self, plan: Plan, log: MetricsLog, display: Display, step: int) -> None:
        self._plan, self._log, self._display = plan, log, display
        self._queued: tuple[int, StepMetrics] | None = None
        self._started = time.perf_counter() - log.seconds
        self._clock = Clock(step)
        self._spikes = SpikeDetector()
        for record in log.records:  # replay old losses: spikes are detected right after a resume
            if record.get("train/loss") is not None:
                self._spikes.add(record["train/loss"])
        self._nonfinite_steps = max(
            (record.get("train/nonfinite_steps", 0) for record in log.records), default=0
        )

    def queue(self, step: int, metrics: StepMetrics) -> None:
        """Queue the metrics of the step just dispatched and write those of the previous step.

        Args:
            step: completed updates, including this one.
            metrics: metrics of this update.

        Raises:
            RunError: if there are more updates that are not finite than the configuration allows.
        """
        self.write(self.read())
        self._queued = step, metrics

    def read(self) -> Record:
        """Block on the queued step. Returns its record if it is a logging step, else {}."""
        if self._queued is None:
            return {}
        (step, metrics), self._queued = self._queued, None
        values = jax.device_get(metrics)
        rate = float(values.learning_rate)
        if not values.is_finite:
            self._handle_nonfinite(step, rate)
        elif self._spikes.add(float(values.loss)):
            self._display.say(
                f"the loss jumped up before step {step} (learning rate {rate:.4g}); if the rate "
                "has just risen, it rose too abruptly: --warmup gradual or a longer "
                "--warmup-epochs may help"
            )
        config, timeline = self._plan.config, self._plan.timeline
        is_logged = step % config.output.log_every_steps == 0 or self._plan.ends_epoch(step)
        if values.is_finite and not is_logged:
            return {}
        record: Record = {
            "step": step,
            "epoch": timeline.epoch(step),
            "train/loss": float(values.loss) if values.is_finite else None,
            "train/top1_error": float(values.top1_error),
            "train/learning_rate": rate,
            "train/images_per_second": self._clock.steps_per_second(step)
            * config.experiment.batch_size,
            "train/nonfinite_steps": self._nonfinite_steps,
            "train/num_examples_seen": timeline.num_examples_seen(step),
            "train/seconds": time.perf_counter() - self._started,
        }
        if values.noise_scale is not None:
            noise_scale = float(values.noise_scale)
            record["train/noise_scale"] = noise_scale if math.isfinite(noise_scale) else None
        return record

    def write(self, record: Record) -> None:
        """Write a record, unless it is empty."""
        if record:
            self._log.write(record)
            self._display.show(record)

    def restart_clock(self, step: int) -> None:
        """Restart the throughput clock, so that evaluation and checkpointing are not counted."""
        self._clock.restart(step)

    def _handle_nonfinite(self, step: int, rate: float) -> None:
        line = f"loss or gradients of step {step} are not finite (learning rate {rate:.4g})"
        self._nonfinite_steps += 1
        allowed = self._plan.config.machine.max_nonfinite_steps
        if self._plan.config.machine.on_nonfinite == "stop":
            raise RunError(
                f"{line}; a lower --base-learning-rate or a longer --warmup-epochs may help, or "
                "--on-nonfinite skip"
            )
        if self._nonfinite_steps > allowed:
            raise RunError(f"{line}, and --max-nonfinite-steps is {allowed}")
        self._display.say(f"{line}: update skipped, {self._nonfinite_steps} of at most {allowed}")


class SpikeDetector:
    """Detects jumps of the loss, the paper's sign of a warmup that ends abruptly (section 2.2).

    A spike starts when the median of the last `RECENT` losses exceeds that of the `BEFORE` losses
    before them by both `RATIO` and `RISE`. Noise does not reach the ratio while the loss is large,
    nor the rise while it is small.
    """

    RECENT, BEFORE = 5, 20
    RATIO, RISE = 1.25, 0.25

    def __init__(self) -> None:
        self._losses: list[float] = []

    def add(self, loss: float) -> bool:
        """Add a loss; return True on the first step of a spike."""
        self._losses = [*self._losses, loss][-(self.RECENT + self.BEFORE) :]
        if len(self._losses) < self.RECENT + self.BEFORE:
            return False
        before = statistics.median(self._losses[: self.BEFORE])
        recent = statistics.median(self._losses[self.BEFORE :])
        is_spike = recent > self.RATIO * before and recent > before + self.RISE
        if is_spike:
            self._losses = []  # compare later losses with each other
        return is_spike


class Clock:
    """Steps per second between two readings, without evaluations and checkpoints."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Start counting after `step` updates."""
        self._step, self._seconds = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Steps per second up to `step` updates; restarts the clock."""
        steps, seconds = step - self._step, time.perf_counter() - self._seconds
        self.restart(step)
        return steps / seconds
