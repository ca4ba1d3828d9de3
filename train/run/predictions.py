"""Predictions for every test image, and the scores among them. Every image counts once."""

import math
from collections.abc import Iterator

import jax
import numpy as np

from train.data.minibatches import evaluation_minibatches
from train.data.reader import on_devices
from train.plan import Plan
from train.run.metrics import Record
from train.step.evaluation import MOST_CLASSES, Predictions
from train.step.network import Network


def predict(
    plan: Plan, evaluation_step: jax.stages.Wrapped, network: Network
) -> Predictions[np.ndarray]:
    """Predict the classes of all N test images, in their order.

    Args:
        plan: plan of the run.
        evaluation_step: what `make_evaluation_step` returned.
        network: the network.

    Returns:
        Labels, (N,), likeliest classes, (N, 5), and losses, (N,).
    """

    def minibatches() -> Iterator[Predictions[np.ndarray]]:
        for minibatch in on_devices(evaluation_minibatches(plan), plan.workers):
            labels, classes, losses = jax.device_get(evaluation_step(network, minibatch))
            yield Predictions(
                labels.reshape(-1), classes.reshape(-1, classes.shape[-1]), losses.reshape(-1)
            )

    num_images = len(plan.dataset.evaluation)  # the rest is padding
    parts = zip(*minibatches(), strict=True)
    return Predictions(*(np.concatenate(part)[:num_images] for part in parts))


def scores(predictions: Predictions[np.ndarray], num_classes: int) -> Record:
    """Mean loss, top-1 and top-5 errors over all images, and the number of images.

    Args:
        predictions: predictions for all images.
        num_classes: classes of the data set. With five or fewer there is no top-5 error, since the
            five likeliest classes always include the true one.

    Returns:
        A record. Errors are fractions; a loss that is not finite is None.
    """
    wrong = predictions.classes != predictions.labels[:, None]
    # Float64, so that the order of the sum, and with it the minibatch, leaves no trace.
    loss = float(predictions.losses.mean(dtype=np.float64))
    record: Record = {
        "eval/loss": loss if math.isfinite(loss) else None,
        "eval/top1_error": float(wrong[:, 0].mean()),
    }
    if num_classes > MOST_CLASSES:
        record["eval/top5_error"] = float(wrong.all(axis=1).mean())
    return record | {"eval/num_examples": len(predictions.labels)}
