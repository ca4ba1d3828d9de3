"""What a run says of its steps: one record every few updates, read one update late."""

import math
import statistics
import time

import jax

from train.config import Config, RunError
from train.run.corrupt import CorruptImages
from train.run.display import Display
from train.run.metrics import MetricsLog, Record
from train.step.train_step import StepMetrics
from train.timeline import Timeline


class Report:
    """What the updates say: each is read while the next one runs, and written where it is due.

    Args:
        config: of the run.
        timeline: of the run.
        last_step: at which the run ends.
        log: where records go.
        display: likewise.
        corrupt: where images that cannot be decoded are noted.
        step: updates made by the state from which the run goes on.
    """

    def __init__(
        self,
        config: Config,
        timeline: Timeline,
        last_step: int,
        log: MetricsLog,
        display: Display,
        corrupt: CorruptImages,
        step: int,
    ) -> None:
        self._config, self._timeline, self._last_step = config, timeline, last_step
        self._log, self._display, self._corrupt = log, display, corrupt
        self._unread: tuple[int, StepMetrics, jax.Array] | None = None
        self._began = time.perf_counter() - log.seconds
        self._clock = Clock(step)
        self._spikes = Spikes()
        for record in log.records:  # or a run that goes on where the rate rises would not know
            if record.get("train/loss") is not None:
                self._spikes.begins(record["train/loss"])
        self._nonfinite_steps = max(
            (record.get("train/nonfinite_steps", 0) for record in log.records), default=0
        )

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, ends with this step."""
        return self._timeline.ends_epoch(step) or step == self._last_step

    def update(self, step: int, metrics: StepMetrics, corrupt: jax.Array) -> None:
        """Take the metrics of an update that has been started; write those of the one before.

        Args:
            step: updates made, this one included.
            metrics: of this one.
            corrupt: `Examples.corrupt` of its minibatch.

        Raises:
            RunError: if there are more corrupt images, or more updates that are not finite, than
                may be.
        """
        self.write(self.read())
        self._unread = step, metrics, corrupt

    def read(self) -> Record:
        """Wait for the last update; what it says is a record where one is due, else empty."""
        if self._unread is None:
            return {}
        (step, metrics, corrupt), self._unread = self._unread, None
        values = jax.device_get(metrics)
        if values.num_corrupt:
            self._corrupt.meet_in_training(step, corrupt)
        rate = float(values.learning_rate)
        if not values.is_finite:
            self._meet_nonfinite(step, rate)
        elif self._spikes.begins(float(values.loss)):
            self._display.say(
                f"the loss has jumped up before step {step} (learning rate {rate:.4g}): where that "
                "follows a rise of the rate, it was too abrupt, and --warmup gradual or a longer "
                "--warmup-epochs may help"
            )
        if values.is_finite and step % self._config.log_every_steps and not self.ends_epoch(step):
            return {}
        images_per_second = self._clock.steps_per_second(step) * self._config.batch_size
        record: Record = {
            "step": step,
            "epoch": self._timeline.epoch(step),
            "train/loss": float(values.loss) if values.is_finite else None,
            "train/top1_error": float(values.top1_error),
            "train/learning_rate": rate,
            "train/images_per_second": images_per_second,
            "train/nonfinite_steps": self._nonfinite_steps,
            "data/corrupt_images": len(self._corrupt),
            "train/num_examples_seen": self._timeline.num_examples_seen(step),
            "train/seconds": time.perf_counter() - self._began,
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

    def _meet_nonfinite(self, step: int, rate: float) -> None:
        what = f"loss or gradients of step {step} are not finite (learning rate {rate:.4g})"
        self._nonfinite_steps += 1
        allowed = self._config.max_nonfinite_steps
        if self._config.on_nonfinite == "stop":
            raise RunError(
                f"{what}; a lower --base-learning-rate or a longer --warmup-epochs may help, or "
                "--on-nonfinite skip"
            )
        if self._nonfinite_steps > allowed:
            raise RunError(f"{what}, and --max-nonfinite-steps is {allowed}")
        self._display.say(f"{what}: update skipped, {self._nonfinite_steps} of at most {allowed}")

    def leave_out(self, step: int) -> None:
        """Leave what was done since a step that had just been made out of the speed."""
        self._clock.restart(step)


class Spikes:
    """Finds where the loss jumps up, the paper's sign of a warmup that ends abruptly (section 2.2).

    A spike begins where the median of the last `RECENT` losses is above that of the `BEFORE` ones
    before them by both `RATIO` and `RISE`. The ratio is what noise does not reach while the loss is
    large, the rise while it is small.
    """

    RECENT, BEFORE = 5, 20
    RATIO, RISE = 1.25, 0.25

    def __init__(self) -> None:
        self._losses: list[float] = []

    def begins(self, loss: float) -> bool:
        """Take the loss of the next step; whether a spike begins, which is said once."""
        self._losses = [*self._losses, loss][-(self.RECENT + self.BEFORE) :]
        if len(self._losses) < self.RECENT + self.BEFORE:
            return False
        before = statistics.median(self._losses[: self.BEFORE])
        recent = statistics.median(self._losses[self.BEFORE :])
        begins = recent > self.RATIO * before and recent > before + self.RISE
        if begins:
            self._losses = []  # what comes is compared with itself
        return begins


class Clock:
    """Steps per second since the last reading, evaluations and the like left out."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin to count at a step that has just been made."""
        self._step, self._seconds = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Read the rate up to a step that has just been made, and begin anew."""
        steps, seconds = step - self._step, time.perf_counter() - self._seconds
        self.restart(step)
        return steps / seconds
