"""Predictions for one evaluation minibatch as a pure function.

Shapes: A accumulation steps, kn/A images in each part of a minibatch.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from train.config import Experiment
from train.step.examples import NO_CLASS, Examples
from train.step.network import Network, make_forward
from train.step.workers import Workers

MOST_CLASSES = 5  # that are predicted for an image

A = TypeVar("A")


class Predictions(NamedTuple, Generic[A]):
    """Per-image predictions: of one minibatch, replicated on the devices, or of all test images.

    Attributes:
        labels: true class, or `NO_LABEL` for padding; int32 (...).
        classes: the five likeliest classes (all if there are fewer), likeliest first; int32
            (..., 5).
        losses: cross-entropy in nats, NaN if the logits are not finite, and undefined for padding;
            float32 (...).
        probabilities: probabilities of all classes, float32 (..., classes), NaN if the logits are
            not finite; None if not requested.
    """

    labels: A
    classes: A
    losses: A
    probabilities: A | None = None


def make_evaluation_step(
    experiment: Experiment,
    num_classes: int,
    workers: Workers,
    *,
    with_probabilities: bool = False,
) -> jax.stages.Wrapped:
    """Build the jitted evaluation step.

    Args:
        experiment: experiment of the network.
        num_classes: classes of the data set.
        workers: layout over the devices.
        with_probabilities: whether to return the probabilities of all classes.

    Returns:
        (Network, Examples) -> Predictions of shape (A, kn/A, ...).
    """
    forward = make_forward(experiment, num_classes)

    def probabilities(logits: jax.Array, is_finite: jax.Array) -> jax.Array:
        return jnp.where(is_finite[:, None], jax.nn.softmax(logits), jnp.nan)

    def predictions_of_part(network: Network, part: Examples[jax.Array]) -> Predictions[jax.Array]:
        logits, _ = forward(network, part.images, train=False)
        _, classes = jax.lax.top_k(logits, min(MOST_CLASSES, num_classes))
        # A network with logits that are not finite must not be right by chance.
        is_finite = jnp.isfinite(logits).all(axis=1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, part.labels)
        return Predictions(
            labels=part.labels,
            classes=jnp.where(is_finite[:, None], classes, NO_CLASS),
            losses=jnp.where(is_finite, losses, jnp.nan),
            probabilities=probabilities(logits, is_finite) if with_probabilities else None,
        )

    def evaluation_step(network: Network, minibatch: Examples[jax.Array]) -> Predictions[jax.Array]:
        return workers.map_over_minibatch(predictions_of_part, network, minibatch)

    return jax.jit(
        evaluation_step,
        in_shardings=(workers.replicated, workers.sharded),
        out_shardings=workers.replicated,
    )
