"""Training with a batch size that changes, as one schedule over optimizer updates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, cast, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from optax_warmup import _checks, _json
from optax_warmup._epochs import epochs_to_steps
from optax_warmup._phase import BatchSizePhase
from optax_warmup._scaling import Scaling, scaled
from optax_warmup._table import rate_table, wrapped
from optax_warmup._warmup import Schedule, gradual_warmup, sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizePhases:
    """Learning rates of a run with a changing batch size, and its exact count of examples.

    The peak of a phase is `decay_factor` times the scaled `base_learning_rate`. After t updates of
    the phase the learning rate is::

      previous_peak + (peak - previous_peak) * t / warmup_steps    if t < warmup_steps
      peak                                                         otherwise

    The first warmup starts at `base_learning_rate`, as in the paper. A warmup must not go
    down. An epoch has `num_examples // batch_size` updates. The last phase does not end.

    Args:
      num_examples: number of images in the training set, at least the largest batch size.
      phases: sequence of at least one `BatchSizePhase`.
      base_learning_rate: learning rate for `base_batch_size`; > 0.
      base_batch_size: batch size that `base_learning_rate` was tuned for, at least 1.
      scaling: scaling rule, "linear" or "sqrt".

    Examples:
      >>> import optax_warmup as ow
      >>> plan = ow.BatchSizePhases(
      ...     num_examples=1000,
      ...     phases=(
      ...         ow.BatchSizePhase(batch_size=250, num_epochs=2),
      ...         ow.BatchSizePhase(batch_size=500, num_steps=4, warmup_steps=2),
      ...     ),
      ...     base_batch_size=250,
      ... )
      >>> plan.num_steps, plan.boundaries, plan.examples_seen(9)
      (12, (8,), 2500)
      >>> print(plan.describe())
      phase 1         minibatch of 250 images, from step 0
      phase 2         minibatch of 500 images, from step 8
      learning rate   η = 0.1 for 250 images, linear scaling
      length          12 steps = 4 epochs
      <BLANKLINE>
                                    step     epoch  learning rate
      first step                       0      0.00  0.1
      phase 2                          8      2.00  0.1
      first step after warmup         10      3.00  0.2
      last step                       11      3.50  0.2

    Source:
      Sections 2.1 and 2.2 of arXiv:1706.02677, applied at each change; Smith et al., "Don't decay
      the learning rate, increase the batch size", arXiv:1711.00489.
    """

    num_examples: int
    phases: tuple[BatchSizePhase, ...]
    base_learning_rate: float = 0.1
    base_batch_size: int = 256
    scaling: Scaling = "linear"

    def __post_init__(self) -> None:
        for name in ("num_examples", "base_batch_size"):
            value = getattr(self, name)
            number = _checks.integer(name, value, minimum=1, maximum=_checks.MAX_SIZE)
            object.__setattr__(self, name, number)
        _checks.real("base_learning_rate", self.base_learning_rate, above=0.0)
        _checks.one_of("scaling", self.scaling, get_args(Scaling))
        given: Any = self.phases
        phases = tuple(cast("Any", given)) if isinstance(given, list | tuple) else ()
        object.__setattr__(self, "phases", phases)
        if not phases or not all(isinstance(phase, BatchSizePhase) for phase in phases):
            raise ValueError(f"phases must be one BatchSizePhase or more, got {given!r}")
        for i, phase in enumerate(self.phases):
            if phase.batch_size > self.num_examples:
                raise ValueError(
                    f"phases[{i}].batch_size must be at most num_examples = {self.num_examples}, "
                    f"got {phase.batch_size}"
                )
        for i in range(len(self.phases)):
            self._check_lengths(i)
        if self.num_steps > _checks.MAX_STEP:
            raise ValueError(
                f"phases must have at most {_checks.MAX_STEP} steps in total, got {self.num_steps}"
            )

    def _check_lengths(self, i: int) -> None:
        phase, steps, warmup = self.phases[i], self._phase_steps[i], self.warmup_steps[i]
        if not steps:
            raise ValueError(
                f"phases[{i}].num_epochs must amount to at least one step, got {phase.num_epochs}"
            )
        name = f"phases[{i}].warmup_{'epochs' if phase.warmup_steps is None else 'steps'}"
        if warmup > steps:
            raise ValueError(f"{name} must amount to at most {steps} steps, got {warmup} steps")
        before, rate = self._rates[i : i + 2]
        if warmup and rate < before:
            raise ValueError(
                f"{name} must be 0 if the learning rate decreases, from {before} to {rate}, "
                f"got {warmup} steps"
            )

    @property
    def num_steps(self) -> int:
        """Number of updates in the whole run."""
        return sum(self._phase_steps)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The first step of each phase but the first."""
        return tuple(itertools.accumulate(self._phase_steps[:-1]))

    @property
    def warmup_steps(self) -> tuple[int, ...]:
        """Number of warmup steps at the start of each phase."""
        return tuple(
            _steps(phase.warmup_steps, phase.warmup_epochs, self.num_examples // phase.batch_size)
            for phase in self.phases
        )

    @property
    def peak_learning_rates(self) -> tuple[float, ...]:
        """The scaled learning rate of each phase, reached after its warmup."""
        return self._rates[1:]

    def examples_seen(self, step: int) -> int:
        """Number of images in the first `step` updates, without rounding or overflow.

        Args:
          step: number of updates made so far. After the last phase its batch size is kept.

        Returns:
          A Python int.
        """
        counts = zip(
            self._updates_by_phase(_checks.integer("step", step)), self.phases, strict=True
        )
        return sum(count * phase.batch_size for count, phase in counts)

    def batch_size_at(self, step: int) -> int:
        """Number of images in the minibatch of update number `step`, counted from 0."""
        number = _checks.integer("step", step)
        passed = sum(boundary <= number for boundary in self.boundaries)
        return self.phases[passed].batch_size

    def schedule(self, *, dtype: DTypeLike = jnp.float32) -> Schedule:
        """The phases as one optax schedule over optimizer updates.

        Args:
          dtype: float type of the learning rates.

        Returns:
          An optax schedule; the docstring of `optax_warmup` lists the conventions.
        """
        parts = [
            # A phase without warmup has no ramp, and its rate may be below the one before.
            gradual_warmup(before if steps else rate, rate, steps, dtype=dtype)
            for (before, rate), steps in zip(
                itertools.pairwise(self._rates), self.warmup_steps, strict=True
            )
        ]
        return sequence(parts, self.boundaries)

    def describe(
        self, *, epoch_of: Callable[[int], float] | None = None, width: int | None = None
    ) -> str:
        """Summary and table of learning rates, to print before training.

        Args:
          epoch_of: function from a number of updates to the epochs completed by them; None counts
            `num_examples // batch_size` updates per epoch in each phase.
          width: columns of the terminal, to break lines between words and to leave the epochs out
            of a table that is too wide. None for lines of any length.
        """
        epoch_of = self._epochs_after if epoch_of is None else epoch_of
        lines: list[str] = []
        rows: list[tuple[str, int]] = []
        starts = (0, *self.boundaries)
        for i, (start, warmup) in enumerate(zip(starts, self.warmup_steps, strict=True)):
            name = f"phase {i + 1}"
            lines += [
                f"{name:<16}minibatch of {self.phases[i].batch_size} images, from step {start}"
            ]
            rows += [(name if i else "first step", start)]
            if 0 < warmup < self._phase_steps[i]:
                rows += [("first step after warmup", start + warmup)]
        rows += [("last step", self.num_steps - 1)]
        lines += [
            f"learning rate   η = {self.base_learning_rate:g} for {self.base_batch_size} images, "
            f"{self.scaling} scaling",
            f"length          {self.num_steps} steps = {epoch_of(self.num_steps):g} epochs",
            "",
        ]
        return wrapped([*lines, *rate_table(self.schedule(), rows, epoch_of, width)], width)

    def to_json(self) -> str:
        """The phases as a JSON object with the version of the format."""
        return _json.dump(self)

    @classmethod
    def from_json(cls, text: str) -> BatchSizePhases:
        """The phases in a JSON object from `to_json`.

        Args:
          text: JSON object with "version" and fields of this class; those with a default may be
            omitted.

        Returns:
          The phases.

        Raises:
          ValueError: if the object has another version, unknown or missing fields, or values
            outside their ranges.
        """
        fields = _json.load(text, cls)
        rows: Any = fields["phases"]
        if isinstance(rows, list):
            given = cast("list[Any]", rows)
            fields["phases"] = tuple(
                BatchSizePhase(**_json.known(cast("dict[str, Any]", row), BatchSizePhase))
                if isinstance(row, dict)
                else row
                for row in given
            )
        return cls(**fields)

    @property
    def _phase_steps(self) -> tuple[int, ...]:
        return tuple(
            _steps(phase.num_steps, phase.num_epochs, self.num_examples // phase.batch_size)
            for phase in self.phases
        )

    @property
    def _rates(self) -> tuple[float, ...]:
        """The learning rate before the first phase, then the peak of each phase."""
        base, size = self.base_learning_rate, self.base_batch_size
        peaks = (
            p.decay_factor * scaled(self.scaling, base, p.batch_size, base_batch_size=size)
            for p in self.phases
        )
        return (base, *peaks)

    def _updates_by_phase(self, step: int) -> list[int]:
        """Number of the first `step` updates in each phase; the last phase does not end."""
        starts, ends = (0, *self.boundaries), (*self.boundaries, step)
        return [max(min(step, end) - start, 0) for start, end in zip(starts, ends, strict=True)]

    def _epochs_after(self, step: int) -> float:
        counts = zip(self._updates_by_phase(step), self.phases, strict=True)
        return sum(count / (self.num_examples // phase.batch_size) for count, phase in counts)


def _steps(steps: int | None, epochs: float | None, steps_per_epoch: int) -> int:
    return epochs_to_steps(epochs or 0, steps_per_epoch) if steps is None else steps
