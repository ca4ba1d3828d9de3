"""Warmup first, then a lower learning rate whenever a metric stops improving."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optax_warmup import _checks
from optax_warmup._updates import scale_by
from optax_warmup._warmup import gradual_warmup


class WarmupPlateauState(NamedTuple):
    """State of `warmup_then_plateau`: scalars of fixed types, so that any checkpoint will do."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """Updates made so far; int32."""
    learning_rate: jax.Array
    """Rate that the last update used, or, before any, that the first one will use."""
    scale: jax.Array
    """Product of all reductions so far."""
    best_value: jax.Array
    """Best window so far; infinite before the first window is complete."""
    plateau_count: jax.Array
    """Windows without improvement since the best one or the last reduction; int32."""
    cooldown_count: jax.Array
    """Windows still to be ignored; int32."""
    window_count: jax.Array
    """Values in the window that is being filled; int32."""
    window_mean: jax.Array
    """Their mean."""


def warmup_then_plateau(
    init_value: ArrayLike,
    peak_value: ArrayLike,
    warmup_steps: int,
    *,
    factor: float = 0.1,
    patience: int = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 1,
    min_value: float = 0.0,
    maximize: bool = False,
    skip_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales updates by a rate that is warmed up, then reduced whenever a metric stands still.

    .. math::
      u_t = -\eta_t \, g_t, \qquad
      \eta_t = \begin{cases}
        \eta + (\hat\eta - \eta) \, t / W & t < W \\
        \max(\hat\eta \, c^{r_t}, \eta_{\min}) & t \geq W
      \end{cases}

    where :math:`t` counts updates from 0, :math:`g_t` and :math:`u_t` are the updates before and
    after, :math:`\eta` is `init_value`, :math:`\hat\eta` is `peak_value`, :math:`W` is
    `warmup_steps`, :math:`c` is `factor`, :math:`\eta_{\min}` is `min_value` and :math:`r_t` is the
    number of reductions so far. After the warmup, the values given to the updates are averaged over
    windows of `accumulation_size`. A window is an improvement if its mean :math:`v` has
    :math:`v < b - (\text{rtol} \, |b| + \text{atol})` with the best mean :math:`b` so far; after
    `patience` windows in a row without one, the rate is reduced, at once. Values seen during the
    warmup count for nothing. It takes the place of `optax.scale_by_learning_rate`, as the last link
    of a chain, and `current_learning_rate` reads its rate.

    `optax.contrib.reduce_on_plateau` compares with :math:`(1 - \text{rtol}) \, b` instead, so that
    for a negative metric, such as a log-likelihood, standing still counts as an improvement.

    Args:
      init_value: learning rate at which the ramp starts; finite, not negative and at most
        `peak_value`. A (traced) array will do.
      peak_value: learning rate at which the ramp ends; a (traced) array will do.
      warmup_steps: updates in the ramp, from 0. With 0 the first value counts.
      factor: what the rate is multiplied by; more than 0 and less than 1.
      patience: windows without improvement before a reduction; at least 1. PyTorch reduces one
        window later for the same number.
      rtol: relative improvement that counts; from 0 to 1.
      atol: absolute improvement that counts; finite, not negative.
      cooldown: windows after a reduction that do not count for patience; from 0.
      accumulation_size: values in a window; at least 1. For one value an epoch give each of its
        updates the same value and set the updates of an epoch here.
      min_value: rate below which it is not reduced; finite, not negative and at most `peak_value`.
      maximize: whether larger values are better, as for an accuracy.
      skip_init: whether the first update is made one increment above `init_value`; see
        `gradual_warmup`.
      dtype: float type of the rate and the metric; float32, or float64 where `jax_enable_x64` is
        on. Updates keep their own type.

    Returns:
      A transformation whose `update` needs the metric: `update(grads, state, params, value=loss)`.
      A NaN is no improvement.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax, optax_warmup as ow
      >>> optimizer = optax.chain(
      ...     optax.trace(0.9), ow.warmup_then_plateau(0.5, 1.0, 2, factor=0.5, patience=2)
      ... )
      >>> state = optimizer.init(0.0)
      >>> rates = []
      >>> for loss in (-1.0, -1.0, -1.0, -1.0, -1.0, -2.0):
      ...     _, state = optimizer.update(1.0, state, 0.0, value=loss)
      ...     rates.append(float(ow.current_learning_rate(state)))
      >>> rates
      [0.5, 0.75, 1.0, 1.0, 0.5, 0.5]

    Source:
      PyTorch's ReduceLROnPlateau; optax.contrib.reduce_on_plateau.
    """
    kind = _checks.float_dtype(dtype)
    steps = _checks.integer("warmup_steps", warmup_steps)
    ramp = gradual_warmup(init_value, peak_value, steps, skip_init=skip_init, dtype=kind)
    lowest = _checks.real("min_value", min_value, minimum=0.0)
    _checks.not_above("min_value", lowest, "peak_value", _checks.rate("peak_value", peak_value))
    rule = _Rule(
        factor=_checks.real("factor", factor, above=0.0, below=1.0),
        patience=_checks.integer("patience", patience, minimum=1),
        rtol=_checks.real("rtol", rtol, minimum=0.0, maximum=1.0),
        atol=_checks.real("atol", atol, minimum=0.0),
        cooldown=_checks.integer("cooldown", cooldown),
        size=_checks.integer("accumulation_size", accumulation_size, minimum=1),
        sign=-1 if maximize else 1,
    )

    def rate(count: jax.Array, scale: jax.Array) -> jax.Array:
        value = jnp.asarray(ramp(count), kind)
        return jnp.where(
            count < steps, value, jnp.maximum(value * scale, _checks.constant(lowest, kind))
        )

    def init(params: Any) -> WarmupPlateauState:
        del params
        # Each field has a buffer of its own: a donated state must not hold one twice.
        return WarmupPlateauState(
            count=jnp.zeros((), jnp.int32),
            learning_rate=jnp.array(ramp(0), kind),
            scale=jnp.ones((), kind),
            best_value=jnp.full((), rule.sign * math.inf, kind),
            plateau_count=jnp.zeros((), jnp.int32),
            cooldown_count=jnp.zeros((), jnp.int32),
            window_count=jnp.zeros((), jnp.int32),
            window_mean=jnp.zeros((), kind),
        )

    def update(
        updates: Any,
        state: WarmupPlateauState,
        params: Any = None,
        *,
        value: ArrayLike,
        **extra_args: Any,
    ) -> tuple[Any, WarmupPlateauState]:
        del params, extra_args
        seen = rule.see(state, jnp.asarray(value).astype(kind))
        warm = state.count >= steps
        kept = _choose(warm, seen, state)
        new_rate = rate(state.count, kept.scale)
        kept = kept._replace(count=optax.safe_increment(state.count), learning_rate=new_rate)
        return scale_by(-new_rate, updates), kept

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class _Rule(NamedTuple):
    """When a window is an improvement, and when the rate is reduced."""

    factor: float
    patience: int
    rtol: float
    atol: float
    cooldown: int
    size: int
    sign: int

    def see(self, state: WarmupPlateauState, value: jax.Array) -> WarmupPlateauState:
        """`state` after one more value."""
        kind = value.dtype
        number = state.window_count + 1
        mean = state.window_mean + (value - state.window_mean) / number.astype(kind)
        best = state.best_value
        margin = jnp.asarray(self.rtol, kind) * jnp.abs(best) + jnp.asarray(self.atol, kind)
        # Before the first window the best is infinite and so is the margin.
        bar = jnp.where(jnp.isinf(best), best, best - self.sign * margin)
        better = self.sign * mean < self.sign * bar
        cooling = state.cooldown_count > 0
        idle = jnp.where(better | cooling, 0, state.plateau_count + 1)
        reduce = idle >= self.patience
        complete = state._replace(
            scale=jnp.where(reduce, state.scale * jnp.asarray(self.factor, kind), state.scale),
            best_value=jnp.where(better, mean, best),
            plateau_count=jnp.where(reduce, 0, idle),
            cooldown_count=jnp.where(
                reduce, self.cooldown, jnp.maximum(state.cooldown_count - 1, 0)
            ),
            window_count=jnp.zeros_like(state.window_count),
            window_mean=jnp.zeros_like(state.window_mean),
        )
        filling = state._replace(window_count=number, window_mean=mean)
        full = number >= self.size
        return _choose(full, complete, filling)


def _choose(
    condition: jax.Array, yes: WarmupPlateauState, no: WarmupPlateauState
) -> WarmupPlateauState:
    pairs = zip(yes, no, strict=True)
    return WarmupPlateauState(*(jnp.where(condition, one, other) for one, other in pairs))
