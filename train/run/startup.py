"""What a command does before its imports, which take seconds.

This module imports nothing but the standard library, and little of it before Ctrl-C is handled.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 1
"""Exit code after Ctrl-C while there is nothing to save."""

TUNABLES = "GLIBC_TUNABLES"  # the C library reads it when a process starts
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # ask the kernel for pages of 2 MiB (glibc 2.35)


def start_command() -> None:
    """Make `python -m train...` use UTF-8 and huge pages, and end with one line on Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import locale

    # In other locales, names of files and classes may not be encodable. Python 3.15 uses UTF-8 in
    # every locale (PEP 686).
    is_utf8 = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    # On a CPU, XLA allocates the temporary memory of a step anew each time. With pages of 4 KiB, a
    # sixth of a step of ResNet-50 goes into page faults.
    needs_huge_pages = TUNABLES not in os.environ and _huge_pages_are_on_request()
    if needs_huge_pages:
        os.environ[TUNABLES] = HUGE_PAGES
    if needs_huge_pages or not is_utf8:
        utf8 = [] if is_utf8 else ["-X", "utf8"]
        # The new program has no handler yet; a blocked signal waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execv(sys.executable, [sys.executable, *utf8, *sys.orig_argv[1:]])


def raise_keyboard_interrupt() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt`, in commands that clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _huge_pages_are_on_request() -> bool:
    from pathlib import Path

    try:
        return "[madvise]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:  # not Linux
        return False


def _end(number: int, frame: FrameType | None) -> None:
    """End the process at once. An exception might be swallowed by whatever is being imported."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else "train"
    os.write(2, f"python -m {module}: interrupted\n".encode())
    os._exit(INTERRUPTED)
