"""Parity of the code in `docs/coming-from.md` with the learning rates of other packages.

The tests run the rows of the document. `golden/record.py` recorded the rates.
"""

import functools
import inspect
import json
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_warmup as ow

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([^`]+)`.*? \| `([^`]+)` \|", DOCUMENT, re.MULTILINE))
TABLES = [
    json.loads(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("golden/*.json"))
]
CASES = [(table["package"], case) for table in TABLES for case in table["cases"]]
# Recorded to show errors of the package, with separate tests below.
WRONG = {"WarmupParamScheduler, long run", "ReduceLROnPlateau"}
WRONG |= {row for _, c in CASES if (row := c["row"]).endswith(", without epoch")}
ALIKE = [case for _, case in CASES if case["row"] not in WRONG]


def schedule_of(case, dtype):
    """The schedule of a row of the document, with the arguments of a case."""

    def with_dtype(function):
        takes = inspect.isfunction(function) and "dtype" in inspect.signature(function).parameters
        return functools.partial(function, dtype=dtype) if takes else function

    ours = types.SimpleNamespace(**{name: with_dtype(getattr(ow, name)) for name in ow.__all__})
    names = {"ow": ours, "optax": optax, "jnp": jnp, "range": range, "dict": dict, "int": int}
    return eval(ROWS[case["row"]], {"__builtins__": {}, **names, **case["arguments"]})


def exceptions(case):
    """Steps at which the other package is wrong; see the third column of its row."""
    followed = case["row"].startswith("GradualWarmupScheduler, ")
    return {case["arguments"]["W"] + 1} if followed else set()


def label(case):
    return f"{case['row']} {case['arguments'].get('lr', '')}"


@pytest.mark.parametrize("case", ALIKE, ids=label)
@pytest.mark.usefixtures("standard_promotion")
def test_rates_equal_those_of_the_other_package(case, x64):
    """Relative error below 1e-6 in float64, error below 1e-6 of the peak in float32."""
    steps = [t for t in range(len(case["rates"])) if t not in exceptions(case)]
    expected = np.asarray(case["rates"])[steps]
    with x64():
        schedule = schedule_of(case, jnp.float64)
        if ROWS[case["row"]].startswith("ow."):
            assert schedule(0).dtype == jnp.float64
        # Rates below 1e-12 of the peak are rounding errors of the other package.
        small = 1e-12 * expected.max()
        np.testing.assert_allclose([schedule(t) for t in steps], expected, rtol=1e-6, atol=small)
    narrow = jax.vmap(schedule_of(case, jnp.float32))(jnp.asarray(steps))
    np.testing.assert_allclose(narrow, expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_every_row_is_tested_and_every_case_has_a_row():
    rows = {case["row"] for _, case in CASES if not case["row"].endswith(", without epoch")}
    assert rows == set(ROWS) - {"lr * batch_size / 256"}
    assert {table["package"] for table in TABLES} >= {"torch", "timm", "transformers", "keras"}


@pytest.mark.parametrize("case", [c for c in ALIKE if exceptions(c)], ids=label)
def test_the_stale_rate_after_gradual_warmup_scheduler(case):
    """At W + 1 the class reads a schedule that it has not stepped yet."""
    after = case["arguments"]["W"] + 1
    ours = float(schedule_of(case, jnp.float32)(after))
    if "Cosine" in case["row"]:
        peak = case["arguments"]["lr"] * case["arguments"]["multiplier"]
        assert case["rates"][after] > peak * 1.005
        np.testing.assert_allclose(ours, peak * (1 + np.cos(np.pi / 20)) / 2, rtol=1e-6)
    else:
        np.testing.assert_allclose(ours, case["rates"][after - 1], rtol=1e-6)


@pytest.mark.parametrize(
    "case", [c for _, c in CASES if c["row"].endswith(", StepLR, without epoch")], ids=label
)
def test_gradual_warmup_scheduler_without_epoch_is_late(case):
    """Stepped without an epoch, the class decays one step later than it documents."""
    late = {**case, "row": case["row"].removesuffix(", without epoch")}
    ours = jax.vmap(schedule_of(late, jnp.float32))(jnp.arange(25))
    W = case["arguments"]["W"]  # noqa: N806
    np.testing.assert_allclose(ours[: W + 1], case["rates"][: W + 1], rtol=1e-6)
    np.testing.assert_allclose(ours[W:-1], case["rates"][W + 1 :], rtol=1e-6)


def test_fvcore_decays_early_in_a_long_run():
    """Fvcore adds a millionth of the run to its clock, so it decays before the milestone."""
    (case,) = [c for _, c in CASES if c["row"] == "WarmupParamScheduler, long run"]
    (milestone,), steps = case["arguments"]["milestones"], case["arguments"]["steps"]
    theirs = dict(zip(steps, case["rates"], strict=True))
    lr = case["arguments"]["lr"]
    np.testing.assert_allclose([theirs[milestone - 5], theirs[milestone - 4]], [lr, lr / 10])
    schedule = schedule_of(case, jnp.float32)
    np.testing.assert_allclose(schedule(milestone - 1), lr, rtol=1e-6)
    np.testing.assert_allclose(schedule(milestone), lr / 10, rtol=1e-6)


@pytest.mark.parametrize(
    "case", [c for _, c in CASES if c["row"] == "ReduceLROnPlateau"], ids=label
)
def test_reduce_on_plateau_of_pytorch(case):
    optimizer = schedule_of(case, jnp.float32)
    state, rates = optimizer.init(jnp.float32(0)), []
    for metric in case["arguments"]["metrics"]:
        _, state = optimizer.update(jnp.float32(1), state, value=metric)
        rates.append(float(ow.current_learning_rate(state)))
    np.testing.assert_allclose(rates, case["rates"], rtol=1e-6)
