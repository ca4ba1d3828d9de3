"""The command line that all commands share: parsing, errors in one line, exit codes."""

import contextlib
import dataclasses
import inspect
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import jax
import tyro

from train.cluster.joining import is_joining
from train.config import Config, JsonObject
from train.errors import RunError, UsageError, check_is_local, flag, from_os_error
from train.recipes import RECIPES
from train.run import workarounds
from train.run.startup import INTERRUPTED

T = TypeVar("T")

BAD_USAGE, FAILED = 2, 1


def parse_run(args: list[str], prog: str = "python -m train", description: str = "") -> Config:
    """Parse the command line of a run. Without a recipe, `digits` is the default.

    Args:
        args: words of the command line.
        prog: name of the command, for usage messages.
        description: what the command does, for `--help`.

    Raises:
        UsageError: in one line, if the command line is wrong.
    """
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = ["digits", *args]
    recipes = {
        name: (inspect.cleandoc(make.__doc__ or ""), make()) for name, make in RECIPES.items()
    }
    return _parse(
        lambda: tyro.extras.overridable_config_cli(
            recipes,
            prog=prog,
            description=f"{description}\n\nWithout a recipe: digits.".strip(),
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    )


def parse_options(options: type[T], args: list[str], prog: str) -> T:
    """Parse the command line of any other command.

    Args:
        options: dataclass with the flags.
        args: words of the command line.
        prog: name of the command, for usage messages.

    Raises:
        UsageError: in one line, if the command line is wrong.
    """
    return _parse(lambda: tyro.cli(options, prog=prog, args=args))


def _parse(call_tyro: Callable[[], T]) -> T:
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return _expand_home(call_tyro())
    except SystemExit as ending:
        if not ending.code:  # --help
            raise
        raise UsageError(workarounds.message_of_tyro(box.getvalue())) from None


def _expand_home(options: T) -> T:
    """Check every path and replace `~` in it, which shells leave in `--data-dir=~/data`."""
    fields: JsonObject = {}
    for name, value in vars(options).items():
        if isinstance(value, Path):
            check_is_local(flag(name), value)
            fields[name] = Path(os.path.expanduser(value))
        elif dataclasses.is_dataclass(value):
            fields[name] = _expand_home(value)
    return dataclasses.replace(options, **fields)  # pyright: ignore[reportArgumentType]


def run(prog: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code. A mistake or Ctrl-C prints one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # print "?" for what a terminal cannot encode
    workarounds.silence_repeated_errors()
    workarounds.silence_matplotlib()
    try:
        return command()
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_USAGE
    except (RunError, OSError) as error:
        error = from_os_error(error) if isinstance(error, OSError) else error
        print(f"{prog}: {error}", file=sys.stderr)
        return FAILED
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        # JAX waits at exit for the other processes and names the lost one when it gives up.
        reason = str(error).splitlines()[0]
        print(f"{prog}: a step with the other processes failed: {reason}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:  # the command has nothing to save yet
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def end(code: int) -> NoReturn:
    """End the process with an exit code."""
    # JAX tells the other processes at exit, if it has joined them.
    if is_joining() or (code == FAILED and not jax.distributed.is_initialized()):
        workarounds.exit_without_waiting(code)
    sys.exit(code)


def simulate_devices(num_devices: int | None) -> None:
    """Make JAX simulate this many CPU devices, if any are requested. Call before its first use.

    Raises:
        UsageError: if the number is less than 1.
    """
    if num_devices is not None:
        if num_devices < 1:
            raise UsageError(f"--num-devices is {num_devices}; it must be at least 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices)
