"""Fixtures for the tests of the experiments: a small substitute for Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from train.data.formats.fashion_mnist import open_source
from train.data.formats.source import Options
from train.data.preparation import prepare


@pytest.fixture(scope="session")
def fashion_mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with 1,024 training and 64 test images; a bright square marks the class."""
    archives, data_dir = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for start, number in (("train", 1024), ("t10k", 64)):
        labels = rng.integers(10, size=number, dtype=np.uint8)
        images = rng.integers(128, size=(number, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 6 * (label // 4) + 2, 6 * (label % 4) + 2
            image[top : top + 5, left : left + 5] += 127
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            shape = np.array(values.shape, ">i4").tobytes()
            head = b"\0\0\x08" + bytes([values.ndim]) + shape
            path = archives / f"{start}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + values.tobytes()))
    options = Options(name="fashion_mnist", data_dir=data_dir)
    prepare(open_source(archives), options, lambda *_: lambda _: None)
    return data_dir
