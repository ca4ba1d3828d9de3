"""Optimizers and initial states that no flag of the trainer selects: arguments of `train.loop.run`.

The functions have the signatures of `make_optimizer` and `initial_state`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_warmup import folded_momentum
from train.config import MOMENTUM, WEIGHT_DECAY, Experiment, Optimizer
from train.step.optimizer import decay_mask, make_optimizer
from train.step.state import TrainState, initial_state
from train.step.workers import Workers


def gamma_one(
    experiment: Experiment,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    workers: Workers,
) -> TrainState:
    """Initialize γ = 1 in every batch normalization (paper, Table 2b)."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [getattr(entry, "key", None) for entry in path]
        return jnp.ones_like(leaf) if names[-2:] == ["bn", "scale"] else leaf

    state = initial_state(experiment, num_classes, optimizer, workers)
    params = jax.tree_util.tree_map_with_path(one, state.network.params)
    network = dataclasses.replace(state.network, params=jax.device_put(params, workers.replicated))
    return dataclasses.replace(state, network=network)


def eq_10(
    schedule: optax.Schedule,
    name: str = "sgd",
    *,
    momentum: float = MOMENTUM,
    weight_decay: float = WEIGHT_DECAY,
    correct: bool = False,
) -> optax.GradientTransformation:
    """Fold the rate into the velocity, without correction (paper, section 3, remark 2)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        folded_momentum(schedule, momentum, nesterov=True, correct=correct),
    )


# Fold the rate into the velocity, with momentum correction.
eq_10_corrected = functools.partial(eq_10, correct=True)


@dataclasses.dataclass(frozen=True)
class ScaledLoss:
    """Scale the loss by the factor that would scale the rate (paper, section 3, remark 1).

    This differs from scaling the rate in two ways: weight decay is not scaled, and during the
    warmup the velocity holds past gradients with their smaller factors, as in eq. 10 without
    correction.

    Args:
        rates: schedule that the rate would follow if it were scaled instead.
    """

    rates: optax.Schedule

    def __call__(
        self,
        schedule: optax.Schedule,
        name: Optimizer = "sgd",
        *,
        momentum: float = MOMENTUM,
        weight_decay: float = WEIGHT_DECAY,
    ) -> optax.GradientTransformation:
        """Build the optimizer. Weight decay is added after the scaling, so it is not scaled."""
        return optax.chain(
            optax.scale_by_schedule(lambda step: self.rates(step) / schedule(step)),
            make_optimizer(schedule, name, momentum=momentum, weight_decay=weight_decay),
        )


def sqrt_base(batch_size: int, reference: int) -> int:
    """Base minibatch for which linear scaling gives the rate of square-root scaling.

    It is an integer, so the rate is off by 0.01 % at minibatches of 512 and 2048.
    """
    return round(math.sqrt(batch_size * reference))
