"""Workarounds for behavior of other libraries, each with library, version and upstream issue.

Look here first when a library is updated: whatever it has fixed can go.
"""

import atexit
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NoReturn

STDOUT, STDERR = 1, 2  # file descriptors

QUIET_COMPILATION: dict[str, str | bool] = {"xla_disable_hlo_passes": "constant_folding"}
"""Compiler options for programs that only report their memory.

- jaxlib 0.10.2: XLA logs an alarm that asks to file a bug if it takes more than a second to fold a
  constant, such as the indices of a minibatch of 400,000 images (openxla/xla#1652). Reported sizes
  are the same without that pass.
"""


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


def silence_matplotlib() -> None:
    """Hide what matplotlib 3.11 logs about its caches: that it makes them, or cannot write them.

    It continues without them. No upstream issue was found.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_cluster_detection() -> Iterator[None]:
    """Hide what JAX logs while it detects a cluster. Errors are still raised.

    jax 0.10.2 logs that a cluster "is supported but not functional", and raises KeyError as well;
    it warns about any variable whose name contains "proxy". No upstream issue was found.
    """
    logger = logging.getLogger("jax")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def silence_gloo() -> None:
    """Discard what C++ prints to stdout from now on. `sys.stdout` is not affected.

    jaxlib 0.10.2: Gloo's threads print a line for each connection. Gloo has no option for it.
    """
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), STDOUT)
    sys.stdout = open(  # noqa: SIM115 (stays open until the process ends)
        kept,
        "w",
        buffering=1 if sys.stdout.line_buffering else -1,
        encoding=sys.stdout.encoding,
        errors=sys.stdout.errors,
    )


def exit_without_waiting(code: int) -> NoReturn:
    """End the process without joining threads.

    orbax-checkpoint 0.12.8: after a failed save its threads keep a normal exit waiting for minutes
    (related: google/orbax#392).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exit_without_teardown(code: int) -> NoReturn:
    """End the process by its exit handlers, but without freeing every module and object.

    CPython 3.11 takes a second for that after JAX and Matplotlib were imported. No upstream issue
    was found.
    """
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    exit_without_waiting(code)


@contextlib.contextmanager
def quiet_tensorflow_datasets() -> Iterator[None]:
    """Hide what tensorflow-datasets and TensorFlow print, draw, log and leave behind.

    Errors are still raised.

    - tensorflow-datasets 4.9.10 prints before and after a preparation and draws a bar for each
      file. Only the bars have an option. No upstream issue was found.
    - tensorflow-datasets 4.9.10 creates an empty folder in /tmp for the metadata in its bucket,
      whenever it opens a data set that is not prepared yet, and never deletes it. That metadata is
      replaced by the preparation. No upstream issue was found.
    - TensorFlow 2.21 writes to the file descriptor of stderr while it is imported, whatever
      `TF_CPP_MIN_LOG_LEVEL` says (tensorflow/tensorflow#100442).
    """
    # Imported here because it takes a second, and every command imports this module.
    from tensorflow_datasets.core.dataset_info import DatasetInfo
    from tensorflow_datasets.core.utils import tqdm_utils

    tqdm_utils.disable_progress_bar()
    DatasetInfo.initialize_from_bucket = lambda self: None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    disabled_level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stderr.flush()
    with open(os.devnull, "w") as nothing, os.fdopen(os.dup(STDERR), "w") as terminal:
        os.dup2(nothing.fileno(), STDERR)
        try:
            with (
                contextlib.redirect_stdout(nothing),
                contextlib.redirect_stderr(nothing),
                warnings.catch_warnings(action="ignore"),
            ):
                yield
        finally:
            os.dup2(terminal.fileno(), STDERR)
            logging.disable(disabled_level)
