"""Phases of different minibatches: rates, clocks, and no example lost in counting."""

# Bad arguments are meant to be bad.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow


def plan(*phases, **changed):
    rows = tuple(
        ow.BatchSizePhase(num_epochs=e, batch_size=b, warmup_epochs=w, decay_factor=d)
        for e, b, w, d in phases
    )
    return ow.BatchSizePhases(num_examples=10_000, phases=rows, **changed)


def walk(phases, num_examples, scale=lambda k: k):
    """Update by update, as a training loop would count: (rate, minibatch) of each."""
    before = 0.1
    for epochs, size, warmup, decay in phases:
        per_epoch = num_examples // size
        rate = 0.1 * scale(size / 256) * decay
        ramp = int(np.floor(warmup * per_epoch + 0.5))
        for t in range(int(np.floor(epochs * per_epoch + 0.5))):
            yield (before + (rate - before) * t / ramp if t < ramp else rate), size
        before = rate


THREE = [(2, 256, 0, 1.0), (3, 1000, 1.5, 1.0), (1.5, 2000, 0.5, 0.9)]


@pytest.mark.parametrize(("rule", "scale"), [("linear", lambda k: k), ("sqrt", np.sqrt)])
def test_every_update_of_a_run(rule, scale):
    expected = list(walk(THREE, 10_000, scale))
    phases = plan(*THREE, scaling=rule)
    assert phases.num_steps == len(expected)
    steps = np.arange(len(expected))
    np.testing.assert_allclose(phases.schedule()(steps), [r for r, _ in expected], rtol=4e-7)
    assert [phases.batch_size_at(int(t)) for t in steps] == [size for _, size in expected]
    seen = np.concatenate([[0], np.cumsum([size for _, size in expected])])
    assert [phases.examples_seen(t) for t in range(len(seen))] == seen.tolist()


def test_both_sides_of_each_boundary():
    phases = plan(*THREE)
    schedule = phases.schedule()
    assert phases.boundaries == (78, 108)
    rates = np.float32(phases.peak_learning_rates)
    for boundary, before in zip(phases.boundaries, rates, strict=False):
        assert schedule(boundary - 1) == before
        assert schedule(boundary) == before  # the re-warmup starts at the rate before it
    assert schedule(phases.num_steps + 1000) == rates[-1]


@given(st.integers(0, 2**31 - 1))
def test_examples_are_counted_exactly_beyond_32_bits(step):
    phases = ow.BatchSizePhases(
        num_examples=10**9,
        phases=(
            ow.BatchSizePhase(num_epochs=3, batch_size=10**6 + 3),
            ow.BatchSizePhase(num_epochs=50, batch_size=10**7 + 19),
        ),
    )
    first = 3 * (10**9 // (10**6 + 3))
    seen = min(step, first) * (10**6 + 3) + max(step - first, 0) * (10**7 + 19)
    assert phases.examples_seen(step) == seen


def test_without_warmup_the_rate_may_fall():
    schedule = plan((1, 1000, 0, 1.0), (1, 250, 0, 1.0)).schedule()
    np.testing.assert_allclose([schedule(9), schedule(10)], [0.1 * 1000 / 256, 0.1 * 250 / 256])


def test_in_jit_and_over_time():
    phases = plan(*THREE)
    expected = np.float64([rate for rate, _ in walk(THREE, 10_000)])
    schedule = phases.schedule()
    got = jax.jit(jax.vmap(schedule))(jnp.arange(phases.num_steps))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=4e-7)


def test_frozen_hashable_picklable():
    phases = plan(*THREE)
    assert pickle.loads(pickle.dumps(phases)) == phases
    assert hash(plan(*THREE)) == hash(phases)
    listed = ow.BatchSizePhases(num_examples=10_000, phases=list(phases.phases))
    assert (listed, hash(listed)) == (phases, hash(phases))


def test_json_both_ways():
    phases = plan(*THREE, scaling="sqrt", base_learning_rate=0.2, base_batch_size=100)
    assert ow.BatchSizePhases.from_json(phases.to_json()) == phases
    assert json.loads(phases.to_json())["version"] == 1


def test_numpy_numbers_become_plain_ones():
    phase = ow.BatchSizePhase(num_epochs=1, batch_size=np.int64(250))
    phases = ow.BatchSizePhases(num_examples=np.int32(1000), phases=(phase,))
    assert ow.BatchSizePhases.from_json(phases.to_json()) == phases
    assert type(phases.examples_seen(4)) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1, "phases": []}', r"missing fields \['num_examples'\]"),
        ('{"version": 3}', "version must be 1, got 3"),
        (
            '{"version": 1, "num_examples": 9, "phases": [{"epochs": 1}]}',
            r"unknown fields \['epochs'\]",
        ),
        (
            '{"version": 1, "num_examples": 9, "phases": 3}',
            "phases must be one BatchSizePhase or more",
        ),
    ],
)
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        ow.BatchSizePhases.from_json(text)


@pytest.mark.parametrize(
    ("phases", "changed", "message"),
    [
        ([], {}, r"phases must be one BatchSizePhase or more, got \(\)"),
        ([(1, 0, 0, 1.0)], {}, "batch_size must be an integer from 1 .*, got 0"),
        ([(1, 20_000, 0, 1.0)], {}, r"phases\[0\].batch_size must be at most num_examples = 10000"),
        ([(0, 10, 0, 1.0)], {}, "num_epochs must be a finite number > 0, got 0"),
        ([(1e-6, 10, 0, 1.0)], {}, r"phases\[0\].num_epochs must make at least one step"),
        ([(1, 10, 2, 1.0)], {}, "warmup_epochs must be a finite number >= 0 and <= 1, got 2"),
        ([(1, 10, 0, 2.0)], {}, r"decay_factor must be a finite number > 0 and <= 1, got 2\.0"),
        (
            [(1, 999, 0, 1.0), (1, 256, 1, 1.0)],
            {},
            r"phases\[1\].warmup_epochs must be 0 where the",
        ),
        (
            [(1, 10, 0, 1.0)],
            {"base_learning_rate": 0},
            "base_learning_rate must be a finite number",
        ),
        ([(1, 10, 0, 1.0)], {"base_batch_size": -1}, "base_batch_size must be an integer from 1"),
        ([(1, 10, 0, 1.0)], {"scaling": "cubic"}, "scaling must be one of 'linear', 'sqrt', got"),
        ([(10**7, 1, 0, 1.0)], {}, "phases must make at most 2147483647 steps, got 100000000000"),
    ],
)
def test_bad_phases(phases, changed, message):
    with pytest.raises(ValueError, match=message):
        plan(*phases, **changed)


@pytest.mark.parametrize("step", [-1, 2.5, True])
def test_bad_step(step):
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        plan(*THREE).examples_seen(step)
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        plan(*THREE).batch_size_at(step)
