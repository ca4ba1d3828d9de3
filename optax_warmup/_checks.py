"""Argument checks: one wording for all errors of the library."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

# Optax counts steps in int32.
MAX_STEP = 2**31 - 1
# Bound for numbers of examples and batch sizes.
MAX_SIZE = 2**63 - 1

_LARGEST = float(np.finfo(np.float32).max)

# A checked learning rate: a float, a float64 array or a traced value.
Rate = Any


def integer(name: str, value: Any, *, minimum: int = 0, maximum: int = MAX_STEP) -> int:
    """`value` as a Python int. Every integer type is accepted; bools and floats are not."""
    number = None
    if not isinstance(value, bool | np.bool_):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None or not minimum <= number <= maximum:
        raise ValueError(f"{name} must be an integer from {minimum} to {maximum}, got {value!r}")
    return number


def real(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
) -> float:
    """`value` as a finite Python float within the bounds (`above` and `below` are exclusive)."""
    bounds = [f"> {above:g}"] if above > -math.inf else []
    bounds += [f">= {minimum:g}"] if minimum > -math.inf else []
    bounds += [f"<= {maximum:g}"] if maximum < math.inf else []
    bounds += [f"< {below:g}"] if below < math.inf else []
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be {allowed}, got {value!r}") from None
    # Infinity fails the strict comparisons, NaN fails all of them.
    if not (above < number < below and minimum <= number <= maximum):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number


def rate(name: str, value: Any, *, positive: bool = False) -> Rate:
    """`value` as a learning rate: a number or an array, finite and not negative.

    Numbers and concrete arrays are returned in float64, so that values derived from them are
    rounded only once. A traced value cannot be checked and is returned unchanged.
    """
    if isinstance(value, Tracer):
        return cast("Any", value)
    if not isinstance(value, jax.Array | np.ndarray) or value.ndim == 0:
        number = real(name, value, **({"above": 0.0} if positive else {"minimum": 0.0}))
        if number > _LARGEST:
            raise ValueError(f"{name} must be finite in float32, got {value!r}")
        return number
    array = np.asarray(value, np.float64)
    # NaN fails both comparisons.
    if not np.all((array > 0 if positive else array >= 0) & (array <= _LARGEST)):
        sign = "> 0" if positive else ">= 0"
        raise ValueError(f"{name} must hold finite numbers {sign} only, got {value!r}")
    return array


def not_above(low_name: str, low: Rate, high_name: str, high: Rate) -> None:
    """Raise if `low` is above `high`; traced values are not checked."""
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return
    if np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"{low_name} must be at most {high_name} = {high!r}, got {low!r}")


def increasing(name: str, values: Iterable[Any], *, minimum: int, reason: str) -> tuple[int, ...]:
    """`values` as strictly increasing ints; `reason` explains the `minimum`."""
    steps = tuple(integer(f"{name}[{i}]", value) for i, value in enumerate(values))
    if steps and steps[0] < minimum:
        raise ValueError(f"{name} must be at least {minimum}, {reason}, got {list(steps)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{name} must increase, without repeats, got {list(steps)}")
    return steps


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise if `value` is not among the `allowed` words."""
    words = tuple(allowed)
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, got {value!r}")


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """`value`, if it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of steps to numbers, got {value!r}")
    return cast("Mapping[Any, Any]", value)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype`, if schedules support it: float32, or float64 if x64 is enabled."""
    kind = np.dtype(dtype)
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    allowed = ["float32", "float64"] if x64 else ["float32"]
    if kind.name not in allowed:
        hint = "" if x64 else "; float64 needs jax_enable_x64"
        raise ValueError(f"dtype must be {' or '.join(allowed)}, got {kind.name}{hint}")
    return kind


def constant(value: Rate, dtype: np.dtype[Any]) -> Any:
    """`value`, rounded once to `dtype`. A known value stays on the host."""
    if isinstance(value, Tracer):
        return jnp.asarray(value, dtype)
    return np.asarray(value, dtype)
