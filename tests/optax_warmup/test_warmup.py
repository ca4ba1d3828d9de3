"""Constant and gradual warmup: accuracy, types of counts, transformations and bad arguments."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import optax_warmup as ow

LAST_STEP = 2**31 - 1
warmup_lengths = st.one_of(st.integers(0, 20), st.integers(0, 10**4), st.integers(0, 10**7))
peaks = st.floats(1e-6, 100.0)
# The start of a ramp divided by its peak.
shares = st.one_of(st.just(0.0), st.integers(1, 256).map(lambda k: 1 / k), st.floats(0, 1))
kinds = st.sampled_from([int, np.int32, np.int64, jnp.int32, jnp.asarray])


def around(*places: int) -> np.ndarray:
    """Steps around the places, within the range of int32."""
    near = {place + d for place in (0, LAST_STEP, *places) for d in (-2, -1, 0, 1, 2)}
    return np.asarray(sorted(step for step in near if 0 <= step <= LAST_STEP), np.int32)


def linear(init, peak, steps, t):
    """The ramp in float64, as a weighted mean of its ends."""
    share = np.minimum(np.asarray(t, np.float64) / steps, 1.0) if steps else np.ones(np.shape(t))
    return init * (1 - share) + peak * share


@given(shares, peaks, warmup_lengths, st.lists(st.floats(0, 1), min_size=6, max_size=6))
@example(share=1 / 25, peak=0.742, steps=170, places=[112 / 170])
@example(share=0.0, peak=4.102, steps=3905, places=[1554 / 3905])
@example(share=0.0, peak=1.0, steps=10**7, places=[1e-7])
def test_gradual_warmup_is_linear_to_two_ulps(ulps, share, peak, steps, places):
    """The examples fail with a float32 division or with optax's form of the ramp."""
    t = around(steps, *(round(place * steps) for place in places))
    schedule = ow.gradual_warmup(share * peak, peak, steps)
    assert ulps(schedule(t), linear(share * peak, peak, steps, t)) <= 2


@given(shares, peaks, warmup_lengths)
def test_skip_init_is_one_step_ahead(ulps, share, peak, steps):
    t = around(steps, steps // 2)
    schedule = ow.gradual_warmup(share * peak, peak, steps, skip_init=True)
    assert ulps(schedule(t), linear(share * peak, peak, steps, t.astype(np.int64) + 1)) <= 2


@given(shares, peaks, st.one_of(warmup_lengths, st.integers(0, LAST_STEP)))
@example(share=0.0, peak=0.364, steps=560_208_491)
def test_both_sides_of_the_join_are_exact(share, peak, steps):
    """Step 0 is exactly the start, step W exactly the peak, and step W - 1 not above it."""
    schedule = ow.gradual_warmup(share * peak, peak, steps)
    assert schedule(steps) == np.float32(peak)
    if steps:
        assert schedule(0) == np.float32(share * peak)
        assert schedule(steps - 1) <= np.float32(peak)


@given(peaks, warmup_lengths, kinds, st.integers(0, LAST_STEP))
def test_all_integer_types_give_the_same_float32(peak, steps, kind, step):
    for t in (step, min(step, steps)):
        got = ow.gradual_warmup(0.0, peak, steps)(kind(t))
        assert (got.dtype, got.shape, got.weak_type) == (jnp.float32, (), False)
        assert got == ow.gradual_warmup(0.0, peak, steps)(np.asarray([t], np.int32))


@given(shares, peaks, warmup_lengths, st.integers(0, LAST_STEP))
def test_x64_changes_values_only_if_requested(x64, share, peak, steps, step):
    narrow = ow.gradual_warmup(share * peak, peak, steps)(step)
    with x64():
        for kind in (int, np.int32, np.int64, jnp.int32, jnp.int64):
            got = ow.gradual_warmup(share * peak, peak, steps)(kind(step))
            assert got.dtype == jnp.float32
            assert got == narrow
        wide = ow.gradual_warmup(share * peak, peak, steps, dtype=jnp.float64)(step)
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, linear(share * peak, peak, steps, step), rtol=1e-15)


@given(peaks, peaks, warmup_lengths)
def test_constant_warmup_jumps(init, peak, steps):
    t = around(steps)
    schedule = ow.constant_warmup(init, steps, optax.constant_schedule(peak))
    expected = np.where(t < steps, np.float32(init), np.float32(peak))
    np.testing.assert_array_equal(schedule(t), expected)


