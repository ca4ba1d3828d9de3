"""CIFAR-10 and CIFAR-100 from their published archives, in the binary or the Python version."""

import codecs
import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.data.formats.arrays import as_png
from train.data.formats.source import TEST, TRAIN, Example, Source, shuffled
from train.errors import UsageError

VERSION = "3.0.2"  # of tensorflow-datasets
SHAPE = 32, 32, 3
NUM_VALUES = 3 * 32 * 32  # of an image: its red, green and blue channels, each row by row


class Version(NamedTuple):
    """One of the published versions of a data set."""

    archive: str
    folder: str
    """Folder in the archive."""
    files: dict[str, list[str]]
    """Files of each split, in their order."""
    class_names: str
    """File with the names of the classes."""
    key: str = ""
    """Key of the labels in a pickle."""
    num_labels: int = 1
    """Bytes before the values of an image in a binary file. The last one is the label."""


CIFAR10 = [
    Version(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        files={TRAIN: [f"data_batch_{n}.bin" for n in range(1, 6)], TEST: ["test_batch.bin"]},
        class_names="batches.meta.txt",
    ),
    Version(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        files={TRAIN: [f"data_batch_{n}" for n in range(1, 6)], TEST: ["test_batch"]},
        class_names="batches.meta",
        key="label",
    ),
]
CIFAR100 = [
    Version(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        files={TRAIN: ["train.bin"], TEST: ["test.bin"]},
        class_names="fine_label_names.txt",
        num_labels=2,  # the coarse and the fine one
    ),
    Version(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        files={TRAIN: ["train"], TEST: ["test"]},
        class_names="meta",
        key="fine_label",
    ),
]


def open_cifar10(archives: Path) -> Source:
    """Read CIFAR-10 (Krizhevsky 2009): the data set that tensorflow-datasets prepares.

    Args:
        archives: folder with a published archive, or with its unpacked folder.

    Raises:
        UsageError: if there is none, or if it is damaged.
    """
    return _open_source(CIFAR10, archives, num_classes=10)


def open_cifar100(archives: Path) -> Source:
    """Read CIFAR-100 (Krizhevsky 2009) with its 100 fine labels, as `open_cifar10` does."""
    return _open_source(CIFAR100, archives, num_classes=100)


