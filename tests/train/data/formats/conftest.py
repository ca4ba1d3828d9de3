"""Fixtures of the formats' tests: images to prepare, and a short run on what was prepared."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train import prepare
from train.__main__ import main
from train.data.dataset import open_dataset
from train.data.records import Dataset
from train.recipes import tfds

WriteImages = Callable[..., list[Path]]
WriteSplits = Callable[..., None]
ThreeSteps = Callable[[str, Path], dict[str, Any]]
PrepareFolder = Callable[..., Dataset]


@pytest.fixture
def write_images() -> WriteImages:
    """Function that writes a number of distinct color images into a folder."""

    def write(folder: Path, number: int, ending: str = ".png") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{index}{ending}" for index in range(number)]
        for path in paths:
            rng = np.random.default_rng(zlib.crc32(os.fsencode(path)))
            Image.fromarray(rng.integers(256, size=(9, 11, 3), dtype=np.uint8)).save(path)
        return paths

    return write


@pytest.fixture
def write_splits(write_images: WriteImages) -> WriteSplits:
    """Function that writes split folders, each with this many images of the classes a and b."""

    def write(root: Path, **numbers: int) -> None:
        for split, number in numbers.items():
            for name in "ab":
                write_images(root / split / name, number)

    return write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder for images."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder for prepared data sets that does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def prepare_folder() -> PrepareFolder:
    """Function that prepares a folder as `mine` in a data_dir, with flags, and opens the result."""

    def run(root: Path, data_dir: Path, *flags: str) -> Dataset:
        command = ["image-folder", str(root), "--name", "mine", "--data-dir", str(data_dir)]
        assert prepare.main([*command, *flags]) == 0
        return open_dataset(tfds().replace(dataset="mine", data_dir=data_dir))

    return run


@pytest.fixture
def three_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> ThreeSteps:
    """Function that trains three steps on the data set of a name in a data_dir.

    The data set needs at least 8 training images. The result is the last record of metrics.jsonl,
    after an evaluation on all images.
    """

    def run(name: str, data_dir: Path) -> dict[str, Any]:
        workdir = tmp_path / "runs" / name
        command = ["tfds", "--dataset", name, "--data-dir", str(data_dir)]
        command += ["--workdir", str(workdir), "--model", "resnet8", "--image-size", "8"]
        command += ["--augmentation", "shift", "--num-workers", "8", "--num-steps", "3"]
        command += ["--batch-size-per-worker", "1", "--warmup", "none"]
        assert main(command) == 0, capsys.readouterr().err
        record = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        assert record["step"] == 3
        assert np.isfinite(record["train/loss"])
        return record

    return run