FOLLOWERS = {
    "constant": optax.constant_schedule(3.2),
    "cosine": optax.cosine_decay_schedule(3.2, 100, alpha=0.01),
    "exponential": optax.exponential_decay(3.2, 10, 0.9),
    "linear": optax.linear_schedule(3.2, 0.0, 100),
    "onecycle": optax.linear_onecycle_schedule(100, 3.2),
    "piecewise": optax.piecewise_constant_schedule(3.2, {30: 0.1, 60: 0.1, 80: 0.1}),
    "polynomial": optax.polynomial_schedule(3.2, 0.1, 2.0, 100),
    "restarts": optax.sgdr_schedule(
        [{"init_value": 0.1, "peak_value": p, "warmup_steps": 2, "decay_steps": 40} for p in (3, 1)]
    ),
}
WARMUPS = {
    "constant": lambda steps, after: ow.constant_warmup(0.1, steps, after),
    "gradual": lambda steps, after: ow.gradual_warmup(0.1, 3.2, steps, after),
    "exponential": lambda steps, after: ow.exponential_warmup(0.1, 3.2, steps, after),
    "ramp": lambda steps, after: ow.ramp_warmup(0.1, 3.2, steps, jnp.square, after),
    "scheduler": lambda steps, after: ow.gradual_warmup_scheduler(0.1, 32.0, steps, after),
}
each_follower = pytest.mark.parametrize("follower", FOLLOWERS)
each_warmup = pytest.mark.parametrize("warmup", WARMUPS)


@each_warmup
@each_follower
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_values_of_the_next_schedule_are_unchanged(warmup, follower, steps):
    """Values of optax are unchanged and start at step 0."""
    after = FOLLOWERS[follower]
    joined = WARMUPS[warmup](steps, after)
    for kind in (int, np.int32, np.int64, jnp.int32):
        for t in (0, 1, 30, 39, 99, 100, 2**24 + 1):
            with jax.numpy_dtype_promotion("standard"):
                expected = np.float32(after(kind(t)))
            assert joined(kind(t + steps)) == expected
    t = np.arange(200, dtype=np.int32)
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.vmap(after)(jnp.asarray(t))
        # For NumPy arrays optax computes in float64, which differs by an ulp.
        host = None if follower == "onecycle" else after(t)  # which accepts no arrays
    np.testing.assert_array_equal(jax.vmap(joined)(jnp.asarray(t + steps)), expected)
    if host is not None:
        got = np.broadcast_to(joined(t + steps), t.shape)
        np.testing.assert_array_equal(got, np.broadcast_to(np.float32(host), t.shape))


def test_the_next_schedule_does_not_change_the_type(x64):
    """The rate is float32 by default, even if optax computes in 64 bits."""
    with x64():
        for follower, after in FOLLOWERS.items():
            for steps in (0, 7):
                for t in (3, np.int64(30), jnp.int32(30), jnp.int64(30)):
                    got = ow.gradual_warmup(0.1, 3.2, steps, after)(t)
                    assert got.dtype == jnp.float32, follower
            wide = ow.gradual_warmup(0.1, 3.2, 7, after, dtype=jnp.float64)(jnp.int64(30))
            assert wide.dtype == jnp.float64


