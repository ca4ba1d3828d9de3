"""Table of learning rates, part of the descriptions of recipes and phases, and their width."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from typing import cast

import jax
import numpy as np
import optax


def rate_table(
    schedule: optax.Schedule,
    rows: Sequence[tuple[str, int]],
    epoch_of: Callable[[int], float],
    width: int | None,
) -> list[str]:
    """Lines of a table with one row for each (label, step) of `rows`, below a header.

    Args:
      schedule: learning rates.
      rows: label and step of each row.
      epoch_of: function from a number of updates to the epochs completed by them.
      width: columns that the table may take; one that is too narrow costs the epochs. None: any.
    """
    steps = np.asarray([step for _, step in rows])
    # Compiled as a whole: one by one, the schedule's operations take eight times as long.
    compiled = cast(optax.Schedule, jax.jit(schedule))
    rates = np.broadcast_to(np.asarray(compiled(steps)), steps.shape)
    header = f"{'':<24}{'step':>10}{'epoch':>10}  learning rate"
    if width is None or width >= len(header):
        lines = [header]
        for (label, step), rate in zip(rows, rates, strict=True):
            lines += [f"{label:<24}{step:>10}{epoch_of(step):>10.2f}  {rate:.6g}"]
        return lines
    first = max(len(label) for label, _ in rows)
    second = max(len("step"), *(len(str(step)) for _, step in rows)) + 2
    lines = [f"{'':<{first}}{'step':>{second}}  rate"]
    for (label, step), rate in zip(rows, rates, strict=True):
        lines += [f"{label:<{first}}{step:>{second}}  {rate:.4g}"]
    return lines


def wrapped(lines: Sequence[str], width: int | None) -> str:
    """Join lines, each broken between words so that it fits.

    Args:
      lines: lines, such as a label, two spaces or more, and a value; the value hangs below itself.
      width: columns; None: any.
    """
    if width is None:
        return "\n".join(lines)
    fitting: list[str] = []
    for line in lines:
        label = re.match(r" *(\S+( \S+)*)? {2,}(?=\S)", line)
        indent = label.end() if label and label.end() <= width // 2 else 2
        fitting += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(fitting)
