"""Table of decays in `docs/schedules.md`: first and last learning rate of each."""

import math
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_warmup as ow

DOCUMENT = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text(encoding="utf-8")
TABLE = DOCUMENT.partition("## Decays")[2].partition("## Epochs")[0]
ROWS = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+)` \|$", TABLE, re.MULTILINE)
WARMUP, D = 7, 100
NAMES = {"lr": 3.2, "end": 0.1, "D": D, "power": 2.0, "rate": 0.5}
MATHS = {"cos": math.cos, "sqrt": math.sqrt, "pi": math.pi}
CODE = {"optax": optax, "ow": ow, "dict": dict}


def test_the_table_is_found():
    assert len(ROWS) == 11


@pytest.mark.parametrize(("name", "code", "last"), ROWS, ids=[name for name, _, _ in ROWS])
def test_first_and_last_update_after_the_warmup(name, code, last):
    after = eval(code, {"__builtins__": {}, **CODE, **NAMES})
    schedule = ow.gradual_warmup(0.1, 3.2, WARMUP, after)
    # Optax's linear form, (peak - end) + end, may round the peak itself.
    np.testing.assert_allclose(schedule(WARMUP), 3.2, rtol=1e-7, err_msg=name)
    expected = eval(last, {"__builtins__": {}, **MATHS, **NAMES})
    # Optax's decays cancel near their end and leave an error of about 1e-6.
    np.testing.assert_allclose(schedule(WARMUP + D - 1), expected, rtol=1e-6, atol=1e-6)
    assert schedule(jnp.int32(2**31 - 1)) >= 0


def test_one_decay_step_less_ends_at_end_value():
    schedule = ow.gradual_warmup(0.1, 3.2, WARMUP, optax.linear_schedule(3.2, 0.0, D - 1))
    assert schedule(WARMUP + D - 1) == 0.0
    assert schedule(WARMUP + D - 2) > 0.0


def test_the_example_of_the_document_runs():
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    names = {}
    exec(example, names)
    params = {"w": jnp.ones(3)}
    state = names["optimizer"].init(params)
    _, state = names["optimizer"].update(params, state, params)
    assert ow.current_learning_rate(state) == np.float32(0.1)
