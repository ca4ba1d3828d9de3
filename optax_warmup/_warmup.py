"""Constant and gradual warmup, and the functions that join schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_warmup import _checks

# Narrower than `optax.Schedule`, which may also return a Python number.
Schedule = Callable[[ArrayLike], jax.Array]


def constant_warmup(
    init_value: ArrayLike,
    warmup_steps: int,
    after: optax.Schedule,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    """Constant warmup: a low learning rate, then a jump to another schedule.

    The learning rate of update t is::

      init_value                 if t < warmup_steps
      after(t - warmup_steps)    otherwise

    This suits fine-tuning of pre-trained layers together with new ones. For large minibatches
    prefer `gradual_warmup`: the jump makes the training error spike.

    Args:
      init_value: learning rate during the warmup.
      warmup_steps: number of updates in the warmup.
      after: schedule after the warmup.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> import optax
      >>> schedule = ow.constant_warmup(0.1, 5, optax.constant_schedule(3.2))
      >>> [f"{schedule(t):.1f}" for t in (0, 4, 5)]
      ['0.1', '0.1', '3.2']

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", section 2.2, arXiv:1706.02677.
    """
    kind = _checks.float_dtype(dtype)
    init = _checks.constant(_checks.rate("init_value", init_value), kind)
    steps = _checks.integer("warmup_steps", warmup_steps)
    return join(lambda count: init, steps, after, kind)


def gradual_warmup(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    after: optax.Schedule | None = None,
    *,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    """Gradual warmup: a linear ramp, then another schedule.

    The learning rate of update t is::

      init_value + (peak_value - init_value) * t / warmup_steps    if t < warmup_steps
      after(t - warmup_steps)                                      otherwise

    The paper starts at the learning rate of one worker, 0.1.

    Args:
      init_value: learning rate at the start of the ramp.
      peak_value: learning rate at the end of the ramp.
      warmup_steps: number of updates in the ramp.
      after: schedule after the ramp; None holds `peak_value`.
      skip_init: flag that starts the ramp one increment above `init_value`.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.gradual_warmup(0.1, 0.5, 4)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.1', '0.2', '0.3', '0.4', '0.5', '0.5']
      >>> schedule = ow.gradual_warmup(0.0, 0.4, 4, skip_init=True)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.1', '0.2', '0.3', '0.4', '0.4', '0.4']

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", section 2.2, arXiv:1706.02677.
    """
    kind = _checks.float_dtype(dtype)
    init = _checks.rate("init_value", init_value)
    peak = _checks.rate("peak_value", peak_value)
    _checks.not_above("init_value", init, "peak_value", peak)
    steps = _checks.integer("warmup_steps", warmup_steps)
    if after is None:
        after = optax.constant_schedule(_checks.constant(peak, kind))
    return join(_line(init, peak, steps, int(skip_init), kind), steps, after, kind)


def gradual_warmup_scheduler(
    base_value: ArrayLike,
    multiplier: float,
    total_steps: int,
    after: optax.Schedule | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    """Gradual warmup with the arguments of PyTorch's GradualWarmupScheduler.

    The learning rate of update t is::

      base_value * t / total_steps                             during a warmup with multiplier 1
      base_value * ((multiplier - 1) * t / total_steps + 1)    during a warmup with a larger one
      after(t - total_steps)                                   otherwise

    The values are those of the PyTorch class, which calls t an epoch, with one exception: at
    t = total_steps + 1 the class returns a stale rate, this schedule `after(1)`.

    Args:
      base_value: learning rate of the optimizer.
      multiplier: ratio of the peak to `base_value`. 1 warms up from 0 to `base_value`, more than 1
        from `base_value` to `multiplier * base_value`; less is an error.
      total_steps: number of updates in the ramp.
      after: schedule after the ramp, not multiplied, so it should start at the peak; None holds the
        peak.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.gradual_warmup_scheduler(0.1, 5.0, 4)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.1', '0.2', '0.3', '0.4', '0.5', '0.5']
      >>> schedule = ow.gradual_warmup_scheduler(0.4, 1.0, 4)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.0', '0.1', '0.2', '0.3', '0.4', '0.4']

    Source:
      The package warmup-scheduler, https://github.com/ildoonet/pytorch-gradual-warmup-lr.
    """
    base = _checks.rate("base_value", base_value)
    factor = _checks.real("multiplier", multiplier, minimum=1.0)
    steps = _checks.integer("total_steps", total_steps)
    init, peak = (base * 0.0, base) if factor == 1.0 else (base, base * factor)
    return gradual_warmup(init, peak, steps, after, dtype=dtype)


def join(
    before: optax.Schedule, warmup_steps: int, after: optax.Schedule, dtype: np.dtype[Any]
) -> Schedule:
    """`before` for `warmup_steps` updates, then `after` from its step 0."""
    tail = follow(after, dtype)
    if warmup_steps == 0:
        return tail
    return sequence([before, tail], [warmup_steps])


def sequence(schedules: Sequence[optax.Schedule], boundaries: Sequence[int]) -> Schedule:
    """`optax.join_schedules` for counts of any integer type."""
    joined = optax.join_schedules(schedules, boundaries)
    return lambda count: jnp.asarray(joined(_wide(count)))


def follow(schedule: optax.Schedule, dtype: np.dtype[Any]) -> Schedule:
    """`schedule` in `dtype`, for counts of any integer type; negative ones count as 0."""

    def tail(count: ArrayLike) -> jax.Array:
        # Optax's schedules mix int32 counts with Python floats, which is an error under strict
        # promotion. The type of the result is set here in any case.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(schedule(_from_zero(count)), dtype)

    return tail


def _line(
    init: _checks.Rate, peak: _checks.Rate, steps: int, offset: int, dtype: np.dtype[Any]
) -> Schedule:
    if steps == 0:
        return lambda count: _checks.constant(peak, dtype)
    # The division in float64 leaves one rounding in the slope and none in t. Optax's form,
    # (init - peak) * (1 - t / W) + peak, cancels if init is small: from 0 to 1 over 1e6 steps it is
    # 1 % off at t = 1. Traced values are divided in `dtype`, so their slope is rounded twice.
    slope = _checks.constant((peak - init) / steps, dtype)
    start, top = _checks.constant(init, dtype), _checks.constant(peak, dtype)

    def line(count: ArrayLike) -> jax.Array:
        t = jnp.asarray(count, dtype)
        if offset:
            t = t + offset
        # The sum may round to just above the peak in the last steps of a very long ramp.
        return jnp.minimum(start + slope * t, top)

    return line


def _from_zero(count: ArrayLike) -> ArrayLike:
    # During a warmup `join_schedules` also evaluates the next schedule, at negative steps. It drops
    # these values, but a NaN among them (from a square root or a power) would reach the gradient.
    # Python and NumPy integers keep their type: optax's values depend on it in the last bit.
    if isinstance(count, int | float):
        return max(count, 0)
    return (jnp if isinstance(count, jax.Array) else np).maximum(_wide(count), 0)


def _wide(count: Any) -> Any:
    # Unsigned differences wrap around, and narrow integers cannot hold the boundaries.
    kind = np.dtype(getattr(count, "dtype", np.int32))
    if kind.kind == "u" or (kind.kind == "i" and kind.itemsize < 4):
        return count.astype(np.int32)
    return count
