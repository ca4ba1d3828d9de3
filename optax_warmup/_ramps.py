"""Warmups of other shapes: exponential ramps, any ramp, and factors that multiply a schedule."""

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
    """Exponential warmup: a ramp by a constant factor per update, then another schedule.

    The learning rate of update t is::

      init_value * (peak_value / init_value) ** (t / warmup_steps)    if t < warmup_steps
      after(t - warmup_steps)                                         otherwise

    Args:
      init_value: learning rate at the start of the ramp, > 0 (a ramp by factors cannot leave 0).
      peak_value: learning rate at the end of the ramp.
      warmup_steps: number of updates in the ramp.
      after: schedule after the ramp; None holds `peak_value`.
      skip_init: flag that starts the ramp one factor above `init_value`.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.exponential_warmup(0.1, 1.6, 4)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.1', '0.2', '0.4', '0.8', '1.6', '1.6']

    Source:
      Geometric interpolation; not taken from another package.
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
        # exp(t * high + t * low), with all rounding errors in the small second term. The error of a
        # plain exp(t * c) grows with the exponent: 13 float32 ulps for a factor of 1e6.
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

    The product of 12 bits with a step number below 4096, or with a multiple of 4096, is exact. A
    traced growth is not split, which is less accurate.
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
    """Warmup along any curve, then another schedule.

    The learning rate of update t is::

      init_value + (peak_value - init_value) * ramp(t / warmup_steps)    if t < warmup_steps
      after(t - warmup_steps)                                            otherwise

    Args:
      init_value: learning rate at the start of the ramp.
      peak_value: learning rate at the end of the ramp.
      warmup_steps: number of updates in the ramp.
      ramp: jittable function from the completed share of the warmup, an array of `dtype`, to the
        completed share of the rise. It must be 0 at 0 and 1 at 1.
      after: schedule after the ramp; None holds `peak_value`.
      skip_init: flag that starts the ramp at t = 1.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.ramp_warmup(0.0, 1.6, 4, lambda share: share**2)
      >>> [f"{schedule(t):.1f}" for t in range(6)]
      ['0.0', '0.1', '0.4', '0.9', '1.6', '1.6']

    Source:
      Generalization of `warmup_type="cosine"` in transformers' get_wsd_schedule.
    """
    kind = _checks.float_dtype(dtype)
    init = _checks.rate("init_value", init_value)
    peak = _checks.rate("peak_value", peak_value)
    _checks.not_above("init_value", init, "peak_value", peak)
    steps = _checks.integer("warmup_steps", warmup_steps)
    # The check needs numbers, even if the factory is called inside jit.
    with jax.ensure_compile_time_eval():
        ends = [float(np.asarray(ramp(jnp.asarray(x, kind)))) for x in (0.0, 1.0)]
    if not np.allclose(ends, [0.0, 1.0], rtol=0.0, atol=1e-6):
        raise ValueError(f"ramp must be 0 at 0 and 1 at 1, got {ends[0]} and {ends[1]}")
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
    """Product of a schedule and a warmup, which does not delay the schedule.

    The learning rate of update t is `schedule(t) * damping(t)`. Both count from the start of
    training, so the warmup shifts no milestone. All other warmups come before the schedule instead.

    Args:
      schedule: learning rates without warmup.
      damping: factor that rises to 1, such as `gradual_warmup(0.0, 1.0, warmup_steps)` or
        `exponential_damping(time_constant)`.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax, optax_warmup as ow
      >>> decay = optax.linear_schedule(1.0, 0.0, 10)
      >>> schedule = ow.damped_warmup(decay, ow.gradual_warmup(0.0, 1.0, 2))
      >>> [f"{schedule(t):.2f}" for t in range(4)]
      ['0.00', '0.45', '0.80', '0.70']

    Source:
      Detectron2, big_vision and pytorch_warmup.
    """
    kind = _checks.float_dtype(dtype)
    first, second = follow(schedule, kind), follow(damping, kind)
    return lambda count: first(count) * second(count)


def exponential_damping(time_constant: float, *, dtype: DTypeLike = jnp.float32) -> Schedule:
    """Factor for `damped_warmup` that approaches 1 exponentially.

    The factor of update t is `1 - exp(-(t + 1) / time_constant)`.

    Args:
      time_constant: number of updates until the factor is 1 - 1/e = 63 %; finite, > 0. For Adam,
        `1 / (1 - b2)` works without tuning.
      dtype: float type of the factors.

    Returns:
      A function from the number of updates made so far to the factor for the next one.

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
