"""Scaling rules compared with their equations."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow

sizes = st.integers(1, 2**20)


@given(st.floats(0, 10), sizes, sizes)
def test_linear_scaling_is_proportional(base, size, reference):
    got = ow.linear_scaling(base, size, base_batch_size=reference)
    np.testing.assert_allclose(got, base / reference * size, rtol=1e-15)


@given(st.floats(0, 10), sizes, sizes)
def test_sqrt_scaling_squares_to_linear_scaling(base, size, reference):
    got = ow.sqrt_scaling(base, size, base_batch_size=reference)
    np.testing.assert_allclose(got**2 * reference, base**2 * size, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("rule", [ow.linear_scaling, ow.sqrt_scaling])
def test_the_base_batch_size_changes_nothing(rule):
    assert rule(0.1, 256) == 0.1
    assert rule(0.3, 1000, base_batch_size=1000) == 0.3


def test_values_of_the_paper():
    """Table 2a, batch size 8192: 3.2 by the linear rule, 0.1 sqrt(32) by the other."""
    assert ow.linear_scaling(0.1, 8192) == 3.2
    np.testing.assert_allclose(ow.sqrt_scaling(0.1, 8192), 0.1 * 32**0.5, rtol=1e-15)


@pytest.mark.parametrize(("rule", "factor"), [(ow.linear_scaling, 4.0), (ow.sqrt_scaling, 2.0)])
def test_gradients_pass_through(rule, factor):
    assert jax.grad(lambda base: rule(base, 1024))(0.1) == factor
    scaled = rule(jnp.asarray([0.1, 0.2], jnp.float32), 1024)
    np.testing.assert_allclose(scaled, np.float32([0.1, 0.2]) * np.float32(factor), rtol=1e-7)


@pytest.mark.parametrize("rule", [ow.linear_scaling, ow.sqrt_scaling])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0), r"batch_size must be an integer from 1 .*, got 0"),
        ((0.1, -8), r"batch_size must be an integer from 1 .*, got -8"),
        ((0.1, 8.0), r"batch_size must be an integer from 1 .*, got 8\.0"),
        ((0.1, True), r"batch_size must be an integer from 1 .*, got True"),
        ((float("nan"), 8), r"base_value must be a finite number >= 0, got nan"),
        ((float("inf"), 8), r"base_value must be a finite number >= 0, got inf"),
        ((-0.1, 8), r"base_value must be a finite number >= 0, got -0\.1"),
        (("0.1", 8), r"base_value must be a finite number >= 0, got '0\.1'"),
    ],
)
def test_bad_arguments(rule, arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(*arguments)


@pytest.mark.parametrize("rule", [ow.linear_scaling, ow.sqrt_scaling])
def test_bad_base_batch_size(rule):
    with pytest.raises(ValueError, match="base_batch_size must be an integer from 1"):
        rule(0.1, 256, base_batch_size=0)
