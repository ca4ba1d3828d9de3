"""The command line that all commands share: parsing, errors in one line, exit codes."""

import dataclasses
import inspect
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import jax

from train.cluster.joining import is_joining
from train.config import Config, JsonObject
from train.errors import (
    RunError,
    UsageError,
    check_is_local,
    check_number,
    flag,
    from_os_error,
)
from train.recipes import RECIPES, with_optimizer
from train.run import flag_names, flags, help_page, workarounds
from train.run.startup import INTERRUPTED

T = TypeVar("T")

BAD_USAGE, FAILED = 2, 1
COMMANDS = ("prepare", "inspect", "evaluate", "predict", "export", "memory", "pod")
TRAINS = "Train a ResNet with large minibatches, as in arXiv:1706.02677."


def parse_run(args: list[str], prog: str = "python -m train", description: str = "") -> Config:
    """Parse the command line of a run. Without a recipe, `digits` is the default.

    Args:
        args: words of the command line.
        prog: name of the command, for messages.
        description: what the command does, for `--help`. Default: what the recipe trains.

    Raises:
        UsageError: in one line, if the command line is wrong.
    """
    recipe, words = _recipe_of(args, prog)
    if is_help := not {*help_page.HELP}.isdisjoint(words):
        words = [word for word in words if word not in help_page.HELP]
    config = RECIPES[recipe or "digits"]()
    try:
        values = flags.parse(
            _all_flags(config), words, prog, f"a recipe comes first: {prog} RECIPE"
        )
        config = with_optimizer(config, values.get("optimizer", "sgd"))
    except UsageError:
        if not is_help:
            raise
        values = {}
    if is_help:
        _print_help_of_run(config, recipe, prog, description)
    return _expand_home(config.replace(**values))


def _recipe_of(args: list[str], prog: str) -> tuple[str, list[str]]:
    """The recipe, empty if there is none, and the other words."""
    if not args or args[0].startswith("-"):
        return "", args
    name = args[0]
    if name in RECIPES:
        return name, args[1:]
    if name in COMMANDS:
        raise UsageError(f"{name} is a command of its own: python -m train.{name}")
    close = flag_names.closest(name, RECIPES)
    raise UsageError(
        f"there is no recipe {name!r}; {f'did you mean {close}? ' if close else ''}"
        f"The recipes are {', '.join(RECIPES)}. Your own images are trained on with tfds, once "
        "python -m train.prepare has prepared them"
    )


def _groups(config: Config) -> list[help_page.Group]:
    """The flags of a run, with the values of a configuration as defaults."""
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    return [
        help_page.Group(
            title=type(part).__name__,
            about=inspect.getdoc(type(part)) or "",
            flags=flags.flags_of(part),
        )
        for part in parts
    ]


def _all_flags(config: Config) -> list[flags.Flag]:
    return [one for group in _groups(config) for one in group.flags]


def _print_help_of_run(config: Config, recipe: str, prog: str, description: str) -> NoReturn:
    about = {name: inspect.cleandoc(make.__doc__ or "") for name, make in RECIPES.items()}
    paragraphs = [description or about[recipe] if recipe else description or TRAINS]
    if not recipe:
        lines = [f"  {name}: {text.splitlines()[0]}" for name, text in about.items()]
        paragraphs += ["Recipes, of which digits is the default:", "\n".join(lines)]
        paragraphs += [f"'{prog} RECIPE --help' shows the defaults of a recipe."]
    usage = f"usage: {prog} {recipe or '[RECIPE]'} [OPTIONS]"
    print(help_page.help_page(usage, "\n\n".join(paragraphs), _groups(config)))
    sys.exit(0)


def parse_options(options: type[T], args: list[str], prog: str) -> T:
    """Parse the command line of any other command.

    Args:
        options: dataclass with the flags.
        args: words of the command line.
        prog: name of the command, for messages.

    Raises:
        UsageError: in one line, if the command line is wrong.
    """
    known = flags.flags_of(options)
    if not {*help_page.HELP}.isdisjoint(args):
        group = help_page.Group(title="Options", about="", flags=known)
        about = inspect.cleandoc(options.__doc__ or "")
        print(help_page.help_page(help_page.usage_of(known, prog), about, [group]))
        sys.exit(0)
    return _expand_home(options(**flags.parse(known, args, prog)))


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
        try:
            return command()
        finally:
            sys.stdout.flush()  # raises BrokenPipeError here rather than at exit
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_USAGE
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
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
    if not jax.distributed.is_initialized():
        workarounds.exit_without_teardown(code)
    sys.exit(code)


def simulate_devices(num_devices: int | None) -> None:
    """Make JAX simulate this many CPU devices, if any are requested. Call before its first use.

    Raises:
        UsageError: if the number is less than 1.
    """
    check_number("num_devices", num_devices, minimum=1)
    if num_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices)
