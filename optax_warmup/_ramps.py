"""Warmups of other shapes, and warmups that multiply a schedule where others come before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from optax_warmup import _checks
from optax_warmup._warmup import Schedule, follow, join


def exponential_warmup(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    after: optax.Schedule | None = None,
    *,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    r"""Raises the learning rate by the same factor at each update, then hands over.

    .. math::
      \eta_t = \begin{cases}
        \eta \, (\hat\eta / \eta)^{t / W} & t < W \\
        f(t - W) & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`\hat\eta` is
    `peak_value`, :math:`W` is `warmup_steps` and :math:`f` is `after`. On a logarithmic axis it is
    a straight line. With `skip_init`, :math:`t` in the upper line is :math:`t + 1`.

    Args:
      init_value: learning rate at which the ramp starts; finite, more than 0 (no factor leads away
        from 0) and at most `peak_value`. A (traced) array will do.
      peak_value: learning rate at which the ramp ends; a (traced) array will do.
      warmup_steps: updates in the ramp, from 0. With 0 the result equals `after`.
      after: schedule that follows; its step 0 is the step numbered `warmup_steps` of training.
        `None` holds `peak_value`.
      skip_init: whether the first update is made one factor above `init_value`.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.exponential_warmup(0.1, 1.6, 4)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.1', '0.2', '0.4', '0.8', '1.6', '1.6']

    Source:
      The geometric interpolation above; no package's.
    """
    kind = _checks.float_dtype(dtype)
    init = _checks.rate("init_value", init_value, positive=True)
    peak = _checks.rate("peak_value", peak_value, positive=True)
    _checks.not_above("init_value", init, "peak_value", peak)
    steps = _checks.integer("warmup_steps", warmup_steps)
    top = _checks.constant(peak, kind)
    after = optax.constant_schedule(top) if after is None else after
    if steps == 0:
        return join(optax.constant_schedule(top), steps, after, kind)
    start, high, low = _checks.constant(init, kind), *_split_exponent(init, peak, steps, kind)

    def growth(count: ArrayLike) -> jax.Array:
        # exp(t * high + t * low) with all roundings in the small second term: a plain exp(t * c) is
        # off by as many float32 ulps as the exponent is large, 13 for a factor of 1e6.
        t = jnp.clip(jnp.asarray(count) + int(skip_init), 0, steps)
        fine = t % 4096
        coarse_part = jnp.asarray(t - fine, kind) * high
        fine_part = jnp.asarray(fine, kind) * high
        whole = coarse_part + fine_part
        rest = ((coarse_part - whole) + fine_part) + jnp.asarray(t, kind) * low
        value = start * jnp.exp(whole)
        return jnp.minimum(value + value * jnp.expm1(rest), top)

    return join(growth, steps, after, kind)


def _split_exponent(
    init: _checks.Rate, peak: _checks.Rate, steps: int, dtype: np.dtype[Any]
) -> tuple[Any, Any]:
    """The growth per step, log(peak / init) / steps, as 12 leading bits and the rest.

    12 bits times the 12 bits of a step number below 4096 (or of the multiple of 4096 under it)
    have no rounding. A traced growth stays in one piece and is that much less exact.
    """
    if isinstance(init, Tracer) or isinstance(peak, Tracer):
        ends = _checks.constant(init, dtype), _checks.constant(peak, dtype)
        return jnp.log(ends[1] / ends[0]) / steps, _checks.constant(0.0, dtype)
    growth = np.log(np.asarray(peak) / np.asarray(init)) / steps
    mantissa, exponent = np.frexp(growth)
    high = np.ldexp(np.round(mantissa * 4096), exponent - 12)
    return _checks.constant(high, dtype), _checks.constant(growth - high, dtype)


def ramp_warmup(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    ramp: Callable[[jax.Array], ArrayLike],
    after: optax.Schedule | None = None,
    *,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    r"""Raises the learning rate along any curve, then hands over.

    .. math::
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, r(t / W) & t < W \\
        f(t - W) & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`\hat\eta` is
    `peak_value`, :math:`W` is `warmup_steps`, :math:`r` is `ramp` and :math:`f` is `after`. With
    `skip_init`, :math:`t` in the upper line is :math:`t + 1`.

    Args:
      init_value: learning rate at which the ramp starts; finite, not negative and at most
        `peak_value`. A (traced) array will do.
      peak_value: learning rate at which the ramp ends; a (traced) array will do.
      warmup_steps: updates in the ramp, from 0. With 0 the result equals `after`.
      ramp: jittable function from the share of the warmup that is done, an array of `dtype` from 0
        to 1, to the share of the rise; 0 at 0 and 1 at 1, which is tested.
      after: schedule that follows; its step 0 is the step numbered `warmup_steps` of training.
        `None` holds `peak_value`.
      skip_init: whether the first update is made one step up the ramp.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.ramp_warmup(0.0, 1.6, 4, lambda share: share**2)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.0', '0.1', '0.4', '0.9', '1.6', '1.6']

    Source:
      Transformers' get_wsd_schedule has one such curve, `warmup_type="cosine"`.
    """
    kind = _checks.float_dtype(dtype)
    init = _checks.rate("init_value", init_value)
    peak = _checks.rate("peak_value", peak_value)
    _checks.not_above("init_value", init, "peak_value", peak)
    steps = _checks.integer("warmup_steps", warmup_steps)
    # Outside of any trace around the factory: the check must see numbers.
    with jax.ensure_compile_time_eval():
        ends = [float(np.asarray(ramp(jnp.asarray(x, kind)))) for x in (0.0, 1.0)]
    if not np.allclose(ends, [0.0, 1.0], rtol=0.0, atol=1e-6):
        raise ValueError(f"ramp must lead from 0 at 0 to 1 at 1, got {ends[0]} and {ends[1]}")
    start, top = _checks.constant(init, kind), _checks.constant(peak, kind)
    rise = _checks.constant(peak - init, kind)

    def curve(count: ArrayLike) -> jax.Array:
        t = jnp.clip(jnp.asarray(count) + int(skip_init), 0, steps)
        share = jnp.asarray(t, kind) / max(steps, 1)
        return start + rise * jnp.asarray(ramp(share), kind)

    after = optax.constant_schedule(top) if after is None else after
    return join(curve, steps, after, kind)


def damped_warmup(
    schedule: optax.Schedule, damping: optax.Schedule, *, dtype: DTypeLike = jnp.float32
) -> Schedule:
    r"""Multiplies a schedule by a warmup, without delaying it.

    .. math::
      \eta_t = f(t) \, w(t)

    where :math:`t` counts updates from 0, :math:`f` is `schedule` and :math:`w` is `damping`. Both
    are on the clock of training: the warmup takes the first steps of the schedule, and milestones
    stay where they are. All other warmups here come before the schedule instead.

    Args:
      schedule: learning rate without warmup.
      damping: factor that rises to 1, such as `gradual_warmup(0.0, 1.0, warmup_steps)` or
        `exponential_damping(time_constant)`.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if `dtype` is not one of the two.

    Examples:
      >>> import optax, optax_warmup as ow
      >>> decay = optax.linear_schedule(1.0, 0.0, 10)
      >>> schedule = ow.damped_warmup(decay, ow.gradual_warmup(0.0, 1.0, 2))
      >>> [f"{schedule(t):.2f}" for t in range(4)]
      ['0.00', '0.45', '0.80', '0.70']

    Source:
      The convention of detectron2, big_vision and pytorch_warmup.
    """
    kind = _checks.float_dtype(dtype)
    first, second = follow(schedule, kind), follow(damping, kind)
    return lambda count: first(count) * second(count)


def exponential_damping(time_constant: float, *, dtype: DTypeLike = jnp.float32) -> Schedule:
    r"""A factor that comes near 1 without ever reaching it, for `damped_warmup`.

    .. math::
      w(t) = 1 - \exp(-(t + 1) / \tau)

    where :math:`t` counts updates from 0 and :math:`\tau` is `time_constant`.

    Args:
      time_constant: updates after which 1 - 1/e = 63 % is reached; finite, more than 0. For Adam
        :math:`1 / (1 - \beta_2)` needs no tuning.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the factor for the next one.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> factor = ow.exponential_damping(2.0)
      >>> [f"{factor(t):.3f}" for t in range(3)]
      ['0.393', '0.632', '0.777']

    Source:
      Ma and Yarats, "On the adequacy of untuned warmup for adaptive optimization",
      arXiv:1910.04209; the package pytorch_warmup.
    """
    kind = _checks.float_dtype(dtype)
    tau = _checks.real("time_constant", time_constant, above=0.0)
    rate = _checks.constant(-1.0 / tau, kind)
    if not math.isfinite(float(rate)):
        raise ValueError(f"time_constant must have a finite inverse, got {time_constant!r}")
    return lambda count: -jnp.expm1((jnp.asarray(count, kind) + 1) * rate)
