"""Learning rate of the last update, read from the state of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optax_warmup._momentum import FoldedMomentumState
from optax_warmup._plateau import WarmupPlateauState


def current_learning_rate(opt_state: Any, schedule: optax.Schedule | None = None) -> jax.Array:
    """Learning rate of the update that led to this optimizer state.

    The rate is the one stored by `optax.inject_hyperparams` or by a transformation of this library.
    If `schedule` is given, it is also evaluated at counts kept by `optax.sgd(schedule)` and similar
    optimizers. Scales of `optax.contrib.reduce_on_plateau` in the same chain are multiplied in.
    The state may be nested: chains, masks, partitions, accumulation.

    Args:
      opt_state: state of an optax optimizer. A new state from `init` gives the learning rate of the
        first update.
      schedule: schedule of an optimizer that stores only the number of updates.

    Returns:
      A scalar array, traced under `jax.jit`.

    Raises:
      ValueError: if the state holds no learning rate, or several different ones. Under `jax.jit`
        values cannot be compared, so any two are an error. Pass the state of one group instead.

    Examples:
      >>> import optax_warmup as ow
      >>> import optax
      >>> optimizer = optax.inject_hyperparams(optax.sgd)(ow.gradual_warmup(0.5, 2.0, 3))
      >>> state = optimizer.init(1.0)
      >>> for _ in range(3):
      ...     _, state = optimizer.update(1.0, state, 1.0)
      >>> float(ow.current_learning_rate(state))  # 0.5, then 1.0, then
      1.5

    Source:
      The state classes of optax, https://optax.readthedocs.io.
    """
    rates, _ = _find(opt_state, "opt_state", schedule)
    if not rates:
        raise ValueError(
            "opt_state must hold a learning rate: create the optimizer with "
            "optax.inject_hyperparams(optax.sgd)(learning_rate=schedule), or call "
            "current_learning_rate(opt_state, schedule) if the state holds the schedule's count"
        )
    (_, first), *others = rates
    if all(_same(first, other) for _, other in others):
        return first
    found = ", ".join(path for path, _ in rates)
    raise ValueError(f"opt_state must hold one learning rate, got {len(rates)}: {found}")


# Learning rates with their paths, and the scale of a plateau that is not yet multiplied in.
_Found = tuple[list[tuple[str, jax.Array]], jax.Array | None]


def _find(node: Any, path: str, schedule: optax.Schedule | None) -> _Found:
    # Flax NNX wraps the leaves in its own objects, which `asarray` unwraps.
    if isinstance(node, optax.contrib.ReduceLROnPlateauState):
        return [], jnp.asarray(node.scale)
    if isinstance(node, WarmupPlateauState | FoldedMomentumState):
        return [(path, jnp.asarray(node.learning_rate))], None
    if isinstance(node, optax.ScaleByScheduleState) and schedule is not None:
        # The count was incremented after the last update.
        last = jnp.maximum(jnp.asarray(node.count) - 1, 0)
        return [(path, jnp.asarray(schedule(last)))], None
    here: list[tuple[str, jax.Array]] = []
    hyperparams = getattr(node, "hyperparams", None)
    if isinstance(hyperparams, Mapping) and "learning_rate" in hyperparams:
        here = [(f"{path}.hyperparams", jnp.asarray(hyperparams["learning_rate"]))]
    below = [_find(child, at, schedule) for child, at in _children(node, path)]
    rates = here + [rate for found, _ in below for rate in found]
    scale: jax.Array | None = None
    for _, other in below:
        if other is not None:
            scale = other if scale is None else scale * other
    if rates and scale is not None:
        return [(at, rate * scale.astype(rate.dtype)) for at, rate in rates], None
    return rates, scale


def _children(node: Any, path: str) -> Iterable[tuple[Any, str]]:
    fields: tuple[str, ...] | None = getattr(node, "_fields", None)
    if isinstance(node, tuple) and fields is not None:
        return [(getattr(cast("Any", node), field), f"{path}.{field}") for field in fields]
    if isinstance(node, tuple | list):
        items = cast("list[Any]", node)
        return [(child, f"{path}[{i}]") for i, child in enumerate(items)]
    if isinstance(node, Mapping):
        entries = cast("Mapping[Any, Any]", node)
        return [(child, f"{path}[{key!r}]") for key, child in entries.items()]
    return []


def _same(one: jax.Array, other: jax.Array) -> bool:
    if isinstance(one, Tracer) or isinstance(other, Tracer):
        return one is other
    return bool(jnp.all(one == other))
