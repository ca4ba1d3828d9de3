"""Decays that optax does not provide; `docs/schedules.md` shows how its own follow a warmup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from optax_warmup import _checks
from optax_warmup._warmup import Schedule, follow, gradual_warmup, join

Decay = Literal["linear", "cosine", "sqrt"]


def warmup_piecewise_decay(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    boundaries_and_scales: Mapping[int, float],
    *,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    """Gradual warmup, then a drop of the learning rate at each boundary.

    The learning rate of update t is::

      init_value + (peak_value - init_value) * t / warmup_steps    if t < warmup_steps
      peak_value * (product of the scales at boundaries <= t)      otherwise

    Boundaries count **from the start of training**, so a longer warmup does not move them: the
    paper decays at epochs 30, 60 and 80 with and without warmup.

    Args:
      init_value: learning rate at the start of the ramp.
      peak_value: learning rate at the end of the ramp.
      warmup_steps: number of updates in the ramp.
      boundaries_and_scales: mapping of the step of each drop to its factor, finite and not
        negative. The steps must increase and be at least `warmup_steps`. An empty mapping holds
        `peak_value`.
      skip_init: flag that starts the ramp one increment above `init_value`.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.warmup_piecewise_decay(0.1, 3.2, 5, {30: 0.1, 60: 0.1, 80: 0.1})
      >>> [f"{schedule(t):.4f}" for t in (0, 4, 5, 29, 30, 60, 80)]
      ['0.1000', '2.5800', '3.2000', '3.2000', '0.3200', '0.0320', '0.0032']

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", sections 2.2 and 5.1, arXiv:1706.02677.
    """
    kind = _checks.float_dtype(dtype)
    steps = _checks.integer("warmup_steps", warmup_steps)
    scales = _checks.mapping("boundaries_and_scales", boundaries_and_scales)
    boundaries = _checks.increasing(
        "boundaries_and_scales", scales, minimum=steps, reason="the end of the warmup"
    )
    factors = [
        _checks.real(f"boundaries_and_scales[{step}]", scale, minimum=0.0)
        for step, scale in scales.items()
    ]
    decay = optax.piecewise_constant_schedule(
        _checks.constant(_checks.rate("peak_value", peak_value), kind),  # pyright: ignore
        {step - steps: factor for step, factor in zip(boundaries, factors, strict=True)},
    )
    return gradual_warmup(init_value, peak_value, steps, decay, skip_init=skip_init, dtype=dtype)


def piecewise_values(
    values: Sequence[ArrayLike], boundaries: Sequence[int], *, dtype: DTypeLike = jnp.float32
) -> Schedule:
    """Piecewise constant learning rates, given as values.

    The learning rate of update t is `values[i]` if `boundaries[i - 1] <= t < boundaries[i]`. If the
    schedule is the `after` of a warmup, its boundaries count from the end of the warmup.

    Args:
      values: learning rates, one more than boundaries.
      boundaries: first step of each value but the first; at least 1, increasing.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.piecewise_values([3.2, 0.5, 0.1], [30, 60])
      >>> [f"{schedule(t):.1f}" for t in (0, 29, 30, 59, 60)]
      ['3.2', '3.2', '0.5', '0.5', '0.1']

    Source:
      Keras' PiecewiseConstantDecay, which still uses the old value at the boundary.
    """
    kind = _checks.float_dtype(dtype)
    rates = [_checks.rate(f"values[{i}]", value) for i, value in enumerate(values)]
    steps = _checks.increasing("boundaries", boundaries, minimum=1, reason="the second step")
    if len(rates) != len(steps) + 1:
        raise ValueError(
            f"values must have one entry more than boundaries, got {len(rates)} values and "
            f"{len(steps)} boundaries"
        )
    held = [optax.constant_schedule(_checks.constant(rate, kind)) for rate in rates]
    return follow(optax.join_schedules(held, steps), kind)


def inverse_sqrt_decay(
    init_value: ArrayLike, timescale: float, *, dtype: DTypeLike = jnp.float32
) -> Schedule:
    """Decay with the inverse square root of the step.

    The learning rate of update t is `init_value * sqrt(timescale / (timescale + t))`: half of
    `init_value` at `t = 3 * timescale`. After a warmup of `timescale` steps this is the schedule of
    "Attention is all you need".

    Args:
      init_value: learning rate at step 0.
      timescale: number of steps; finite, > 0.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.gradual_warmup(0.0, 1.0, 100, ow.inverse_sqrt_decay(1.0, 100))
      >>> [f"{schedule(t):.2f}" for t in (0, 50, 100, 400)]
      ['0.00', '0.50', '1.00', '0.50']

    Source:
      Vaswani et al., "Attention is all you need", section 5.3, arXiv:1706.03762; transformers'
      get_inverse_sqrt_schedule; big_vision's rsqrt.
    """
    kind = _checks.float_dtype(dtype)
    start = _checks.constant(_checks.rate("init_value", init_value), kind)
    tau = _checks.constant(_checks.real("timescale", timescale, above=0.0), kind)

    def decay(count: ArrayLike) -> jax.Array:
        t = jnp.maximum(jnp.asarray(count, kind), 0)
        return start * jnp.sqrt(tau / (tau + t))

    return decay


def warmup_stable_decay(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    end_value: float = 0.0,
    *,
    decay: Decay = "linear",
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Schedule:
    """Gradual warmup, a hold at the peak and a decay to the end value.

    The learning rate of update t is::

      init_value + (peak_value - init_value) * t / warmup_steps    during the warmup
      peak_value                                                   during the hold
      end_value + (peak_value - end_value) * g(x)                  during the decay
      end_value                                                    afterwards

    with `x = (t - warmup_steps - stable_steps) / decay_steps` and g(x) equal to `1 - x` (linear),
    `(1 + cos(pi * x)) / 2` (cosine) or `1 - sqrt(x)` (sqrt). The last of `warmup_steps +
    stable_steps + decay_steps` updates uses `x = 1 - 1 / decay_steps`, just before `end_value`.

    Args:
      init_value: learning rate at the start of the ramp.
      peak_value: learning rate at the end of the ramp and during the hold; not traced if the decay
        is a cosine.
      warmup_steps: number of updates in the ramp.
      stable_steps: number of updates at `peak_value` before the decay, at least 0.
      decay_steps: number of updates from `peak_value` to `end_value`, at least 1.
      end_value: learning rate after the decay, a number from 0 to `peak_value`.
      decay: shape of the decay, "linear", "cosine" or "sqrt".
      skip_init: flag that starts the ramp one increment above `init_value`.
      dtype: float type of the learning rates.

    Returns:
      An optax schedule; the docstring of `optax_warmup` lists the conventions.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.warmup_stable_decay(0.0, 1.0, 4, 10, 4)
      >>> [f"{schedule(t):.2f}" for t in (0, 2, 4, 14, 16, 17, 18)]
      ['0.00', '0.50', '1.00', '1.00', '0.50', '0.25', '0.00']

    Source:
      Hu et al., "MiniCPM", section 4, arXiv:2404.06395; "sqrt" is from Hägele et al.,
      arXiv:2405.18392.
    """
    kind = _checks.float_dtype(dtype)
    _checks.one_of("decay", decay, get_args(Decay))
    hold = _checks.integer("stable_steps", stable_steps)
    length = _checks.integer("decay_steps", decay_steps, minimum=1)
    peak = _checks.rate("peak_value", peak_value)
    end = _checks.real("end_value", end_value, minimum=0.0)
    _checks.not_above("end_value", end, "peak_value", peak)
    top = _checks.constant(peak, kind)
    if decay == "linear":
        fall = optax.linear_schedule(top, end, length)
    elif decay == "cosine":
        if isinstance(peak, Tracer):
            raise ValueError("peak_value must be a number if decay is 'cosine', got a traced value")
        fall = optax.cosine_decay_schedule(top, length, alpha=end / peak if end else 0.0)
    else:
        fall = _sqrt_fall(top, end, length, kind)
    after = join(optax.constant_schedule(top), hold, fall, kind)
    return gradual_warmup(
        init_value, peak_value, warmup_steps, after, skip_init=skip_init, dtype=dtype
    )


def _sqrt_fall(top: ArrayLike, end: float, steps: int, dtype: np.dtype[Any]) -> Schedule:
    last = _checks.constant(end, dtype)

    def fall(count: ArrayLike) -> jax.Array:
        t = jnp.asarray(jnp.minimum(count, steps), dtype)
        # This form of 1 - sqrt(x) does not cancel near x = 1.
        share = (steps - t) / steps / (1 + jnp.sqrt(t / steps))
        return last + (top - last) * share

    return fall