EVERYTHING = {
    **{name: make(5, FOLLOWERS["cosine"]) for name, make in WARMUPS.items()},
    "skip_init": ow.gradual_warmup(0.0, 1.0, 5, skip_init=True),
    "damped": ow.damped_warmup(FOLLOWERS["linear"], ow.exponential_damping(5.0)),
    "piecewise": ow.warmup_piecewise_decay(0.1, 3.2, 5, {9: 0.1, 15: 0.1}),
    "values": ow.piecewise_values([3.2, 1.0, 2.0], [5, 15]),
    "inverse_sqrt": ow.inverse_sqrt_decay(3.2, 5),
    "stable": ow.warmup_stable_decay(0.1, 3.2, 5, 5, 5, decay="sqrt"),
    "recipe": ow.LargeMinibatchRecipe(
        num_examples=1000, num_workers=10, num_epochs=9, warmup_epochs=2, milestones=(5, 7)
    ).schedule(),
    "phases": ow.BatchSizePhases(
        num_examples=1000,
        phases=tuple(
            ow.BatchSizePhase(num_epochs=4, batch_size=size, warmup_epochs=1) for size in (300, 400)
        ),
    ).schedule(),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_jit_vmap_and_scan(name):
    """Plain calls, jit, vmap and scan give the same values, with one trace for all steps."""
    schedule = EVERYTHING[name]
    t = jnp.arange(50)
    plain = np.stack([schedule(int(step)) for step in t])
    traces = 0

    @jax.jit
    def compiled(step):
        nonlocal traces
        traces += 1
        return schedule(step)

    np.testing.assert_allclose([compiled(step) for step in t], plain, rtol=1e-6)
    assert traces == 1
    np.testing.assert_allclose(jax.vmap(schedule)(t), plain, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda step, _: (step + 1, schedule(step)), jnp.int32(0), length=50)
    assert scanned.dtype == jnp.float32
    np.testing.assert_allclose(scanned, plain, rtol=1e-6)


@pytest.mark.parametrize("name", EVERYTHING)
def test_no_tracer_leaks(name):
    with jax.checking_leaks():
        jax.jit(EVERYTHING[name])(3)


def test_no_tracer_leaks_from_a_factory_inside_jit():
    with jax.checking_leaks():
        for make in WARMUPS.values():
            jax.jit(lambda step, make=make: make(5, FOLLOWERS["cosine"])(step))(3)


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "uint32", "uint64"])
def test_integers_that_cannot_hold_the_difference(name, kind):
    """Unsigned differences wrap around, and narrow integers cannot hold the boundaries."""
    for step in (0, 4, 20, 120):
        expected = EVERYTHING[name](step)
        for count in (np.dtype(kind).type(step), jnp.asarray(step, kind.replace("64", "32"))):
            np.testing.assert_allclose(EVERYTHING[name](count), expected, rtol=1e-6)
    long = ow.gradual_warmup(0.1, 3.2, 100_000)
    np.testing.assert_allclose(long(jnp.asarray(100, jnp.int8)), 0.1031, rtol=1e-6)


TRACED = {
    "constant": lambda peak: ow.constant_warmup(peak, 10, lambda t: peak * 10),
    "gradual": lambda peak: ow.gradual_warmup(0.1, peak, 10),
    "skip_init": lambda peak: ow.gradual_warmup(0.1, peak, 10, skip_init=True),
    "exponential": lambda peak: ow.exponential_warmup(0.1, peak, 10),
    "ramp": lambda peak: ow.ramp_warmup(0.1, peak, 10, jnp.square),
    "ramp_with_an_end": lambda peak: ow.ramp_warmup(0.1, peak, 10, lambda x: 1 - jnp.sqrt(1 - x)),
    "scheduler": lambda peak: ow.gradual_warmup_scheduler(peak, 8.0, 10),
    "piecewise": lambda peak: ow.warmup_piecewise_decay(0.1, peak, 10, {12: 0.1}),
    "inverse_sqrt": lambda peak: ow.gradual_warmup(0.1, peak, 10, ow.inverse_sqrt_decay(peak, 2.0)),
    "user_sqrt": lambda peak: ow.gradual_warmup(0.1, peak, 10, lambda t: peak * jnp.sqrt(t * 1.0)),
    "stable": lambda peak: ow.warmup_stable_decay(0.1, peak, 10, 2, 9, decay="sqrt"),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("step", [0, 3, 9, 10, 15, LAST_STEP])
def test_gradient_with_respect_to_the_peak(name, step):
    """Compared with a difference quotient; finite at every step."""
    at = lambda peak: float(TRACED[name](peak)(step))  # noqa: E731
    gradient = jax.grad(lambda peak: TRACED[name](peak)(step))(2.0)
    np.testing.assert_allclose(gradient, (at(2.5) - at(1.5)) / 1.0, rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda p: TRACED[name](p)(step))(2.0), at(2.0), rtol=1e-6)


def test_a_batch_of_peaks():
    peaks = np.asarray([1.0, 2.0, 4.0])
    got = ow.gradual_warmup(0.0, peaks, 4)(3)
    np.testing.assert_allclose(got, peaks * 0.75, rtol=1e-7)
    mapped = jax.vmap(lambda peak: ow.gradual_warmup(0.0, peak, 4)(3))(jnp.asarray(peaks))
    np.testing.assert_allclose(mapped, peaks * 0.75, rtol=1e-7)


