"""Fashion-MNIST from local copies of its four files."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

SPLITS = {"train": "train", "test": "t10k"}
CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip


def check_archives(folder: Path) -> None:
    """Check that all four files exist, with or without `.gz`.

    Raises:
        ValueError: if a file is missing.
    """
    names = [
        f"{s}-{kind}-ubyte" for s in SPLITS.values() for kind in ("images-idx3", "labels-idx1")
    ]
    missing = [
        name for name in names if not any((folder / (name + end)).is_file() for end in ("", ".gz"))
    ]
    if missing:
        raise ValueError(f"--archives {folder} lacks {', '.join(missing)}")


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an array of bytes in IDX format, gzipped or not.

    Raises:
        ValueError: if the file is damaged, truncated or not in IDX format.
    """
    zipped = folder / f"{name}.gz"
    try:
        data = (
            gzip.decompress(zipped.read_bytes())
            if zipped.exists()
            else (folder / name).read_bytes()
        )
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{zipped.name} is damaged: {error}") from None
    # Header: 0, 0, 8 (unsigned bytes), the number of dimensions, and each as a big-endian int32.
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{name} is not in the IDX format")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape):
        raise ValueError(f"{name} has {values.size} values, but its header says {np.prod(shape)}")
    return values.reshape(shape)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 training and 10,000 test images of 28x28 pixels (Xiao et al. 2017, arXiv:1708.07747).

    tensorflow-datasets' own builder has the same name and features, but it downloads the files,
    accepts only one compressed version of them, and needs TensorFlow.

    Args:
        data_dir: folder for data sets prepared by tensorflow-datasets.
        archives: folder with the four files.
    """

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")

    def __init__(self, *, data_dir: Path, archives: Path) -> None:
        self._archives = archives
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of clothing, a drop-in replacement for MNIST.",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, object]:
        return {split: self._generate_examples(start) for split, start in SPLITS.items()}

    def _generate_examples(self, start: str) -> Iterator[tuple[int, dict[str, object]]]:
        images = read_idx(self._archives, f"{start}-images-idx3-ubyte")
        labels = read_idx(self._archives, f"{start}-labels-idx1-ubyte")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            _, png = cv2.imencode(".png", image)
            yield index, {"image": io.BytesIO(png.tobytes()), "label": int(label)}
