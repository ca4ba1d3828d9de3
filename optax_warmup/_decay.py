"""Decays that optax does not have in this form."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_warmup import _checks
from optax_warmup._warmup import gradual_warmup


def warmup_piecewise_decay(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    boundaries_and_scales: Mapping[int, float],
    *,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> optax.Schedule:
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
