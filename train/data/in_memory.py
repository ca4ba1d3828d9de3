"""Small images, decoded once: an array for each split, and a file of it for the next start.

The files are in the folder of the data set. They are memory-mapped, so the processes on a host
share one copy. A file's name covers the data, the size of the images and the versions of the
decoders. A file is written under another name, fsynced and renamed, so a kill leaves no part of it.
Meanwhile its writer holds a lock, which the kernel releases whenever the process ends.

Shapes: N examples of a split, S the side of the network's input, C channels.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import PIL
import simplejpeg

from train.config import Config, Experiment
from train.data.augmentation import AUGMENTATIONS
from train.data.reader import reader_threads
from train.data.records import Dataset, read_example
from train.errors import DataError
from train.step.examples import NO_LABEL

EXAMPLES_AT_ONCE = 64  # decoded by a thread at a time
DECODERS = (cv2, PIL, simplejpeg)
GIGABYTE = 1e9


def decode_once(config: Config, dataset: Dataset, say: Callable[[str], None]) -> Dataset:
    """Decode the images of a data set, or open what an earlier start has decoded.

    Args:
        config: configuration of the run.
        dataset: its data set.
        say: prints a line.

    Returns:
        The data set with its `decoded` arrays. It is unchanged for photographs, for synthetic data,
        and if the arrays would exceed `--max-decoded-gb`. A corrupt image gets `NO_LABEL`; the run
        ends when it needs that image, as it does without the arrays.
    """
    experiment, limit = config.experiment, config.machine.max_decoded_gb
    is_synthetic = experiment.data == "synthetic"
    if AUGMENTATIONS[experiment.augmentation].for_photographs or is_synthetic or limit == 0:
        return dataset
    splits = ("train", dataset.evaluation_split)
    num_examples = sum(len(dataset.records(split)) for split in splits)
    needed = num_examples * _dtype(experiment).itemsize / GIGABYTE
    if limit is None:
        limit = _half_of_free_memory() / GIGABYTE
    if needed > limit:
        say(
            f"the decoded images would take {needed:.2g} GB, more than {limit:.2g} GB "
            "(--max-decoded-gb, by default half of the free memory): images are decoded whenever "
            "they are needed"
        )
        return dataset
    decoded = {split: _open_or_decode(config, dataset, split, say) for split in splits}
    return dataclasses.replace(dataset, decoded=decoded)


def _open_or_decode(
    config: Config, dataset: Dataset, split: str, say: Callable[[str], None]
) -> np.ndarray:
    """The examples of a split, (N,) of `_dtype`, memory-mapped if possible."""
    num_examples = len(dataset.records(split))
    if dataset.folder is None:
        return np.concatenate(list(_decode(config, dataset, split)))
    folder = dataset.folder / "decoded"
    size = "x".join(map(str, _dtype(config.experiment)["image"].shape))
    path = folder / f"{split}-{size}-{_identity(dataset)}.npy"
    if (decoded := _memory_mapped(path)) is not None:
        return decoded
    say(f"decoding the {num_examples} images of the split '{split}' once: {path}")
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder / "lock"):
            # Another process may have decoded the split while this one waited.
            if (decoded := _memory_mapped(path)) is None:
                for stale in folder.glob(f"{split}-{size}-*.npy"):
                    stale.unlink()
                _write(path, num_examples, _decode(config, dataset, split))
                decoded = _memory_mapped(path)
    except OSError as error:  # read-only or full, for example
        decoded = None
        say(f"{folder} cannot be used: {error.strerror}; the next start will decode again")
    return np.concatenate(list(_decode(config, dataset, split))) if decoded is None else decoded


def _decode(config: Config, dataset: Dataset, split: str) -> Iterator[np.ndarray]:
    """Decode the examples of a split in threads and yield them in order, some at a time."""
    experiment, num_examples = config.experiment, len(dataset.records(split))
    crop = AUGMENTATIONS[experiment.augmentation].evaluation_crop

    def decode(first: int) -> np.ndarray:
        examples = range(first, min(first + EXAMPLES_AT_ONCE, num_examples))
        some = np.zeros(len(examples), _dtype(experiment))
        for row, example in enumerate(examples):
            try:
                image, label = read_example(dataset, split, example, config)
            except DataError:
                some["label"][row] = NO_LABEL
            else:
                some[row] = crop(image, experiment.image_size), label
        return some

    with ThreadPoolExecutor(reader_threads(config.machine)) as pool:
        try:
            yield from pool.map(decode, range(0, max(1, num_examples), EXAMPLES_AT_ONCE))
        finally:
            pool.shutdown(cancel_futures=True)


def _dtype(experiment: Experiment) -> np.dtype:
    """Type of a decoded example: an image, uint8 (S, S, C), and its label."""
    side = experiment.image_size
    shape = (side, side, experiment.num_channels)
    return np.dtype([("image", np.uint8, shape), ("label", np.int32)])


def _identity(dataset: Dataset) -> str:
    """Digest of everything that determines decoded examples, apart from the size of the images.

    A fingerprint covers only the ends of large files, so the times of their last change are
    included.
    """
    assert dataset.folder is not None
    files = sorted(path for path in dataset.folder.iterdir() if "array_record" in path.name)
    facts = [
        dataset.fingerprint and dataset.fingerprint.to_json(),
        [(path.name, path.stat().st_mtime_ns) for path in files],
        [(decoder.__name__, decoder.__version__) for decoder in DECODERS],
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _memory_mapped(path: Path) -> np.ndarray | None:
    """Array that a file holds, memory-mapped; None if the file is missing or incomplete."""
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError):
        return None


def _write(path: Path, num_examples: int, parts: Iterator[np.ndarray]) -> None:
    """Write an array to a file, part by part, so that no second copy is in memory."""
    unfinished = path.with_suffix(".incomplete")
    try:
        with unfinished.open("wb") as file:
            for index, part in enumerate(parts):
                if index == 0:
                    descr = np.lib.format.dtype_to_descr(part.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": (num_examples,)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(part.tobytes())
            file.flush()
            os.fsync(file.fileno())  # otherwise the rename may reach the disk before the array
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _half_of_free_memory() -> float:
    try:
        return available_bytes() / 2
    except (OSError, ValueError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4


def available_bytes() -> int:
    """Available memory in bytes, capped by the container limit."""
    [free] = re.findall(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    free, group = 1024 * int(free), Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # not a container, or its limit is "max"
        [used] = re.findall(r"^anon (\d+)$", (group / "memory.stat").read_text(), re.M)
        free = min(free, int((group / "memory.max").read_text()) - int(used))
    return free
