"""Warmup, then reduction of the learning rate on plateaus of a metric."""

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
    """State of `warmup_then_plateau`: scalars of fixed types, which every checkpoint can hold."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """Number of updates made so far; int32."""
    learning_rate: jax.Array
    """Learning rate of the last update; before any update, that of the first one."""
    scale: jax.Array
    """Product of all reductions so far."""
    best_value: jax.Array
    """Mean of the best window so far; infinite until the first window is complete."""
    plateau_count: jax.Array
    """Number of windows since the best one or the last reduction; int32."""
    cooldown_count: jax.Array
    """Number of windows left to ignore; int32."""
    window_count: jax.Array
    """Number of values in the current window; int32."""
    window_mean: jax.Array
    """Mean of the values in the current window."""


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
    """Gradual warmup, then reduction of the learning rate whenever a metric stops improving.

    Updates are multiplied by the negative learning rate, which for update t is::

      init_value + (peak_value - init_value) * t / warmup_steps     if t < warmup_steps
      max(peak_value * factor ** number_of_reductions, min_value)   otherwise

    The values of the metric are averaged over windows of `accumulation_size`, starting after the
    warmup. A window is an improvement if its mean is below `best - (rtol * abs(best) + atol)`, with
    the best mean so far. After `patience` windows in a row without improvement the rate is reduced
    immediately. The transformation replaces `optax.scale_by_learning_rate` at the end of a chain.

    `optax.contrib.reduce_on_plateau` compares with `(1 - rtol) * best` instead. There, a constant
    negative metric, such as a log-likelihood, counts as an improvement.

    Args:
      init_value: learning rate at the start of the ramp.
      peak_value: learning rate at the end of the ramp.
      warmup_steps: number of updates in the ramp.
      factor: factor of each reduction; > 0 and < 1.
      patience: number of windows without improvement before a reduction, at least 1. PyTorch
        reduces one window later for the same number.
      rtol: relative margin of an improvement, from 0 to 1.
      atol: absolute margin of an improvement; finite and not negative.
      cooldown: number of windows after a reduction that do not count for patience, at least 0.
      accumulation_size: number of values in a window, at least 1. For one value per epoch, set the
        steps per epoch here and pass the same value to all updates of an epoch.
      min_value: lower bound of the reduced rate, from 0 to `peak_value`.
      maximize: flag for metrics that improve upwards, such as an accuracy.
      skip_init: flag that starts the ramp one increment above `init_value`.
      dtype: float type of the learning rate and the metric; updates keep their own type.

    Returns:
      A transformation whose `update` needs the metric: `update(grads, state, params, value=loss)`.
      NaN is not an improvement.

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
        # A donated state must not hold a buffer twice, so each field has its own.
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
        observed = rule.observe(state, jnp.asarray(value).astype(kind))
        warm = state.count >= steps
        kept = _choose(warm, observed, state)
        new_rate = rate(state.count, kept.scale)
        kept = kept._replace(count=optax.safe_increment(state.count), learning_rate=new_rate)
        return scale_by(-new_rate, updates), kept

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class _Rule(NamedTuple):
    """Criteria for an improvement and for a reduction of the learning rate."""

    factor: float
    patience: int
    rtol: float
    atol: float
    cooldown: int
    size: int
    sign: int

    def observe(self, state: WarmupPlateauState, value: jax.Array) -> WarmupPlateauState:
        """The state after one more value of the metric."""
        kind = value.dtype
        number = state.window_count + 1
        mean = state.window_mean + (value - state.window_mean) / number.astype(kind)
        best = state.best_value
        margin = jnp.asarray(self.rtol, kind) * jnp.abs(best) + jnp.asarray(self.atol, kind)
        # An infinite best value makes the margin infinite too, and their difference NaN.
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