def _open_source(versions: list[Version], archives: Path, num_classes: int) -> Source:
    for version in versions:
        if (archives / version.folder).is_dir():
            path = archives / version.folder
            break
        if (archives / version.archive).is_file():
            path = archives / version.archive
            break
    else:
        known = ", ".join(name for v in versions for name in (v.archive, f"{v.folder}/"))
        raise UsageError(
            f"--archives {archives} contains none of {known}; download an archive from "
            "https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    needed = [version.class_names, *(name for names in version.files.values() for name in names)]
    files = _in_folder(path, needed) if path.is_dir() else _in_archive(path, version.folder, needed)
    if missing := [name for name in needed if name not in files]:
        raise UsageError(f"{path} lacks {', '.join(missing)}; unpack or download it again")
    decode = _decode_pickle if version.key else _decode_binary
    class_names = _class_names(
        files[version.class_names], f"{path}: {version.class_names}", version
    )
    if len(class_names) != num_classes:
        raise UsageError(
            f"{path}: {version.class_names} has {len(class_names)} names instead of {num_classes}"
        )
    images: dict[str, np.ndarray] = {}
    examples: list[Example] = []
    for split, names in version.files.items():
        parts = [decode(files[name], f"{path}: {name}", version, num_classes) for name in names]
        images[split] = np.concatenate([some for some, _ in parts])
        labels = [label for _, some in parts for label in some]
        # The key by which tensorflow-datasets shuffles is the index.
        examples += [
            Example(split, str(index), label, (split, index)) for index, label in enumerate(labels)
        ]

    def read(example: Example) -> bytes:
        split, index = example.location
        return as_png(np.ascontiguousarray(images[split][index].transpose(1, 2, 0)))

    return Source(
        origin=f"the {'folder' if path.is_dir() else 'archive'} {path.absolute()}",
        class_names=class_names,
        examples=[
            example._replace(name=f"{example.split}_{example.location[1]:05d}")
            for example in shuffled(examples)
        ],
        read=read,
        image_shape=SHAPE,
        version=VERSION,
    )


def _in_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _in_archive(archive: Path, folder: str, names: Iterable[str]) -> dict[str, bytes]:
    try:
        unzipped = gzip.decompress(archive.read_bytes())  # whole, which checks its CRC
        with tarfile.open(fileobj=io.BytesIO(unzipped), mode="r:") as tar:
            members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
            found = {name: members.get(f"{folder}/{name}") for name in names}
            opened = {name: tar.extractfile(member) for name, member in found.items() if member}
            return {name: file.read() for name, file in opened.items() if file}
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{archive} is damaged: {error}; download it again") from None


def _class_names(data: bytes, name: str, version: Version) -> list[str]:
    if not version.key:
        return [name for name in data.decode(errors="replace").split("\n") if name]
    key = f"{version.key}_names"
    names = load_pickle(data, name).get(key.encode())
    if not (isinstance(names, list) and all(isinstance(name, bytes) for name in names)):
        raise UsageError(f"{name} has no list {key}")
    return [name.decode(errors="replace") for name in names]


def _decode_binary(
    data: bytes, name: str, version: Version, num_classes: int
) -> tuple[np.ndarray, list[int]]:
    """Images, uint8 (N, 3, 32, 32), and labels of a binary file."""
    size = version.num_labels + NUM_VALUES
    if not data or len(data) % size:
        raise UsageError(
            f"{name} has {len(data)} bytes, not a multiple of {size}; it is truncated or another "
            "file"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = rows[:, version.num_labels - 1].tolist()
    _check_labels(labels, name, num_classes)
    return rows[:, version.num_labels :].reshape(-1, 3, 32, 32), labels


def _decode_pickle(
    data: bytes, name: str, version: Version, num_classes: int
) -> tuple[np.ndarray, list[int]]:
    """Images, uint8 (N, 3, 32, 32), and labels of a pickle."""
    fields = load_pickle(data, name)
    rows, labels = fields.get(b"data"), fields.get(f"{version.key}s".encode())
    if not (
        isinstance(rows, np.ndarray)
        and isinstance(labels, list)
        and rows.shape == (len(labels), NUM_VALUES)
    ):
        raise UsageError(
            f"{name} must have an array 'data' of the shape (N, {NUM_VALUES}) and a list "
            f"'{version.key}s' of the length N"
        )
    _check_labels(labels, name, num_classes)
    return rows.reshape(-1, 3, 32, 32), labels


def _check_labels(labels: Iterable[Any], name: str, num_classes: int) -> None:
    for label in labels:
        if not (isinstance(label, int) and 0 <= label < num_classes):
            raise UsageError(f"{name} has the label {label!r}; it must be 0 to {num_classes - 1}")


class _Array:
    """Substitute for `numpy.ndarray`, which could be called with arbitrary memory."""


class _Unpickler(pickle.Unpickler):
    """An unpickler that creates only arrays of bytes, lists, dicts, strings and numbers."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name.replace('numpy._core', 'numpy.core')}.{global_name}"
        allowed: dict[str, Callable[..., Any] | type] = {
            "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, np.uint8),
            "numpy.ndarray": _Array,
            "numpy.dtype": _dtype,
            "_codecs.encode": lambda text, _: codecs.encode(text, "latin1"),
        }
        if name not in allowed:
            raise pickle.UnpicklingError(f"it asks for {name}, which CIFAR does not need")
        return allowed[name]


def _dtype(name: str | bytes, *_: object) -> "np.dtype[np.uint8]":
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it has an array of {name!r} instead of bytes")
    return np.dtype(np.uint8)


def load_pickle(data: bytes, name: str) -> dict[Any, Any]:
    """Read a pickle of Python 2 without running anything that it contains.

    Args:
        data: the pickle.
        name: its name, for errors.

    Raises:
        UsageError: if it is damaged, or contains anything but arrays, lists, dicts, strings and
            numbers.
    """
    try:
        fields = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle runs into anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name} cannot be read: {reason}; download it again") from None
    if not isinstance(fields, dict):
        raise UsageError(f"{name} contains {type(fields).__name__} instead of dict")
    return fields
