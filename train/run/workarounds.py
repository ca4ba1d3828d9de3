"""Workarounds for behavior of other libraries, each with library, version and upstream issue.

Look here first when a library is updated: whatever it has fixed can go.
"""

import logging
import os
import re
import sys
from typing import NoReturn


def message_of_tyro(box: str) -> str:
    """The message of a framed tyro error as one line, without its title and help texts.

    tyro 1.0.17 prints errors as a box and raises SystemExit; it has no option for plain text. No
    upstream issue was found.
    """
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in box.splitlines()]
    words = " ".join(line for line in lines[1:] if line)
    words = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    return re.sub(r" Perhaps you meant: (\S+).*", r"; perhaps you meant \1", words)


def silence_repeated_errors() -> None:
    """Hide what libraries print about an error that they also raise.

    - orbax-checkpoint 0.12.8 logs the traceback of a failed save from each of its threads, and
      raises the error as well (the raising is google/orbax#605; no issue about the logs was found).
    - tensorstore 0.1.86: after one file of a checkpoint failed, the callbacks of the others find
      asyncio's loop closed and print "Event loop is closed". No upstream issue was found.
    """
    logging.getLogger("absl").addFilter(_is_not_an_error_of_orbax)
    if sys.unraisablehook is sys.__unraisablehook__:  # keep a hook that somebody else installed
        sys.unraisablehook = _hide_closed_loops


def _is_not_an_error_of_orbax(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _hide_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def exit_without_waiting(code: int) -> NoReturn:
    """End the process without joining threads.

    orbax-checkpoint 0.12.8: after a failed save its threads keep a normal exit waiting for minutes
    (related: google/orbax#392).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
