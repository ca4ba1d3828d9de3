"""Arithmetic on updates, the gradient-shaped trees that optax transformations pass on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def scale_by(rate: jax.Array, updates: Any) -> Any:
    """`updates` times `rate`; multiplies in the wider of both types, keeps the type of each update.

    `optax.scale_by_schedule` rounds the rate to the type of each update first.
    """

    def scaled(update: Any) -> jax.Array:
        update = jnp.asarray(update)
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(update.dtype, rate.dtype)
        return (update.astype(wide) * rate.astype(wide)).astype(update.dtype)

    return jax.tree.map(scaled, updates)
