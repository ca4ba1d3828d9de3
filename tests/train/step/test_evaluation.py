"""Evaluation: every test image counts once, for any number of devices."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.data.dataset import open_dataset
from train.data.records import Records
from train.plan import make_plan
from train.recipes import digits
from train.run.predictions import EvaluationMinibatches, predict, scores
from train.step.evaluation import Predictions, make_evaluation_step
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.workers import make_workers

PRIME = 353  # coprime to batch size, workers and devices
LOSS = 2.302507  # of the initial network


class First:
    """The first records of a data set."""

    def __init__(self, records: Records, number: int) -> None:
        self._records, self._number = records, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert index < self._number
        return self._records[index]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        assert max(indices) < self._number
        return self._records.__getitems__(indices)


@pytest.mark.parametrize(("num_devices", "accumulation_steps"), [(1, 1), (8, 1), (2, 4)])
def test_each_example_counts_exactly_once(
    digits_dir: Path, num_devices: int, accumulation_steps: int
):
    config = digits().replace(data_dir=digits_dir, accumulation_steps=accumulation_steps)
    dataset = open_dataset(config)
    dataset = dataclasses.replace(dataset, evaluation=First(dataset.evaluation, PRIME))
    workers = make_workers(config, jax.devices()[:num_devices])
    optimizer = make_optimizer(lambda step: 0.0)
    step = make_evaluation_step(config.experiment, 10, workers)
    state = initial_state(config.experiment, 10, optimizer, workers)
    predictions = predict(
        EvaluationMinibatches(make_plan(config, dataset, workers)), step, state.network
    )
    truth = [record["label"] for record in dataset.evaluation.__getitems__(range(PRIME))]
    np.testing.assert_array_equal(predictions.labels, truth)
    assert predictions.classes.shape == (PRIME, 5)
    found = scores(predictions, 10)
    assert found["eval/num_examples"] == PRIME
    assert found["eval/loss"] == pytest.approx(LOSS, rel=1e-6)


def predictions_of(losses: list[float]) -> Predictions[np.ndarray]:
    return Predictions(
        labels=np.array([3, 1, 4, 1]),
        classes=np.array([[3, 0, 1], [0, 1, 3], [0, 1, 2], [2, 3, 1]]),
        losses=np.array(losses, np.float32),
    )


def test_errors_are_fractions_of_all_images_and_the_loss_is_their_mean():
    assert scores(predictions_of([0.5, 1, 2, 0.5]), 10) == {
        "eval/loss": 1.0,
        "eval/top1_error": 0.75,
        "eval/top5_error": 0.25,
        "eval/num_examples": 4,
    }


def test_top5_errors_need_six_classes():
    """The five likeliest of five classes always include the true one."""
    assert "eval/top5_error" in scores(predictions_of([1, 1, 1, 1]), 6)
    for num_classes in (2, 5):
        assert "eval/top5_error" not in scores(predictions_of([1, 1, 1, 1]), num_classes)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_none(loss: float):
    assert scores(predictions_of([1, loss, 1, 1]), 10)["eval/loss"] is None
