"""Folded momentum: equation 9 with the correction, equation 10 without it."""

# Optax types its states as arbitrary trees, and some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow

SCHEDULE = ow.warmup_piecewise_decay(0.1, 0.8, 5, {12: 0.1})


def positions(optimizer, gradients):
    weight = jnp.float32(0.0)
    state, path = optimizer.init(weight), []
    for gradient in gradients:
        update, state = optimizer.update(jnp.float32(gradient), state, weight)
        weight = optax.apply_updates(weight, update)
        path.append(float(weight))
    return np.asarray(path)


gradient_lists = st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=20)


@given(gradient_lists, st.floats(0, 0.95), st.booleans())
def test_corrected_momentum_equals_optax_sgd(gradients, momentum, nesterov):
    ours = ow.folded_momentum(SCHEDULE, momentum, nesterov=nesterov)
    theirs = optax.sgd(SCHEDULE, momentum, nesterov=nesterov)
    np.testing.assert_allclose(
        positions(ours, gradients), positions(theirs, gradients), rtol=2e-5, atol=2e-5
    )


@given(gradient_lists)
def test_uncorrected_momentum_is_equation_10(gradients):
    velocity, weight, expected = 0.0, 0.0, []
    for t, gradient in enumerate(gradients):
        velocity = 0.9 * velocity + float(SCHEDULE(t)) * gradient
        weight -= velocity
        expected.append(weight)
    got = positions(ow.folded_momentum(SCHEDULE, correct=False), gradients)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_the_correction_matters_after_a_drop():
    """Section 3, remark 2: the velocity must shrink with the learning rate."""
    drop = ow.piecewise_values([1.0, 0.1], [1])
    plain = positions(ow.folded_momentum(drop, 0.9, correct=False), [1.0, 1.0])
    corrected = positions(ow.folded_momentum(drop, 0.9), [1.0, 1.0])
    np.testing.assert_allclose(plain[1] - plain[0], -(0.9 * 1.0 + 0.1), rtol=1e-6)
    np.testing.assert_allclose(corrected[1] - corrected[0], -(0.9 * 0.1 + 0.1), rtol=1e-6)


def test_a_rate_of_zero_resets_the_velocity():
    """Equation 9 would keep the gradient of the first update; see the docstring."""
    ramp = ow.gradual_warmup(0.0, 1.0, 2)
    got = positions(ow.folded_momentum(ramp, 0.5), [1.0, 1.0, 1.0])
    np.testing.assert_allclose(got, [0.0, -0.5, -0.5 - (0.5 * 2 * 0.5 + 1.0)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_types_and_jit(dtype):
    params = {"w": jnp.ones(3, dtype), "none": None}
    optimizer = ow.folded_momentum(0.25, 0.5)
    state = optimizer.init(params)
    step = jax.jit(lambda state: optimizer.update(params, state))
    for expected in (-0.25, -0.375, -0.4375):
        updates, state = step(state)
        assert updates["w"].dtype == state.velocity["w"].dtype == dtype
        np.testing.assert_array_equal(updates["w"].astype(jnp.float32), np.float32([expected] * 3))
        assert ow.current_learning_rate(state).dtype == jnp.float32
    assert step._cache_size() == 1


def test_donating_the_state_keeps_the_constant_of_the_schedule():
    rate = jnp.float32(0.5)
    optimizer = ow.folded_momentum(optax.constant_schedule(rate))
    step = jax.jit(lambda s: optimizer.update(jnp.float32(1.0), s)[1], donate_argnums=0)
    step(step(optimizer.init(jnp.float32(0.0))))
    assert rate == 0.5


@pytest.mark.parametrize(
    ("rate", "momentum", "message"),
    [
        (0.1, 1.0, "momentum must be a finite number >= 0 and < 1, got 1.0"),
        (0.1, -0.5, "momentum must be a finite number >= 0 and < 1, got -0.5"),
        (float("nan"), 0.9, "learning_rate must be a finite number >= 0, got nan"),
        (-0.1, 0.9, "learning_rate must be a finite number >= 0, got -0.1"),
    ],
)
def test_bad_arguments(rate, momentum, message):
    with pytest.raises(ValueError, match=message):
        ow.folded_momentum(rate, momentum)
