"""The paper's recipe: from epochs to learning rates at steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, Literal, cast, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from optax_warmup import _checks, _json
from optax_warmup._decay import warmup_piecewise_decay
from optax_warmup._epochs import epochs_to_steps
from optax_warmup._scaling import Scaling, scaled
from optax_warmup._table import rate_table, wrapped
from optax_warmup._warmup import Schedule, constant_warmup

Warmup = Literal["auto", "none", "constant", "gradual"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeMinibatchRecipe:
    """The paper's recipe for SGD with large minibatches: sizes, steps and learning rates.

    With a gradual warmup the learning rate of update t is::

      base_learning_rate
        + (peak_learning_rate - base_learning_rate) * t / warmup_steps       if t < warmup_steps
      peak_learning_rate * decay_factor ** (number of milestone_steps <= t)  otherwise

    `peak_learning_rate` is `base_learning_rate * batch_size / base_batch_size`, as in the paper.
    The scaling "sqrt" takes the square root of the ratio. An epoch has `num_examples // batch_size`
    updates and drops the remaining images. `epochs_to_steps` converts epochs.

    Args:
      num_examples: number of images in the training set, at least one minibatch.
      num_workers: number k of workers that share a minibatch, at least 1.
      batch_size_per_worker: number n of images per worker and minibatch, at least 1.
      num_epochs: length of training, > 0; fractions are allowed.
      warmup: "gradual", "constant", "none" or "auto". As in the paper, "auto" is gradual if the
        batch size is larger than `base_batch_size` and none otherwise. A warmup must not go down.
      warmup_epochs: length of the warmup, from 0 to `num_epochs`.
      milestones: epochs at which the learning rate drops; > 0, increasing, not inside the warmup.
        Milestones at or after `num_epochs` have no effect, which allows shorter runs.
      decay_factor: factor of the learning rate at each milestone; > 0 and <= 1.
      base_learning_rate: learning rate for `base_batch_size` and at the start of the warmup; > 0.
      base_batch_size: batch size that `base_learning_rate` was tuned for, at least 1.
      scaling: scaling rule, "linear" as in the paper, or "sqrt" as for LAMB.

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
      Square-root scaling for LAMB: You et al., "Large Batch Optimization for Deep Learning",
      arXiv:1904.00962.
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
    scaling: Scaling = "linear"

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_workers", "batch_size_per_worker", "base_batch_size"):
            value = _checks.integer(name, getattr(self, name), minimum=1, maximum=_checks.MAX_SIZE)
            object.__setattr__(self, name, value)
        for name, bounds in _REAL_FIELDS.items():
            object.__setattr__(self, name, _number(name, getattr(self, name), **bounds))
        object.__setattr__(self, "milestones", _epochs("milestones", self.milestones))
        _checks.one_of("warmup", self.warmup, get_args(Warmup))
        _checks.one_of("scaling", self.scaling, get_args(Scaling))
        self._check_sizes()
        self._check_order()

    def _check_sizes(self) -> None:
        if self.batch_size > self.num_examples:
            raise ValueError(
                f"num_workers * batch_size_per_worker = {self.num_workers} * "
                f"{self.batch_size_per_worker} = {self.batch_size} must be at most "
                f"num_examples = {self.num_examples}, such as with num_workers = "
                f"{max(1, self.num_examples // self.batch_size_per_worker)}"
            )
        if not 1 <= self.num_steps <= _checks.MAX_STEP:
            raise ValueError(
                f"num_epochs must amount to 1 to {_checks.MAX_STEP} steps, got {self.num_epochs} "
                f"epochs of {self.steps_per_epoch} = {self.num_steps} steps"
            )
        if self.warmup in ("constant", "gradual") and (
            self.peak_learning_rate < self.base_learning_rate
        ):
            raise ValueError(
                f"warmup must be 'auto' or 'none' if it would go down, got {self.warmup!r}: "
                f"from {self.base_learning_rate} to {self.peak_learning_rate} at batch size "
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
                f"{self.steps_per_epoch} steps per epoch they are the steps {steps}"
            )
        if steps and steps[0] < self.warmup_steps:
            raise ValueError(
                f"milestones must be at least warmup_epochs = {self.warmup_epochs}, the end of "
                f"the warmup, got {self.milestones}"
            )

    @property
    def batch_size(self) -> int:
        """Number of images in one minibatch of all workers: kn."""
        return self.num_workers * self.batch_size_per_worker

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates in one epoch, without an incomplete minibatch at its end."""
        return self.num_examples // self.batch_size

    @property
    def num_steps(self) -> int:
        """Number of updates in the whole run."""
        return epochs_to_steps(self.num_epochs, self.steps_per_epoch)

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate after the warmup, scaled to the batch size."""
        return scaled(
            self.scaling,
            self.base_learning_rate,
            self.batch_size,
            base_batch_size=self.base_batch_size,
        )

    @property
    def resolved_warmup(self) -> Literal["none", "constant", "gradual"]:
        """The kind of warmup, with "auto" resolved."""
        if self.warmup != "auto":
            return self.warmup
        return "gradual" if self.batch_size > self.base_batch_size else "none"

    @property
    def warmup_steps(self) -> int:
        """Number of updates in the warmup; 0 without one."""
        if self.resolved_warmup == "none":
            return 0
        return epochs_to_steps(self.warmup_epochs, self.steps_per_epoch)

    @property
    def milestone_steps(self) -> tuple[int, ...]:
        """The first step with each lower rate, including those after the end of the run."""
        return tuple(epochs_to_steps(epoch, self.steps_per_epoch) for epoch in self.milestones)

    @property
    def boundaries_and_scales(self) -> dict[int, float]:
        """The factor at each of the `milestone_steps`, in optax's format."""
        return dict.fromkeys(self.milestone_steps, self.decay_factor)

    def schedule(self, *, dtype: DTypeLike = jnp.float32) -> Schedule:
        """The recipe as an optax schedule over optimizer updates.

        Args:
          dtype: float type of the learning rates.

        Returns:
          An optax schedule; the docstring of `optax_warmup` lists the conventions.
        """
        peak, steps = self.peak_learning_rate, self.warmup_steps
        # With zero warmup steps start at the peak, which may be below the base rate.
        init = self.base_learning_rate if steps else peak
        if self.resolved_warmup != "constant":
            return warmup_piecewise_decay(
                init, peak, steps, self.boundaries_and_scales, dtype=dtype
            )
        scales = {step - steps: scale for step, scale in self.boundaries_and_scales.items()}
        decay = warmup_piecewise_decay(peak, peak, 0, scales, dtype=dtype)
        return constant_warmup(init, steps, decay, dtype=dtype)

    @property
    def _factor(self) -> str:
        ratio = f"{self.batch_size}/{self.base_batch_size}"
        return ratio if self.scaling == "linear" else f"√({ratio})"

    def describe(self, *, width: int | None = None) -> str:
        """Summary and table of learning rates, to print before training.

        Args:
          width: columns of the terminal, to break lines between words and to leave the epochs out
            of a table that is too wide. None for lines of any length.
        """
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
        lines = [
            f"minibatch       k = {self.num_workers} workers x n = {self.batch_size_per_worker} "
            f"images, kn = {self.batch_size}",
            f"learning rate   η = {self.base_learning_rate:g} for {self.base_batch_size} images, "
            f"scaled by {self._factor}: "
            f"{'kη = ' if self.scaling == 'linear' else ''}{self.peak_learning_rate:g}",
            f"warmup          {kind}"
            + (f", {warmup} steps ({warmup / epoch:g} epochs)" if warmup else "")
            + (" (auto)" if self.warmup == "auto" else ""),
            f"length          {self.num_steps} steps = {self.num_epochs:g} epochs x {epoch} steps",
            "",
            *rate_table(self.schedule(), rows, lambda step: step / epoch, width),
        ]
        never = [m for m, s in zip(self.milestones, self.milestone_steps, strict=True)
                 if s >= self.num_steps]  # fmt: skip
        if never:
            names = ", ".join(f"{epoch:g}" for epoch in never)
            lines += [f"never reached: milestones at epochs {names}"]
        return wrapped(lines, width)

    def to_json(self) -> str:
        """The recipe as a JSON object with the version of the format."""
        return _json.dump(self)

    @classmethod
    def from_json(cls, text: str) -> LargeMinibatchRecipe:
        """The recipe in a JSON object from `to_json`.

        Args:
          text: JSON object with "version" and fields of this class; those with a default may be
            omitted.

        Returns:
          The recipe.

        Raises:
          ValueError: if the object has another version, unknown or missing fields, or values
            outside their ranges.
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
    return value if type(value) is int else number  # "90" in JSON instead of "90.0"


def _epochs(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of epochs, got {values!r}")
    given = cast("Iterable[Any]", values)
    epochs = tuple(_number(f"{name}[{i}]", value, above=0.0) for i, value in enumerate(given))
    if any(later <= earlier for earlier, later in itertools.pairwise(epochs)):
        raise ValueError(f"{name} must increase, without repeats, got {list(epochs)}")
    return epochs
