"""Scaling rules: the learning rate as a function of the batch size."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import jax

from optax_warmup import _checks

Scaling = Literal["linear", "sqrt"]

# A number gives a float, an array an array of the same type.
_Value = TypeVar("_Value", float, jax.Array)


def linear_scaling(base_value: _Value, batch_size: int, *, base_batch_size: int = 256) -> _Value:
    """Learning rate for another batch size: k times the images, k times the rate.

    The result is `base_value * batch_size / base_batch_size`.

    Args:
      base_value: learning rate that suits `base_batch_size`; finite and not negative. Arrays and
        traced values are allowed.
      batch_size: number of images per update, at least 1: devices x images per device x
        accumulation steps.
      base_batch_size: batch size that `base_value` was tuned for, at least 1.

    Returns:
      The scaled learning rate; exactly `base_value` if both sizes are equal.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.linear_scaling(0.1, 8192)
      3.2

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", section 2.1, arXiv:1706.02677.
    """
    return base_value * _ratio(base_value, batch_size, base_batch_size)


def sqrt_scaling(base_value: _Value, batch_size: int, *, base_batch_size: int = 256) -> _Value:
    """Learning rate for another batch size: k times the images, sqrt(k) times the rate.

    The result is `base_value * sqrt(batch_size / base_batch_size)`. This keeps the variance of an
    update constant, linear scaling keeps its mean. It is the usual rule for Adam and LAMB. With SGD
    on ImageNet it lost to linear scaling: 26.22 % against 23.74 % error at batch size 8192.

    Args:
      base_value: learning rate that suits `base_batch_size`.
      batch_size: number of images per update.
      base_batch_size: batch size that `base_value` was tuned for.

    Returns:
      The scaled learning rate; exactly `base_value` if both sizes are equal.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.sqrt_scaling(0.1, 1024)
      0.2

    Source:
      Krizhevsky, "One weird trick for parallelizing convolutional neural networks", section 5,
      arXiv:1404.5997; the comparison is table 2a of arXiv:1706.02677.
    """
    return base_value * math.sqrt(_ratio(base_value, batch_size, base_batch_size))


def scaled(scaling: Scaling, base_value: float, batch_size: int, *, base_batch_size: int) -> float:
    """Learning rate for another batch size by the scaling rule with this name."""
    rule = linear_scaling if scaling == "linear" else sqrt_scaling
    return rule(base_value, batch_size, base_batch_size=base_batch_size)


def _ratio(base_value: float | jax.Array, batch_size: int, base_batch_size: int) -> float:
    _checks.rate("base_value", base_value)
    size = _checks.integer("batch_size", batch_size, minimum=1)
    return size / _checks.integer("base_batch_size", base_batch_size, minimum=1)
