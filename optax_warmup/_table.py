"""Table of learning rates, part of the descriptions of recipes and phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import optax


def rate_table(
    schedule: optax.Schedule,
    rows: Sequence[tuple[str, int]],
    epoch_of: Callable[[int], float],
) -> list[str]:
    """Lines of a table with one row for each (label, step) of `rows`, below a header.

    Args:
      schedule: learning rates.
      rows: label and step of each row.
      epoch_of: function from a number of updates to the epochs completed by them.
    """
    steps = np.asarray([step for _, step in rows])
    rates = np.broadcast_to(np.asarray(schedule(steps)), steps.shape)
    lines = [f"{'':<24}{'step':>10}{'epoch':>10}  learning rate"]
    for (label, step), rate in zip(rows, rates, strict=True):
        lines += [f"{label:<24}{step:>10}{epoch_of(step):>10.2f}  {rate:.6g}"]
    return lines
