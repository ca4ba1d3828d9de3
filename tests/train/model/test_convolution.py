"""Tests of each platform's convolution and pooling against JAX's operations and gradients."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model.convolution import FORMS, convolve, form_on_cpu, max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_matches_lax(
    ours: Callable[..., jax.Array], x: jax.Array, weights: jax.Array, stride: int
) -> None:
    """Compare a centered convolution and both gradients with those of `jax.lax`."""
    padding = [(size // 2, size // 2) for size in weights.shape[:2]]

    def plain(x: jax.Array, weights: jax.Array) -> jax.Array:
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)

    expected, pull_back_expected = jax.vjp(plain, x, weights)
    y, pull_back = jax.vjp(ours, x, weights)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    error = numbers(*y.shape, seed=2)
    for gradient, wanted in zip(pull_back(error), pull_back_expected(error), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(6, 1, 1), (6, 1, 2), (7, 1, 2), (6, 3, 2), (9, 7, 2), (8, 7, 2)]
)
def test_convolution_and_gradients_match_lax(size: int, kernel: int, stride: int):
    x, weights = numbers(4, size, size, 5), numbers(kernel, kernel, 5, 3, seed=1)
    strides, padding = (stride, stride), [(kernel // 2, kernel // 2)] * 2

    def ours(x: jax.Array, weights: jax.Array) -> jax.Array:
        return convolve(x, weights, strides, padding, dimension_numbers=LAYOUT)

    assert_matches_lax(ours, x, weights, stride)


@pytest.mark.parametrize("form", ["convolution", "patches", "whole image"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("batch", "height", "width", "channels"),
    [(3, 1, 1, 2), (1, 2, 2, 1), (5, 2, 3, 4), (2, 4, 3, 5), (3, 7, 6, 3)],
)
def test_each_form_and_its_gradients_match_lax(
    form: str, stride: int, batch: int, height: int, width: int, channels: int
):
    x, weights = numbers(batch, height, width, channels), numbers(3, 3, channels, 6, seed=1)

    assert_matches_lax(functools.partial(FORMS[form], stride=stride), x, weights, stride)


@pytest.mark.parametrize("form", ["convolution", "patches", "whole image"])
def test_each_form_keeps_bfloat16(form: str):
    x, weights = numbers(2, 3, 4, 5), numbers(3, 3, 5, 6, seed=1)
    rounded = FORMS[form](x.astype(jnp.bfloat16), weights.astype(jnp.bfloat16), 1)
    assert rounded.dtype == jnp.bfloat16
    exact = np.asarray(FORMS[form](x, weights, 1))
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=0.05, atol=0.15)


# Shapes of resnet8 at 8 and 14 pixels, and of ResNet-50.
@pytest.mark.parametrize(
    ("side", "kernel", "channels", "stride", "form"),
    [
        (8, 3, 1, 1, "patches"),
        (8, 3, 16, 1, "convolution"),
        (8, 3, 16, 2, "patches"),
        (14, 3, 16, 2, "patches"),
        (4, 3, 32, 1, "patches"),
        (2, 3, 64, 1, "whole image"),
        (8, 1, 16, 2, "product"),
        (224, 7, 3, 2, "convolution"),
        (32, 3, 64, 1, "convolution"),
        (8, 3, 512, 2, "patches"),
    ],
)
def test_the_shape_chooses_the_form(side: int, kernel: int, channels: int, stride: int, form: str):
    assert form_on_cpu((2, side, side, channels), (kernel, kernel, channels, 8), stride) == form


@pytest.mark.parametrize(
    ("strides", "padding"),
    [((2, 1), [(1, 1), (1, 1)]), ((2, 2), [(0, 1), (0, 1)]), ((1, 1), [(0, 0), (0, 0)])],
)
def test_other_strides_and_padding_use_xlas_convolution(
    strides: tuple[int, int], padding: list[tuple[int, int]]
):
    x, weights = numbers(2, 4, 4, 3), numbers(3, 3, 3, 2, seed=1)
    y = convolve(x, weights, strides, padding, dimension_numbers=LAYOUT)
    wanted = jax.lax.conv_general_dilated(x, weights, strides, padding, dimension_numbers=LAYOUT)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_have_the_layout_of_xlas_fast_convolutions():
    """In another layout they are slow inside loops."""
    x, weights = numbers(2, 12, 12, 16), numbers(3, 3, 16, 8, seed=1)

    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        return convolve(x, weights, (1, 1), [(1, 1), (1, 1)], dimension_numbers=LAYOUT).sum()

    program = jax.jit(jax.grad(loss, (0, 1))).lower(x, weights).as_text()
    layouts = re.findall(r"dim_numbers = (\[.*?\])x(\[.*?\])->(\[.*?\]),", program)
    assert len(layouts) >= 2
    assert set(layouts) == {("[b, 0, 1, f]", "[0, 1, i, o]", "[b, 0, 1, f]")}


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
@pytest.mark.parametrize(("size", "kernel"), [(8, 1), (2, 3)])
def test_only_cpus_use_the_replacements(platform: str, size: int, kernel: int):
    def network(x: jax.Array, weights: jax.Array) -> jax.Array:
        padding = [(kernel // 2, kernel // 2)] * 2
        y = convolve(x, weights, (1, 1), padding, dimension_numbers=LAYOUT)
        return max_pool(y).sum()

    images, weights = numbers(2, size, size, 5), numbers(kernel, kernel, 5, 3)
    traced = jax.jit(jax.grad(network, (0, 1))).trace(images, weights)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    on_cpu = platform == "cpu"
    assert ("stablehlo.dot_general" in program) == on_cpu
    assert ("stablehlo.convolution" in program) != on_cpu
    assert ("stablehlo.select_and_scatter" in program) != on_cpu