@pytest.mark.parametrize("params_dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_rate_is_float32_for_all_types_of_parameters(params_dtype):
    """`inject_hyperparams` casts Python floats to the type of the parameters."""
    schedule = ow.gradual_warmup(0.1, 3.2, 3)
    optimizer = optax.inject_hyperparams(lambda learning_rate: optax.identity())(schedule)
    params = {"w": jnp.ones(3, params_dtype)}
    state = optimizer.init(params)
    for step in range(5):
        _, state = optimizer.update(params, state, params)
        rate = state.hyperparams["learning_rate"]
        assert rate.dtype == jnp.float32
        assert rate == schedule(step)


def test_inside_a_sharded_donated_step():
    """Training step on 8 devices with donated state and sharded parameters."""
    mesh = jax.make_mesh((8,), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    schedule = ow.warmup_piecewise_decay(0.1, 0.8, 4, {6: 0.1})
    optimizer = optax.chain(optax.trace(0.0), optax.scale_by_learning_rate(schedule))
    params = jax.device_put(jnp.zeros(16), sharding)
    replicated = NamedSharding(mesh, PartitionSpec())
    put = lambda x: jax.device_put(x, sharding if x.ndim else replicated)  # noqa: E731
    state = jax.tree.map(put, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(jnp.ones_like(params), state, params)
        return optax.apply_updates(params, updates), state

    total = 0.0
    for t in range(8):
        params, state = step(params, state)
        total += linear(0.1, 0.8, 4, t) * (0.1 if t >= 6 else 1.0)
        np.testing.assert_allclose(params, np.full(16, -total), rtol=1e-5)
        assert params.sharding.is_equivalent_to(sharding, 1)
    assert step._cache_size() == 1


BAD_STEPS = [-1, 2.0, 2.5, True, "5", None, 2**31, float("nan")]
BAD_RATES = [float("nan"), float("inf"), -0.1, "0.1", None, True]


@each_warmup
@pytest.mark.parametrize("steps", BAD_STEPS, ids=repr)
def test_bad_warmup_steps(warmup, steps):
    name = "total_steps" if warmup == "scheduler" else "warmup_steps"
    with pytest.raises(ValueError, match=rf"{name} must be an integer from 0 to 2147483647, got"):
        WARMUPS[warmup](steps, FOLLOWERS["constant"])


@pytest.mark.parametrize("rate", BAD_RATES, ids=repr)
def test_bad_rates(rate):
    follower = FOLLOWERS["constant"]
    for name, make in {
        "init_value": lambda: ow.constant_warmup(rate, 5, follower),
        "init_value ": lambda: ow.gradual_warmup(rate, 1.0, 5),
        "peak_value": lambda: ow.gradual_warmup(0.0, rate, 5),
        "base_value": lambda: ow.gradual_warmup_scheduler(rate, 1.0, 5),
    }.items():
        with pytest.raises(ValueError, match=f"{name.strip()} must be a finite number >= 0, got"):
            make()
    with pytest.raises(ValueError, match="peak_value must hold finite numbers >= 0"):
        ow.gradual_warmup(0.0, np.asarray([1.0, np.nan]), 5)


@pytest.mark.parametrize("rate", [1e39, np.asarray([1.0, 1e39])])
def test_rates_that_float32_cannot_hold(rate):
    with pytest.raises(ValueError, match=r"peak_value must (be finite in float32|hold finite)"):
        ow.gradual_warmup(0.0, rate, 5)


def test_a_warmup_must_not_go_down():
    with pytest.raises(ValueError, match=r"init_value must be at most peak_value = 0\.1, got 3\.2"):
        ow.gradual_warmup(3.2, 0.1, 5)


@pytest.mark.parametrize("multiplier", [0.5, 0, -1, float("nan"), "2"])
def test_bad_multiplier(multiplier):
    with pytest.raises(ValueError, match="multiplier must be a finite number >= 1, got"):
        ow.gradual_warmup_scheduler(0.1, multiplier, 5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32, jnp.float64])
def test_bad_dtype(dtype):
    with pytest.raises(ValueError, match="dtype must be float32, got"):
        ow.gradual_warmup(0.1, 1.0, 5, dtype=dtype)
