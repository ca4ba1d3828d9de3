"""Conversion of epochs to steps."""

# Some tests pass invalid arguments.
# pyright: reportArgumentType=false

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_warmup as ow


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"),
    [(1.4, 100, 140), (1.4, 7, 10), (0.5, 1, 1), (0.49, 1, 0), (2.5, 3, 8), (90, 156, 14040)],
)
def test_the_nearest_step(epochs, per_epoch, steps):
    assert ow.epochs_to_steps(epochs, per_epoch) == steps


@given(st.integers(0, 1000), st.integers(1, 10**6), st.floats(-0.49, 0.49))
def test_the_number_of_steps_survives_a_conversion_to_epochs(steps, per_epoch, error):
    assert ow.epochs_to_steps(max((steps + error) / per_epoch, 0), per_epoch) == steps


def test_numpy_numbers_and_large_data_sets():
    steps = ow.epochs_to_steps(np.float32(2.5), np.int64(2**40))
    assert steps == 5 * 2**39
    assert type(steps) is int


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "message"),
    [
        (-1, 10, "num_epochs must be a finite number >= 0, got -1"),
        (float("nan"), 10, "num_epochs must be a finite number >= 0, got nan"),
        ("5", 10, "num_epochs must be a finite number >= 0, got '5'"),
        (5, 0, "steps_per_epoch must be an integer from 1 .*, got 0"),
        (5, 2.5, r"steps_per_epoch must be an integer from 1 .*, got 2\.5"),
        (5, True, "steps_per_epoch must be an integer from 1 .*, got True"),
    ],
)
def test_bad_arguments(epochs, per_epoch, message):
    with pytest.raises(ValueError, match=message):
        ow.epochs_to_steps(epochs, per_epoch)
