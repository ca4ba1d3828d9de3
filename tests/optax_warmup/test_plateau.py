"""Warmup, then plateau: compared with the rule in plain Python and with optax."""

# Optax types its states as arbitrary trees, and some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow


def account(values, *, warmup=0, factor=0.1, patience=10, rtol=1e-4, atol=0.0, cooldown=0, size=1,
            lowest=0.0, sign=1):  # fmt: skip
    """Learning rate of each update, in Python floats, with a warmup from 0.5 to 1."""
    best, idle, cool, scale, window = None, 0, 0, 1.0, []
    for t, value in enumerate(values):
        if t < warmup:
            yield 0.5 + 0.5 * t / warmup
            continue
        window.append(sign * float(np.float32(value)))
        if len(window) == size:
            mean, window = sum(window) / size, []
            better = best is None or mean < best - (rtol * abs(best) + atol)
            best = mean if better else best
            if cool:
                idle, cool = 0, cool - 1
            else:
                idle = 0 if better else idle + 1
                if idle == patience:
                    scale, idle, cool = scale * factor, 0, cooldown
        yield max(scale, lowest)


def rates(optimizer, values):
    def step(state, value):
        updates, state = optimizer.update(jnp.float32(1.0), state, value=value)
        return state, (ow.current_learning_rate(state), updates)

    state = optimizer.init(jnp.float32(0.0))
    _, (got, updates) = jax.lax.scan(step, state, jnp.asarray(values, jnp.float32))
    np.testing.assert_array_equal(updates, -got)  # the rate in the state is the applied one
    return got


needs_standard = pytest.mark.usefixtures("standard_promotion")
# Multiples of 1/4, so that means and margins of windows are exact in float32.
metrics = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=40)


@given(
    metrics,
    st.integers(0, 10),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(0.0, 0.125), (0.5, 0.0), (0.0, 0.0)]),
    st.booleans(),
)
def test_rates_at_every_step(values, warmup, patience, cooldown, size, margins, maximize):
    rule = {"patience": patience, "cooldown": cooldown, "rtol": margins[0], "atol": margins[1]}
    optimizer = ow.warmup_then_plateau(
        0.5,
        1.0,
        warmup,
        factor=0.5,
        accumulation_size=size,
        min_value=0.2,
        maximize=maximize,
        **rule,
    )
    expected = account(
        values, warmup=warmup, factor=0.5, size=size, lowest=0.2, sign=-1 if maximize else 1, **rule
    )
    np.testing.assert_allclose(rates(optimizer, values), list(expected), rtol=2e-7)


@functools.cache
def reduce_on_plateau(patience):
    theirs = optax.contrib.reduce_on_plateau(factor=0.5, patience=patience, cooldown=1)
    step = jax.jit(lambda state, value: theirs.update(jnp.float32(1.0), state, value=value)[1])
    return theirs.init(jnp.float32(0.0)), step


@needs_standard
@given(st.lists(st.floats(0.5, 4, width=32), min_size=5, max_size=30), st.integers(1, 3))
def test_reductions_equal_those_of_optax_for_positive_values(values, patience):
    """After the warmup the scale is that of `optax.contrib.reduce_on_plateau`."""
    state, step = reduce_on_plateau(patience)
    expected = []
    for value in values:
        state = step(state, jnp.float32(value))
        expected.append(float(state.scale))
    ours = ow.warmup_then_plateau(0.5, 1.0, 4, factor=0.5, patience=patience, cooldown=1)
    np.testing.assert_array_equal(rates(ours, [9.0] * 4 + values)[4:], expected)


@needs_standard
def test_a_constant_negative_metric_is_a_plateau():
    """Optax counts every step as an improvement and never reduces the rate."""
    theirs = optax.contrib.reduce_on_plateau(factor=0.5, patience=3)
    state = theirs.init(jnp.float32(0.0))
    for _ in range(20):
        _, state = theirs.update(jnp.float32(1.0), state, value=jnp.float32(-1.0))
    assert state.scale == 1.0
    got = rates(ow.warmup_then_plateau(0.5, 1.0, 0, factor=0.5, patience=3), [-1.0] * 20)
    np.testing.assert_array_equal(got[:7], [1, 1, 1, 0.5, 0.5, 0.5, 0.25])


def test_values_during_the_warmup_are_ignored():
    """Values in a warmup longer than the patience cause no reduction and set no best value."""
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 50, factor=0.5, patience=2)
    got = rates(optimizer, [0.0] * 50 + [5.0, 4.0, 3.0, 3.0, 3.0])
    np.testing.assert_allclose(got[:50], 0.5 + 0.5 * np.arange(50) / 50, rtol=2e-7)
    np.testing.assert_array_equal(got[50:], [1, 1, 1, 1, 0.5])


def test_a_window_counts_by_its_mean():
    """Means 3, 2, 3: the second improves, although it ends with the worst value."""
    optimizer = ow.warmup_then_plateau(
        0.5, 1.0, 0, factor=0.5, patience=1, accumulation_size=3, rtol=0.0
    )
    got = rates(optimizer, [5.0, 3.0, 1.0, 0.0, 0.0, 6.0, 3.0, 3.0, 3.0])
    np.testing.assert_array_equal(got, [1] * 8 + [0.5])


