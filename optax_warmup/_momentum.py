"""Momentum with the learning rate folded into the velocity, and what it then takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from optax_warmup import _checks
from optax_warmup._updates import scale_by
from optax_warmup._warmup import follow


class FoldedMomentumState(NamedTuple):
    """State of `folded_momentum`."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    """Updates made so far; int32."""
    learning_rate: jax.Array
    """Rate that the last update used, or, before any, that the first one will use."""
    velocity: Any
    """Running sum of rates times gradients, shaped as the parameters."""


def folded_momentum(
    learning_rate: float | optax.Schedule,
    momentum: float = 0.9,
    *,
    nesterov: bool = False,
    correct: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformation:
    r"""SGD with the learning rate inside the velocity, with momentum correction.

    .. math::
      v_{t+1} = m \, \frac{\eta_{t+1}}{\eta_t} \, v_t + \eta_{t+1} \, g_t, \qquad
      w_{t+1} = w_t - v_{t+1}

    where :math:`g_t` is the gradient at the parameters :math:`w_t`, :math:`v` is the velocity,
    :math:`m` is `momentum` and :math:`\eta_{t+1}` is the rate of this update, :math:`\eta_t` that
    of the one before. Without the fraction, `correct=False`, it is equation 10 of the paper: past
    gradients keep the rate of their own time, so momentum overshoots for a while after each drop of
    the rate and lags during a warmup. With it, it equals equation 9,
    :math:`u \leftarrow m u + g,\; w \leftarrow w - \eta u`.

    `optax.sgd` needs no correction: it is equation 9, where the rate multiplies the velocity from
    outside. This transformation is for continuing or reproducing runs of frameworks that fold the
    rate in, such as Caffe and Keras.

    Args:
      learning_rate: a rate, finite and not negative, or a schedule of them. Where :math:`\eta_t` is
        0 so is :math:`v_t`, and the fraction is taken as 1: gradients from before are forgotten,
        which equation 9 would still remember.
      momentum: from 0 to less than 1.
      nesterov: whether an update is :math:`m v_{t+1} + \eta_{t+1} g_t` instead.
      correct: whether the velocity follows the rate.
      dtype: float type of the rate; float32, or float64 where `jax_enable_x64` is on. Velocity and
        updates keep the type of the parameters.

    Returns:
      A whole optimizer: nothing has to be scaled by a rate after it. `current_learning_rate` reads
      its rate.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> optimizer = ow.folded_momentum(ow.piecewise_values([1.0, 0.1], [1]), momentum=0.5)
      >>> state = optimizer.init(0.0)
      >>> first, state = optimizer.update(1.0, state)
      >>> second, state = optimizer.update(1.0, state)
      >>> print(f"{first:.2f} {second:.2f}")  # second: 0.5 * 0.1 / 1.0 * 1.0 + 0.1 * 1.0
      -1.00 -0.15

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", section 3, remark 2, arXiv:1706.02677.
    """
    kind = _checks.float_dtype(dtype)
    mass = _checks.real("momentum", momentum, minimum=0.0, below=1.0)
    if callable(learning_rate):
        schedule = follow(learning_rate, kind)
    else:
        held = _checks.constant(_checks.rate("learning_rate", learning_rate), kind)
        schedule = follow(optax.constant_schedule(held), kind)

    def init(params: Any) -> FoldedMomentumState:
        return FoldedMomentumState(
            count=jnp.zeros((), jnp.int32),
            # A copy: a donated state must not take the schedule's own constant with it.
            learning_rate=jnp.array(schedule(0)),
            velocity=optax.tree.zeros_like(params),
        )

    def update(
        updates: Any, state: FoldedMomentumState, params: Any = None
    ) -> tuple[Any, FoldedMomentumState]:
        del params
        rate, before = schedule(state.count), state.learning_rate
        follow = jnp.asarray(mass, kind)
        if correct:
            # Both branches of `where` are computed, so neither may divide by 0.
            ratio = rate / jnp.where(before > 0, before, 1)
            follow = follow * jnp.where(before > 0, ratio, 1)
        steps = scale_by(rate, updates)
        velocity = jax.tree.map(jnp.add, scale_by(follow, state.velocity), steps)
        moves = velocity
        if nesterov:
            ahead = scale_by(jnp.asarray(mass, kind), velocity)
            moves = jax.tree.map(jnp.add, ahead, steps)
        count = jnp.asarray(optax.safe_increment(state.count))
        return jax.tree.map(jnp.negative, moves), FoldedMomentumState(count, rate, velocity)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
