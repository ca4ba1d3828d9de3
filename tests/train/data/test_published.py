"""Tests of data sets that have a name in tensorflow-datasets.

TensorFlow is not needed here: a builder that writes a few images substitutes for the real ones.
"""

import importlib.util
import io
import json
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets
from absl import logging as absl_logging
from tensorflow_datasets.core.utils import tqdm_utils

from train.__main__ import main as train
from train.data import published
from train.data.dataset import open_dataset
from train.data.formats import tfrecord
from train.data.images import decode
from train.data.records import Dataset, image_name
from train.data.stored import find
from train.prepare import main
from train.recipes import tfds

NUM_IMAGES = {"train": 40, "test": 20}
NAMED = "mnist_corrupted"  # a name with variants


def image_of(split: str, index: int) -> bytes:
    height, width = 30 + index, 24
    pixels = np.random.default_rng((len(split), index)).integers(256, size=(height, width, 3))
    return cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes()


class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """A noisy builder of images in four classes."""

    name = "mnist"
    VERSION = tensorflow_datasets.core.Version("3.0.1")
    num_images = NUM_IMAGES
    image: Any = tensorflow_datasets.features.Image(shape=(None, None, 3))
    error: Exception | None = None
    broken: tuple[str, int] | None = None
    unlabeled: tuple[str, ...] = ()

    def _info(self) -> tensorflow_datasets.core.DatasetInfo:
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=tensorflow_datasets.features.FeaturesDict(
                {
                    "id": tensorflow_datasets.features.Text(),
                    "image": self.image,
                    "label": tensorflow_datasets.features.ClassLabel(names=list("abcd")),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, object]:
        (dl_manager.download_dir / "kept").touch()
        assert isinstance(tqdm_utils.tqdm(), tqdm_utils.EmptyTqdm)
        print("noise: print")
        print("noise: stderr", file=sys.stderr)
        os.write(2, b"noise: file descriptor\n")
        absl_logging.error("noise: absl")
        logging.getLogger("other").error("noise: logging")
        return {split: self._generate_examples(split) for split in self.num_images}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, object]]]:
        for index in range(self.num_images[split]):
            encoded = image_of(split, index)
            if (split, index) == self.broken:
                encoded = encoded[: len(encoded) // 2]
            image = io.BytesIO(encoded)
            label = -1 if split in self.unlabeled else index % 4
            yield index, {"id": f"{split}/{index}", "image": image, "label": label}
        if self.error is not None:
            raise self.error


class Variants(Builder, skip_registration=True):
    """A builder with two variants."""

    name = NAMED
    BUILDER_CONFIGS = [  # noqa: RUF012
        tensorflow_datasets.core.BuilderConfig(name=name) for name in ("identity", "fog")
    ]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Function that installs a builder with changed attributes in place of the real ones."""

    def replace(builder: type[Builder] = Builder, **changes: object) -> None:
        for name, value in changes.items():
            monkeypatch.setattr(builder, name, value)

        def make(name: str, **arguments: Any) -> Builder:
            _, config, *_ = [*name.split(":")[0].split("/"), None]
            return builder(config=config, **arguments)

        monkeypatch.setattr(published.tfds, "builder", make)
        monkeypatch.setattr(tfrecord, "require_tensorflow", lambda *_: None)

    return replace


def opened(name: str, data_dir: Path) -> Dataset:
    return open_dataset(tfds().replace(dataset=name, data_dir=data_dir))


def stored(dataset: Dataset) -> dict[str, tuple[bytes, int]]:
    """Image and label of every training record, by name."""
    records = [dataset.train[index] for index in range(len(dataset.train))]
    return {image_name(record) or "": (record["image"], record["label"]) for record in records}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("python -m train.prepare: ")
    assert said.count("\n") == 1
    return said


def test_a_data_set_of_tensorflow_datasets_is_prepared_verified_and_named(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    install()
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 0
    assert not [*temporary.iterdir()]
    assert "verified mnist in" in capsys.readouterr().out
    dataset = opened("mnist", tmp_path)
    assert stored(dataset) == {
        f"train/{index}": (image_of("train", index), index % 4) for index in range(40)
    }
    facts = json.loads((tmp_path / "mnist" / "3.0.1" / "verified.json").read_text())
    assert facts["origin"] == "mnist/3.0.1 of tensorflow-datasets"
    assert {path.name for path in tmp_path.iterdir()} == {"mnist", "downloads"}
    assert (tmp_path / "downloads" / "kept").exists()

    assert main(["mnist", "--data-dir", str(tmp_path)]) == 0
    assert "mnist is already prepared" in capsys.readouterr().out


def test_nothing_that_libraries_print_or_log_is_shown(
    tmp_path: Path,
    install: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    install()
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert "noise" not in said.out
    assert "Dataset mnist downloaded" not in said.out
    assert not caplog.records
    logging.getLogger("other").error("heard again")
    os.write(2, b"seen again")
    assert caplog.messages == ["heard again"]
    assert "seen again" in capfd.readouterr().err


def test_from_a_data_set_of_tensorflow_datasets_to_an_exact_evaluation(
    tmp_path: Path, install: Callable[..., None]
):
    install()
    assert main(["mnist", "--data-dir", str(tmp_path / "data")]) == 0
    words = "--model resnet8 --image-size 8 --augmentation shift --num-workers 8 "
    words += "--batch-size-per-worker 2 --num-steps 3 --log-every-steps 1"
    paths = ["--data-dir", str(tmp_path / "data"), "--workdir", str(tmp_path / "run")]
    assert train(["tfds", "--dataset", "mnist", *paths, *words.split()]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    assert last["eval/num_examples"] == 20


@pytest.mark.parametrize(
    "error",
    [AssertionError("bad\narchive"), ValueError("bad archive"), ImportError("bad archive")],
)
def test_errors_of_a_builder_are_reported_in_one_line(
    tmp_path: Path,
    install: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    error: Exception,
):
    install(error=error)
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("python -m train.prepare: mnist: ")
    assert "bad archive" in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_unsuitable_features_are_reported_before_a_download(
    tmp_path: Path, install: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    install(image=tensorflow_datasets.features.Text())
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 2
    assert "it must have image (Image) and label (ClassLabel)" in one_line(capsys)
    assert not (tmp_path / "downloads" / "kept").exists()


def test_a_corrupt_image_must_be_allowed(
    tmp_path: Path, install: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    install(broken=("train", 7))
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "train/7" in said
    assert "--skip-corrupt" in said
    assert find("mnist", tmp_path) is None
    assert main(["mnist", "--skip-corrupt", "--data-dir", str(tmp_path)]) == 0
    assert len(opened("mnist", tmp_path).train) == 39


def test_large_images_are_reduced(tmp_path: Path, install: Callable[..., None]):
    install()
    assert main(["mnist", "--shorter-side", "12", "--data-dir", str(tmp_path)]) == 0
    dataset = opened("mnist", tmp_path)
    assert dataset.version == "3.0.1"
    assert len(dataset.evaluation) == 20
    images = stored(dataset)
    assert len(images) == 40
    for index in range(40):
        image, label = images[f"train/{index}"]
        pixels = decode(image, num_channels=3)
        assert pixels.shape == (round((30 + index) / 2), 12, 3)
        assert label == index % 4
    assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["3.0.1"]


@pytest.mark.parametrize("has_unlabeled", [False, True])
def test_a_part_is_held_out_if_there_are_only_training_images(
    tmp_path: Path,
    install: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    has_unlabeled: bool,
):
    unlabeled = {"test": 6} if has_unlabeled else {}
    install(num_images={"train": 40, **unlabeled}, unlabeled=tuple(unlabeled))
    assert main(["mnist", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    warning = "warning: mnist/3.0.1 has no labeled images to test on, so 10% of each class were"
    assert warning in said
    assert ("split 'test', which has no labels" in said) == has_unlabeled
    dataset = opened("mnist", tmp_path)
    assert (len(dataset.train), len(dataset.evaluation)) == (36, 4)


def test_variants_are_prepared_one_after_the_other(tmp_path: Path, install: Callable[..., None]):
    install(Variants)
    assert main([f"{NAMED}/fog", "--data-dir", str(tmp_path)]) == 0
    assert main([f"{NAMED}/identity", "--shorter-side", "12", "--data-dir", str(tmp_path)]) == 0
    shapes = [
        decode(opened(f"{NAMED}{config}", tmp_path).train[0]["image"], 3).shape[1]
        for config in ("/fog", "/identity", "/identity:3.0.1", "")
    ]
    assert shapes == [24, 12, 12, 12]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here"
)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet2012", ""),
        ("mnist:3.0.1", ""),
        ("fashion_mnist", "name the folder with its published files with --archives"),
        ("cifar10", "name the folder with its published files with --archives"),
    ],
)
def test_missing_tensorflow_is_reported_with_the_install_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
):
    assert main([name, "--data-dir", str(tmp_path)]) == 2
    said = one_line(capsys)
    assert "pip install -e '.[prepare]'" in said
    assert words in said


def test_imagenet_is_not_prepared_from_incomplete_archives(
    tmp_path: Path, install: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    install()
    command = ["imagenet2012", "--data-dir", str(tmp_path / "data")]
    assert main(command) == 2
    assert "imagenet2012: --archives is missing" in one_line(capsys)
    assert main([*command, "--archives", str(tmp_path)]) == 2
    assert "lacks ILSVRC2012_img_train.tar" in one_line(capsys)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minst", "tensorflow-datasets has no data set minst; did you mean mnist?"),
        ("Cifar_10", "did you mean cifar10?"),
        ("image_folder", "did you mean image-folder?"),
        ("imagefolder", "did you mean image-folder?"),
        ("tf-record", "did you mean tfrecord?"),
        ("hf", "use 'python -m train.prepare FORMAT ... --name NAME' with one of the formats"),
        ("huggingface:mnist", "tensorflow-datasets has no data set huggingface:mnist"),
        ("two words", "two words cannot be prepared; a name is NAME, NAME/CONFIG or"),
        ("../digits", "../digits cannot be prepared"),
        ("mnist:1.0", "mnist:1.0 cannot be prepared"),
    ],
)
def test_an_unknown_name_is_reported_at_once_and_without_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: str,
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was requested")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.monotonic()
    # Flags of another format do not hide the mistake.
    assert main([name, "PATH", "--name", "mine", "--data-dir", str(tmp_path)]) == 2
    assert time.monotonic() - start < 5
    assert words in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fashion_mnist", "--archives", "/nowhere"], "--archives /nowhere is not a folder"),
        (["cifar10", "--archives", ".", "--shorter-side", "7"], "--shorter-side is 7; it must"),
        (["--archives", ".", "minst"], "did you mean mnist?"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], words: str
):
    assert main(args) == 2
    assert words in one_line(capsys)


def test_digits_need_no_preparation(capsys: pytest.CaptureFixture[str]):
    assert main(["digits"]) == 0
    assert "digits need no preparation" in capsys.readouterr().out
