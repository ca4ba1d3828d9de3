"""k workers on any number of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.errors import UsageError
from train.recipes import digits
from train.step.workers import Workers, make_workers

LAYOUTS = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 8), (2, 4), (4, 2)]


def layout(num_devices: int, accumulation_steps: int, **changes: int) -> Workers:
    config = digits().replace(
        batch_size_per_worker=4, accumulation_steps=accumulation_steps, **changes
    )
    return make_workers(config, jax.devices()[:num_devices])


@pytest.mark.parametrize(("num_devices", "accumulation_steps"), [(3, 1), (8, 2), (1, 3)])
def test_uneven_split_of_the_workers_is_refused(num_devices: int, accumulation_steps: int):
    with pytest.raises(UsageError, match=f"= {num_devices} × {accumulation_steps} = "):
        layout(num_devices, accumulation_steps)


@pytest.mark.parametrize(("num_devices", "accumulation_steps"), LAYOUTS)
def test_each_worker_is_on_a_single_device(num_devices: int, accumulation_steps: int):
    workers = layout(num_devices, accumulation_steps, num_workers=16)
    worker_of_image = np.repeat(workers.local, 4)
    minibatch = workers.to_devices(worker_of_image)
    assert minibatch.shape == (accumulation_steps, 64 // accumulation_steps)
    assert minibatch.sharding == workers.sharded
    # Worker j has images [j·n, (j + 1)·n), in the order of accumulation steps, then devices.
    np.testing.assert_array_equal(np.asarray(minibatch).reshape(-1), np.arange(16).repeat(4))
    for shard in minibatch.addressable_shards:
        groups = np.asarray(shard.data).reshape(-1, 4)
        assert (groups == groups[:, :1]).all()


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.parametrize(("num_devices", "accumulation_steps"), LAYOUTS)
def test_a_sum_over_a_minibatch_is_the_sum_over_its_images(
    num_devices: int, accumulation_steps: int, unrolled: bool
):
    workers = dataclasses.replace(
        layout(num_devices, accumulation_steps), unroll_accumulation=unrolled
    )
    rows = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    weights = np.arange(3, dtype=np.float32)

    def function(weights: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert part.shape == (32 // workers.num_parts, 3)
        return (part * weights[None]).sum(0), jnp.int32(part.shape[0])

    total, count = jax.jit(lambda w, x: workers.sum_over_minibatch(function, w, x))(
        weights, workers.to_devices(rows)
    )
    assert count == 32
    assert total.sharding.is_fully_replicated
    np.testing.assert_allclose(total, (rows.astype(np.float64) * weights).sum(0), rtol=1e-5)


def test_gradients_of_parts_are_reduced_once():
    """Gradients of parts stay on their devices; only their sum crosses devices."""
    workers = layout(8, 1)
    rows = np.random.default_rng(0).normal(size=(32,)).astype(np.float32)

    def gradient(weight: jax.Array, part: jax.Array) -> jax.Array:
        return jax.grad(lambda w: (jnp.sin(w * part)).sum())(weight)

    got = jax.jit(lambda w, x: workers.sum_over_minibatch(gradient, w, x))(
        np.float32(0.5), workers.to_devices(rows)
    )
    np.testing.assert_allclose(got, (rows * np.cos(0.5 * rows)).sum(), rtol=1e-5)


@pytest.mark.parametrize("joined", [True, False])
def test_reduced_arrays_are_joined_into_one_if_configured(joined: bool):
    workers = dataclasses.replace(layout(8, 1), joins_reduction=joined)
    rows = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)

    def function(weights: jax.Array, part: jax.Array) -> dict[str, jax.Array]:
        each = part * weights[None]
        return {"matrix": each.T @ each, "vector": each.sum(0), "scalar": each.sum()}

    program = jax.jit(lambda w, x: workers.sum_over_minibatch(function, w, x)).lower(
        np.arange(3, dtype=np.float32), workers.to_devices(rows)
    )
    assert program.as_text().count("stablehlo.all_reduce") == (1 if joined else 3)
    got = program.compile()(np.arange(3, dtype=np.float32), workers.to_devices(rows))
    each = rows.astype(np.float64) * np.arange(3)
    expected = {"matrix": each.T @ each, "vector": each.sum(0), "scalar": each.sum()}
    for name, array in got.items():
        assert array.shape == expected[name].shape
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
