"""What the commands of this package share: errors in one line, and starting JAX."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from train.config import RunError, UsageError, refused

T = TypeVar("T")

BAD_USAGE, FAILED, INTERRUPTED = 2, 1, 1


def parse(read: Callable[[], T]) -> T:
    """Call tyro, and make one line of what it says of a wrong command line.

    Args:
        read: the call; what it returns is a dataclass, in whose paths `~` is the user's home, which
            shells leave as it is in `--data-dir=~/data`.

    Raises:
        UsageError: whatever is wrong.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options: Any = read()
        paths = {
            name: Path(os.path.expanduser(value))
            for name, value in vars(options).items()
            if isinstance(value, Path)
        }
        return dataclasses.replace(options, **paths)
    except SystemExit as ending:
        if not ending.code:  # --help
            raise
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """Take the words out of tyro's framed message, without its title and its help texts."""
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in box.splitlines()]
    words = " ".join(line for line in lines[1:] if line)
    words = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    return re.sub(r" Perhaps you meant: (\S+).*", r"; perhaps you meant \1", words)


def run(prog: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; a mistake or Ctrl-C is one line, no traceback."""
    logging.getLogger("absl").addFilter(_is_not_orbax)
    if sys.unraisablehook is sys.__unraisablehook__:  # and nobody else listens
        sys.unraisablehook = _show
    try:
        return command()
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (RunError, OSError) as error:
        error = refused(error) if isinstance(error, OSError) else error
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        # JAX waits at exit for the others, and names the one that is lost when it gives up.
        reason = str(error).splitlines()[0]
        print(f"{prog}: a step with the other processes failed: {reason}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:  # where the command does not handle it: nothing to save yet
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def end(code: int) -> NoReturn:
    """End the process with an exit code; after a failure at once.

    Orbax's threads would wait minutes for a save that failed, and asyncio would list its writes.
    """
    if code == FAILED and not jax.distributed.is_initialized():  # others have to be told of it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs with its traceback, from each of its threads, what it then raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _show(ignored: Any) -> None:
    """Show an error in a callback, but not those of writes that one before them ended."""
    if str(ignored.exc_value) != "Event loop is closed":  # asyncio's, for tensorstore's other files
        sys.__unraisablehook__(ignored)


def simulate_devices(num_devices: int | None) -> None:
    """Make JAX use this many simulated CPU devices, if any are asked for; before its first use.

    Raises:
        UsageError: if there are to be none.
    """
    if num_devices is not None:
        if num_devices < 1:
            raise UsageError(f"--num-devices is {num_devices}; it must be at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices)
