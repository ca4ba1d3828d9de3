"""SGD momentum with the learning rate inside the velocity, and its momentum correction."""

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
    """Number of updates made so far; int32."""
    learning_rate: jax.Array
    """Learning rate of the last update; before any update, that of the first one."""
    velocity: Any
    """Running sum of learning rates times gradients, with the shapes of the parameters."""


def folded_momentum(
    learning_rate: float | optax.Schedule,
    momentum: float = 0.9,
    *,
    nesterov: bool = False,
    correct: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformation:
    """SGD with the learning rate inside the velocity, with momentum correction.

    An update with the learning rate `rate`, after one with `last_rate`, is::

      velocity = momentum * (rate / last_rate) * velocity + rate * gradient
      parameters = parameters - velocity

    Without the fraction, `correct=False`, this is equation 10 of the paper: past gradients keep
    their old learning rates, so momentum overshoots after each drop of the rate and lags during a
    warmup. With the fraction it equals equation 9, which multiplies the velocity by the rate.

    `optax.sgd` needs no correction: it implements equation 9. This transformation resumes or
    reproduces runs of frameworks with the rate inside the velocity, such as Caffe and Keras.

    Args:
      learning_rate: number or schedule. If the last rate is 0, so is the velocity, and the fraction
        is replaced by 1: earlier gradients are lost, which equation 9 would keep.
      momentum: number from 0 to less than 1.
      nesterov: flag that subtracts `momentum * velocity + rate * gradient` instead.
      correct: flag for the momentum correction.
      dtype: float type of the learning rate; velocity and updates keep the type of the parameters.

    Returns:
      A complete optimizer, whose updates are already scaled by the learning rate.

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
            # A copy, since donating the state must not delete a constant of the schedule.
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
            # Both branches of `where` are evaluated, so neither may divide by 0.
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
