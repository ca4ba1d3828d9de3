"""Stopping between two steps when a person or a cluster asks for it."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopOnSignal:
    """While entered, SIGINT and SIGTERM ask for a stop; a second SIGINT ends the process at once.

    Where `jax.distributed` runs, SIGTERM is left to it: it is the cluster's notice of preemption,
    of which JAX tells all processes, and at which step they stop. SIGINT is made the same there.

    Attributes:
        requested: whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first_step: int | None = None

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT]
        if not jax.distributed.is_initialized():
            numbers.append(signal.SIGTERM)
        self._before = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def reached(self, step: int) -> bool:
        """Whether to stop after `step` updates; to be asked after each, by every process."""
        if self._first_step is None:
            self._first_step = step
        # A notice that comes before the first question names number 1, and JAX says so at no other;
        # so the numbers begin with 1 where a run goes on, too.
        number = 1 + step - self._first_step
        return self.requested or multihost_utils.reached_preemption_sync_point(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if jax.distributed.is_initialized():
            signal.raise_signal(signal.SIGTERM)
        else:
            self.requested = True
        # Written past Python's buffers, which the signal may have found in the middle of a write.
        os.write(2, b"\nstopping after this step; saving ...\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