@pytest.mark.parametrize("maximize", [False, True])
def test_maximize_reverses_the_comparison(maximize):
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 0, factor=0.5, patience=2, maximize=maximize)
    rising, falling = (rates(optimizer, [s * v for v in (1.0, 2.0, 3.0)]) for s in (1, -1))
    better, worse = (rising, falling) if maximize else (falling, rising)
    np.testing.assert_array_equal(better, [1, 1, 1])
    np.testing.assert_array_equal(worse, [1, 1, 0.5])


@pytest.mark.parametrize("value", [1e30, -1e30])
def test_every_first_value_is_the_best(value):
    for maximize in (False, True):
        optimizer = ow.warmup_then_plateau(0.5, 1.0, 0, factor=0.5, patience=2, maximize=maximize)
        np.testing.assert_array_equal(rates(optimizer, [value] * 3), [1, 1, 0.5])


def test_nan_is_not_an_improvement():
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 0, factor=0.5, patience=2)
    np.testing.assert_array_equal(rates(optimizer, [1.0, np.nan, np.nan, 0.5]), [1, 1, 0.5, 0.5])


def test_the_rate_is_never_below_its_minimum():
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 0, factor=0.5, patience=1, min_value=0.3)
    np.testing.assert_array_equal(
        rates(optimizer, [1.0] * 5), np.float32([1.0, 0.5, 0.3, 0.3, 0.3])
    )


def test_min_value_does_not_change_the_warmup():
    """The minimum may be above the start of the ramp: it only limits reductions."""
    optimizer = ow.warmup_then_plateau(0.0, 1.0, 4, min_value=0.5)
    np.testing.assert_array_equal(rates(optimizer, [1.0] * 4), [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_and_rate_keep_their_types(dtype):
    optimizer = ow.warmup_then_plateau(0.1, 0.3, 3)
    grads = {"w": jnp.full(3, 3.0, dtype), "none": None}
    state = optimizer.init(grads)
    for t in range(4):
        updates, state = optimizer.update(grads, state, value=1.0)
        assert updates["w"].dtype == dtype
        assert state.learning_rate.dtype == jnp.float32
        exact = jnp.asarray(-np.float32(min(0.1 + 0.2 * t / 3, 0.3)) * np.float32(3)).astype(dtype)
        np.testing.assert_allclose(float(updates["w"][0]), float(exact), rtol=1e-6)


def test_state_survives_flattening_and_donation():
    """The leaves survive a round trip through arrays, and no two share a buffer."""
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 2, factor=0.5, patience=2)
    values = [3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    expected = rates(optimizer, values)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, value):
        return optimizer.update(jnp.float32(1.0), state, value=value)[1]

    state = optimizer.init(jnp.float32(0.0))
    got = []
    for value in values:
        state = step(state, value)
        leaves, tree = jax.tree.flatten(state)
        saved = [np.array(leaf) for leaf in leaves]
        assert all(leaf.dtype in (np.int32, np.float32) for leaf in saved)
        state = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in saved])
        got.append(float(state.learning_rate))
    np.testing.assert_array_equal(got, expected)
    assert step._cache_size() == 1


def test_state_in_an_orbax_checkpoint(tmp_path):
    """A state restored in the middle of a plateau continues as without interruption."""
    orbax = pytest.importorskip("orbax.checkpoint")
    optimizer = ow.warmup_then_plateau(0.5, 1.0, 2, factor=0.5, patience=3)
    values = [3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]
    state = optimizer.init(jnp.float32(0.0))
    for value in values[:5]:
        _, state = optimizer.update(jnp.float32(1.0), state, value=value)
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        state = checkpointer.restore(tmp_path / "state", optimizer.init(jnp.float32(0.0)))
    assert isinstance(state, ow.WarmupPlateauState)
    got = []
    for value in values[5:]:
        _, state = optimizer.update(jnp.float32(1.0), state, value=value)
        got.append(float(state.learning_rate))
    np.testing.assert_array_equal(got, rates(optimizer, values)[5:])


def test_gradient_with_respect_to_the_peak():
    def total(peak):
        optimizer = ow.warmup_then_plateau(0.5, peak, 2, factor=0.5, patience=1)
        state, moved = optimizer.init(jnp.float32(0.0)), jnp.float32(0.0)
        for value in (1.0, 1.0, 1.0, 1.0):
            update, state = optimizer.update(jnp.float32(1.0), state, value=value)
            moved += update
        return moved

    np.testing.assert_allclose(jax.grad(total)(2.0), -(0 + 0.5 + 1 + 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"factor": 1.0}, "factor must be a finite number > 0 and < 1, got 1.0"),
        ({"factor": 0.0}, "factor must be a finite number > 0 and < 1, got 0.0"),
        ({"patience": 0}, "patience must be an integer from 1 .*, got 0"),
        ({"patience": 2.5}, "patience must be an integer from 1 .*, got 2.5"),
        ({"rtol": -1e-4}, "rtol must be a finite number >= 0 and <= 1, got -0.0001"),
        ({"atol": float("inf")}, "atol must be a finite number >= 0, got inf"),
        ({"cooldown": -1}, "cooldown must be an integer from 0 .*, got -1"),
        ({"accumulation_size": 0}, "accumulation_size must be an integer from 1 .*, got 0"),
        ({"min_value": 2.0}, r"min_value must be at most peak_value = 1\.0, got 2\.0"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer from 0 .*, got -1"),
        ({"peak_value": float("nan")}, "peak_value must be a finite number >= 0, got nan"),
    ],
)
def test_bad_arguments(changed, message):
    arguments = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 5}
    with pytest.raises(ValueError, match=message):
        ow.warmup_then_plateau(**(arguments | changed))
