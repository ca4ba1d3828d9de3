"""Warmups: what the learning rate does before the schedule proper begins.

Each takes that schedule as `after`, an optax schedule whose own step 0 is the first step after the
warmup, and joins it on with `optax.join_schedules`. t is the number of updates made so far.
"""

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
    r"""Holds a low learning rate, then hands over to another schedule in one jump.

    .. math::
      \eta_t = \begin{cases} \eta & t < W \\ f(t - W) & t \geq W \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`W` is
    `warmup_steps` and :math:`f` is `after`. Useful where pre-trained layers are fine-tuned together
    with new ones. For large minibatches prefer `gradual_warmup`: the jump makes the training error
    spike.

    Args:
      init_value: learning rate during the warmup; finite and not negative, a (traced) array will
        do.
      warmup_steps: updates made at `init_value`, from 0. With 0 the result equals `after`.
      after: schedule that follows; its step 0 is the step numbered `warmup_steps` of training.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

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
    r"""Raises the learning rate by the same amount at each update, then hands over.

    .. math::
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, t / W & t < W \\
        f(t - W) & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`\hat\eta` is
    `peak_value`, :math:`W` is `warmup_steps` and :math:`f` is `after`. The first update is made at
    exactly :math:`\eta`, and step :math:`W` is the first of `after`. With `skip_init`, :math:`t` in
    the upper line is :math:`t + 1`: the first update is already one increment up, so that none is
    wasted where :math:`\eta = 0`, and :math:`\hat\eta` comes first at step :math:`W - 1`.

    Args:
      init_value: learning rate at which the ramp starts; finite, not negative and at most
        `peak_value`. 0 wastes the first update unless `skip_init` is set; the paper starts at the
        rate of one worker, 0.1. A (traced) array will do.
      peak_value: learning rate at which the ramp ends; a (traced) array will do.
      warmup_steps: updates in the ramp, from 0. With 0 the result equals `after`.
      after: schedule that follows; its step 0 is the step numbered `warmup_steps` of training. It
        should start at `peak_value`. `None` holds `peak_value`.
      skip_init: whether the first update is made one increment above `init_value`.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

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
    r"""Gradual warmup with the arguments of PyTorch's GradualWarmupScheduler.

    .. math::
      \eta_t = \begin{cases}
        \eta \, t / W & t < W,\; m = 1 \\
        \eta \, ((m - 1) \, t / W + 1) & t < W,\; m > 1 \\
        f(t - W) & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `base_value`, :math:`m` is `multiplier`,
    :math:`W` is `total_steps` and :math:`f` is `after`. The values are those of the PyTorch class,
    which calls t an epoch, but for one: in the step after the warmup that class returns a stale,
    unscaled rate, where this schedule goes on with `after`.

    Args:
      base_value: learning rate of the optimizer; finite and not negative. A (traced) array will do.
      multiplier: 1 warms up from 0 to `base_value`; more than 1 from `base_value` to
        `multiplier * base_value`; less is an error.
      total_steps: updates in the ramp, from 0. With 0 the result equals `after`.
      after: schedule that follows; its step 0 is step `total_steps` of training, and its values are
        taken as they are: give it the peak, `multiplier * base_value`. `None` holds the peak.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

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


def _line(
    init: _checks.Rate, peak: _checks.Rate, steps: int, offset: int, dtype: np.dtype[Any]
) -> Schedule:
    if steps == 0:
        return lambda count: _checks.constant(peak, dtype)
    # Dividing in float64, here, leaves one rounding in the slope and none in t. Optax's form,
    # (init - peak) * (1 - t / W) + peak, cancels where init is small: for 0 to 1 over 1e6 steps it
    # is 1 % off at t = 1. With traced ends there is no float64 and the slope is rounded twice.
    slope = _checks.constant((peak - init) / steps, dtype)
    start, top = _checks.constant(init, dtype), _checks.constant(peak, dtype)

    def line(count: ArrayLike) -> jax.Array:
        t = jnp.asarray(count, dtype)
        if offset:
            t = t + offset
        # The sum may round to just above the peak in the last steps of a very long ramp.
        return jnp.minimum(start + slope * t, top)

    return line


def join(
    before: optax.Schedule, warmup_steps: int, after: optax.Schedule, dtype: np.dtype[Any]
) -> Schedule:
    """`before` for `warmup_steps` updates, then `after` from its step 0."""
    tail = follow(after, dtype)
    if warmup_steps == 0:
        return tail
    return sequence([before, tail], [warmup_steps])


def sequence(schedules: Sequence[optax.Schedule], boundaries: Sequence[int]) -> Schedule:
    """`optax.join_schedules`, for any kind of count."""
    joined = optax.join_schedules(schedules, boundaries)
    return lambda count: jnp.asarray(joined(_wide(count)))


def follow(schedule: optax.Schedule, dtype: np.dtype[Any]) -> Schedule:
    """Any schedule, made fit to be joined: for any count, of one type, without promotion errors."""

    def tail(count: ArrayLike) -> jax.Array:
        # Optax's own schedules mix int32 counts with Python floats, which a program under strict
        # promotion must not do. The result gets its type here anyhow.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(schedule(_from_zero(count)), dtype)

    return tail


def _from_zero(count: ArrayLike) -> ArrayLike:
    # During a warmup `join_schedules` asks what follows for negative steps too. It drops the
    # answers, but a NaN among them (a square root, a power) would still poison the gradients.
    # Python's and NumPy's integers stay what they are: optax's values differ with the kind of the
    # count, in the last bit.
    if isinstance(count, int | float):
        return max(count, 0)
    return (jnp if isinstance(count, jax.Array) else np).maximum(_wide(count), 0)


def _wide(count: Any) -> Any:
    # Unsigned differences wrap around, and narrow integers cannot hold the boundaries.
    kind = np.dtype(getattr(count, "dtype", np.int32))
    if kind.kind == "u" or (kind.kind == "i" and kind.itemsize < 4):
        return count.astype(np.int32)
    return count
