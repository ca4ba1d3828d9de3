"""Predictions for one evaluation minibatch as a pure function.

Shapes: A accumulation steps, kn/A images in each part of a minibatch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from train.config import Experiment
from train.step.examples import NO_CLASS, Examples
from train.step.network import Network, make_forward
from train.step.workers import Workers


class Predictions(NamedTuple):
    """Per-image predictions for one evaluation minibatch, replicated."""

    labels: jax.Array
    """True class, or `NO_LABEL` for padding; int32 (A, kn/A)."""
    classes: jax.Array
    """The five likeliest classes (all if there are fewer), likeliest first; int32 (A, kn/A, 5)."""


def make_evaluation_step(
    experiment: Experiment, num_classes: int, workers: Workers
) -> jax.stages.Wrapped:
    """Build the jitted evaluation step.

    Returns:
        (Network, Examples) -> Predictions.
    """
    forward = make_forward(experiment, num_classes)

    def predictions_of_part(network: Network, part: Examples[jax.Array]) -> Predictions:
        logits, _ = forward(network, part.images, train=False)
        _, classes = jax.lax.top_k(logits, min(5, num_classes))
        # A network with logits that are not finite must not be right by chance.
        is_finite = jnp.isfinite(logits).all(axis=1, keepdims=True)
        return Predictions(part.labels, jnp.where(is_finite, classes, NO_CLASS))

    def evaluation_step(network: Network, minibatch: Examples[jax.Array]) -> Predictions:
        return workers.map_over_minibatch(predictions_of_part, network, minibatch)

    return jax.jit(
        evaluation_step,
        in_shardings=(workers.replicated, workers.sharded),
        out_shardings=workers.replicated,
    )
