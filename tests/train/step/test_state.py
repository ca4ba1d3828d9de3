"""The initial state of a run, and the digest of its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.recipes import digits
from train.step.optimizer import make_optimizer
from train.step.state import (
    COMPILER_OPTIONS,
    TrainState,
    abstract_state,
    initial_state,
    params_digest,
)
from train.step.workers import make_workers

OPTIMIZER = make_optimizer(optax.constant_schedule(0.1))


def make(num_devices: int, **changes: Any) -> TrainState:
    config = digits().replace(**changes)
    workers = make_workers(config, jax.devices()[:num_devices])
    return initial_state(config.experiment, 10, OPTIMIZER, workers)


@pytest.fixture(scope="module")
def state() -> TrainState:
    return make(num_devices=8)


def flip_one_bit(value: jax.Array) -> jax.Array:
    """Flip the last bit of the last number, the smallest possible change."""
    bits = np.array(value).view(np.uint32)
    bits.flat[-1] ^= 1
    return jnp.asarray(bits.view(np.float32))


def test_state_is_replicated_on_every_device(state: TrainState):
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
        assert leaf.sharding.device_set == set(jax.devices())


def test_initial_state_does_not_depend_on_devices_or_workers(state: TrainState):
    other = make(num_devices=2, num_workers=4, batch_size_per_worker=3, accumulation_steps=2)
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def test_faster_compilation_does_not_change_the_initial_state(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
):
    assert "cpu" in COMPILER_OPTIONS
    full = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    monkeypatch.setattr("train.step.state.COMPILER_OPTIONS", {"cpu": full})
    fully_optimized = make(num_devices=8)
    assert params_digest(state.network.params) == params_digest(fully_optimized.network.params)


def test_another_seed_changes_every_weight(state: TrainState):
    other = make(num_devices=1, seed=1)
    kernels = [
        (name, left, right)
        for (path, left), right in zip(
            jax.tree_util.tree_leaves_with_path(state.network.params),
            jax.tree.leaves(other.network.params),
            strict=True,
        )
        if (name := jax.tree_util.keystr(path)).endswith("['kernel']")
    ]
    assert len(kernels) == 1 + 2 * 3 + 2 + 1  # stem, blocks, shortcuts and head of a resnet8
    for name, left, right in kernels:
        assert (np.asarray(left) != np.asarray(right)).all(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_state_is_float32_for_any_compute_dtype(dtype: str):
    config = digits().replace(dtype=dtype)
    shapes = abstract_state(config.experiment, 10, OPTIMIZER, make_workers(config))
    assert (shapes.step.shape, shapes.step.dtype) == ((), jnp.int32)
    for part in (shapes.network.params, shapes.network.batch_stats):
        assert {leaf.dtype for leaf in jax.tree.leaves(part)} == {jnp.dtype(jnp.float32)}
    # Momentum has the shapes of the parameters.
    shapes_of_params = sorted(leaf.shape for leaf in jax.tree.leaves(shapes.network.params))
    in_optimizer = sorted(leaf.shape for leaf in jax.tree.leaves(shapes.opt_state) if leaf.shape)
    assert in_optimizer == shapes_of_params


def test_counters_start_at_zero(state: TrainState):
    assert int(state.step) == 0
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert {int(count) for count in counts} == {0}


def test_the_digest_does_not_depend_on_the_devices(state: TrainState):
    on_one = jax.device_put(state.network.params, jax.devices()[3])
    assert params_digest(on_one) == params_digest(state.network.params)


def test_the_digest_changes_with_any_bit_of_any_array(state: TrainState):
    leaves, structure = jax.tree.flatten(state.network.params)
    digests = {params_digest(state.network.params)}
    for index, leaf in enumerate(leaves):
        changed = [*leaves[:index], flip_one_bit(leaf), *leaves[index + 1 :]]
        digests.add(params_digest(jax.tree.unflatten(structure, changed)))
    assert len(digests) == 1 + len(leaves)


def test_the_digest_depends_on_the_names_of_the_arrays():
    a, b = jnp.zeros(3), jnp.ones(3)
    assert params_digest({"x": a, "y": b}) == params_digest({"y": b, "x": a})
    assert params_digest({"x": a, "y": b}) != params_digest({"x": b, "y": a})
    assert params_digest({"x": a, "y": b}) != params_digest({"x": a, "z": b})
