"""How the learning rate follows the size of the minibatch."""

from __future__ import annotations

import math
from typing import TypeVar

import jax

from optax_warmup import _checks

# A number gives a float, an array gives an array of its own kind.
_Value = TypeVar("_Value", float, jax.Array)


def linear_scaling(base_value: _Value, batch_size: int, *, base_batch_size: int = 256) -> _Value:
    r"""Learning rate for another minibatch size: k times the images, k times the rate.

    .. math::
      \hat\eta = \eta \, \frac{B}{B_0}

    where :math:`\eta` is `base_value`, :math:`B` is `batch_size` and :math:`B_0` is
    `base_batch_size`, the minibatch for which :math:`\eta` was found.

    Args:
      base_value: learning rate that is right for `base_batch_size`; finite and not negative.
        A (traced) array will do.
      batch_size: images in one minibatch, over all workers; at least 1. This is what one update
        of the parameters sees: devices x images per device x accumulation steps.
      base_batch_size: images in the minibatch that `base_value` belongs to; at least 1.

    Returns:
      The scaled learning rate; `base_value` itself where both sizes are equal.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.linear_scaling(0.1, 8192)
      3.2

    Source:
      Goyal et al., "Accurate, Large Minibatch SGD", section 2.1, arXiv:1706.02677.
    """
    return base_value * _ratio(base_value, batch_size, base_batch_size)


def sqrt_scaling(base_value: _Value, batch_size: int, *, base_batch_size: int = 256) -> _Value:
    r"""Learning rate for another minibatch size: k times the images, sqrt(k) times the rate.

    .. math::
      \hat\eta = \eta \, \sqrt{\frac{B}{B_0}}

    where :math:`\eta` is `base_value`, :math:`B` is `batch_size` and :math:`B_0` is
    `base_batch_size`. It keeps the variance of an update constant where linear scaling keeps its
    mean, and is the usual choice for Adam and LAMB. With SGD on ImageNet it lost to linear scaling:
    26.22 % against 23.74 % error at a minibatch of 8192.

    Args:
      base_value: learning rate that is right for `base_batch_size`; finite and not negative.
        A (traced) array will do.
      batch_size: images in one minibatch, over all workers; at least 1.
      base_batch_size: images in the minibatch that `base_value` belongs to; at least 1.

    Returns:
      The scaled learning rate; `base_value` itself where both sizes are equal.

    Raises:
      ValueError: if an argument is outside its range.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.sqrt_scaling(0.1, 1024)
      0.2

    Source:
      Krizhevsky, "One weird trick for parallelizing convolutional neural networks", section 5,
      arXiv:1404.5997; the comparison is table 2a of arXiv:1706.02677.
    """
    return base_value * math.sqrt(_ratio(base_value, batch_size, base_batch_size))


def _ratio(base_value: float | jax.Array, batch_size: int, base_batch_size: int) -> float:
    _checks.rate("base_value", base_value)
    size = _checks.integer("batch_size", batch_size, minimum=1)
    return size / _checks.integer("base_batch_size", base_batch_size, minimum=1)
