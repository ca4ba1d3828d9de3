"""Errors that end a command with one line and no traceback."""

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
