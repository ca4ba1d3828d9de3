"""Effects: the difference between the errors of two trials, and whether it exceeds the noise."""

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from experiments import results
from experiments.plan import EXPERIMENTS, LARGER, TRIALS, base
from experiments.setting import LARGE, REFERENCE

ERRORS = 3.0  # an effect counts if it is larger than this many standard errors
FREEDOM = 4  # with fewer degrees of freedom a standard error is not meaningful

REFERENCE_TRIAL, LARGE_TRIAL = base(REFERENCE), base(LARGE)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The saved runs of all trials.

    Attributes:
        by_trial: runs by trial name and seed.
    """

    by_trial: dict[str, dict[int, results.Run]]

    @classmethod
    def load(cls, folder: Path) -> "Runs":
        """Read FOLDER/results/*.json."""
        return cls({name: results.load_runs(folder, name) for name in TRIALS})

    @property
    def digest(self) -> str:
        """SHA-256 of the runs; pictures record it as their source."""
        return hashlib.sha256(json.dumps(self.by_trial, sort_keys=True).encode()).hexdigest()

    def errors(self, name: str) -> list[float]:
        """Errors of the runs of a trial that did not diverge, in percent, ordered by seed."""
        return [100 * run["top1_error"] for run in self._of(name) if "top1_error" in run]

    def num_diverged(self, name: str) -> int:
        """Number of runs of a trial that diverged."""
        return sum("diverged" in run for run in self._of(name))

    def has(self, *names: str) -> bool:
        """Return True if each of these trials has a run that did not diverge."""
        return all(self.errors(name) for name in names)

    def of_last_epoch(self) -> "Runs":
        """Score the same runs by the test error of their last epoch."""

        def score(run: results.Run) -> results.Run:
            return run | {"top1_error": run["test_error"][-1][1]} if "test_error" in run else run

        return Runs(
            {
                name: {seed: score(run) for seed, run in runs.items()}
                for name, runs in self.by_trial.items()
            }
        )

    def score(self, name: str) -> str:
        """Format mean ± standard deviation, with the number of runs if it is not five."""
        errors, diverged = self.errors(name), self.num_diverged(name)
        if not errors:
            return "diverged" if diverged else "not run"
        text = f"{statistics.mean(errors):.2f}"
        if len(errors) > 1:
            text += f" ±{statistics.stdev(errors):.2f}"
        if len(errors) != EXPERIMENTS["warmup"].num_seeds:
            text += f" ({len(errors)} run{'s' if len(errors) > 1 else ''})"
        return text + (f", {diverged} diverged" if diverged else "")

    def curve(self, name: str, metric: str) -> tuple[list[float], list[list[float]]]:
        """Epochs at which a metric was logged, and the values of all runs at each of them."""
        curves = [run[metric] for run in self._of(name) if metric in run]
        return [epoch for epoch, _ in curves[0]], [
            [value for _, value in points] for points in zip(*curves, strict=True)
        ]

    def _of(self, name: str) -> list[results.Run]:
        return list(self.by_trial.get(name, {}).values())


@dataclasses.dataclass(frozen=True)
class Effect:
    """The error of one trial minus that of another.

    Attributes:
        points: difference of the mean errors, in percentage points.
        deviation: standard deviation over seeds, in percentage points.
        num_runs: number of runs of each of the two trials.
    """

    points: float
    deviation: float
    num_runs: tuple[int, int]

    @property
    def threshold(self) -> float:
        """The size above which an effect counts: `ERRORS` standard errors of the difference."""
        return ERRORS * self.deviation * math.sqrt(sum(1 / number for number in self.num_runs))

    @property
    def counts(self) -> bool:
        """Whether the effect exceeds the threshold."""
        return abs(self.points) > self.threshold


def effect(runs: Runs, trial: str, other: str) -> Effect | None:
    """Compare two trials.

    One or two runs give no estimate of the deviation over seeds. Such a trial borrows the deviation
    of the reference and of the large minibatch with gradual warmup.

    Returns:
        The effect, or None if a trial was not run or diverged, or if there are too few runs.
    """
    both = runs.errors(trial), runs.errors(other)
    if not all(both) or runs.num_diverged(trial) or runs.num_diverged(other):
        return None
    names = {name for name in (trial, other) if len(runs.errors(name)) > 2}
    if len(names) < 2:
        names |= {REFERENCE_TRIAL, LARGE_TRIAL}
    groups = [errors for name in sorted(names) if (errors := runs.errors(name))]
    freedom = sum(len(errors) - 1 for errors in groups)
    squares = sum((error - statistics.mean(errors)) ** 2 for errors in groups for error in errors)
    if freedom < FREEDOM or not squares:
        return None
    points = statistics.mean(both[0]) - statistics.mean(both[1])
    return Effect(points, math.sqrt(squares / freedom), (len(both[0]), len(both[1])))


def is_worse(runs: Runs, trial: str, other: str) -> bool:
    """Return True if a trial's error counts as above another's, or if only that trial diverged."""
    found = effect(runs, trial, other)
    if found is None:
        return runs.num_diverged(trial) > 0 and not runs.num_diverged(other)
    return found.counts and found.points > 0


def first_worse(worse: Callable[[int], bool]) -> int | None:
    """Return the smallest kn such that it and every larger one are worse, or None."""
    sizes = list(itertools.takewhile(worse, reversed(LARGER)))
    return sizes[-1] if sizes else None


def breaking_size(runs: Runs) -> int | None:
    """Return the kn from which linear scaling with gradual warmup is worse than the reference."""
    return first_worse(lambda kn: is_worse(runs, base(kn), REFERENCE_TRIAL))
