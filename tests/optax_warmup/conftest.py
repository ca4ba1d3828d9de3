"""What the library's tests share: the distance of a float from the truth, and the search for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest

# It needs the packages whose rates it records.
collect_ignore = ["golden/record.py"]

# Compilation makes the first example slow, and a search that differs from run to run would make
# an unrelated change fail.
hypothesis.settings.register_profile("library", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("library")


def _ulps(got: Any, exact: Any) -> float:
    got, exact = np.asarray(got), np.asarray(exact, np.float64)
    assert got.dtype == np.float32
    assert not np.isnan(got).any()
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(got.astype(np.float64) - exact) / spacing, initial=0.0))


@pytest.fixture(scope="session")
def ulps() -> Callable[[Any, Any], float]:
    """The largest distance of float32 values from the truth, in float32's spacing there."""
    return _ulps


@pytest.fixture(scope="session")
def x64() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """JAX's 64-bit types for the length of a `with` block."""
    if hasattr(jax, "enable_x64"):
        return lambda: jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore  # until JAX 0.8

    return enable_x64


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """For tests with code of optax that mixes types which strict promotion keeps apart."""
    with jax.numpy_dtype_promotion("standard"):
        yield
