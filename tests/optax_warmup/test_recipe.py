"""The recipe: numbers of the paper, JSON files and invalid arguments."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow

IMAGENET = {"num_examples": 1281167, "num_workers": 256}


def paper(recipe, t):
    """Learning rate by sections 2 and 5.1 of the paper, in float64."""
    per_epoch = recipe.num_examples // (recipe.num_workers * recipe.batch_size_per_worker)
    size = recipe.num_workers * recipe.batch_size_per_worker
    peak = recipe.base_learning_rate * size / recipe.base_batch_size
    kind = recipe.warmup
    if kind == "auto":
        kind = "gradual" if size > recipe.base_batch_size else "none"
    end = 0 if kind == "none" else int(np.floor(recipe.warmup_epochs * per_epoch + 0.5))
    if t < end and kind == "constant":
        return recipe.base_learning_rate
    if t < end:
        return recipe.base_learning_rate * (1 - t / end) + peak * t / end
    drops = sum(t >= int(np.floor(m * per_epoch + 0.5)) for m in recipe.milestones)
    return peak * recipe.decay_factor**drops


@given(
    st.integers(1, 512),
    st.sampled_from([1, 8, 32]),
    st.sampled_from(["auto", "none", "gradual", "constant"]),
    st.floats(0, 10),
    st.floats(0.1, 30),
)
def test_rates_at_every_corner(ulps, workers, per_worker, warmup, warmup_epochs, more_epochs):
    if warmup in ("gradual", "constant") and workers * per_worker < 256:
        warmup = "auto"
    recipe = ow.LargeMinibatchRecipe(
        num_examples=60_000,
        num_workers=workers,
        batch_size_per_worker=per_worker,
        num_epochs=warmup_epochs + more_epochs,
        warmup=warmup,
        warmup_epochs=warmup_epochs,
        milestones=(warmup_epochs + 5, warmup_epochs + 9.5),
        decay_factor=0.2,
    )
    corners = {0, recipe.warmup_steps, *recipe.milestone_steps, recipe.num_steps, 2**31 - 2}
    t = sorted({max(step + d, 0) for step in corners for d in (-1, 0, 1)})
    schedule = recipe.schedule()
    got = np.broadcast_to(schedule(np.asarray(t, np.int32)), len(t))
    assert ulps(got, [paper(recipe, step) for step in t]) <= 4
    assert schedule(0).dtype == jnp.float32


def test_sizes_and_steps_of_the_paper():
    recipe = ow.LargeMinibatchRecipe(**IMAGENET)
    assert (recipe.batch_size, recipe.steps_per_epoch, recipe.num_steps) == (8192, 156, 14040)
    assert recipe.peak_learning_rate == 3.2
    assert recipe.warmup_steps == 780
    assert recipe.boundaries_and_scales == {4680: 0.1, 9360: 0.1, 12480: 0.1}


@pytest.mark.parametrize(("workers", "kind"), [(4, "none"), (8, "none"), (9, "gradual")])
def test_auto_warms_up_only_above_the_base_batch_size(workers, kind):
    recipe = ow.LargeMinibatchRecipe(num_examples=10_000, num_workers=workers)
    assert recipe.resolved_warmup == kind
    first = recipe.base_learning_rate if kind == "gradual" else recipe.peak_learning_rate
    assert recipe.schedule()(0) == np.float32(first)
    assert (recipe.warmup_steps == 0) == (kind == "none")


def test_a_milestone_after_the_run_has_no_effect_and_is_reported():
    recipe = ow.LargeMinibatchRecipe(num_examples=1000, num_workers=1, num_epochs=40)
    assert recipe.schedule()(recipe.num_steps - 1) == np.float32(
        recipe.peak_learning_rate
    ) * np.float32(0.1)
    assert "never reached: milestones at epochs 60, 80" in recipe.describe()
    assert "milestone, epoch 30" in recipe.describe()
    assert "milestone, epoch 60" not in recipe.describe()
    assert "never" not in ow.LargeMinibatchRecipe(**IMAGENET).describe()


def test_description_of_the_paper():
    lines = ow.LargeMinibatchRecipe(**IMAGENET).describe().splitlines()
    table = [line.rsplit(maxsplit=3) for line in lines[lines.index("") + 2 :]]
    assert [(name.strip(), int(step), epoch, float(rate)) for name, step, epoch, rate in table] == [
        ("first step", 0, "0.00", 0.1),
        ("last warmup step", 779, "4.99", pytest.approx(0.1 + 3.1 * 779 / 780, rel=1e-5)),
        ("first step after warmup", 780, "5.00", 3.2),
        ("milestone, epoch 30", 4680, "30.00", 0.32),
        ("milestone, epoch 60", 9360, "60.00", 0.032),
        ("milestone, epoch 80", 12480, "80.00", 0.0032),
        ("last step", 14039, "89.99", 0.0032),
    ]
    assert "k = 256 workers x n = 32 images, kn = 8192" in lines[0]
    assert "η = 0.1 for 256 images, scaled by 8192/256: kη = 3.2" in lines[1]
    assert "gradual, 780 steps (5 epochs) (auto)" in lines[2]


def test_description_fits_a_narrow_terminal():
    recipe = ow.LargeMinibatchRecipe(**IMAGENET)
    lines = recipe.describe(width=40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert lines[lines.index("") + 1 :] == [
        "                          step  rate",
        "first step                   0  0.1",
        "last warmup step           779  3.196",
        "first step after warmup    780  3.2",
        "milestone, epoch 30       4680  0.32",
        "milestone, epoch 60       9360  0.032",
        "milestone, epoch 80      12480  0.0032",
        "last step                14039  0.0032",
    ]
    in_words = recipe.describe().split("\n\n")[0].split()
    assert " ".join(lines[: lines.index("")]).split() == in_words  # none is broken
    assert recipe.describe(width=90) == recipe.describe()
    assert all(len(line) <= 20 for line in recipe.describe(width=20).splitlines())


@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_description_of_very_short_and_very_long_warmups(warmup_epochs):
    """Rows of steps that do not exist are omitted."""
    recipe = ow.LargeMinibatchRecipe(
        num_examples=512, num_workers=16, num_epochs=3, warmup_epochs=warmup_epochs, milestones=()
    )
    text = recipe.describe()
    assert ("last warmup step" in text) == (warmup_epochs == 3)
    assert "first step after warmup" not in text


def test_frozen_hashable_picklable():
    recipe = ow.LargeMinibatchRecipe(**IMAGENET, milestones=[30, 60, 80])
    assert recipe == ow.LargeMinibatchRecipe(**IMAGENET)
    assert {recipe: 1}[ow.LargeMinibatchRecipe(**IMAGENET)] == 1
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert eval(repr(recipe), {"LargeMinibatchRecipe": ow.LargeMinibatchRecipe}) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.num_epochs = 10


def test_numpy_numbers_become_plain_ones():
    recipe = ow.LargeMinibatchRecipe(
        num_examples=np.int64(1000), num_workers=jnp.int32(2), num_epochs=np.float32(2.5)
    )
    assert [
        type(value) for value in (recipe.num_examples, recipe.num_workers, recipe.num_epochs)
    ] == [
        int,
        int,
        float,
    ]
    assert json.loads(recipe.to_json())["num_epochs"] == 2.5


def test_json_keeps_every_field():
    """Values other than the defaults, so that a lost field is noticed."""
    fields = {
        "num_examples": 5000,
        "num_workers": 3,
        "batch_size_per_worker": 7,
        "num_epochs": 12.5,
        "warmup": "constant",
        "warmup_epochs": 1.5,
        "milestones": (4, 8.25),
        "decay_factor": 0.2,
        "base_learning_rate": 0.3,
        "base_batch_size": 20,
        "scaling": "sqrt",
    }
    assert set(fields) == {field.name for field in dataclasses.fields(ow.LargeMinibatchRecipe)}
    recipe = ow.LargeMinibatchRecipe(**fields)
    text = recipe.to_json()
    assert ow.LargeMinibatchRecipe.from_json(text) == recipe
    assert json.loads(text) == {"version": 1, **fields, "milestones": [4, 8.25]}


def test_json_defaults_may_be_omitted():
    text = '{"version": 1, "num_examples": 1281167, "num_workers": 256}'
    assert ow.LargeMinibatchRecipe.from_json(text) == ow.LargeMinibatchRecipe(**IMAGENET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text must be JSON, got '{'"),
        (None, "text must be JSON, got None"),
        ("[1]", r"text must hold a JSON object, got \[1\]"),
        ('{"num_examples": 9, "num_workers": 1}', "version must be 1, got None"),
        ('{"version": 2, "num_examples": 9, "num_workers": 1}', "version must be 1, got 2"),
        ('{"version": true, "num_examples": 9, "num_workers": 1}', "version must be 1, got True"),
        ('{"version": 1, "num_examples": 9, "lr": 1}', r"unknown fields \['lr'\], known are"),
        ('{"version": 1, "num_examples": 9}', r"missing fields \['num_workers'\]"),
        (
            '{"version": 1, "num_examples": NaN, "num_workers": 1}',
            "num_examples must be an integer",
        ),
        (
            '{"version": 1, "num_examples": 99, "num_workers": 1, "milestones": 3}',
            "milestones must",
        ),
    ],
)
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        ow.LargeMinibatchRecipe.from_json(text)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_examples": 0}, "num_examples must be an integer from 1 .*, got 0"),
        ({"num_examples": 10.5}, r"num_examples must be an integer from 1 .*, got 10\.5"),
        ({"num_workers": 0}, "num_workers must be an integer from 1 .*, got 0"),
        ({"num_workers": True}, "num_workers must be an integer from 1 .*, got True"),
        (
            {"batch_size_per_worker": -1},
            "batch_size_per_worker must be an integer from 1 .*, got -1",
        ),
        ({"base_batch_size": 0}, "base_batch_size must be an integer from 1 .*, got 0"),
        ({"num_workers": 50_000}, r"50000 \* 32 = 1600000 must be at most num_examples = 1281167"),
        ({"num_epochs": 0}, "num_epochs must be a finite number > 0, got 0"),
        ({"num_epochs": NAN}, "num_epochs must be a finite number > 0, got nan"),
        ({"num_epochs": 1e-4}, "num_epochs must amount to 1 to 2147483647 steps, got 0.0001"),
        ({"num_epochs": 1e9}, "num_epochs must amount to 1 to 2147483647 steps, got"),
        ({"num_epochs": "90"}, "num_epochs must be a finite number > 0, got '90'"),
        ({"warmup_epochs": -1}, "warmup_epochs must be a finite number >= 0, got -1"),
        ({"warmup_epochs": INF}, "warmup_epochs must be a finite number >= 0, got inf"),
        ({"warmup_epochs": 91}, "warmup_epochs must be at most num_epochs = 90, got 91"),
        ({"num_epochs": 4}, "warmup_epochs must be at most num_epochs = 4, got 5"),
        ({"warmup": "linear"}, "warmup must be one of 'auto', 'none', .*, got 'linear'"),
        ({"warmup": None}, "warmup must be one of .*, got None"),
        ({"scaling": "cubic"}, "scaling must be one of 'linear', 'sqrt', got 'cubic'"),
        ({"milestones": (60, 30)}, r"milestones must increase, without repeats, got \[60, 30\]"),
        ({"milestones": (30, 30)}, r"milestones must increase, without repeats, got \[30, 30\]"),
        (
            {"milestones": (30, 30.001)},
            r"milestones must be at least one step apart, got \(30, 30\.",
        ),
        (
            {"milestones": (4, 60)},
            r"milestones must be at least warmup_epochs = 5, .*, got \(4, 60\)",
        ),
        ({"milestones": (0, 60)}, r"milestones\[0\] must be a finite number > 0, got 0"),
        ({"milestones": (30, NAN)}, r"milestones\[1\] must be a finite number > 0, got nan"),
        ({"milestones": "30,60"}, "milestones must be a sequence of epochs, got '30,60'"),
        ({"decay_factor": 0}, "decay_factor must be a finite number > 0 and <= 1, got 0"),
        ({"decay_factor": 10}, "decay_factor must be a finite number > 0 and <= 1, got 10"),
        ({"base_learning_rate": 0}, "base_learning_rate must be a finite number > 0, got 0"),
        ({"base_learning_rate": NAN}, "base_learning_rate must be a finite number > 0, got nan"),
        (
            {"num_workers": 4, "warmup": "gradual"},
            r"would go down, got 'gradual': from 0\.1 to 0\.05",
        ),
        ({"num_workers": 4, "warmup": "constant"}, "would go down, got 'constant'"),
    ],
)
def test_bad_recipes(changed, message):
    with pytest.raises(ValueError, match=message):
        ow.LargeMinibatchRecipe(**(IMAGENET | changed))


def test_warmup_epochs_are_ignored_without_a_warmup():
    """Without a warmup, `warmup_epochs` may exceed the milestones and the run."""
    ow.LargeMinibatchRecipe(**IMAGENET, warmup="none", num_epochs=4, milestones=(1, 2))


@pytest.mark.parametrize("doublings", range(7))
def test_square_root_scaling_has_the_rates_of_lamb(doublings):
    """You et al. (arXiv:1904.00962), table 5: 4/(2^3 · 100) at 512 up to 4/(2^0 · 100) at 32768."""
    recipe = ow.LargeMinibatchRecipe(
        num_examples=1281167,
        num_workers=16 * 2**doublings,
        base_learning_rate=4 / (2**3 * 100),
        base_batch_size=512,
        scaling="sqrt",
    )
    peak = 4 / (2 ** (3 - doublings / 2) * 100)
    assert recipe.peak_learning_rate == pytest.approx(peak, rel=1e-12)
    assert float(recipe.schedule()(recipe.warmup_steps)) == pytest.approx(peak, rel=1e-6)
    assert f"scaled by √({recipe.batch_size}/512): {peak:g}" in recipe.describe()


def test_float64_if_requested(x64):
    with x64():
        rate = ow.LargeMinibatchRecipe(**IMAGENET).schedule(dtype=jnp.float64)(77)
        assert rate.dtype == jnp.float64
        np.testing.assert_allclose(rate, 0.1 + 3.1 * 77 / 780, rtol=1e-15)
        assert ow.LargeMinibatchRecipe(**IMAGENET).schedule()(77).dtype == jnp.float32


def test_inside_jit():
    schedule = ow.LargeMinibatchRecipe(**IMAGENET, warmup="constant").schedule()
    got = jax.jit(jax.vmap(schedule))(jnp.asarray([0, 779, 780, 4680]))
    np.testing.assert_allclose(got, [0.1, 0.1, 3.2, 0.32], rtol=2e-7)
