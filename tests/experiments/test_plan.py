"""The trials are configurations of the trainer, and each belongs to an experiment."""

import math
from typing import get_args, get_type_hints

import pytest

from experiments import variants
from experiments.__main__ import Options
from experiments.plan import EXPERIMENTS, SQRT_SIZES, TRIALS, base, variant
from experiments.setting import LARGE, NUM_EXAMPLES, RATE, REFERENCE, setting
from train.step.optimizer import make_optimizer
from train.step.state import initial_state


def test_each_trial_belongs_to_an_experiment():
    assert {name for experiment in EXPERIMENTS.values() for name in experiment.trials} == set(
        TRIALS
    )


def test_the_command_knows_all_experiments():
    names, _ = get_args(get_type_hints(Options)["experiments"])
    assert set(get_args(names)) == set(EXPERIMENTS)


def test_only_these_trials_replace_the_optimizer_or_the_initial_state():
    others = {
        trial.name: (trial.optimizer, trial.start)
        for trial in TRIALS.values()
        if (trial.optimizer, trial.start) != (make_optimizer, initial_state)
    }
    loss = others.pop("kn-512-scaled-loss")
    assert isinstance(loss[0], variants.ScaledLoss)
    assert others == {
        "kn-64-gamma-1": (make_optimizer, variants.gamma_one),
        "kn-512-gamma-1": (make_optimizer, variants.gamma_one),
        "kn-512-eq-10": (variants.eq_10, initial_state),
        "kn-512-eq-10-corrected": (variants.eq_10_corrected, initial_state),
    }


@pytest.mark.parametrize("kn", SQRT_SIZES)
def test_square_root_scaling_warms_up_from_the_reference_rate(kn: int):
    recipe = TRIALS[variant(kn, "sqrt")].config.experiment.large_minibatch_recipe(NUM_EXAMPLES)
    assert recipe.peak_learning_rate == pytest.approx(RATE * math.sqrt(kn / REFERENCE), rel=2e-4)
    assert recipe.resolved_warmup == ("gradual" if kn > REFERENCE else "none")
    if kn > REFERENCE:
        assert float(recipe.schedule()(0)) == pytest.approx(RATE)


def test_a_rate_that_is_not_scaled_equals_that_of_the_reference():
    recipe = TRIALS["kn-512-fixed"].config.experiment.large_minibatch_recipe(NUM_EXAMPLES)
    assert recipe.peak_learning_rate == pytest.approx(RATE)


def test_the_loss_is_scaled_by_the_factor_of_the_rate():
    trial = TRIALS["kn-512-scaled-loss"]
    rates = trial.config.experiment.large_minibatch_recipe(NUM_EXAMPLES).schedule()
    scaled = TRIALS[base(LARGE)].config.experiment.large_minibatch_recipe(NUM_EXAMPLES).schedule()
    assert float(rates(0)) == pytest.approx(float(scaled(0)))
    assert float(rates(200)) == pytest.approx(RATE)
    assert float(scaled(200)) == pytest.approx(RATE * LARGE / REFERENCE)


def test_batch_normalization_over_the_minibatch_keeps_images_and_rate():
    for kn in (REFERENCE, LARGE):
        whole, own = TRIALS[f"kn-{kn}-whole-bn"].config, setting(kn)
        assert (whole.experiment.num_workers, whole.experiment.batch_size) == (1, kn)
        changed = {"num_workers", "batch_size_per_worker", "accumulation_steps"}
        assert {
            name for name, value in whole.to_dict().items() if value != own.to_dict()[name]
        } <= changed


def test_the_large_minibatch_is_the_largest_with_100_steps_per_epoch():
    recipes = [
        setting(kn).experiment.large_minibatch_recipe(NUM_EXAMPLES) for kn in (LARGE, 2 * LARGE)
    ]
    steps = [recipe.steps_per_epoch for recipe in recipes]
    assert steps[0] >= 100 > steps[1]
