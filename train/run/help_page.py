"""Help pages of the commands, readable in narrow terminals."""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence

from train.errors import shown
from train.run.flags import Flag

HELP = ("-h", "--help")
WIDEST = 100  # columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Flags under one heading."""

    title: str
    about: str
    flags: Sequence[Flag]


def usage_of(flags: Sequence[Flag], prog: str) -> str:
    """The usage line of a command, with its positional words and required flags."""
    words = [
        one.positional if one.is_required else f"[{one.positional}]"
        for one in flags
        if one.positional
    ]
    words += [one.invocation for one in flags if one.is_required and not one.positional]
    return " ".join(["usage:", prog, *words, "[OPTIONS]"])


def help_page(usage: str, about: str, groups: Sequence[Group]) -> str:
    """The help of a command, wrapped to the width of the terminal.

    Args:
        usage: usage line.
        about: what the command does, in paragraphs. Indented lines are lists and stay lines.
        groups: flags, in the order in which they are listed.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = [*_wrapped(usage, width, "", "    "), ""]
    for paragraph in about.split("\n\n"):
        if paragraph.startswith("  "):
            for line in paragraph.splitlines():
                lines += _wrapped(line.strip(), width, "  ", "      ")
        else:
            lines += _wrapped(paragraph, width, "", "")
        lines += [""]
    for group in groups:
        lines += _wrapped(f"{group.title}: {group.about}".removesuffix(": "), width, "", "")
        for one in group.flags:
            text = f"{one.about}{_choices_text(one)}{_default_text(one)}"
            lines += [f"  {one.invocation}", *_wrapped(text, width, "      ", "      ")]
        lines += [""]
    return "\n".join([*lines, f"  {', '.join(HELP)}", "      Show this page."])


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _choices_text(one: Flag) -> str:
    return f" Choices: {', '.join(one.choices)}." if one.choices else ""


def _default_text(one: Flag) -> str:
    if one.is_required or one.default == "":
        return " (required)"
    if one.default is None or one.default is False or one.default == ():
        return ""
    values = one.default if isinstance(one.default, tuple) else [one.default]
    return f" (default: {' '.join(map(shown, values))})"
