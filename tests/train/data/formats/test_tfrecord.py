"""Tests of data sets that tensorflow-datasets prepared. TFRecord files need TensorFlow."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.sequential_writer import SequentialWriter

from train.config import JsonObject
from train.data.dataset import open_dataset
from train.data.images import decode
from train.data.records import Dataset, image_name
from train.data.stored import open_builder, open_records
from train.prepare import main
from train.recipes import tfds

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed")
ROOT = Path(__file__).parents[4]
ROSES = ["rose", "tulip", "lily"]

Records = list[dict[str, Any]]


def records(number: int, key: str = "id") -> Records:
    rng = np.random.default_rng(number)
    return [
        {
            key: f"image {index}",
            "image": rng.integers(256, size=(20 + index, 16, 3), dtype=np.uint8),
            "label": index % len(ROSES),
        }
        for index in range(number)
    ]


SPLITS = {"train": records(30), "validation": records(12)}


def write(
    folder: Path,
    splits: dict[str, Records],
    file_format: str = "array_record",
    name: str = "cifar10",
    image: Any = None,
) -> Path:
    """Write a data set as tensorflow-datasets does, with 8 records to a file."""
    path = folder / name / "3.0.2"
    key, *_ = {"id", "file_name"} & set(splits["train"][0])
    features = {
        key: tensorflow_datasets.features.Text(),
        "image": image or tensorflow_datasets.features.Image(shape=(None, None, 3)),
        "label": tensorflow_datasets.features.ClassLabel(names=ROSES),
    }
    info = tensorflow_datasets.core.DatasetInfo(
        builder=DatasetIdentity(name, tensorflow_datasets.core.Version("3.0.2"), str(path), "x"),
        features=tensorflow_datasets.features.FeaturesDict(features),
    )
    path.mkdir(parents=True)
    writer = SequentialWriter(info, 8, file_format=file_format)
    writer.initialize_splits(list(splits))
    for split, some in splits.items():
        for record in some:
            pixels = record["image"]
            encoded = cv2.imencode(".png", pixels)[1].tobytes() if image is None else "x"
            writer.add_examples({split: [record | {"image": encoded}]})
    writer.close_all()
    return path


def command(path: Path, data_dir: Path, name: str = "mine") -> list[str]:
    return ["tfrecord", str(path), "--name", name, "--data-dir", str(data_dir)]


def opened(data_dir: Path, name: str = "mine") -> Dataset:
    return open_dataset(tfds().replace(dataset=name, data_dir=data_dir))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("python -m train.prepare: ")
    assert said.count("\n") == 1
    return said


FORMATS = ["array_record", pytest.param("tfrecord", marks=needs_tensorflow)]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("key", ["id", "file_name"])
def test_labels_names_images_order_and_version_stay(tmp_path: Path, file_format: str, key: str):
    splits = {split: records(number, key) for split, number in (("train", 30), ("test", 12))}
    path = write(tmp_path, splits, file_format)
    assert main(command(path, tmp_path / "data")) == 0
    builder = open_builder("mine", tmp_path / "data")
    assert str(builder.version) == "3.0.2"
    assert opened(tmp_path / "data").class_names == ROSES
    for split, expected in splits.items():
        converted = open_records(builder, split)
        assert len(converted) == len(expected)
        for index, record in enumerate(expected):
            assert image_name(converted[index]) == record[key]
            assert converted[index]["label"] == record["label"]
            pixels = decode(converted[index]["image"], num_channels=3)[..., ::-1]
            np.testing.assert_array_equal(pixels, record["image"])


@pytest.mark.parametrize("file_format", FORMATS)
def test_splits_that_training_cannot_use_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file_format: str
):
    unlabeled = [record | {"label": -1} for record in records(5)]
    path = write(tmp_path, {**SPLITS, "test": unlabeled, "extra": records(4)}, file_format)
    assert main(command(path, tmp_path / "data")) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "image(s) of the split 'test', which has no labels 5" in lines
    assert "image(s) of the split 'extra', which is not used 4" in lines
    assert list(open_builder("mine", tmp_path / "data").info.splits) == ["train", "validation"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_from_a_converted_data_set_to_an_exact_evaluation(
    tmp_path: Path, three_steps: Callable[[str, Path], JsonObject], file_format: str
):
    path = write(tmp_path, SPLITS, file_format)
    assert main(command(path, tmp_path / "data")) == 0
    last = three_steps("mine", tmp_path / "data")
    assert last["step"] == 3
    assert last["eval/num_examples"] == 12


@pytest.mark.parametrize("file_format", FORMATS)
def test_large_images_are_reduced(tmp_path: Path, file_format: str):
    path = write(tmp_path, SPLITS, file_format)
    assert main([*command(path, tmp_path / "data"), "--shorter-side", "8"]) == 0
    dataset = opened(tmp_path / "data")
    shapes = [decode(dataset.train[index]["image"], 3).shape for index in range(30)]
    assert shapes == [(round((20 + index) / 2), 8, 3) for index in range(30)]


def test_a_share_is_held_out_if_there_are_only_training_images(tmp_path: Path):
    path = write(tmp_path, {"train": records(30)})
    assert main([*command(path, tmp_path / "data"), "--held-out", "0.2"]) == 0
    dataset = opened(tmp_path / "data")
    assert (len(dataset.train), len(dataset.evaluation)) == (24, 6)


def test_names_that_are_not_unique_are_numbered(tmp_path: Path):
    repeated = [*records(3), *records(3), *records(30)[3:6]]
    path = write(tmp_path, {"train": repeated, "test": records(3)})
    assert main(command(path, tmp_path / "data")) == 0
    dataset = opened(tmp_path / "data")
    assert [image_name(dataset.train[index]) for index in range(9)] == [
        *(f"image {index % 3}#{index}" for index in range(6)),
        *(f"image {index}" for index in range(3, 6)),
    ]


def test_only_the_data_set_itself_may_have_its_published_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, SPLITS, name="cifar10")
    assert main(command(path, tmp_path / "data", name="mnist")) == 2
    assert "--name mnist belongs to a published data set" in one_line(capsys)
    assert main(command(path, tmp_path / "data", name="cifar10")) == 0
    assert opened(tmp_path / "data", "cifar10").version == "3.0.2"


def test_a_data_set_is_replaced_in_its_folder_only_if_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, SPLITS, name="cifar10")
    assert main(command(path, tmp_path, name="cifar10")) == 2
    assert f"--name cifar10 is taken: {path} was prepared elsewhere" in one_line(capsys)
    assert main([*command(path, tmp_path, name="cifar10"), "--overwrite"]) == 0
    assert len(opened(tmp_path, "cifar10").train) == 30
    assert not path.exists()


def change_metadata(path: Path, **changes: object) -> None:
    file = path / "dataset_info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def name_a_foreign_class(path: Path) -> None:
    file = path / "features.json"
    text = file.read_text()
    assert text.count("tensorflow_datasets.core.features.text_feature.Text") == 1
    file.write_text(text.replace("tensorflow_datasets.core.features.text_feature", "evil"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "dataset_info.json").write_text("{"), "dataset_info.json is damaged"),
        (lambda path: (path / "features.json").unlink(), "cannot be opened: "),
        (name_a_foreign_class, "features.json asks to import evil.Text"),
        (lambda path: change_metadata(path, fileFormat="riegeli"), "prepared as riegeli, which"),
        (
            lambda path: (path / "dataset_info.json").rename(path / "dataset_info"),
            "it does not contain dataset_info.json",
        ),
    ],
)
def test_damaged_folders_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
):
    path = write(tmp_path, SPLITS)
    damage(path)
    assert main(command(path, tmp_path / "data")) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "data" / "mine").exists()


def test_folders_of_other_levels_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, SPLITS)
    assert main(command(path.parent, tmp_path / "data")) == 2
    assert f"does not contain dataset_info.json; name one of {path}" in one_line(capsys)
    assert main(command(path / "none", tmp_path / "data")) == 2
    assert "none is not a folder of a data set of tensorflow-datasets" in one_line(capsys)
    assert main(command(path / "features.json", tmp_path / "data")) == 2
    assert "is not a folder of a data set of tensorflow-datasets" in one_line(capsys)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (-1, "the image image 7 of the split 'train' has the label -1, but there are 3 classes"),
        (3, "the image image 7 of the split 'train' has the label 3, but there are 3 classes"),
    ],
)
def test_labels_outside_the_classes_are_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    label: int,
    words: str,
):
    monkeypatch.setattr(
        tensorflow_datasets.features.ClassLabel, "encode_example", lambda _, label: label
    )
    wrong = records(30)
    wrong[7]["label"] = label
    path = write(tmp_path, SPLITS | {"train": wrong})
    assert main(command(path, tmp_path / "data")) == 2
    assert words in one_line(capsys)


def test_other_features_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, SPLITS, image=tensorflow_datasets.features.Text())
    assert main(command(path, tmp_path / "data")) == 2
    assert "it must have image (Image) and label (ClassLabel)" in one_line(capsys)


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed here")
def test_missing_tensorflow_is_reported_with_the_install_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path, SPLITS)
    change_metadata(path, fileFormat="tfrecord")
    assert main(command(path, tmp_path / "data")) == 2
    said = one_line(capsys)
    assert f"reading TFRecord files of {path} needs TensorFlow" in said
    assert "pip install -e '.[prepare]'" in said


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The second of four training files."""
    path = write(tmp_path, SPLITS, "tfrecord")
    return path / "cifar10-train.tfrecord-00001"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def keep_the_first_record(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int.from_bytes(data[:8], "little") + 16])


@needs_tensorflow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "tfrecord-00001 is damaged: corrupted record at"),
        (
            lambda path: os.truncate(path, path.stat().st_size - 9),
            "is damaged: truncated record at",
        ),
        (keep_the_first_record, "tfrecord-00001 has 1 images, but dataset_info.json says 8"),
        (lambda path: path.unlink(), "tfrecord-00001 is missing; copy the whole folder"),
    ],
)
def test_damaged_tfrecord_files_are_reported_in_one_line(
    shard: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
):
    damage(shard)
    assert main(command(shard.parent, tmp_path / "data")) == 2
    said = capfd.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / "mine").exists()


@needs_tensorflow
def test_nothing_that_tensorflow_prints_is_shown(shard: Path, tmp_path: Path):
    words = [sys.executable, "-m", "train.prepare", *command(shard.parent, tmp_path / "data")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "verified mine in" in done.stdout
