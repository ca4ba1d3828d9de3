"""Stopping between two steps, on a signal or a cluster's preemption notice."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopOnSignal:
    """Context in which SIGINT and SIGTERM request a stop; a second SIGINT kills the process.

    If `jax.distributed` is running, it handles SIGTERM as a cluster's preemption notice, and tells
    all processes the step after which to stop. In that case, SIGINT is turned into SIGTERM.

    Attributes:
        requested: whether a signal has requested a stop.
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
        """Return whether to stop after `step` updates. All processes must call it every step."""
        if self._first_step is None:
            self._first_step = step
        # If preemption is announced before the first call, JAX reports it at sync point 1 only, so
        # sync points count from 1 even in a resumed run.
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
        # Bypasses Python's buffers, because the signal may have interrupted a write to them.
        os.write(2, b"\nstopping after this step; saving ...\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
