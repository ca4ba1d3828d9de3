"""What follows a warmup, where optax does not have it.

`docs/schedules.md` tabulates how optax's own decays follow one.
"""

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
    r"""Gradual warmup, then one drop of the learning rate at each boundary.

    .. math::
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, t / W & t < W \\
        \hat\eta \prod_{b_i \leq t} s_i & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`\hat\eta` is
    `peak_value`, :math:`W` is `warmup_steps` and :math:`b_i, s_i` are the boundaries with their
    scales. The boundaries are steps **from the start of training**, so a longer warmup moves none
    of them: the paper decays at epochs 30, 60 and 80 with and without warmup. Step :math:`b_i` is
    the first at the lower rate.

    Args:
      init_value: learning rate at which the ramp starts; finite, not negative and at most
        `peak_value`. A (traced) array will do.
      peak_value: learning rate at which the ramp ends; a (traced) array will do.
      warmup_steps: updates in the ramp, from 0. With 0 there is none, and the first update is made
        at `peak_value`.
      boundaries_and_scales: step of each drop, with the factor (finite, not negative) by which the
        rate is multiplied there. In increasing order, none inside the warmup; a boundary equal to
        `warmup_steps` drops the rate as the warmup ends. An empty mapping holds `peak_value`.
      skip_init: whether the first update is made one increment above `init_value`; see
        `gradual_warmup`.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

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
        "boundaries_and_scales", scales, minimum=steps, reason="where the warmup ends"
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
    r"""Holds each of several learning rates in turn.

    .. math::
      \eta_t = v_i \quad \text{for} \quad b_{i-1} \leq t < b_i

    where :math:`t` counts updates from 0, :math:`v_i` are the `values` and :math:`b_i` the
    `boundaries`, with :math:`b_{-1} = 0` and no end to the last interval. Step :math:`b_i` is the
    first at the next value. As `after` of a warmup, the boundaries count from the end of the
    warmup.

    Args:
      values: learning rates, one more than boundaries; finite and not negative, (traced) arrays
        will do.
      boundaries: steps at which the next value takes over; at least 1 and increasing.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range, or the lengths do not match.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.piecewise_values([3.2, 0.5, 0.1], [30, 60])
      >>> [f"{schedule(t):.1f}" for t in (0, 29, 30, 59, 60)]
      ['3.2', '3.2', '0.5', '0.5', '0.1']

    Source:
      Keras' PiecewiseConstantDecay, which keeps the old value at the boundary itself.
    """
    kind = _checks.float_dtype(dtype)
    rates = [_checks.rate(f"values[{i}]", value) for i, value in enumerate(values)]
    steps = _checks.increasing("boundaries", boundaries, minimum=1, reason="the second step")
    if len(rates) != len(steps) + 1:
        raise ValueError(
            f"values must be one more than boundaries, got {len(rates)} values and {len(steps)} "
            "boundaries"
        )
    held = [optax.constant_schedule(_checks.constant(rate, kind)) for rate in rates]
    return follow(optax.join_schedules(held, steps), kind)


def inverse_sqrt_decay(
    init_value: ArrayLike, timescale: float, *, dtype: DTypeLike = jnp.float32
) -> Schedule:
    r"""Decays with the inverse square root of the step.

    .. math::
      \eta_t = \eta \, \sqrt{\frac{\tau}{\tau + t}}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value` and :math:`\tau` is
    `timescale`. It never ends; the rate has halved at :math:`t = 3 \tau`. As `after` of a warmup of
    :math:`W` steps with :math:`\tau = W` it is the schedule of "Attention is all you need".

    Args:
      init_value: learning rate at step 0; finite and not negative, a (traced) array will do.
      timescale: in steps; finite, more than 0.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

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
    r"""Gradual warmup, a long hold at the peak, and a decay to the end value.

    .. math::
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, t / W & t < W \\
        \hat\eta & W \leq t < W + S \\
        \eta_D + (\hat\eta - \eta_D) \, g((t - W - S) / D) & W + S \leq t < W + S + D \\
        \eta_D & t \geq W + S + D
      \end{cases}

    where :math:`t` counts updates from 0, :math:`\eta` is `init_value`, :math:`\hat\eta` is
    `peak_value`, :math:`\eta_D` is `end_value`, and :math:`W`, :math:`S` and :math:`D` are the
    steps of warmup, hold and decay. :math:`g(x)` is :math:`1 - x` (linear),
    :math:`(1 + \cos \pi x) / 2` (cosine) or :math:`1 - \sqrt x` (sqrt). A run of :math:`W + S + D`
    updates stops one step short of `end_value`: its last update is made at :math:`x = 1 - 1/D`.

    Args:
      init_value: learning rate at which the ramp starts; finite, not negative and at most
        `peak_value`. A (traced) array will do.
      peak_value: learning rate at the end of the ramp and during the hold; a (traced) array will do
        unless the decay is a cosine.
      warmup_steps: updates in the ramp, from 0.
      stable_steps: updates at `peak_value` before the decay, from 0.
      decay_steps: updates from `peak_value` to `end_value`; at least 1.
      end_value: learning rate after the decay; finite, not negative and at most `peak_value`.
      decay: form of the decay, "linear", "cosine" or "sqrt".
      skip_init: whether the first update is made one increment above `init_value`.
      dtype: float type of the values; float32, or float64 where `jax_enable_x64` is on.

    Returns:
      A function from the number of updates made so far to the learning rate of the next one.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> schedule = ow.warmup_stable_decay(0.0, 1.0, 4, 10, 4)
      >>> [f"{schedule(t):.2f}" for t in (0, 2, 4, 14, 16, 17, 18)]
      ['0.00', '0.50', '1.00', '1.00', '0.50', '0.25', '0.00']

    Source:
      Hu et al., "MiniCPM", section 4, arXiv:2404.06395; the square root is of Hägele et al.,
      arXiv:2405.18392.
    """
    kind = _checks.float_dtype(dtype)
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
            raise ValueError("peak_value must be known where decay is 'cosine', got a traced value")
        fall = optax.cosine_decay_schedule(top, length, alpha=end / peak if end else 0.0)
    elif decay == "sqrt":
        fall = _sqrt_fall(top, end, length, kind)
    else:
        allowed = ", ".join(repr(name) for name in get_args(Decay))
        raise ValueError(f"decay must be one of {allowed}, got {decay!r}")
    after = join(optax.constant_schedule(top), hold, fall, kind)
    return gradual_warmup(
        init_value, peak_value, warmup_steps, after, skip_init=skip_init, dtype=dtype
    )


def _sqrt_fall(top: ArrayLike, end: float, steps: int, dtype: np.dtype[Any]) -> Schedule:
    last = _checks.constant(end, dtype)

    def fall(count: ArrayLike) -> jax.Array:
        t = jnp.asarray(jnp.minimum(count, steps), dtype)
        # 1 - sqrt(x) as (1 - x) / (1 + sqrt(x)), which does not cancel as x nears 1.
        share = (steps - t) / steps / (1 + jnp.sqrt(t / steps))
        return last + (top - last) * share

    return fall
