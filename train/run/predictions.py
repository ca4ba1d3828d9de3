"""Predictions for every test image, and the errors among them. Every image counts once."""

from collections.abc import Iterator

import jax
import numpy as np

from train.data.minibatches import evaluation_minibatches
from train.data.reader import on_devices
from train.plan import Plan
from train.run.metrics import Record
from train.step.network import Network


def predict(
    plan: Plan, evaluation_step: jax.stages.Wrapped, network: Network
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the classes of all N test images, in their order.

    Args:
        plan: plan of the run.
        evaluation_step: what `make_evaluation_step` returned.
        network: the network.

    Returns:
        Labels, (N,), and the likeliest classes, (N, 5).
    """

    def minibatches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for minibatch in on_devices(evaluation_minibatches(plan), plan.workers):
            labels, classes = jax.device_get(evaluation_step(network, minibatch))
            yield labels.reshape(-1), classes.reshape(-1, classes.shape[-1])

    labels, classes = zip(*minibatches(), strict=True)
    num_images = len(plan.dataset.evaluation)  # the rest is padding
    return np.concatenate(labels)[:num_images], np.concatenate(classes)[:num_images]


def error_rates(labels: np.ndarray, classes: np.ndarray) -> Record:
    """Top-1 and top-5 errors over all images, as fractions, and the number of images."""
    wrong = classes != labels[:, None]
    return {
        "eval/top1_error": float(wrong[:, 0].mean()),
        "eval/top5_error": float(wrong.all(axis=1).mean()),
        "eval/num_examples": len(labels),
    }
