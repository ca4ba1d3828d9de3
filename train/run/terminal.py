"""Text that fits the terminal."""

import re
import shutil
import sys
import textwrap


def terminal_width() -> int | None:
    """Columns of the terminal that shows standard output; None without one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """Break lines between words, so that no number is broken. A value hangs below itself.

    Args:
        text: lines, some of which consist of a label, two spaces or more, and a value.
        width: columns of the terminal; None keeps the lines.
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        label = re.match(r" *(\S+( \S+)*)? {2,}(?=\S)", line)
        indent = label.end() if label and label.end() <= width // 2 else 2
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)
