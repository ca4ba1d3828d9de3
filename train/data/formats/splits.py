"""Files of a data set and the splits that they belong to, by their names or by `--split`."""

import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from train.data.formats.source import SPLITS, TRAIN
from train.data.formats.source import Options as SourceOptions
from train.errors import UsageError, check_is_local

WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])", re.IGNORECASE)
POINTER = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Flags of formats that keep many images in a file."""

    files: tuple[str, ...] = dataclasses.field(default=(), metadata={"positional": "FILES"})
    """Files, folders, or quoted patterns such as 'data/*' or 'train-{000..146}.tar'."""

    split: tuple[tuple[str, ...], ...] = dataclasses.field(
        default=(), metadata={"repeatable": True, "metavar": "SPLIT=PATTERN"}
    )
    """Assign files to train, validation or test, such as train='a*' validation=b. Default: find
    these words in the names of the files and their folders."""


class File(NamedTuple):
    """A file of a data set."""

    path: Path
    split: str
    name: str
    """Path relative to the folder that contains all files."""


def find_files(options: Options, ending: str) -> list[File]:
    """Find the files of a data set and assign them to splits.

    Args:
        options: files and their splits.
        ending: suffix of the files in a folder, such as .tar.

    Returns:
        The files, sorted by name. They all belong to `TRAIN` if no name contains a split.

    Raises:
        UsageError: if a file is missing, or its split is unclear.
    """
    assigned = [
        (path, split)
        for split, pattern in _assignments(options.split)
        for path in _expand(pattern, ending)
    ]
    known = {os.path.realpath(path) for path, _ in assigned}
    others = dict.fromkeys(
        path
        for pattern in options.files
        for path in _expand(pattern, ending)
        if os.path.realpath(path) not in known
    )
    paths = [*(path for path, _ in assigned), *others]
    if not paths:
        raise UsageError(f"FILES is missing; name *{ending} files, a folder, or a quoted pattern")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    named = {path: _split_of(path.relative_to(root)) for path in others}
    unnamed = [path for path, split in named.items() if split is None]
    if unnamed and (assigned or any(named.values())):
        raise UsageError(
            f"{unnamed[0]} has no split in its name, but other files have one; assign it with "
            f"--split, such as --split train={unnamed[0]}"
        )
    files: dict[str, File] = {}  # by real path, since one file may have several names
    for path, split in [*assigned, *named.items()]:
        file = File(path, split or TRAIN, str(path.relative_to(root)))
        other = files.setdefault(os.path.realpath(path), file)
        if other.split != file.split:
            names = str(path) if path == other.path else f"{path}, which is {other.path},"
            raise UsageError(
                f"{names} is in the splits '{other.split}' and '{file.split}'; name it once, or "
                "assign it to one of them with --split"
            )
    return sorted(files.values(), key=lambda file: file.name)


def origin(files: Sequence[File], kind: str) -> str:
    """What a data set is prepared from, in words.

    Args:
        files: the files.
        kind: what each is, such as "Parquet file".
    """
    if len(files) == 1:
        return f"the {kind} {files[0].path}"
    return f"{len(files)} {kind}s in {str(files[0].path).removesuffix(files[0].name).rstrip('/')}"


def unreadable(path: Path, kind: str, error: Exception | str) -> UsageError:
    """An error in one line about a file that is not what it should be.

    Args:
        path: the file.
        kind: what it should be, such as "Parquet file".
        error: what a library said about it.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            return UsageError(f"{path} is only a pointer of Git LFS; download it with git lfs pull")
    return UsageError(f"{path} is not a complete {kind}: {' '.join(str(error).split())}")


def _assignments(flags: Iterable[Sequence[str]]) -> Iterator[tuple[str, str]]:
    for text in (text for values in flags for text in values):
        word, equals, pattern = text.partition("=")
        if word.lower() not in SPLITS or not pattern:
            what = f"the split {word} is unknown" if equals and pattern else "it has no pattern"
            raise UsageError(
                f"--split {text}: {what}; it must be train=PATTERN, validation=PATTERN or "
                "test=PATTERN"
            )
        yield SPLITS[word.lower()], pattern


def _split_of(name: Path) -> str | None:
    """The split that the name of a file or of its folders contains; None if none does."""
    found = [{SPLITS[word.lower()] for word in WORD.findall(part)} for part in name.parts]
    splits = set[str]().union(*found)
    if len(splits) > 1:
        raise UsageError(
            f"{name} contains the splits {' and '.join(sorted(splits))} in its name; assign it to "
            f"one of them with --split, such as --split {min(splits)}={name.name}"
        )
    return next(iter(splits), None)


def _expand(pattern: str, ending: str) -> Iterator[Path]:
    """Absolute paths of the files that a path, a folder or a pattern stands for."""
    check_is_local("the file", pattern)
    pattern = os.path.expanduser(pattern)
    for text in [pattern] if os.path.exists(pattern) else expand_braces(pattern):
        paths = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
        if not paths:
            what = "matches nothing" if glob.has_magic(text) else "does not exist"
            raise UsageError(f"the file '{text}' {what}; name existing files or a folder")
        for path in map(Path, map(os.path.abspath, paths)):
            yield from _in_folder(path, ending) if path.is_dir() else [path]


def _in_folder(folder: Path, ending: str) -> list[Path]:
    files = [
        path
        for path in sorted(folder.rglob(f"*{ending}"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    if not files:
        raise UsageError(f"the folder {folder} contains no *{ending} files; name the files")
    return files


BRACES = re.compile(r"\{([^{}]*,[^{}]*|(-?\d+)\.\.(-?\d+))\}")


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand {a,b} and {08..11} as shells do, one path at a time, since a range may be long.

    Args:
        pattern: text with any number of braces. Braces without a comma or a range stay.
    """
    if (braces := BRACES.search(pattern)) is None:
        yield pattern
        return
    inner, first, last = braces.groups()
    if first is None:
        choices: Iterable[str] = inner.split(",")
    else:
        start, stop = int(first), int(last)
        is_padded = any(re.match(r"-?0\d", end) for end in (first, last))
        width = max(len(first), len(last)) if is_padded else 0
        step = 1 if start <= stop else -1
        choices = (f"{number:0{width}d}" for number in range(start, stop + step, step))
    for choice in choices:
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])
