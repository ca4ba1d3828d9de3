"""Predictions for every test image, and the scores among them. Every image counts once."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from train.data.minibatches import evaluation_minibatches
from train.data.reader import on_devices
from train.plan import Plan
from train.run.metrics import Record
from train.step.evaluation import MOST_CLASSES, Predictions
from train.step.examples import Examples
from train.step.network import Network

MOST_BYTES_ON_A_DEVICE = 1 << 28  # of test images that stay there during training


class EvaluationMinibatches:
    """Test images on the devices, minibatch by minibatch, each time that this is iterated.

    Images that were decoded beforehand stay on the devices, unless they are too large.

    Args:
        plan: plan of the run.

    Attributes:
        num_images: number of test images N; the rest of the last minibatch is padding.
    """

    def __init__(self, plan: Plan) -> None:
        self.num_images = len(plan.dataset.evaluation)
        decoded = plan.dataset.decoded.get(plan.dataset.evaluation_split)
        most_bytes = MOST_BYTES_ON_A_DEVICE * plan.workers.mesh.devices.size
        self._stay = decoded is not None and decoded.nbytes <= most_bytes
        self._on_devices: list[Examples[jax.Array]] = []
        self._plan = plan

    def __iter__(self) -> Iterator[Examples[jax.Array]]:
        if self._on_devices:
            return iter(self._on_devices)
        minibatches = on_devices(evaluation_minibatches(self._plan), self._plan.workers)
        if self._stay:
            self._on_devices = list(minibatches)
            return iter(self._on_devices)
        return minibatches


def predict(
    test: EvaluationMinibatches, evaluation_step: jax.stages.Wrapped, network: Network
) -> Predictions[np.ndarray]:
    """Predict the classes of all N test images, in their order.

    Args:
        test: the test images.
        evaluation_step: what `make_evaluation_step` returned.
        network: the network.

    Returns:
        Labels, (N,), likeliest classes, (N, 5), losses, (N,), and probabilities, (N, classes), if
        the step returns them.
    """

    def minibatches() -> Iterator[Predictions[np.ndarray]]:
        for minibatch in test:
            predictions = jax.device_get(evaluation_step(network, minibatch))
            yield jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), predictions)

    return jax.tree.map(lambda *parts: np.concatenate(parts)[: test.num_images], *minibatches())


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


class ScoresOfClasses(NamedTuple):
    """Scores of each class.

    Attributes:
        num_images: number of test images, int (classes,).
        errors: top-1 error, a fraction, float64 (classes,); NaN without images.
        losses: mean loss, float64 (classes,); NaN without images or if it is not finite.
    """

    num_images: np.ndarray
    errors: np.ndarray
    losses: np.ndarray


def scores_of_classes(predictions: Predictions[np.ndarray], num_classes: int) -> ScoresOfClasses:
    """Errors and losses of the images of each class."""
    labels = predictions.labels
    counts = np.bincount(labels, minlength=num_classes)

    def means(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(labels, values.astype(np.float64), num_classes) / counts

    wrong = predictions.classes[:, 0] != labels
    return ScoresOfClasses(counts, means(wrong), means(predictions.losses))
