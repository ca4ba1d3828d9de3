"""Exact evaluation: every test image counts once."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train.config import Config
from train.data.minibatches import NO_LABEL, Dataset, evaluation_minibatches
from train.data.reader import on_devices
from train.run.metrics import Record
from train.step.train_step import Steps
from train.step.workers import Workers


def predict(
    params: Any, batch_stats: Any, steps: Steps, dataset: Dataset, config: Config, workers: Workers
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, (N,), and likeliest classes, (N, 5), of all N test images in their order.

    The label of an image that cannot be decoded is `NO_LABEL`.
    """

    def minibatches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for minibatch in on_devices(evaluation_minibatches(dataset, config, workers), workers):
            labels, classes = jax.device_get(steps.evaluate(params, batch_stats, minibatch))
            yield labels.reshape(-1), classes.reshape(-1, classes.shape[-1])

    labels, classes = zip(*minibatches(), strict=True)
    padded = len(dataset.evaluation)  # where the padding begins
    return np.concatenate(labels)[:padded], np.concatenate(classes)[:padded]


def error_rates(labels: np.ndarray, classes: np.ndarray) -> Record:
    """Top-1 and top-5 errors over all images with a label, as fractions, and how many these are."""
    labels, classes = labels[labels != NO_LABEL], classes[labels != NO_LABEL]
    wrong = classes != labels[:, None]
    return {
        "eval/top1_error": float(wrong[:, 0].mean()),
        "eval/top5_error": float(wrong.all(axis=1).mean()),
        "eval/num_examples": len(labels),
    }
