"""Image files below a folder, and the reasons why other files are skipped.

Symbolic links are followed unless they lead back to a folder that contains them.
"""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from train.data import images

ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
)
AVIF, HEIF = frozenset((".avif",)), frozenset((".heic", ".heif", ".hif"))

SYSTEM_NAMES = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found")
)

HIDDEN = "hidden files"
SYSTEM = "files of the operating system"
BROKEN = "broken or circular symbolic links"
REPEATED = "symbolic links to folders that were already read"
SPECIAL = "pipes, sockets and devices"


class Folder(NamedTuple):
    """A folder, with what is needed to detect circular symbolic links."""

    path: str
    real: tuple[str, ...]
    """Its path without symbolic links, after those of the folders whose links led to it."""

    @property
    def name(self) -> str:
        """Last part of its path."""
        return os.path.basename(self.path)


def open_folder(path: Path) -> Folder:
    """The folder at a path."""
    return Folder(os.path.abspath(path), (os.path.realpath(path),))


def scan(folder: Folder, skipped: Counter[str]) -> tuple[list[str], list[Folder]]:
    """List what is directly in a folder.

    Args:
        folder: the folder.
        skipped: number of skipped files by reason; it is updated.

    Returns:
        Names of image files, and folders; both sorted by name.
    """
    names: list[str] = []
    folders: list[Folder] = []
    with os.scandir(folder.path) as entries:
        for entry in entries:
            if (reason := _reason_to_ignore(entry.name)) is not None:
                if count := _count_all(entry):
                    skipped[reason] += count
                continue
            kind = _kind(entry)
            if kind == "folder":
                inner = _enter(folder, entry)
                if inner is None:
                    skipped[BROKEN] += 1
                else:
                    folders.append(inner)
            elif kind == "file" and (reason := reason_to_skip(entry.name)) is None:
                names.append(entry.name)
            else:
                skipped[reason or kind] += 1
    return sorted(names), sorted(folders, key=lambda inner: inner.name)


def _reason_to_ignore(name: str) -> str | None:
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name.lower() in SYSTEM_NAMES else None


def reason_to_skip(name: str) -> str | None:
    """Why a file of this name is not read; None if its ending is that of an image."""
    ending = os.path.splitext(name)[1].lower()
    if ending in ENDINGS:
        return None
    if ending in AVIF:
        return None if images.HAS_AVIF else "AVIF images, which need 'pip install -U pillow'"
    if ending in HEIF:
        return None if images.HAS_HEIF else "HEIC images, which need 'pip install pillow-heif'"
    return f"files ending in {portable(ending)}" if ending else "files without an ending"


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    return BROKEN if entry.is_symlink() else SPECIAL


def _enter(folder: Folder, entry: os.DirEntry[str]) -> Folder | None:
    """The folder of an entry, or None if it is a link to a folder that contains it."""
    *others, last = folder.real
    if not entry.is_symlink():
        return Folder(entry.path, (*others, os.path.join(last, entry.name)))
    target = os.path.realpath(entry.path)
    start = os.path.join(target, "")
    if any(real == target or real.startswith(start) for real in folder.real):
        return None
    return Folder(entry.path, (*folder.real, target))


def _count_all(entry: os.DirEntry[str]) -> int:
    """Number of files that are ignored with an entry."""
    if entry.is_dir(follow_symlinks=False):
        return sum(len(files) for _, _, files in os.walk(entry.path))
    return 1


def walk(folder: Folder, skipped: Counter[str], prefix: str = "") -> Iterator[str]:
    """Find the image files below a folder.

    Args:
        folder: the folder.
        skipped: number of skipped files by reason; it is updated.
        prefix: start of every path that is yielded.

    Yields:
        Paths relative to the folder.
    """
    pending = [(prefix, folder)]
    linked: set[str] = set()  # links to one another would lead to a factorial number of paths
    while pending:
        start, current = pending.pop()
        names, folders = scan(current, skipped)
        yield from (start + name for name in names)
        for inner in folders:
            if len(inner.real) > len(current.real):
                if inner.real[-1] in linked:
                    skipped[REPEATED] += 1
                    continue
                linked.add(inner.real[-1])
            pending.append((f"{start}{inner.name}/", inner))


def contains_image(folder: Folder) -> bool:
    """Whether there is an image file anywhere below a folder."""
    return next(walk(folder, Counter()), None) is not None


def count_files(folder: Folder) -> int:
    """Number of files of any kind below a folder."""
    skipped: Counter[str] = Counter()
    return sum(1 for _ in walk(folder, skipped)) + skipped.total()


def portable(path: str) -> str:
    r"""A path as text that any system can store: composed letters, and \xNN for odd bytes."""
    if path.isascii():
        return path
    text = os.fsencode(path).decode(errors="backslashreplace")
    return unicodedata.normalize("NFC", text)
