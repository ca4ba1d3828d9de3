"""Folders of prepared data sets: written under another name, and visible only once complete.

The layout is that of tensorflow-datasets: DATA_DIR/NAME/VERSION with ArrayRecord files. A data set
is prepared in DATA_DIR/incomplete.NAME and renamed, so a kill leaves nothing under its name. The
lock in that folder is released by the kernel whenever its holder ends. A version that is replaced
is renamed into that folder before it is deleted, so no kill leaves a part of it either.
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import grain
import joblib
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.sequential_writer import SequentialWriter

from train.data.formats.source import Example, Source
from train.errors import UsageError

EXAMPLES_PER_FILE = 8192  # a training process keeps every file open
DESCRIPTION = "Prepared from {}."
EXAMPLES_AT_ONCE = 256  # the writer updates its metadata after each call


@contextlib.contextmanager
def staging(name: str, data_dir: Path, *, wait: bool = False) -> Iterator[Path]:
    """Lock a name and create the empty folder in which its data set is prepared.

    Args:
        name: name of the data set.
        data_dir: folder of prepared data sets.
        wait: whether to wait for another process that prepares the same name.

    Yields:
        The folder. It is deleted in the end.

    Raises:
        UsageError: if another process is preparing this name.
    """
    folder = data_dir / f"incomplete.{name}"
    with _locked(folder, wait=wait):
        _empty(folder)  # whatever a killed preparation has left
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                _empty(folder)
                # The lock goes last: as soon as it is gone, another process may use the folder.
                (folder / "lock").unlink()
                folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    path = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = path.open("a+")
        except FileNotFoundError:  # its holder has just deleted the folder
            continue
        with lock:
            _lock(lock, folder, wait=wait)
            # A holder that finished meanwhile has deleted the file that was locked here.
            if _is_at(lock, path):
                yield
                return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(lock: TextIO, folder: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        name = folder.name.removeprefix("incomplete.")
        raise UsageError(
            f"{name} is being prepared in {folder.parent} by {holder}; wait for it or stop it"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def write(
    source: Source,
    name: str,
    folder: Path,
    transform: Callable[[bytes], bytes],
    advance: Callable[[int], None],
    config: str = "",
) -> DatasetBuilder:
    """Write a data set as ArrayRecord files, without TensorFlow.

    Args:
        source: the data set.
        name: its name.
        folder: folder of prepared data sets.
        transform: function from an encoded image to the one to be stored.
        advance: called with the number of examples after each few of them.
        config: its variant, for data sets of tensorflow-datasets that have several.

    Returns:
        The builder that reads it.

    Raises:
        UsageError: if a class name cannot be stored.
        OSError: if a file cannot be written.
    """
    _check_class_names(source)
    identity = DatasetIdentity(
        name=name,
        version=tfds.core.Version(source.version),
        data_dir=str(folder / name / config / source.version),
        module_name=__name__,
        config_name=config or None,
    )
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=source.image_shape),
            "label": tfds.features.ClassLabel(names=list(source.class_names)),
            "file_name": tfds.features.Text(),
        }
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=_utf8(DESCRIPTION.format(source.origin)).decode(),
        features=features,
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    Path(identity.data_dir).mkdir(parents=True)
    writer = SequentialWriter(info, EXAMPLES_PER_FILE, file_format="array_record")
    writer.initialize_splits(source.splits)

    def encoded(index: int) -> tuple[Example, bytes]:
        example = source.examples[index]
        return example, transform(source.read(example))

    threads = joblib.cpu_count()
    examples = (
        grain.MapDataset.range(len(source.examples))
        .map(encoded)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8 * threads))
    )
    batch: dict[str, list] = {split: [] for split in source.splits}
    for number, (example, image) in enumerate(examples, start=1):
        batch[example.split].append(
            {"image": image, "label": example.label, "file_name": _utf8(example.name)}
        )
        if number % EXAMPLES_AT_ONCE == 0 or number == len(source.examples):
            with _os_errors():
                writer.add_examples(batch)
            for waiting in batch.values():
                waiting.clear()
        advance(1)
    with _os_errors():
        writer.close_all()
    return tfds.builder_from_directory(identity.data_dir)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raise OSError if the disk is full; the package array-record raises RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from None


def origin_in(description: str) -> str | None:
    """What a data set was prepared from, if `write` has written its description."""
    before, after = DESCRIPTION.split("{}")
    is_ours = description.startswith(before) and description.endswith(after)
    return description.removeprefix(before).removesuffix(after) if is_ours else None


def _utf8(text: str) -> bytes:
    """Encode text that may contain bytes of a file name that are not UTF-8; each becomes "?"."""
    return text.encode(errors="replace")


def _check_class_names(source: Source) -> None:
    """Check that class names survive the file in which tensorflow-datasets keeps one per line."""
    for name in source.class_names:
        is_utf8 = _utf8(name).decode() == name
        if not is_utf8 or name.splitlines() != [name.strip()]:
            reason = "has line breaks or spaces at an end" if is_utf8 else "is not valid UTF-8"
            raise UsageError(
                f"the class name {name!a} of {source.origin} cannot be stored, because it is "
                f"empty or {reason}; rename the class"
            )


def check_free(name: str, data_dir: Path) -> None:
    """Check that a name without a data set is not the name of a folder with other contents.

    Raises:
        UsageError: if it is.
    """
    folder = data_dir / name
    if not folder.exists():
        return
    others = [] if folder.is_dir() else [folder]
    if folder.is_dir():  # tensorflow-datasets leaves incomplete.* behind when it is killed
        others = [path for path in folder.iterdir() if not path.name.startswith("incomplete.")]
    if others:
        raise UsageError(
            f"{folder} exists, but is not a prepared data set (it contains {min(others).name}); "
            "choose another name or --data-dir, or remove it"
        )


def publish(name: str, folder: Path, data_dir: Path) -> None:
    """Give a complete data set its name, by one rename.

    Args:
        name: name of the data set.
        folder: the folder of `staging`, which contains it as NAME/[CONFIG/]VERSION.
        data_dir: folder of prepared data sets.

    Raises:
        UsageError: if this version exists.
    """
    source, target = folder / name, data_dir / name
    while target.is_dir() and any(target.iterdir()):
        if tfds.core.Version.is_valid(target.name):
            raise UsageError(f"{target} exists already; remove it or choose another name")
        # tensorflow-datasets keeps the name of the default variant in .config.
        (inner,) = (p for p in source.iterdir() if p.is_dir() and p.name != ".config")
        source, target = inner, target / inner.name
    os.rename(source, target)


def versions(folder: Path) -> list[Path]:
    """Folders of the versions of a data set, from its folder NAME/[CONFIG/]."""
    return [
        path
        for path in sorted(folder.iterdir())
        if tfds.core.Version.is_valid(path.name) and (path / "features.json").exists()
    ]


def discard(paths: Sequence[Path], folder: Path) -> None:
    """Move folders into the folder of `staging`, which is deleted in the end."""
    for path in paths:
        os.rename(path, folder / f"replaced.{path.name}")
