"""Errors that end a command with one line and no traceback."""

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
