"""What the comparisons vary and no flag of the trainer does: parts that take the place of its own.

Each is an argument of `train.loop.run`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_warmup import folded_momentum
from train.config import Experiment
from train.step.optimizer import MOMENTUM, WEIGHT_DECAY, decay_mask, make_optimizer
from train.step.state import TrainState, initial_state
from train.step.workers import Workers


def gamma_one(
    experiment: Experiment,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    workers: Workers,
) -> TrainState:
    """Start with γ = 1 in every batch normalisation (paper, Table 2b)."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        return jnp.ones_like(leaf) if names[-2:] == ["bn", "scale"] else leaf

    state = initial_state(experiment, num_classes, optimizer, workers)
    params = jax.tree_util.tree_map_with_path(one, state.network.params)
    network = dataclasses.replace(state.network, params=jax.device_put(params, workers.replicated))
    return dataclasses.replace(state, network=network)


def eq_10(schedule: optax.Schedule, name: str = "sgd") -> optax.GradientTransformation:
    """Fold the rate into the velocity, with nothing corrected (paper, section 3, remark 2)."""
    return _folded(schedule, correct=False)


def eq_10_corrected(schedule: optax.Schedule, name: str = "sgd") -> optax.GradientTransformation:
    """Fold the rate into the velocity, with momentum correction."""
    return _folded(schedule, correct=True)


def _folded(schedule: optax.Schedule, *, correct: bool) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY, decay_mask),
        folded_momentum(schedule, MOMENTUM, nesterov=True, correct=correct),
    )


@dataclasses.dataclass(frozen=True)
class ScaledLoss:
    """Scale the loss by what the rate would be scaled by (paper, section 3, remark 1).

    Two things differ from scaling the rate: weight decay is not scaled, and while the factor grows
    during the warmup, past gradients keep the smaller factor of their own time, as in eq. 10
    without correction.

    Args:
        rates: the schedule that the rate itself would follow.
    """

    rates: optax.Schedule

    def __call__(self, schedule: optax.Schedule, name: str = "sgd") -> optax.GradientTransformation:
        """Build the optimizer; weight decay comes after the scaling, and so is not scaled."""
        return optax.chain(
            optax.scale_by_schedule(lambda step: self.rates(step) / schedule(step)),
            make_optimizer(schedule),
        )


def sqrt_base(batch_size: int, reference: int) -> int:
    """The base minibatch with which the linear rule gives the rate of square-root scaling.

    Whole, so that the rate is 0.01 % off at minibatches of 512 and 2048.
    """
    return round(math.sqrt(batch_size * reference))
