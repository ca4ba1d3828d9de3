"""A minibatch that changes its size in mid-run, as one schedule over optimizer updates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from optax_warmup import _checks, _json
from optax_warmup._recipe import steps_in
from optax_warmup._scaling import linear_scaling, sqrt_scaling
from optax_warmup._warmup import Schedule, gradual_warmup, sequence

Scaling = Literal["linear", "sqrt"]
_RULES: dict[str, Callable[..., float]] = {"linear": linear_scaling, "sqrt": sqrt_scaling}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizePhase:
    """One stretch of training at one minibatch size; see `BatchSizePhases`.

    Args:
      num_epochs: length, > 0; a fraction will do.
      batch_size: images in one minibatch, over all workers; at least 1.
      warmup_epochs: how long the rate takes from that of the phase before to that of this one; from
        0, where it jumps, to `num_epochs`.
      decay_factor: what the scaled rate is multiplied by in this phase; > 0 and <= 1.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.BatchSizePhase(num_epochs=30, batch_size=8192, warmup_epochs=5).warmup_epochs
      5

    Source:
      A batch-size change with rescaling and re-warmup, as asked for in transformers #31222.
    """

    num_epochs: float
    batch_size: int
    warmup_epochs: float = 0
    decay_factor: float = 1.0

    def __post_init__(self) -> None:
        _checks.real("num_epochs", self.num_epochs, above=0.0)
        size = _checks.integer("batch_size", self.batch_size, minimum=1, maximum=2**63 - 1)
        object.__setattr__(self, "batch_size", size)
        _checks.real("warmup_epochs", self.warmup_epochs, minimum=0.0, maximum=self.num_epochs)
        _checks.real("decay_factor", self.decay_factor, above=0.0, maximum=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizePhases:
    r"""Learning rates for a minibatch that changes its size, with the exact count of examples.

    .. math::
      \hat\eta_p = d_p \, s(\eta, B_p / B_0), \qquad
      \eta_t = \begin{cases}
        \hat\eta_{p-1} + (\hat\eta_p - \hat\eta_{p-1}) \, (t - T_p) / W_p & t - T_p < W_p \\
        \hat\eta_p & \text{otherwise}
      \end{cases}

    for :math:`T_p \leq t < T_{p+1}`, where :math:`t` counts optimizer updates from the start of
    training, phase :math:`p` has the minibatch :math:`B_p`, the factor :math:`d_p` and a warmup of
    :math:`W_p` steps, and starts at step :math:`T_p`; :math:`\eta` is `base_learning_rate`,
    :math:`B_0` is `base_batch_size` and :math:`s` is the scaling rule. "Before" the first phase the
    rate is :math:`\eta`, as in the paper. An epoch is `num_examples // B_p` updates. The last phase
    goes on for ever.

    Args:
      num_examples: images in the training set; at least the largest minibatch.
      phases: one `BatchSizePhase` or more, in order.
      base_learning_rate: rate for a minibatch of `base_batch_size`; > 0.
      base_batch_size: minibatch that `base_learning_rate` belongs to; at least 1.
      scaling: "linear" or "sqrt".

    Raises:
      ValueError: if an argument is outside its range, or a warmup would go down.

    Examples:
      >>> import optax_warmup as ow
      >>> plan = ow.BatchSizePhases(
      ...     num_examples=1000,
      ...     phases=(
      ...         ow.BatchSizePhase(num_epochs=2, batch_size=250),
      ...         ow.BatchSizePhase(num_epochs=2, batch_size=500, warmup_epochs=1),
      ...     ),
      ...     base_batch_size=250,
      ... )
      >>> plan.num_steps, plan.boundaries, plan.examples_seen(9)
      (12, (8,), 2500)
      >>> schedule = plan.schedule()
      >>> [f"{schedule(t):.2f}" for t in (7, 8, 9, 10, 11)]
      ['0.10', '0.10', '0.15', '0.20', '0.20']

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
            number = _checks.integer(name, getattr(self, name), minimum=1, maximum=2**63 - 1)
            object.__setattr__(self, name, number)
        _checks.real("base_learning_rate", self.base_learning_rate, above=0.0)
        if self.scaling not in get_args(Scaling):
            allowed = ", ".join(repr(rule) for rule in get_args(Scaling))
            raise ValueError(f"scaling must be one of {allowed}, got {self.scaling!r}")
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
            if not self._steps[i]:
                raise ValueError(
                    f"phases[{i}].num_epochs must make at least one step, got {phase.num_epochs}"
                )
            before, rate = self._rates[i : i + 2]
            if self.warmup_steps[i] and rate < before:
                raise ValueError(
                    f"phases[{i}].warmup_epochs must be 0 where the rate goes down, from {before} "
                    f"to {rate}, got {phase.warmup_epochs}"
                )
        if self.num_steps > _checks.MAX_STEP:
            raise ValueError(
                f"phases must make at most {_checks.MAX_STEP} steps, got {self.num_steps}"
            )

    @property
    def num_steps(self) -> int:
        """Updates in the whole run."""
        return sum(self._steps)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The first update of each phase but the first."""
        return tuple(itertools.accumulate(self._steps[:-1]))

    @property
    def peak_learning_rates(self) -> tuple[float, ...]:
        """The scaled rate of each phase, which its warmup leads to."""
        return self._rates[1:]

    def examples_seen(self, step: int) -> int:
        """Images used by the first `step` updates; exact, whatever their number.

        Args:
          step: updates made so far, from 0. Beyond the run it goes on at the last size.

        Returns:
          A Python int, which cannot overflow.

        Raises:
          ValueError: if `step` is not such a number.
        """
        left = _checks.integer("step", step)
        seen = 0
        for phase, steps in zip(self.phases[:-1], self._steps[:-1], strict=True):
            seen += min(left, steps) * phase.batch_size
            left = max(left - steps, 0)
        return seen + left * self.phases[-1].batch_size

    def batch_size_at(self, step: int) -> int:
        """Images in the minibatch of update number `step`, counted from 0."""
        number = _checks.integer("step", step)
        passed = sum(boundary <= number for boundary in self.boundaries)
        return self.phases[passed].batch_size

    def schedule(self, *, dtype: DTypeLike = jnp.float32) -> Schedule:
        """The phases as one optax schedule over optimizer updates.

        Args:
          dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

        Returns:
          A function from the number of updates made so far to the learning rate of the next one.
        """
        parts = [
            # A phase without warmup may also go down, and then has no ramp to start anywhere.
            gradual_warmup(before if steps else rate, rate, steps, dtype=dtype)
            for (before, rate), steps in zip(
                itertools.pairwise(self._rates), self.warmup_steps, strict=True
            )
        ]
        return sequence(parts, self.boundaries)

    def to_json(self) -> str:
        """The phases as a JSON object, with the version of the format."""
        return _json.dump(self)

    @classmethod
    def from_json(cls, text: str) -> BatchSizePhases:
        """The phases that `to_json` wrote.

        Args:
          text: a JSON object with "version" and fields of this class. Fields with a default may be
            left out.

        Returns:
          The phases, checked as if their fields had been given by hand.

        Raises:
          ValueError: if it is not such an object: another version, unknown or missing fields,
            values outside their ranges.
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
    def _steps(self) -> tuple[int, ...]:
        return tuple(
            steps_in(phase.num_epochs, self.num_examples // phase.batch_size)
            for phase in self.phases
        )

    @property
    def warmup_steps(self) -> tuple[int, ...]:
        """Steps of the warmup with which each phase begins."""
        return tuple(
            steps_in(phase.warmup_epochs, self.num_examples // phase.batch_size)
            for phase in self.phases
        )

    @property
    def _rates(self) -> tuple[float, ...]:
        """The rate before the first phase, then that of each."""
        scale = _RULES[self.scaling]
        return (
            self.base_learning_rate,
            *(
                phase.decay_factor
                * scale(
                    self.base_learning_rate, phase.batch_size, base_batch_size=self.base_batch_size
                )
                for phase in self.phases
            ),
        )
