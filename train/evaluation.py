"""Exact evaluation: every test image counts once."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train.config import Config
from train.input_pipeline import NO_LABEL, Dataset, evaluation_minibatches
from train.metrics import Record
from train.step import Steps
from train.workers import Workers


def predict(
    params: Any, batch_stats: Any, steps: Steps, dataset: Dataset, config: Config, workers: Workers
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, (N,), and likeliest classes, (N, 5), of all N test images in their order."""

    def minibatches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in evaluation_minibatches(dataset, config, workers):
            minibatch = jax.tree.map(workers.to_devices, rows)
            labels, classes = jax.device_get(steps.evaluate(params, batch_stats, minibatch))
            real = labels != NO_LABEL
            yield labels[real], classes[real]

    labels, classes = zip(*minibatches(), strict=True)
    return np.concatenate(labels), np.concatenate(classes)


def error_rates(labels: np.ndarray, classes: np.ndarray) -> Record:
    """Top-1 and top-5 errors over all images given, as fractions, and how many these are."""
    wrong = classes != labels[:, None]
    return {
        "eval/top1_error": float(wrong[:, 0].mean()),
        "eval/top5_error": float(wrong.all(axis=1).mean()),
        "eval/num_examples": len(labels),
    }
