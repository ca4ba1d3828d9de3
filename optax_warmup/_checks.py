"""What every factory asks of its arguments: one wording for all errors of the library."""

from __future__ import annotations

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

# Optax counts in int32, so no step beyond this one can be reached.
MAX_STEP = 2**31 - 1

_LARGEST = float(np.finfo(np.float32).max)

# A rate that has passed the checks: a float, an array in float64, or a value that is being traced.
Rate = Any


def integer(name: str, value: Any, *, minimum: int = 0, maximum: int = MAX_STEP) -> int:
    """`value` as a Python int; any integer type will do, but neither a bool nor a float."""
    allowed = f"an integer from {minimum} to {maximum}"
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be {allowed}, got {value!r}") from None
    if not minimum <= number <= maximum:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
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
    """`value` as a finite Python float within the bounds, of which two exclude themselves."""
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
    # An infinity fails the strict comparisons, a NaN all of them.
    if not (above < number < below and minimum <= number <= maximum):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number


def rate(name: str, value: Any, *, positive: bool = False) -> Rate:
    """`value` as a learning rate: a number, or an array of them, each finite and not negative.

    Numbers and concrete arrays come back in float64, so that what a factory derives from them is
    rounded once only. A traced value is passed on: there is nothing to look at yet.
    """
    if isinstance(value, Tracer):
        return cast("Any", value)
    if not isinstance(value, jax.Array | np.ndarray) or value.ndim == 0:
        number = real(name, value, **({"above": 0.0} if positive else {"minimum": 0.0}))
        if number > _LARGEST:
            raise ValueError(f"{name} must be finite in float32, got {value!r}")
        return number
    array = np.asarray(value, np.float64)
    # A NaN fails both comparisons.
    if not np.all((array > 0 if positive else array >= 0) & (array <= _LARGEST)):
        sign = "> 0" if positive else ">= 0"
        raise ValueError(f"{name} must hold finite numbers {sign} only, got {value!r}")
    return array


def not_above(low_name: str, low: Rate, high_name: str, high: Rate) -> None:
    """Refuses a warmup downwards, as far as the values are known."""
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return
    if np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"{low_name} must be at most {high_name} = {high!r}, got {low!r}")


def increasing(name: str, values: Iterable[Any], *, minimum: int, reason: str) -> tuple[int, ...]:
    """`values` as ints, each larger than the one before; none below `minimum`, for a `reason`."""
    steps = tuple(integer(f"{name}[{i}]", value) for i, value in enumerate(values))
    if steps and steps[0] < minimum:
        raise ValueError(f"{name} must be at least {minimum}, {reason}, got {list(steps)}")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(f"{name} must increase, without repeats, got {list(steps)}")
    return steps


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """`value`, if it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping of steps to numbers, got {value!r}")
    return cast("Mapping[Any, Any]", value)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype`, if schedules can have it: float32, or float64 where x64 is on."""
    kind = np.dtype(dtype)
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    allowed = ["float32", "float64"] if x64 else ["float32"]
    if kind.name not in allowed:
        hint = "" if x64 else "; float64 needs jax_enable_x64"
        raise ValueError(f"dtype must be {' or '.join(allowed)}, got {kind.name}{hint}")
    return kind


def constant(value: Rate, dtype: np.dtype[Any]) -> Any:
    """`value`, rounded once to `dtype`; on the host as long as it is known."""
    if isinstance(value, Tracer):
        return jnp.asarray(value, dtype)
    return np.asarray(value, dtype)
