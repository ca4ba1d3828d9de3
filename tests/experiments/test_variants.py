"""The optimizers and initial states of the experiments, compared with the trainer's own."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import variants
from experiments.setting import setting
from train.config import WEIGHT_DECAY
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.workers import make_workers

PARAMS = {"conv": {"kernel": jnp.array([1.0, -2.0, 3.0])}, "bn": {"scale": jnp.array([1.0, 0.5])}}


def rates(step: Any) -> jax.Array:
    """Rise over four updates, stay constant, then drop."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.where(step < 8, 0.1 + 0.1 * jnp.minimum(step, 4), 0.05)


def path_of(optimizer: optax.GradientTransformation, num_steps: int) -> list[Any]:
    """Parameters after each update, with gradients that do not depend on them."""
    rng = np.random.default_rng(0)
    params, state, path = PARAMS, optimizer.init(PARAMS), []
    for _ in range(num_steps):
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def test_eq_10_with_correction_equals_the_trainers_optimizer():
    theirs, ours = path_of(make_optimizer(rates), 12), path_of(variants.eq_10_corrected(rates), 12)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


def test_eq_10_without_correction_lags_behind_a_warmup_and_overshoots_after_a_drop():
    theirs, ours = path_of(make_optimizer(rates), 12), path_of(variants.eq_10(rates), 12)
    chex.assert_trees_all_close(ours[0], theirs[0], rtol=1e-6)  # the rate has not changed yet
    for step in (2, 11):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(ours[step], theirs[step], rtol=1e-3)


def test_a_scaled_loss_scales_everything_except_weight_decay():
    small, large = (optax.constant_schedule(jnp.float32(rate)) for rate in (0.1, 0.8))
    ours = path_of(variants.ScaledLoss(large)(small), 1)[0]
    theirs = path_of(make_optimizer(large), 1)[0]
    chex.assert_trees_all_close(ours["bn"], theirs["bn"], rtol=1e-6)
    # The first update of Nesterov momentum is (1 + m) times the gradient.
    difference = 1.9 * (0.8 - 0.1) * WEIGHT_DECAY * PARAMS["conv"]["kernel"]
    np.testing.assert_allclose(
        ours["conv"]["kernel"] - theirs["conv"]["kernel"], difference, rtol=2e-3
    )


def test_gamma_one_changes_only_the_last_batch_normalization_of_each_block():
    config = setting(64)
    workers = make_workers(config, jax.devices()[:1])
    optimizer = make_optimizer(rates)
    theirs = initial_state(config.experiment, 10, optimizer, workers).network.params
    ours = variants.gamma_one(config.experiment, 10, optimizer, workers).network.params
    changed = {
        jax.tree_util.keystr(path)
        for (path, mine), their in zip(
            jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
        )
        if not np.array_equal(mine, their)
    }
    assert len(changed) == 3, changed  # blocks of a ResNet-8
    assert all(name.endswith("['layers'][1]['bn']['scale']") for name in changed), changed
    gammas = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours)
        if "scale" in jax.tree_util.keystr(path)
    ]
    assert all((leaf == 1).all() for leaf in gammas)
