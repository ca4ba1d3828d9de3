"""Saving and loading results."""

import dataclasses
from pathlib import Path

import pytest

from experiments import results
from experiments.plan import TRIALS
from train.errors import UsageError

TRIAL = TRIALS["kn-512"]


def test_runs_are_saved_by_seed_and_loaded(tmp_path: Path):
    results.save_run(tmp_path, TRIAL, 10, {"top1_error": 0.5, "test_error": [[1.0, 0.5]]})
    results.save_run(tmp_path, TRIAL, 2, {"diverged": "loss or gradients of step 3 are not finite"})
    assert results.load_runs(tmp_path, "kn-512") == {
        2: {"diverged": "loss or gradients of step 3 are not finite"},
        10: {"top1_error": 0.5, "test_error": [[1.0, 0.5]]},
    }
    assert results.load_runs(tmp_path, "kn-64") == {}


def test_runs_of_another_configuration_are_refused(tmp_path: Path):
    results.save_run(tmp_path, TRIAL, 0, {"top1_error": 0.5})
    how = TRIAL.config.replace(accumulation_steps=2, log_every_steps=7)
    results.check(tmp_path, dataclasses.replace(TRIAL, config=how))  # does not change results
    what = TRIAL.config.replace(base_learning_rate=0.3)
    with pytest.raises(UsageError, match="differs in base_learning_rate; move or delete it"):
        results.check(tmp_path, dataclasses.replace(TRIAL, config=what))
