"""How far the errors of two trials lie apart, beside what the seed alone does."""

import dataclasses
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from experiments import results
from experiments.plan import (
    EXPERIMENTS,
    LARGER,
    TRIALS,
    base,
)
from experiments.setting import LARGE, REFERENCE

ERRORS = 3.0  # an effect counts where it is more than this many standard errors
FREEDOM = 4  # without as many degrees of freedom there is no telling what a standard error is

REFERENCE_TRIAL, LARGE_TRIAL = base(REFERENCE), base(LARGE)


@dataclasses.dataclass(frozen=True)
class Readings:
    """All runs that are kept, by trial and seed."""

    runs: dict[str, dict[int, results.Run]]

    def errors(self, name: str) -> list[float]:
        """Error of each run of a trial that did not diverge, in percent, by seed."""
        return [100 * run["top1_error"] for run in self._of(name) if "top1_error" in run]

    def num_diverged(self, name: str) -> int:
        """How many runs of a trial have diverged."""
        return sum("diverged" in run for run in self._of(name))

    def has(self, *names: str) -> bool:
        """Whether each of these trials has a run that did not diverge."""
        return all(self.errors(name) for name in names)

    def of_seed(self, seed: int) -> "Readings":
        """The runs of one seed alone."""
        return Readings(
            {
                name: {s: run for s, run in some.items() if s == seed}
                for name, some in self.runs.items()
            }
        )

    def of_last_epoch(self) -> "Readings":
        """The same runs, scored by the test error of their last epoch alone."""
        return Readings(
            {
                name: {
                    seed: run | {"top1_error": run["test_error"][-1][1]}
                    if "top1_error" in run
                    else run
                    for seed, run in of_trial.items()
                }
                for name, of_trial in self.runs.items()
            }
        )

    def score(self, name: str, of: int = EXPERIMENTS["warmup"].num_seeds) -> str:
        """Mean error ± standard deviation, with the number of runs where it is another."""
        if not self.runs.get(name):
            return "not run"
        errors, diverged = self.errors(name), self.num_diverged(name)
        if not errors:
            return "diverged"
        text = f"{statistics.mean(errors):.2f}"
        if len(errors) > 1:
            text += f" ±{statistics.stdev(errors):.2f}"
        if len(errors) != of:
            text += f" ({len(errors)} run{'s' if len(errors) > 1 else ''})"
        return text + (f", {diverged} diverged" if diverged else "")

    def curve(self, name: str, metric: str) -> tuple[list[float], list[list[float]]]:
        """Epochs, and at each of them the values of all runs of a trial."""
        curves = [run[metric] for run in self._of(name) if metric in run]
        return [epoch for epoch, _ in curves[0]], [
            [value for _, value in points] for points in zip(*curves, strict=True)
        ]

    def _of(self, name: str) -> list[results.Run]:
        return list(self.runs.get(name, {}).values())


@dataclasses.dataclass(frozen=True)
class Effect:
    """By how much the error of one trial is above another's.

    Attributes:
        points: percentage points between the means.
        deviation: standard deviation of runs that differ in their seed alone, likewise.
        num_runs: of each of the two trials.
    """

    points: float
    deviation: float
    num_runs: tuple[int, int]

    @property
    def counts(self) -> bool:
        """Whether it is more than `ERRORS` standard errors of the difference."""
        error = self.deviation * math.sqrt(sum(1 / number for number in self.num_runs))
        return abs(self.points) > ERRORS * error

    @property
    def seen(self) -> str:
        """In a word."""
        if not self.counts:
            return "not told apart"
        return "worse" if self.points > 0 else "better"


def effect(readings: Readings, trial: str, other: str) -> Effect | None:
    """Compare two trials; None where one of them was not run, or has diverged.

    Of one or two runs the deviation would be no estimate: that of the runs of the reference and of
    the large minibatch with gradual warmup stands for it.
    """
    both = readings.errors(trial), readings.errors(other)
    if not all(both) or readings.num_diverged(trial) or readings.num_diverged(other):
        return None
    names = {name for name in (trial, other) if len(readings.errors(name)) > 2}
    if len(names) < 2:
        names |= {REFERENCE_TRIAL, LARGE_TRIAL}
    groups = [errors for name in sorted(names) if (errors := readings.errors(name))]
    freedom = sum(len(errors) - 1 for errors in groups)
    squares = sum((error - statistics.mean(errors)) ** 2 for errors in groups for error in errors)
    if freedom < FREEDOM or not squares:
        return None
    points = statistics.mean(both[0]) - statistics.mean(both[1])
    return Effect(points, math.sqrt(squares / freedom), (len(both[0]), len(both[1])))


def is_worse(readings: Readings, trial: str, other: str) -> bool:
    """Whether a trial's error counts as above another's, or it alone has diverged."""
    found = effect(readings, trial, other)
    if found is None:
        return readings.num_diverged(trial) > 0 and not readings.num_diverged(other)
    return found.seen == "worse"


def first_worse(worse: Callable[[int], bool]) -> int | None:
    """The smallest kn from which on every larger one is worse, too; None if there is none."""
    sizes = list(itertools.takewhile(worse, reversed(LARGER)))
    return sizes[-1] if sizes else None


def breaking_size(readings: Readings) -> int | None:
    """The kn from which on linear scaling with gradual warmup is worse than the reference."""
    return first_worse(lambda kn: is_worse(readings, base(kn), REFERENCE_TRIAL))


def read(folder: Path) -> Readings:
    """Read results/*.json."""
    return Readings({name: results.runs_of(folder, name) for name in TRIALS})


def source(readings: Readings) -> str:
    """What a picture is drawn of, in a word that is written into it."""
    return hashlib.sha256(json.dumps(readings.runs, sort_keys=True).encode()).hexdigest()
