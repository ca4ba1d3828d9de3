"""Phases of different batch sizes: learning rates, steps and examples."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import functools
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
    """Learning rate and batch size of each update, counted as in a training loop."""
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
        assert schedule(boundary) == before  # the warmup starts at the previous rate
    assert schedule(phases.num_steps + 1000) == rates[-1]


@given(st.integers(0, 2**31 - 1))
def test_examples_are_counted_exactly_above_32_bits(step):
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


def test_the_rate_may_fall_without_a_warmup():
    schedule = plan((1, 1000, 0, 1.0), (1, 250, 0, 1.0)).schedule()
    np.testing.assert_allclose([schedule(9), schedule(10)], [0.1 * 1000 / 256, 0.1 * 250 / 256])


def test_jit_and_vmap():
    phases = plan(*THREE)
    expected = np.float64([rate for rate, _ in walk(THREE, 10_000)])
    schedule = phases.schedule()
    got = jax.jit(jax.vmap(schedule))(jnp.arange(phases.num_steps))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=4e-7)


STEPS = [
    {"batch_size": 256, "num_steps": 78},
    {"batch_size": 1000, "num_steps": 30, "warmup_steps": 15},
    {"batch_size": 2000, "num_epochs": 1.5, "warmup_steps": 3, "decay_factor": 0.9},
]


def plan_in_steps():
    phases = tuple(ow.BatchSizePhase(**phase) for phase in STEPS)
    return ow.BatchSizePhases(num_examples=10_000, phases=phases)


def test_phases_in_steps_equal_phases_in_epochs():
    """The third phase has 5 steps an epoch, of which 1.5 epochs are 8 and 0.5 are 3."""
    phases, same = plan_in_steps(), plan(*THREE)
    assert phases.boundaries == same.boundaries == (78, 108)
    assert phases.warmup_steps == same.warmup_steps == (0, 15, 3)
    assert phases.num_steps == same.num_steps == 116
    steps = np.arange(116)
    np.testing.assert_array_equal(phases.schedule()(steps), same.schedule()(steps))
    assert phases.examples_seen(100) == same.examples_seen(100)


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, 10**6))
def test_given_steps_are_exact(steps, warmup, size):
    warmup = min(steps, warmup)
    phase = ow.BatchSizePhase(batch_size=size, num_steps=steps, warmup_steps=warmup)
    phases = ow.BatchSizePhases(num_examples=10**6, phases=(phase,), base_batch_size=1)
    assert phases.num_steps == steps
    assert phases.warmup_steps == (warmup,)


def table_of(text):
    lines = text.splitlines()
    rows = [line.rsplit(maxsplit=3) for line in lines[lines.index("") + 2 :]]
    return [
        (name.strip(), int(step), float(epoch), float(rate)) for name, step, epoch, rate in rows
    ]


def test_description():
    """Epochs have 39, 10 and 5 steps."""
    text = plan(*THREE).describe()
    assert text.splitlines()[:6] == [
        "phase 1         minibatch of 256 images, from step 0",
        "phase 2         minibatch of 1000 images, from step 78",
        "phase 3         minibatch of 2000 images, from step 108",
        "learning rate   η = 0.1 for 256 images, linear scaling",
        "length          116 steps = 6.6 epochs",
        "",
    ]
    near = functools.partial(pytest.approx, rel=1e-5)
    assert table_of(text) == [
        ("first step", 0, 0.0, 0.1),
        ("phase 2", 78, 2.0, 0.1),
        ("first step after warmup", 93, 3.5, near(0.1 * 1000 / 256)),
        ("phase 3", 108, 5.0, near(0.1 * 1000 / 256)),
        ("first step after warmup", 111, 5.6, near(0.09 * 2000 / 256)),
        ("last step", 115, 6.4, near(0.09 * 2000 / 256)),
    ]


def test_description_with_another_count_of_epochs():
    text = plan(*THREE).describe(epoch_of=lambda num_updates: num_updates / 8)
    assert "length          116 steps = 14.5 epochs" in text
    rows = [("first step", 0.0), ("phase 2", 9.75), ("phase 3", 13.5), ("last step", 14.38)]
    assert set(rows) < {(name, epoch) for name, _, epoch, _ in table_of(text)}


def test_description_fits_a_narrow_terminal():
    lines = plan(*THREE).describe(width=40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert f"{'phase 2':<23}{78:>6}  0.1" in lines  # without the epochs


@pytest.mark.parametrize("warmup", [0, 1])
def test_description_of_phases_without_a_step_after_the_warmup(warmup):
    """A warmup without steps or as long as its phase has no row."""
    phases = plan((1, 1000, warmup, 1.0), (1, 2000, warmup, 1.0))
    names = [name for name, *_ in table_of(phases.describe())]
    assert names == ["first step", "phase 2", "last step"]


def test_frozen_hashable_picklable():
    phases = plan(*THREE)
    assert pickle.loads(pickle.dumps(phases)) == phases
    assert hash(plan(*THREE)) == hash(phases)
    listed = ow.BatchSizePhases(num_examples=10_000, phases=list(phases.phases))
    assert (listed, hash(listed)) == (phases, hash(phases))


def test_json_round_trip():
    phases = plan(*THREE, scaling="sqrt", base_learning_rate=0.2, base_batch_size=100)
    assert ow.BatchSizePhases.from_json(phases.to_json()) == phases
    assert json.loads(phases.to_json())["version"] == 1
    assert ow.BatchSizePhases.from_json(plan_in_steps().to_json()) == plan_in_steps()


def test_json_has_only_the_given_lengths():
    rows = [json.loads(phases.to_json())["phases"][1] for phases in (plan(*THREE), plan_in_steps())]
    assert rows[0] == {
        "batch_size": 1000, "num_epochs": 3, "warmup_epochs": 1.5, "decay_factor": 1.0
    }  # fmt: skip
    assert rows[1] == {
        "batch_size": 1000, "num_steps": 30, "warmup_epochs": 0, "warmup_steps": 15,
        "decay_factor": 1.0,
    }  # fmt: skip


def test_json_of_earlier_versions():
    text = """{"version": 1, "num_examples": 10000, "phases": [
        {"num_epochs": 2, "batch_size": 256, "warmup_epochs": 0, "decay_factor": 1.0},
        {"num_epochs": 3, "batch_size": 1000, "warmup_epochs": 1.5, "decay_factor": 1.0},
        {"num_epochs": 1.5, "batch_size": 2000, "warmup_epochs": 0.5, "decay_factor": 0.9}],
        "base_learning_rate": 0.1, "base_batch_size": 256, "scaling": "linear"}"""
    assert ow.BatchSizePhases.from_json(text) == plan(*THREE)


def test_numpy_numbers_become_plain_ones():
    phase = ow.BatchSizePhase(
        batch_size=np.int64(250), num_steps=np.int32(4), warmup_steps=np.uint8(0)
    )
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
            '{"version": 1, "num_examples": 9, "phases": [{"batch_size": 1}]}',
            "exactly one of num_epochs and num_steps must be given",
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
        ([(1e-6, 10, 0, 1.0)], {}, r"phases\[0\].num_epochs must amount to at least one step"),
        ([(1, 10, 2, 1.0)], {}, "warmup_epochs must be a finite number >= 0 and <= 1, got 2"),
        ([(1, 10, 0, 2.0)], {}, r"decay_factor must be a finite number > 0 and <= 1, got 2\.0"),
        (
            [(1, 999, 0, 1.0), (1, 256, 1, 1.0)],
            {},
            r"phases\[1\].warmup_epochs must be 0 if the learning rate decreases",
        ),
        (
            [(1, 10, 0, 1.0)],
            {"base_learning_rate": 0},
            "base_learning_rate must be a finite number",
        ),
        ([(1, 10, 0, 1.0)], {"base_batch_size": -1}, "base_batch_size must be an integer from 1"),
        ([(1, 10, 0, 1.0)], {"scaling": "cubic"}, "scaling must be one of 'linear', 'sqrt', got"),
        (
            [(10**7, 1, 0, 1.0)],
            {},
            "phases must have at most 2147483647 steps in total, got 100000000000",
        ),
    ],
)
def test_bad_phases(phases, changed, message):
    with pytest.raises(ValueError, match=message):
        plan(*phases, **changed)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({}, "exactly one of num_epochs and num_steps must be given, got None and None"),
        ({"num_epochs": 2, "num_steps": 9}, "exactly one of .* must be given, got 2 and 9"),
        ({"num_steps": 0}, "num_steps must be an integer from 1 .*, got 0"),
        ({"num_steps": 2.5}, r"num_steps must be an integer from 1 .*, got 2\.5"),
        ({"num_steps": True}, "num_steps must be an integer from 1 .*, got True"),
        ({"num_steps": 9, "warmup_steps": -1}, "warmup_steps must be an integer from 0 to 9, got"),
        ({"num_steps": 9, "warmup_steps": 10}, "warmup_steps must be an integer from 0 to 9, got"),
        ({"num_epochs": 2, "warmup_steps": 2.5}, "warmup_steps must be an integer from 0 .*, got"),
        (
            {"num_steps": 9, "warmup_epochs": 1, "warmup_steps": 3},
            "at most one of warmup_epochs and warmup_steps must be given, got 1 and 3",
        ),
        ({"num_steps": 9, "warmup_epochs": -1}, "warmup_epochs must be a finite number >= 0, got"),
        (
            {"num_steps": 9, "warmup_epochs": 1},
            r"phases\[0\].warmup_epochs must amount to at most 9 steps, got 10 steps",
        ),
        (
            {"num_epochs": 2, "warmup_steps": 21},
            r"phases\[0\].warmup_steps must amount to at most 20 steps, got 21 steps",
        ),
        (
            {"batch_size": 100, "num_steps": 9, "warmup_steps": 1},
            r"phases\[0\].warmup_steps must be 0 if the learning rate decreases, from 0.1 to 0.03",
        ),
    ],
)
def test_bad_steps(phase, message):
    """Epochs of batch size 1000 have 10 steps."""

    def make():
        phases = (ow.BatchSizePhase(**({"batch_size": 1000} | phase)),)
        return ow.BatchSizePhases(num_examples=10_000, phases=phases)

    with pytest.raises(ValueError, match=message):
        make()


def test_arguments_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        ow.BatchSizePhase(1000, 2)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("step", [-1, 2.5, True])
def test_bad_step(step):
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        plan(*THREE).examples_seen(step)
    with pytest.raises(ValueError, match="step must be an integer from 0"):
        plan(*THREE).batch_size_at(step)
