"""Errors that end a command with one line and no traceback."""

import math
import os
import re
from pathlib import Path


class UsageError(Exception):
    """A mistake of the user; exit code 2."""


class RunError(Exception):
    """A condition that stops a run without anyone's mistake, such as a full disk; exit code 1."""


class DataError(RunError):
    """A data set with faulty files."""


def flag(field: str) -> str:
    """The command-line flag that sets a configuration field."""
    return "--" + field.replace("_", "-")


def check_number(
    field: str,
    value: float | None,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
) -> None:
    """Reject the value of a flag that is not finite or outside the bounds.

    Args:
        field: name of the configuration field that the flag sets.
        value: its value; None, which stands for a default, is allowed.
        above: exclusive lower bound.
        minimum: inclusive lower bound.
        maximum: inclusive upper bound.
        below: exclusive upper bound.

    Raises:
        UsageError: in one line with the flag, its value and the bounds.
    """
    # NaN fails all comparisons, infinity the strict ones.
    if value is None or (above < value < below and minimum <= value <= maximum):
        return
    if -math.inf < minimum and maximum < math.inf:
        bounds = [f"from {minimum} to {maximum}"]
    else:
        bounds = [f"more than {above}"] if above > -math.inf else []
        bounds += [f"at least {minimum}"] if minimum > -math.inf else []
        bounds += [f"at most {maximum}"] if maximum < math.inf else []
        bounds += [f"less than {below}"] if below < math.inf else []
    bounds += [] if math.isfinite(value) or maximum < math.inf or below < math.inf else ["finite"]
    raise UsageError(f"{flag(field)} is {shown(value)}; it must be {' and '.join(bounds)}")


def check_folder(field: str, folder: Path) -> None:
    """Reject a folder that cannot be created because a file has its name, or that of a parent.

    Args:
        field: name of the configuration field that the flag sets.
        folder: the folder.

    Raises:
        UsageError: with the flag, the folder and the file.
    """
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise UsageError(f"{flag(field)} {folder} cannot be used: {path} is a file")


def check_writable(field: str, path: Path) -> None:
    """Reject the path of a new file if it is a folder, or its folder does not exist.

    Args:
        field: name of the configuration field that the flag sets.
        path: the file.

    Raises:
        UsageError: with the flag and the path.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"{flag(field)} {path} cannot be written: it must be a file in a folder that exists"
        )


def shown(value: float) -> str:
    """A number as one would type it: 30, not 30.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def from_os_error(error: OSError) -> RunError:
    """The file system's refusal as one line: the reason and the file."""
    file = f": {error.filename}" if error.filename else ""
    return RunError(f"{error.strerror or error}{file}")


def unusable_folder(flag: str, folder: Path, error: OSError) -> UsageError | RunError:
    """The reason why a folder from the command line cannot be used.

    Args:
        flag: the flag that named the folder.
        folder: the folder.
        error: what the file system raised. A path that is not a folder is the user's mistake.
    """
    is_mistake = isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError)
    line = f"{flag} {folder} cannot be used: {error.strerror or error}"
    return UsageError(line) if is_mistake else RunError(line)


def check_is_local(name: str, path: Path | str) -> None:
    """Check that a path is not a URL, such as gs://bucket/run.

    Args:
        name: the flag or environment variable that holds it.
        path: the path. `Path` has made one slash of the two in a URL.

    Raises:
        UsageError: if it is a URL.
    """
    if not (url := re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", str(path))):
        return
    if url[1] == "file":
        raise UsageError(f"{name} is file:///{url[2]}; it must be a path, such as /{url[2]}")
    raise UsageError(
        f"{name} is {url[1]}://{url[2]}; it must be a path: mount the bucket, or use a disk that "
        "all hosts share (docs/clusters.md, section Storage)"
    )
