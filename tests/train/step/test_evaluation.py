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
from train.run.predictions import error_rates, predict
from train.step.evaluation import make_evaluation_step
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.workers import make_workers

PRIME = 353  # coprime to batch size, workers and devices


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
    labels, classes = predict(make_plan(config, dataset, workers), step, state.network)
    truth = [record["label"] for record in dataset.evaluation.__getitems__(range(PRIME))]
    np.testing.assert_array_equal(labels, truth)
    assert classes.shape == (PRIME, 5)
    assert error_rates(labels, classes)["eval/num_examples"] == PRIME


def test_error_rates_are_fractions_of_all_images():
    labels = np.array([3, 1, 4, 1])
    classes = np.array([[3, 0, 1], [0, 1, 3], [0, 1, 2], [2, 3, 1]])
    assert error_rates(labels, classes) == {
        "eval/top1_error": 0.75,
        "eval/top5_error": 0.25,
        "eval/num_examples": 4,
    }
