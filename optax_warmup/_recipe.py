"""The paper's recipe: epochs in, steps out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal, cast, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from optax_warmup import _checks, _json
from optax_warmup._decay import warmup_piecewise_decay
from optax_warmup._scaling import linear_scaling
from optax_warmup._warmup import Schedule, constant_warmup

Warmup = Literal["auto", "none", "constant", "gradual"]


def steps_in(epochs: float, steps_per_epoch: int) -> int:
    """Epochs as a number of steps, rounded to the nearest one (halves up).

    The only place that turns epochs into steps. Nothing is floored: 1.4 epochs of 100 steps are
    140 steps, and 0.1 epochs of 7 steps are 1.
    """
    return math.floor(epochs * steps_per_epoch + 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeMinibatchRecipe:
    r"""Learning rates for SGD with large minibatches, as a function of the step.

    .. math::
      \hat\eta = \eta \, \frac{kn}{B_0}, \qquad
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, t / W & t < W \\
        \hat\eta \, d^{\,\#\{i : m_i \leq t\}} & t \geq W
      \end{cases}

    where :math:`\eta` is `base_learning_rate`, :math:`k` is `num_workers`, :math:`n` is
    `batch_size_per_worker`, :math:`B_0` is `base_batch_size`, :math:`\hat\eta` is
    `peak_learning_rate`, :math:`d` is `decay_factor`, and :math:`t`, :math:`W` = `warmup_steps` and
    :math:`m_i` = `milestone_steps` count optimizer updates from the start of training. An epoch is
    `num_examples // (k n)` updates: what is left of the data set is dropped. Epochs become steps by
    rounding to the nearest step, halves up.

    Args:
      num_examples: images in the training set; at least one minibatch.
      num_workers: k, how many workers share a minibatch; at least 1.
      batch_size_per_worker: n, images of one worker in one minibatch; at least 1.
      num_epochs: length of training, > 0; a fraction will do.
      warmup: "gradual", "constant", "none", or "auto": gradual if the minibatch is larger than
        `base_batch_size`, else none, as in the paper.
      warmup_epochs: length of the warmup, >= 0 and no longer than training; 0 is no warmup.
      milestones: epochs at which the rate drops: > 0, increasing, none inside the warmup. Those
        from `num_epochs` on never happen, which is how a run is shortened; `describe` says so.
      decay_factor: what the rate is multiplied by at each milestone; > 0 and <= 1.
      base_learning_rate: rate for a minibatch of `base_batch_size`, and where the warmup starts;
        > 0.
      base_batch_size: minibatch that `base_learning_rate` belongs to; at least 1.

    Raises:
      ValueError: if an argument is outside its range, or the warmup asked for would go down, from
        `base_learning_rate` to a smaller peak.

    Examples:
      >>> import optax_warmup as ow
      >>> recipe = ow.LargeMinibatchRecipe(num_examples=1281167, num_workers=256)
      >>> recipe.batch_size, recipe.steps_per_epoch, recipe.num_steps
      (8192, 156, 14040)
      >>> recipe.peak_learning_rate, recipe.warmup_steps, recipe.milestone_steps
      (3.2, 780, (4680, 9360, 12480))
      >>> schedule = recipe.schedule()
      >>> [f"{schedule(step):.4f}" for step in (0, 779, 780, 4680)]
      ['0.1000', '3.1960', '3.2000', '0.3200']
      >>> ow.LargeMinibatchRecipe.from_json(recipe.to_json()) == recipe
      True

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", sections 2.1, 2.2 and 5.1, arXiv:1706.02677.
    """

    num_examples: int
    num_workers: int
    batch_size_per_worker: int = 32
    num_epochs: float = 90
    warmup: Warmup = "auto"
    warmup_epochs: float = 5
    milestones: tuple[float, ...] = (30, 60, 80)
    decay_factor: float = 0.1
    base_learning_rate: float = 0.1
    base_batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_workers", "batch_size_per_worker", "base_batch_size"):
            # An ImageNet is far below the largest step; a set of 2**31 images need not be.
            value = _checks.integer(name, getattr(self, name), minimum=1, maximum=2**63 - 1)
            object.__setattr__(self, name, value)
        for name, bounds in _REAL_FIELDS.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), **bounds))
        object.__setattr__(self, "milestones", _epochs("milestones", self.milestones))
        if self.warmup not in get_args(Warmup):
            allowed = ", ".join(repr(kind) for kind in get_args(Warmup))
            raise ValueError(f"warmup must be one of {allowed}, got {self.warmup!r}")
        self._check_sizes()
        self._check_order()

    def _check_sizes(self) -> None:
        if self.batch_size > self.num_examples:
            raise ValueError(
                f"num_workers * batch_size_per_worker = {self.num_workers} * "
                f"{self.batch_size_per_worker} = {self.batch_size} must be at most "
                f"num_examples = {self.num_examples}"
            )
        if not 1 <= self.num_steps <= _checks.MAX_STEP:
            raise ValueError(
                f"num_epochs must make from 1 to {_checks.MAX_STEP} steps, got {self.num_epochs} "
                f"epochs of {self.steps_per_epoch} = {self.num_steps} steps"
            )
        if self.warmup in ("constant", "gradual") and (
            self.peak_learning_rate < self.base_learning_rate
        ):
            raise ValueError(
                f"warmup must be 'auto' or 'none' where it would go down, got {self.warmup!r}: "
                f"from {self.base_learning_rate} to {self.peak_learning_rate} at a minibatch of "
                f"{self.batch_size}"
            )

    def _check_order(self) -> None:
        if self.warmup_steps > self.num_steps:
            raise ValueError(
                f"warmup_epochs must be at most num_epochs = {self.num_epochs}, "
                f"got {self.warmup_epochs}"
            )
        steps = self.milestone_steps
        if any(later == earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError(
                f"milestones must be at least one step apart, got {self.milestones}: with "
                f"{self.steps_per_epoch} steps an epoch these are the steps {steps}"
            )
        if steps and steps[0] < self.warmup_steps:
            raise ValueError(
                f"milestones must be at least warmup_epochs = {self.warmup_epochs}, where the "
                f"warmup ends, got {self.milestones}"
            )

    @property
    def batch_size(self) -> int:
        """Images in one minibatch, over all workers: kn."""
        return self.num_workers * self.batch_size_per_worker

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch; the images that do not fill a minibatch are dropped."""
        return self.num_examples // self.batch_size

    @property
    def num_steps(self) -> int:
        """Updates in the whole run."""
        return steps_in(self.num_epochs, self.steps_per_epoch)

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate after the warmup, scaled to the minibatch."""
        return linear_scaling(
            self.base_learning_rate, self.batch_size, base_batch_size=self.base_batch_size
        )

    @property
    def resolved_warmup(self) -> Literal["none", "constant", "gradual"]:
        """The warmup that is made, with "auto" decided."""
        if self.warmup != "auto":
            return self.warmup
        return "gradual" if self.batch_size > self.base_batch_size else "none"

    @property
    def warmup_steps(self) -> int:
        """Updates before the first one at the peak; 0 without a warmup."""
        if self.resolved_warmup == "none":
            return 0
        return steps_in(self.warmup_epochs, self.steps_per_epoch)

    @property
    def milestone_steps(self) -> tuple[int, ...]:
        """The first update at each lower rate, those beyond the end of the run included."""
        return tuple(steps_in(epoch, self.steps_per_epoch) for epoch in self.milestones)

    @property
    def boundaries_and_scales(self) -> dict[int, float]:
        """`milestone_steps` with the factor at each, as optax wants them."""
        return dict.fromkeys(self.milestone_steps, self.decay_factor)

    def schedule(self, *, dtype: DTypeLike = jnp.float32) -> Schedule:
        """The recipe as an optax schedule over optimizer updates.

        Args:
          dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

        Returns:
          A function from the number of updates made so far to the learning rate of the next one.
        """
        peak, steps = self.peak_learning_rate, self.warmup_steps
        # A ramp of no steps is no ramp, so its start can be the peak also where that is lower.
        init = self.base_learning_rate if steps else peak
        if self.resolved_warmup != "constant":
            return warmup_piecewise_decay(
                init, peak, steps, self.boundaries_and_scales, dtype=dtype
            )
        scales = {step - steps: scale for step, scale in self.boundaries_and_scales.items()}
        decay = warmup_piecewise_decay(peak, peak, 0, scales, dtype=dtype)
        return constant_warmup(init, steps, decay, dtype=dtype)

    def describe(self) -> str:
        """The plan in words and as a table of rates, to be read before training."""
        epoch = self.steps_per_epoch
        kind, warmup = self.resolved_warmup, self.warmup_steps
        rows: list[tuple[str, int]] = [("first step", 0)]
        if warmup:
            rows += [("last warmup step", warmup - 1)]
        if 0 < warmup < self.num_steps:
            rows += [("first step after warmup", warmup)]
        for number, step in zip(self.milestones, self.milestone_steps, strict=True):
            if step < self.num_steps:
                rows += [(f"milestone, epoch {number:g}", step)]
        rows += [("last step", self.num_steps - 1)]
        steps = np.asarray([step for _, step in rows])
        rates = np.broadcast_to(np.asarray(self.schedule()(steps)), steps.shape)
        lines = [
            f"minibatch       k = {self.num_workers} workers x n = {self.batch_size_per_worker} "
            f"images, kn = {self.batch_size}",
            f"learning rate   η = {self.base_learning_rate:g} for {self.base_batch_size} images, "
            f"scaled by {self.batch_size}/{self.base_batch_size}: "
            f"kη = {self.peak_learning_rate:g}",
            f"warmup          {kind}"
            + (f", {warmup} steps ({warmup / epoch:g} epochs)" if warmup else "")
            + (" (auto)" if self.warmup == "auto" else ""),
            f"length          {self.num_steps} steps = {self.num_epochs:g} epochs x {epoch} steps",
            "",
            f"{'':<24}{'step':>10}{'epoch':>10}  learning rate",
            *(
                f"{name:<24}{step:>10}{step / epoch:>10.2f}  {rate:.6g}"
                for (name, step), rate in zip(rows, rates, strict=True)
            ),
        ]
        never = [m for m, s in zip(self.milestones, self.milestone_steps, strict=True)
                 if s >= self.num_steps]  # fmt: skip
        if never:
            names = ", ".join(f"{epoch:g}" for epoch in never)
            lines += [f"never reached: milestones at epochs {names}"]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The recipe as a JSON object, with the version of the format."""
        return _json.dump(self)

    @classmethod
    def from_json(cls, text: str) -> LargeMinibatchRecipe:
        """The recipe that `to_json` wrote.

        Args:
          text: a JSON object with "version" and fields of this class. Fields with a default may be
            left out.

        Returns:
          The recipe, checked as if its fields had been given by hand.

        Raises:
          ValueError: if it is not such an object: another version, unknown or missing fields,
            values outside their ranges.
        """
        return cls(**_json.load(text, cls))


_REAL_FIELDS: dict[str, dict[str, float]] = {
    "num_epochs": {"above": 0.0},
    "warmup_epochs": {"minimum": 0.0},
    "decay_factor": {"above": 0.0, "maximum": 1.0},
    "base_learning_rate": {"above": 0.0},
}


def _number(name: str, value: Any, **bounds: float) -> float:
    number = _checks.real(name, value, **bounds)
    return value if type(value) is int else number  # 90 epochs stay "90" in JSON.


def _epochs(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of epochs, got {values!r}")
    given = cast("Iterable[Any]", values)
    epochs = tuple(_number(f"{name}[{i}]", value, above=0.0) for i, value in enumerate(given))
    if any(later <= earlier for earlier, later in itertools.pairwise(epochs)):
        raise ValueError(f"{name} must increase, without repeats, got {list(epochs)}")
    return epochs
