"""Fashion-MNIST from local copies of its four files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from train.data.formats.arrays import as_png
from train.data.formats.source import TEST, TRAIN, Example, Source, shuffled
from train.errors import UsageError

FILES = {TRAIN: "train", TEST: "t10k"}  # the starts of their names
CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip
SHAPE = 28, 28, 1


def open_source(archives: Path) -> Source:
    """Read 60,000 training and 10,000 test images (Xiao et al. 2017, arXiv:1708.07747).

    The data set is the one that tensorflow-datasets prepares. That needs TensorFlow, downloads the
    files, and accepts only one compressed version of them.

    Args:
        archives: folder with the four files, with or without `.gz`.

    Raises:
        UsageError: if a file is missing, damaged, or not the expected one.
    """
    names = [f"{s}-{kind}-ubyte" for s in FILES.values() for kind in ("images-idx3", "labels-idx1")]
    missing = [
        name
        for name in names
        if not any((archives / (name + end)).is_file() for end in ("", ".gz"))
    ]
    if missing:
        raise UsageError(f"--archives {archives} lacks {', '.join(missing)}")
    images: dict[str, np.ndarray] = {}
    examples: list[Example] = []
    for split, start in FILES.items():
        images[split] = _read_idx(archives, f"{start}-images-idx3-ubyte")
        labels = _read_idx(archives, f"{start}-labels-idx1-ubyte")
        if images[split].shape != (len(labels), *SHAPE[:2]) or labels.ndim != 1:
            raise UsageError(
                f"{archives} has {start} images of the shape {images[split].shape} and labels of "
                f"the shape {labels.shape}; they must have the shapes (N, 28, 28) and (N,)"
            )
        if (labels >= len(CLASSES)).any():
            raise UsageError(f"{start}-labels-idx1-ubyte has the label {labels.max()}, not 0 to 9")
        examples += [
            Example(split, str(index), label, (split, index))
            for index, label in enumerate(labels.tolist())
        ]
    return Source(
        origin=f"the four files of Fashion-MNIST in {archives.absolute()}",
        class_names=CLASSES,
        examples=shuffled(examples),
        read=lambda example: as_png(images[example.location[0]][example.location[1]][..., None]),
        image_shape=SHAPE,
        version="3.0.1",
    )


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an array of bytes in IDX format, gzipped or not."""
    zipped = folder / f"{name}.gz"
    try:
        data = (
            gzip.decompress(zipped.read_bytes())
            if zipped.exists()
            else (folder / name).read_bytes()
        )
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{zipped} is damaged: {error}") from None
    # Header: 0, 0, 8 (unsigned bytes), the number of dimensions, and each as a big-endian int32.
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UsageError(f"{folder / name} is not in the IDX format")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4).tolist()
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape):
        raise UsageError(
            f"{folder / name} has {values.size} values, but its header says {np.prod(shape)}"
        )
    return values.reshape(shape)
