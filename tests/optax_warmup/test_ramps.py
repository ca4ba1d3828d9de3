"""Exponential and general ramps, and damped warmups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import optax_warmup as ow

LAST_STEP = 2**31 - 1
lengths = st.one_of(st.integers(0, 20), st.integers(0, 10**7))
peaks = st.floats(1e-6, 100.0)
ratios = st.one_of(st.just(1.0), st.floats(1, 64), st.floats(1, 1e6))


def some_steps(length: int, offset: int = 0) -> np.ndarray:
    near = {0, 1, 2, length // 3, 4095, 4096, length - 2, length - 1, length, length + 1, LAST_STEP}
    return np.asarray(sorted(t for t in near if offset <= t <= LAST_STEP), np.int32)


@given(peaks, ratios, lengths, st.booleans(), st.floats(0, 1))
@example(peak=0.291, ratio=111523.0, steps=559, skip=False, place=451 / 559)
@example(peak=0.31, ratio=40841.0, steps=41926, skip=False, place=32361 / 41926)
def test_exponential_warmup_is_geometric_to_four_ulps(ulps, peak, ratio, steps, skip, place):
    """In the examples the exponent needs more bits than a float32 has."""
    init = peak / ratio
    t = np.append(some_steps(steps), np.int32(round(place * steps)))
    share = np.minimum((t.astype(np.float64) + skip) / steps, 1) if steps else np.ones(len(t))
    exact = np.exp((1 - share) * np.log(init) + share * np.log(peak))
    assert ulps(ow.exponential_warmup(init, peak, steps, skip_init=skip)(t), exact) <= 4


@given(peaks, ratios, lengths)
@example(peak=0.658, ratio=1.00056, steps=92515)
def test_exponential_warmup_is_exact_at_its_ends(peak, ratio, steps):
    schedule = ow.exponential_warmup(peak / ratio, peak, steps)
    assert schedule(steps) == np.float32(peak)
    if steps:
        assert schedule(0) == np.float32(peak / ratio)
        assert schedule(steps - 1) <= np.float32(peak)


CURVES = {
    "square": (jnp.square, np.square),
    "cosine": (lambda x: (1 - jnp.cos(jnp.pi * x)) / 2, lambda x: np.sin(np.pi * x / 2) ** 2),
    "sqrt": (jnp.sqrt, np.sqrt),
}


@pytest.mark.parametrize("curve", CURVES)
@given(peaks, st.floats(0, 1), lengths, st.booleans())
def test_ramp_warmup_follows_its_curve(curve, peak, share, steps, skip):
    ramp, exact_ramp = CURVES[curve]
    t = some_steps(steps)
    x = np.minimum((t.astype(np.float64) + skip) / steps, 1) if steps else np.ones(len(t))
    exact = share * peak + (peak - share * peak) * exact_ramp(x)
    got = ow.ramp_warmup(share * peak, peak, steps, ramp, skip_init=skip)(t)
    assert got.dtype == jnp.float32
    # A cosine near 0 has the absolute error of one near 1, so the bound is relative to the peak.
    assert np.max(np.abs(np.asarray(got, np.float64) - exact)) <= 3e-7 * peak


def test_a_linear_ramp_is_gradual_warmup():
    t = np.arange(20)
    general = ow.ramp_warmup(0.1, 3.2, 13, lambda share: share)
    np.testing.assert_allclose(general(t), ow.gradual_warmup(0.1, 3.2, 13)(t), rtol=3e-7)


def test_damped_warmup_does_not_shift_the_schedule():
    """The milestone at 10 stays at 10, as in detectron2 and big_vision."""
    decay = optax.piecewise_constant_schedule(2.0, {10: 0.1})
    schedule = ow.damped_warmup(decay, ow.gradual_warmup(0.0, 1.0, 4))
    got = [float(schedule(t)) for t in (0, 2, 4, 9, 10, LAST_STEP)]
    np.testing.assert_allclose(got, [0.0, 1.0, 2.0, 2.0, 0.2, 0.2], rtol=2e-7)
    assert jax.jit(schedule)(3).dtype == jnp.float32


@given(st.floats(1e-3, 1e7), st.integers(0, LAST_STEP))
def test_exponential_damping_to_four_ulps(ulps, tau, t):
    exact = -np.expm1(-(np.float64(t) + 1) / tau)
    assert ulps(ow.exponential_damping(tau)(t), exact) <= 4


@pytest.mark.parametrize("init", [0.0, -0.1, float("nan"), float("inf"), None])
def test_exponential_warmup_needs_a_positive_start(init):
    with pytest.raises(ValueError, match="init_value must be a finite number > 0, got"):
        ow.exponential_warmup(init, 1.0, 10)


def test_exponential_warmup_must_not_go_down():
    with pytest.raises(ValueError, match=r"init_value must be at most peak_value = 1\.0, got 2\.0"):
        ow.exponential_warmup(2.0, 1.0, 10)


@pytest.mark.parametrize("ramp", [lambda x: 1 - x, lambda x: x + 0.5, lambda x: x * jnp.nan])
def test_ramp_must_go_from_0_to_1(ramp):
    with pytest.raises(ValueError, match="ramp must be 0 at 0 and 1 at 1, got"):
        ow.ramp_warmup(0.0, 1.0, 10, ramp)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf"), "5", 1e-320])
def test_bad_time_constant(tau):
    with pytest.raises(ValueError, match="time_constant must"):
        ow.exponential_damping(tau)
