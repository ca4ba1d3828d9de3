"""Tests of each platform's convolution and pooling against JAX's operations and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model.convolution import convolve, max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(6, 1, 1), (6, 1, 2), (7, 1, 2), (6, 3, 2)])
def test_convolution_and_gradients_match_lax(size: int, kernel: int, stride: int):
    x, weights = numbers(4, size, size, 5), numbers(kernel, kernel, 5, 3, seed=1)
    strides, padding = (stride, stride), [(kernel // 2, kernel // 2)] * 2

    def ours(x: jax.Array, weights: jax.Array) -> jax.Array:
        return convolve(x, weights, strides, padding, dimension_numbers=LAYOUT)

    def plain(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)

    expected, pull_back_expected = jax.vjp(plain, x, weights)
    y, pull_back = jax.vjp(ours, x, weights)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    error = numbers(*y.shape, seed=2)
    for gradient, wanted in zip(pull_back(error), pull_back_expected(error), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [8, 7])
def test_pooling_and_gradient_match_lax_even_with_ties(size: int):
    x = jnp.maximum(jnp.round(numbers(3, size, size, 4)), 0)  # 0, 1, 2 and 3, with many ties

    def plain(x: jax.Array) -> jax.Array:
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

    expected, pull_back_expected = jax.vjp(plain, x)
    y, pull_back = jax.vjp(max_pool, x)
    np.testing.assert_array_equal(y, expected)
    error = numbers(*y.shape, seed=2)
    (gradient,), (wanted,) = pull_back(error), pull_back_expected(error)
    # At 0 the padding ties too, but there the gradient of the preceding ReLU is 0.
    seen = np.asarray(x) > 0
    np.testing.assert_allclose(np.asarray(gradient)[seen], np.asarray(wanted)[seen], rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cpus_use_the_replacements(platform: str):
    def network(x: jax.Array, weights: jax.Array) -> jax.Array:
        y = convolve(x, weights, (1, 1), [(0, 0), (0, 0)], dimension_numbers=LAYOUT)
        return max_pool(y).sum()

    traced = jax.jit(jax.grad(network, (0, 1))).trace(numbers(2, 8, 8, 5), numbers(1, 1, 5, 3))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    on_cpu = platform == "cpu"
    assert ("stablehlo.dot_general" in program) == on_cpu
    assert ("stablehlo.convolution" in program) != on_cpu
    assert ("stablehlo.select_and_scatter" in program) != on_cpu
