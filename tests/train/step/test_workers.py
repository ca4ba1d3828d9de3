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


@pytest.mark.parametrize("passes", [1, 2, 4])
@pytest.mark.parametrize(("num_devices", "accumulation_steps"), LAYOUTS)
def test_a_sum_over_a_minibatch_is_the_sum_over_its_images(
    num_devices: int, accumulation_steps: int, passes: int
):
    workers = layout(num_devices, accumulation_steps, num_workers=32)
    workers = dataclasses.replace(workers, passes=passes)
    rows = np.random.default_rng(0).normal(size=(128, 3)).astype(np.float32)
    weights = np.arange(3, dtype=np.float32)

    def function(weights: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert part.shape == (128 // workers.num_parts, 3)
        return (part * weights[None]).sum(0), jnp.int32(part.shape[0])

    total, count = jax.jit(lambda w, x: workers.sum_over_minibatch(function, w, x))(
        weights, workers.to_devices(rows)
    )
    assert count == 128
    assert total.sharding.is_fully_replicated
    np.testing.assert_allclose(total, (rows.astype(np.float64) * weights).sum(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("num_workers", "image_size", "passes"),
    [(8, 8, 1), (64, 8, 1), (128, 8, 2), (8, 28, 2), (24, 28, 6), (7, 28, 7), (8, 128, 8)],
)
def test_a_cpu_splits_its_workers_until_their_images_fit_its_caches(
    num_workers: int, image_size: int, passes: int
):
    """Four workers of four images of 28 pixels have 12,544 pixels, five more than 16,384."""
    workers = layout(1, 1, num_workers=num_workers, image_size=image_size)
    assert workers.passes == passes


def test_a_part_for_the_noise_scale_is_not_split():
    config = digits().replace(image_size=128, noise_scale=True, accumulation_steps=2)
    assert make_workers(config, jax.devices()[:1]).passes == 1


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
