"""Command-line flags made from dataclasses: parsing, and one line for each mistake.

Each field of a dataclass is a flag. Its type says which values are allowed, and the docstring
below it is its help text. The metadata of a field may hold:

- "positional": the word has no flag; the value is its name in the usage line.
- "metavar": name of the value in the help.
- "hidden": the field is not a flag.
- "repeatable": each use of the flag adds one list of words.
- "may_be_empty": the flag alone means an empty list.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from train.errors import UsageError, flag
from train.run.flag_names import closest, explain_unknown

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag, or one positional word, of a command."""

    field: str
    """Name of the dataclass's field."""
    kind: type
    """Type of one value: int, float, str, Path or bool."""
    choices: tuple[str, ...]
    """Allowed words; empty if any are."""
    is_list: bool
    is_repeatable: bool
    may_be_empty: bool
    positional: str
    """Name of a positional word in the usage line; empty for a flag."""
    metavar: str
    """Name of the value in the help."""
    is_required: bool
    default: Any
    about: str
    """Help text, in one line."""

    @property
    def name(self) -> str:
        """Name in messages: --num-workers, or PATH for a positional word."""
        return self.positional or flag(self.field)

    @property
    def invocation(self) -> str:
        """The words to type: --num-workers INT, or PATH for a positional word."""
        return self.positional or f"{self.name} {self.metavar}".rstrip()


def flags_of(options: Any) -> list[Flag]:
    """The flags of a dataclass; positional words come first, then required flags.

    Args:
        options: a dataclass, or an instance of one whose values replace the defaults.
    """
    cls = options if isinstance(options, type) else type(options)
    hints, texts = get_type_hints(cls), _help_texts(cls)
    found = [
        _flag_of(field, hints[field.name], texts[field.name], _default(options, field))
        for field in dataclasses.fields(cls)
        if not field.metadata.get("hidden")
    ]
    return sorted(found, key=lambda one: (not one.positional, not one.is_required))


def _default(options: Any, field: dataclasses.Field[Any]) -> Any:
    if not isinstance(options, type):
        return getattr(options, field.name)
    return field.default


def _flag_of(field: dataclasses.Field[Any], hint: Any, about: str, default: Any) -> Flag:
    if get_origin(hint) in (Union, types.UnionType):  # T | None
        [hint] = [part for part in get_args(hint) if part is not types.NoneType]
    is_list = get_origin(hint) is tuple
    is_repeatable = field.metadata.get("repeatable", False)
    for _ in range(is_list + is_repeatable):
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    name = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: ""}[kind]
    metavar = field.metadata.get("metavar", "CHOICE" if choices else name)
    return Flag(
        field=field.name,
        kind=kind,
        choices=choices,
        is_list=is_list,
        is_repeatable=is_repeatable,
        may_be_empty=field.metadata.get("may_be_empty", False),
        positional=field.metadata.get("positional", ""),
        metavar=f"{metavar} ..." if is_list else metavar,
        is_required=default is dataclasses.MISSING,
        default=default,
        about=about,
    )


@functools.cache
def _help_texts(cls: type) -> dict[str, str]:
    """Docstrings below the fields of a dataclass and of its bases, each as one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for statement, after in zip(definition.body, definition.body[1:], strict=False):
                if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                    text = ast.literal_eval(after.value)
                    texts[ast.unparse(statement.target)] = " ".join(text.split())
    return texts


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        """Report what argparse has not assigned to a flag."""
        raise UsageError(message)


def parse(flags: Sequence[Flag], words: Sequence[str], prog: str, hint: str = "") -> Values:
    """The values of the flags that the words contain, by field.

    Args:
        flags: flags of the command.
        words: words of the command line.
        prog: name of the command, for messages.
        hint: advice about a word that belongs to no flag.

    Raises:
        UsageError: in one line, if a flag is unknown, or a value is missing or not allowed.
    """
    words = [_with_hyphens(word) for word in words]
    known = [one.name for one in flags if not one.positional]
    for word in words:
        if word.startswith("-") and word.partition("=")[0] not in known and not _is_number(word):
            raise UsageError(explain_unknown(word.partition("=")[0], known, prog))
    try:
        namespace, rest = _parser(flags).parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(_explain(error, flags)) from None
    values = vars(namespace)
    for one in flags:
        if one.positional and rest:
            count = len(rest) if one.is_list else 1
            found, rest = [_convert(one, word) for word in rest[:count]], rest[count:]
            values[one.field] = found if one.is_list else found[0]
        if one.is_list and one.field in values:
            parts = values[one.field]
            values[one.field] = tuple(map(tuple, parts) if one.is_repeatable else parts)
    if rest:
        before = words[words.index(rest[0]) - 1]
        if any(one.kind is bool and one.name == before for one in flags):
            raise UsageError(f"{before} takes no value; pass it without {rest[0]!r}")
        advice = hint or f"'{prog} --help' lists the flags"
        raise UsageError(f"{rest[0]!r} belongs to no flag; {advice}")
    _reject_missing([one for one in flags if one.is_required and one.field not in values], prog)
    return values


def _parser(flags: Sequence[Flag]) -> _Parser:
    """A parser of all but positional words, which argparse leaves over in their order."""
    parser = _Parser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for one in flags:
        settings: dict[str, Any] = {"type": functools.partial(_convert, one)}
        if one.kind is bool:
            settings = {"action": "store_true"}
        elif one.is_repeatable:
            settings |= {"action": "append", "nargs": "+"}
        elif one.is_list:
            settings["nargs"] = "*" if one.may_be_empty else "+"
        if not one.positional:
            parser.add_argument(one.name, dest=one.field, **settings)
    return parser


def _reject_missing(missing: Sequence[Flag], prog: str) -> None:
    if len(missing) == 1 and missing[0].choices:
        raise UsageError(f"{missing[0].name} is missing; it is {_one_of(missing[0].choices)}")
    if missing:
        names = " and ".join(one.invocation for one in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{names} {verb} missing; '{prog} --help' describes what is needed")


def _with_hyphens(word: str) -> str:
    """`--num_workers=8` as `--num-workers=8`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _convert(one: Flag, word: str) -> Any:
    """The value that a word of the command line stands for."""
    if one.choices and word not in one.choices:
        close = closest(word, one.choices)
        hint = f"; did you mean {close}?" if close else ""
        raise UsageError(f"{one.name} is {word!r}; it must be {_one_of(one.choices)}{hint}")
    try:
        return one.kind(word)
    except ValueError:
        allowed = "a whole number" if one.kind is int else "a number"
        raise UsageError(f"{one.name} is {word!r}; it must be {allowed}") from None


def _one_of(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _explain(error: argparse.ArgumentError, flags: Sequence[Flag]) -> str:
    """What argparse objects to, in our words: the number of values, all else is converted here."""
    [one] = [one for one in flags if error.argument_name == one.name]
    if one.kind is bool:
        return f"{one.name} takes no value; pass it alone, or leave it out"
    return f"{one.name} needs a value: {one.invocation}"
