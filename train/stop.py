"""Stopping between two steps when a person or a cluster asks for it."""

import os
import signal
from types import FrameType
from typing import Self


class StopOnSignal:
    """While entered, SIGINT and SIGTERM ask for a stop; a second SIGINT ends the process at once.

    Attributes:
        requested: whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # Written past Python's buffers, which the signal may have found in the middle of a write.
        os.write(2, b"\nstopping after this step; saving ...\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
