"""Conversion of epochs to steps; nothing else in the library does it."""

from __future__ import annotations

import math

from optax_warmup import _checks


def epochs_to_steps(num_epochs: float, steps_per_epoch: int) -> int:
    """Number of steps nearest to a number of epochs; halves round up.

    Args:
      num_epochs: number of epochs, >= 0; fractions are allowed.
      steps_per_epoch: number of updates in one epoch, at least 1; usually
        `num_examples // batch_size`.

    Returns:
      A Python int, which cannot overflow.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.epochs_to_steps(5, 156), ow.epochs_to_steps(1.4, 7), ow.epochs_to_steps(0.5, 1)
      (780, 10, 1)

    Source:
      The paper gives warmup and milestones in epochs: section 5.1 of arXiv:1706.02677.
    """
    epochs = _checks.real("num_epochs", num_epochs, minimum=0.0)
    steps = _checks.integer("steps_per_epoch", steps_per_epoch, minimum=1, maximum=_checks.MAX_SIZE)
    return math.floor(epochs * steps + 0.5)
