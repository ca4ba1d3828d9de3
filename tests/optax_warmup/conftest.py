"""Fixtures and settings of the library's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest

# The script imports packages that are not installed here.
collect_ignore = ["golden/record.py"]

# Compilation makes the first example slow. With random examples, unrelated changes could fail.
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
    """Function that returns the largest error of float32 values in ulps."""
    return _ulps


@pytest.fixture(scope="session")
def x64() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Context manager that enables 64-bit types in JAX."""
    if hasattr(jax, "enable_x64"):
        return lambda: jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore  # until JAX 0.8

    return enable_x64


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """Standard type promotion, for tests with code of optax that mixes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield
