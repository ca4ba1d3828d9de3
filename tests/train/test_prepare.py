"""Preparing data sets: a user's own images, and data sets of tensorflow-datasets."""

import gzip
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from train.data.builders.fashion_mnist import CLASSES
from train.data.builders.image_folder import hold_out
from train.data.dataset import Dataset, open_dataset
from train.prepare import main
from train.recipes import tfds

ROOT = Path(__file__).parents[2]


def write_images(folder: Path, number: int, brightness: int, ending: str = "png") -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        image = np.full((12, 10, 3), (brightness + index) % 256, np.uint8)
        assert cv2.imwrite(str(folder / f"{index}.{ending}"), image)


def opened(name: str, data_dir: Path) -> Dataset:
    return open_dataset(tfds().replace(dataset=name, data_dir=data_dir))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_becomes_a_data_set_with_the_exact_bytes_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images, data = tmp_path / "images", tmp_path / "data"
    for split, number in (("train", 5), ("validation", 2)):
        write_images(images / split / "dark", number, 10)
        write_images(images / split / "bright", number, 200, ending="jpg")
    (images / "train" / "dark" / "notes.txt").write_text("not an image")
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 0
    assert "10 train, 4 validation images" in capsys.readouterr().out
    dataset = opened("mine", data)
    assert dataset.num_classes == 2
    assert (len(dataset.train), len(dataset.evaluation)) == (10, 4)
    records = dataset.train.__getitems__(range(10))
    # Classes are numbered in the order of their names.
    stored = {(record["image"], record["label"]) for record in records}
    assert stored == {
        (path.read_bytes(), label)
        for label, name in enumerate(("bright", "dark"))
        for path in (images / "train" / name).glob("*.*g")
    }

    before = contents(data)
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 0
    assert "already prepared" in capsys.readouterr().out
    assert contents(data) == before


def test_a_share_of_each_class_is_held_out():
    images = {"a": [Path(f"a/{i}") for i in range(20)], "b": [Path(f"b/{i}") for i in range(2)]}
    train, test = hold_out(images, 0.25)
    for name, paths in images.items():
        assert sorted(train[name] + test[name]) == sorted(paths)
    assert (len(test["a"]), len(test["b"])) == (5, 1)
    assert (train, test) == hold_out(images, 0.25)
    assert test["a"] != sorted(images["a"][:5])  # at random


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        ({}, [], "not a folder"),
        ({"a": 0}, [], "none in a"),
        ({"a": 3, "b": 1}, [], "class(es) b"),
        ({"a": 3, "b": 3}, ["--held-out", "1"], "--held-out is 1.0"),
        ({"a": 3, "b": 3}, ["--name", "My-Images"], "--name is My-Images"),
        ({"train/a": 3, "train/b": 3, "validation/a": 3}, [], "class(es) b in only one"),
    ],
)
def test_an_unsuitable_folder_is_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: dict[str, int],
    flags: list[str],
    words: str,
):
    for name, number in make.items():
        write_images(tmp_path / "images" / name, number, 0)
    command = ["image-folder", str(tmp_path / "images"), "--name", "mine"]
    assert main([*command, "--data-dir", str(tmp_path / "data"), *flags]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not list(tmp_path.rglob("*array_record*"))


STOP_AT_THE_200TH_IMAGE = """
import itertools, os, runpy, sys

images = itertools.count(1)

def stop(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".png") and next(images) == 200:
        os.kill(os.getpid(), int(number))

number = sys.argv.pop(1)
sys.addaudithook(stop)
runpy.run_module("train.prepare", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_preparation_leaves_no_data_set(tmp_path: Path, number: signal.Signals):
    images, data = tmp_path / "images", tmp_path / "data"
    write_images(images / "a", 300, 0)
    write_images(images / "b", 300, 100)
    flags = ["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]
    command = [sys.executable, "-c", STOP_AT_THE_200TH_IMAGE, str(int(number)), *flags]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = process.stderr
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert said.splitlines()[-1] == "python -m train.prepare: interrupted"
        assert "Traceback" not in said
        assert not list(data.rglob("incomplete.*"))
    else:
        assert process.returncode == -number
        assert list(data.rglob("incomplete.*"))
    assert not (data / "mine" / "1.0.0").exists()
    assert main(flags) == 0
    assert not list(data.rglob("incomplete.*"))
    assert len(opened("mine", data).train) == 540


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, data = tmp_path / "images", tmp_path / "data"
    for name in "ab":
        (images / name).mkdir(parents=True)
        for number in range(4):
            (images / name / f"{number}.jpg").write_bytes(os.urandom(500_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The message is the last output; a progress bar that moves up a line would overwrite it.
    last = re.split("[\r\n]+|\x1b\\[A", capsys.readouterr().err.rstrip("\n"))[-1]
    assert last.startswith("python -m train.prepare: ")
    assert "File too large" in last
    assert not (data / "mine" / "1.0.0").exists()
    assert not list(data.rglob("incomplete.*"))


def shorten_contents(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def overwrite_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = b"\xff" * 50
    path.write_bytes(data)


def write_idx(path: Path, values: np.ndarray) -> None:
    head = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Four files in the format of Fashion-MNIST, with fewer images."""
    folder = tmp_path / "archives"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for start, number in (("train", 30), ("t10k", 12)):
        images = rng.integers(256, size=(number, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{start}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{start}-labels-idx1-ubyte.gz", np.arange(number, dtype=np.uint8) % 10)
    return folder


def test_fashion_mnist_is_prepared_from_its_four_files(archives: Path, tmp_path: Path):
    # One file is already unpacked, as some users have it.
    zipped = archives / "train-labels-idx1-ubyte.gz"
    zipped.with_suffix("").write_bytes(gzip.decompress(zipped.read_bytes()))
    zipped.unlink()
    data = tmp_path / "data"
    command = ["fashion_mnist", "--archives", str(archives), "--data-dir", str(data)]
    assert main(command) == 0
    dataset = opened("fashion_mnist", data)
    assert (len(dataset.train), len(dataset.evaluation)) == (30, 12)
    assert dataset.num_classes == len(CLASSES) == 10
    raw = gzip.decompress((archives / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    expected = np.frombuffer(raw, np.uint8).reshape(30, 28, 28)
    labels: list[int] = []
    for record in dataset.train.__getitems__(range(30)):
        image = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        (place,) = np.flatnonzero((expected == image).all((1, 2)))  # TFDS shuffles the images
        assert record["label"] == place % 10
        labels.append(record["label"])
    assert sorted(labels) == sorted(np.arange(30) % 10)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "t10k-images-idx3-ubyte.gz").unlink(), "lacks t10k-images"),
        (
            lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x")),
            "not in the IDX format",
        ),
        (
            lambda folder: shorten_contents(folder / "t10k-images-idx3-ubyte.gz"),
            "values, but its header says",
        ),
        (
            lambda folder: overwrite_middle(folder / "train-images-idx3-ubyte.gz"),
            "train-images-idx3-ubyte.gz is damaged",
        ),
        (
            lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b"<html>"),
            "train-images-idx3-ubyte.gz is damaged",
        ),
        (
            lambda folder: write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(29, np.uint8)),
            "shorter",
        ),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(
                (folder / "t10k-labels-idx1-ubyte.gz").read_bytes()[:-12]
            ),
            "t10k-labels-idx1-ubyte.gz is damaged",
        ),
    ],
)
def test_corrupt_archives_are_reported_in_one_line(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, words: str
):
    damage(archives)
    data = tmp_path / "data"
    command = ["fashion_mnist", "--archives", str(archives), "--data-dir", str(data)]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("python -m train.prepare: ")
    assert words in line
    assert not (data / "fashion_mnist" / "3.0.1").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here"
)
@pytest.mark.parametrize("name", ["imagenet2012", "fashion_mnist", "cifar10"])
def test_missing_tensorflow_is_reported_with_the_install_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    assert main([name, "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "pip install -e '.[prepare]'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["two words"], "two words cannot be prepared; a name is NAME, NAME/CONFIG or"),
        (["../digits"], "../digits cannot be prepared"),
        (["fashion_mnist", "--archives", "/nowhere"], "--archives /nowhere is not a folder"),
        (["fashion_mnist", "--archives", ".", "--data-dir", "/dev/null/x"], "/dev/null/x"),
        (["image-folder", ".", "--name", "a", "--data-dir", "/dev/null/x"], "/dev/null/x"),
        ([], "Name of the data set"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    archives: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
):
    write_images(archives / "a", 2, 0)
    monkeypatch.chdir(archives)
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("python -m train.prepare: ")
    assert words in said.err.splitlines()[-1]


def test_digits_need_no_preparation(capsys: pytest.CaptureFixture[str]):
    assert main(["digits"]) == 0
    assert "digits need no preparation" in capsys.readouterr().out


def test_paths_may_be_relative_or_start_with_a_tilde(
    archives: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HOME", str(archives.parent))
    monkeypatch.chdir(archives.parent)
    assert main(["fashion_mnist", "--archives", "archives", "--data-dir=~/at home"]) == 0
    assert (archives.parent / "at home" / "fashion_mnist" / "3.0.1").is_dir()
    assert main(["fashion_mnist", "--data-dir", "at home"]) == 0
    assert "already prepared" in capsys.readouterr().out


def test_data_without_random_access_does_not_count_as_prepared(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["fashion_mnist", "--archives", str(archives), "--data-dir", str(tmp_path)]
    assert main(command) == 0
    # Only TensorFlow can write tfrecord, but the format in the metadata is what is checked.
    path = tmp_path / "fashion_mnist" / "3.0.1" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    assert main(command) == 2
    assert "without random access; prepare it again in another" in capsys.readouterr().err


def test_tensorflow_is_not_imported(archives: Path, tmp_path: Path):
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\nraise ImportError('a trap')\n"
    )
    command = [sys.executable, "-m", "train.prepare", "fashion_mnist"]
    command += ["--archives", str(archives), "--data-dir", str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": str(trap.parent)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "imported").exists()
