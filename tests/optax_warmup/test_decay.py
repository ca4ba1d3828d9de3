"""Decays, and the step from which their boundaries count."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow

LAST_STEP = 2**31 - 1
peaks = st.floats(1e-6, 100.0)
lengths = st.integers(0, 10**7)
ends = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))


def near(*places: int) -> np.ndarray:
    steps = {place + d for place in (0, LAST_STEP, *places) for d in (-1, 0, 1)}
    return np.asarray(sorted(t for t in steps if 0 <= t <= LAST_STEP), np.int32)


@given(peaks, lengths, st.lists(st.integers(0, 10**8), unique=True, max_size=4), st.data())
def test_piecewise_decay_to_four_ulps(ulps, peak, steps, gaps, data):
    """Boundaries count from the start of training for every warmup."""
    boundaries = [steps + gap for gap in sorted(gaps)]
    scales = data.draw(st.lists(st.floats(0.01, 1), min_size=len(gaps), max_size=len(gaps)))
    t = near(steps, *boundaries)
    factors = [np.where(t >= b, s, 1.0) for b, s in zip(boundaries, scales, strict=True)]
    exact = np.where(t < steps, peak / 32 + (peak - peak / 32) * (t / max(steps, 1)), peak)
    exact = exact * np.prod(factors, axis=0) if factors else exact
    schedule = ow.warmup_piecewise_decay(
        peak / 32, peak, steps, dict(zip(boundaries, scales, strict=True))
    )
    assert ulps(schedule(t), exact) <= 4


def test_piecewise_decay_of_the_paper():
    """Section 5.1 at kn = 8192: 0.1 to 3.2 in 780 steps, then a tenth at epochs 30, 60, 80."""
    schedule = ow.warmup_piecewise_decay(0.1, 3.2, 780, {4680: 0.1, 9360: 0.1, 12480: 0.1})
    at = {
        0: 0.1,
        390: 1.65,
        780: 3.2,
        4679: 3.2,
        4680: 0.32,
        9359: 0.32,
        9360: 0.032,
        12480: 0.0032,
    }
    np.testing.assert_allclose([schedule(t) for t in at], list(at.values()), rtol=3e-7)


def test_a_boundary_at_the_end_of_the_warmup():
    schedule = ow.warmup_piecewise_decay(0.1, 1.0, 5, {5: 0.5})
    np.testing.assert_allclose([schedule(4), schedule(5)], [0.82, 0.5], rtol=2e-7)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({4: 0.1}, "boundaries_and_scales must be at least 5, the end of the warmup, got .4."),
        ({30: 0.1, 20: 0.1}, "boundaries_and_scales must increase, without repeats, got"),
        ({30.0: 0.1}, r"boundaries_and_scales\[0\] must be an integer from 0 .*, got 30\.0"),
        ({-30: 0.1}, r"boundaries_and_scales\[0\] must be an integer from 0 .*, got -30"),
        ({30: -0.1}, r"boundaries_and_scales\[30\] must be a finite number >= 0, got -0\.1"),
        ({30: float("nan")}, r"boundaries_and_scales\[30\] must be a finite number >= 0, got nan"),
        ([30, 60], r"boundaries_and_scales must be a mapping of steps to numbers, got \[30, 60\]"),
        (None, "boundaries_and_scales must be a mapping of steps to numbers, got None"),
    ],
)
def test_bad_boundaries(scales, message):
    with pytest.raises(ValueError, match=message):
        ow.warmup_piecewise_decay(0.1, 1.0, 5, scales)


@given(st.lists(st.integers(1, LAST_STEP), unique=True, max_size=6), st.data())
def test_piecewise_values_change_at_their_boundaries(boundaries, data):
    boundaries = sorted(boundaries)
    values = data.draw(st.lists(peaks, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    t = near(*boundaries)
    expected = np.float32(values)[np.searchsorted(boundaries, t, side="right")]
    got = ow.piecewise_values(values, boundaries)(t)
    np.testing.assert_array_equal(np.broadcast_to(got, expected.shape), expected)


@pytest.mark.parametrize(
    ("values", "boundaries", "message"),
    [
        ([1.0, 0.1], [], "values must have one entry more than boundaries, got 2 values and 0"),
        ([1.0], [5, 9], "values must have one entry more than boundaries, got 1 values and 2"),
        ([1.0, 0.1, 0.2], [9, 5], "boundaries must increase, without repeats, got .9, 5."),
        ([1.0, 0.1, 0.2], [5, 5], "boundaries must increase, without repeats, got .5, 5."),
        ([1.0, 0.1], [0], "boundaries must be at least 1, the second step, got .0."),
        ([1.0, float("inf")], [5], r"values\[1\] must be a finite number >= 0, got inf"),
    ],
)
def test_bad_piecewise_values(values, boundaries, message):
    with pytest.raises(ValueError, match=message):
        ow.piecewise_values(values, boundaries)


@given(peaks, st.one_of(st.integers(1, 10**7), st.floats(0.1, 1e6)), st.integers(0, LAST_STEP))
def test_inverse_sqrt_to_four_ulps(ulps, peak, tau, t):
    schedule = ow.inverse_sqrt_decay(peak, tau)
    assert ulps(schedule(t), peak / np.sqrt(1 + t / tau)) <= 4
    assert schedule(0) == np.float32(peak)


@pytest.mark.parametrize("tau", [0, -5, float("nan"), float("inf"), True])
def test_bad_timescale(tau):
    with pytest.raises(ValueError, match="timescale must be a finite number > 0, got"):
        ow.inverse_sqrt_decay(1.0, tau)


SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: np.cos(np.pi * x / 2) ** 2,
    "sqrt": lambda x: 1 - np.sqrt(x),
}


@pytest.mark.parametrize("decay", SHAPES)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000), ends)
def test_warmup_stable_decay(decay, warmup, stable, length, end):
    end *= 2.0
    t = near(warmup, warmup + stable, warmup + stable + length, warmup + stable + length // 2)
    x = np.clip((t.astype(np.float64) - warmup - stable) / length, 0, 1)
    exact = np.where(t < warmup, 2.0 * t / max(warmup, 1), end + (2.0 - end) * SHAPES[decay](x))
    schedule = ow.warmup_stable_decay(0.0, 2.0, warmup, stable, length, end, decay=decay)
    # The absolute error of optax's linear and cosine decays is constant, so it is relative to top.
    np.testing.assert_allclose(schedule(t), exact, rtol=4e-7, atol=0 if decay == "sqrt" else 4e-7)
    assert schedule(warmup) == 2.0
    np.testing.assert_allclose(schedule(warmup + stable + length), end, rtol=1e-7, atol=1e-7)


def test_the_last_update_is_one_step_before_end_value():
    """The last of W + S + D updates uses x = 1 - 1/D."""
    schedule = ow.warmup_stable_decay(0.0, 1.0, 4, 10, 4)
    np.testing.assert_allclose([schedule(17), schedule(18)], [0.25, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decay_steps": 0}, "decay_steps must be an integer from 1 .*, got 0"),
        ({"stable_steps": -1}, "stable_steps must be an integer from 0 .*, got -1"),
        ({"end_value": 2.0}, r"end_value must be at most peak_value = 1\.0, got 2\.0"),
        ({"end_value": float("nan")}, "end_value must be a finite number >= 0, got nan"),
        ({"decay": "steps"}, "decay must be one of 'linear', 'cosine', 'sqrt', got 'steps'"),
    ],
)
def test_bad_stable_decay(changed, message):
    arguments = {
        "init_value": 0.0,
        "peak_value": 1.0,
        "warmup_steps": 4,
        "stable_steps": 10,
        "decay_steps": 4,
    }
    with pytest.raises(ValueError, match=message):
        ow.warmup_stable_decay(**(arguments | changed))


def test_a_cosine_decay_rejects_a_traced_peak():
    with pytest.raises(ValueError, match="peak_value must be a number if decay is 'cosine'"):
        jax.grad(lambda p: ow.warmup_stable_decay(0.0, p, 4, 10, 4, decay="cosine")(15))(1.0)
    assert jnp.isfinite(jax.grad(lambda p: ow.warmup_stable_decay(0.0, p, 4, 10, 4)(15))(1.0))
