"""What a command does before its imports, which take seconds.

This module imports nothing but the standard library.
"""

import locale
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 1
"""Exit code after Ctrl-C while there is nothing to save."""


def start_command() -> None:
    """Make `python -m train...` use UTF-8, and end with one line on Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, _end)
    # In other locales, names of files and classes may not be encodable. Python 3.15 uses UTF-8 in
    # every locale (PEP 686).
    is_utf8 = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    if not is_utf8:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def raise_keyboard_interrupt() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt`, in commands that clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    """End the process at once. An exception might be swallowed by whatever is being imported."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else "train"
    os.write(2, f"python -m {module}: interrupted\n".encode())
    os._exit(INTERRUPTED)
