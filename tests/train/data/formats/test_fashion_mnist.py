"""Tests of Fashion-MNIST from its four files."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from train.config import JsonObject
from train.data.dataset import open_dataset
from train.data.formats.fashion_mnist import CLASSES
from train.data.images import decode
from train.data.records import Dataset, Records
from train.prepare import main
from train.recipes import tfds

ROOT = Path(__file__).parents[4]


def write_idx(path: Path, values: np.ndarray) -> None:
    head = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Four files in the format of Fashion-MNIST, with fewer images."""
    folder = tmp_path / "archives"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start, number in (("train", 30), ("t10k", 20)):
        images = rng.integers(256, size=(number, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{start}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{start}-labels-idx1-ubyte.gz", np.arange(number, dtype=np.uint8) % 10)
    return folder


def command(archives: Path, data_dir: Path) -> list[str]:
    return ["fashion_mnist", "--archives", str(archives), "--data-dir", str(data_dir)]


def opened(data_dir: Path) -> Dataset:
    return open_dataset(tfds().replace(dataset="fashion_mnist", data_dir=data_dir))


def places(archives: Path, start: str, records: Records) -> list[int]:
    """Index in the file of each record, whose pixels and label are compared."""
    raw = gzip.decompress((archives / f"{start}-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    assert len(expected) == len(records)
    found: list[int] = []
    for record in records.__getitems__(range(len(records))):
        image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        (place,) = np.flatnonzero((expected == image).all((1, 2))).tolist()
        assert record["label"] == place % 10
        found.append(place)
    return found


def test_images_labels_and_order_are_those_of_tensorflow_datasets(archives: Path, tmp_path: Path):
    # One file is already unpacked, as some users have it.
    zipped = archives / "train-labels-idx1-ubyte.gz"
    zipped.with_suffix("").write_bytes(gzip.decompress(zipped.read_bytes()))
    zipped.unlink()
    assert main(command(archives, tmp_path / "data")) == 0
    dataset = opened(tmp_path / "data")
    assert dataset.class_names == CLASSES
    assert dataset.version == "3.0.1"
    for split, start, records in (
        ("train", "train", dataset.train),
        ("test", "t10k", dataset.evaluation),
    ):
        # tensorflow-datasets sorts by the MD5 of the split's name and the index.
        digests = [hashlib.md5(f"{split}{n}".encode()).digest() for n in range(len(records))]
        assert places(archives, start, records) == np.argsort(digests).tolist()


def test_from_four_files_to_an_exact_evaluation(
    archives: Path, tmp_path: Path, three_steps: Callable[[str, Path], JsonObject]
):
    assert main(command(archives, tmp_path / "data")) == 0
    last = three_steps("fashion_mnist", tmp_path / "data")
    assert last["step"] == 3
    assert last["eval/num_examples"] == 20


def shorten_contents(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def overwrite_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = b"\xff" * 50
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("t10k-images-idx3", lambda path: path.unlink(), "lacks t10k-images"),
        (
            "train-images-idx3",
            lambda path: path.write_bytes(gzip.compress(b"x")),
            "not in the IDX format",
        ),
        (
            "train-images-idx3",
            lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")),
            "not in the IDX format",
        ),
        ("t10k-images-idx3", shorten_contents, "values, but its header says"),
        ("train-images-idx3", overwrite_middle, "train-images-idx3-ubyte.gz is damaged"),
        (
            "train-images-idx3",
            lambda path: path.write_bytes(b"<html>"),
            "train-images-idx3-ubyte.gz is damaged",
        ),
        (
            "t10k-labels-idx1",
            lambda path: path.write_bytes(path.read_bytes()[:-12]),
            "t10k-labels-idx1-ubyte.gz is damaged",
        ),
        (
            "train-labels-idx1",
            lambda path: write_idx(path, np.zeros(29, np.uint8)),
            "train images of the shape (30, 28, 28) and labels of the shape (29,)",
        ),
        (
            "train-images-idx3",
            lambda path: write_idx(path, np.zeros((30, 32, 32), np.uint8)),
            "train images of the shape (30, 32, 32)",
        ),
        (
            "t10k-labels-idx1",
            lambda path: write_idx(path, np.full(20, 10, np.uint8)),
            "t10k-labels-idx1-ubyte has the label 10, not 0 to 9",
        ),
    ],
)
def test_unsuitable_archives_are_reported_in_one_line(
    archives: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    words: str,
):
    damage(archives / f"{name}-ubyte.gz")
    assert main(command(archives, tmp_path / "data")) == 2
    said = capsys.readouterr().err
    assert said.startswith("python -m train.prepare: ")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / "fashion_mnist").exists()


def test_images_are_reduced(archives: Path, tmp_path: Path):
    assert main([*command(archives, tmp_path / "data"), "--shorter-side", "14"]) == 0
    dataset = opened(tmp_path / "data")
    assert len(dataset.train) == 30
    assert decode(dataset.train[0]["image"], num_channels=1).shape == (14, 14, 1)


def test_paths_may_be_relative_or_start_with_a_tilde(
    archives: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", str(archives.parent))
    monkeypatch.chdir(archives.parent)
    assert main(["fashion_mnist", "--archives", "archives", "--data-dir=~/at home"]) == 0
    assert (archives.parent / "at home" / "fashion_mnist" / "3.0.1").is_dir()
    assert main(["fashion_mnist", "--data-dir", "at home"]) == 0
    assert "already prepared" in capsys.readouterr().out


def test_an_unusable_data_dir_is_reported_in_one_line(
    archives: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(command(archives, Path("/dev/null/x"))) == 2
    said = capsys.readouterr().err
    assert "/dev/null/x" in said
    assert said.count("\n") == 1


def test_data_without_random_access_does_not_count_as_prepared(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(command(archives, tmp_path)) == 0
    # Only TensorFlow can write tfrecord, but the format in the metadata is what is checked.
    path = tmp_path / "fashion_mnist" / "3.0.1" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    assert main(command(archives, tmp_path)) == 2
    said = capsys.readouterr().err
    hint = f"'python -m train.prepare tfrecord {path.parent} --name my_fashion_mnist' converts it"
    assert hint in said
    assert said.count("\n") == 1


def test_tensorflow_is_not_imported(archives: Path, tmp_path: Path):
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise ImportError('a trap')\n"
    )
    words = [sys.executable, "-m", "train.prepare", *command(archives, tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(trap.parent)}
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "imported").exists()
