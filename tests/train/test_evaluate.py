"""`python -m train.evaluate`: exact errors and a prediction for each image."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from PIL import Image

from tests.train.networks import random_network, tensors_of, trees_of
from train.__main__ import main as train
from train.data.augmentation import AUGMENTATIONS
from train.data.dataset import open_dataset
from train.data.images import decode
from train.evaluate import main, print_classes
from train.export import main as export
from train.prepare import main as prepare
from train.recipes import digits
from train.run.predictions import ScoresOfClasses

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of three epochs on 8 devices."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    flags = ["--num-epochs", "3", "--warmup-epochs", "1", "--milestones", "2"]
    assert train([*flags, "--workdir", str(workdir), "--data-dir", str(digits_dir)]) == 0
    return workdir


def test_error_matches_training_and_each_prediction_is_written(
    run: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--workdir", str(run)]) == 0
    said = capsys.readouterr().out
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(360))
    source = open_dataset(digits().replace(data_dir=digits_dir)).evaluation
    records = source.__getitems__(range(360))
    assert [int(row["label"]) for row in rows] == [record["label"] for record in records]
    assert [row["file"] for row in rows] == [record["file_name"] for record in records]
    for row in rows:
        probabilities = [float(row[f"probability_{place}"]) for place in range(1, 6)]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0.5 < sum(probabilities) <= 1 + 1e-6
    wrong = np.mean([row["label"] != row["class_1"] for row in rows])
    assert wrong == pytest.approx(last["eval/top1_error"], rel=1e-12)
    assert f"top-1 error {100 * wrong:.2f} %" in said
    assert "all 360 test images" in said
    assert f"loss {last['eval/loss']:.4g}, " in said
    assert f"top-5 error {100 * last['eval/top5_error']:.2f} %" in said


def test_errors_and_losses_of_classes_are_printed(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--workdir", str(run)]) == 0
    said = capsys.readouterr().out
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in map(str, range(10)):
        mine = [row for row in rows if row["label"] == name]
        wrong = 100 * np.mean([row["class_1"] != name for row in mine])
        assert re.search(rf"^ *{name} +{len(mine)} +{wrong:.2f} % +[\d.e-]+ *$", said, re.MULTILINE)


def test_a_model_is_evaluated_like_its_run(
    run: Path, digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert export(["--workdir", str(run), "--out", str(tmp_path / "model")]) == 0
    assert main(["--workdir", str(run)]) == 0
    monkeypatch.chdir(tmp_path)
    words = ["--model", "model", "--dataset", "digits", "--data-dir", str(digits_dir)]
    assert main(words) == 0
    assert (tmp_path / "predictions.csv").read_text() == (run / "predictions.csv").read_text()
    for folder in (tmp_path, run):
        with Image.open(folder / "confusion.png") as picture:
            assert picture.width > 500


def test_pretrained_parameters_are_scored_without_training(tmp_path: Path):
    """A file of torchvision's names on a data set of photographs, against the network itself."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(256, size=(9, 12, 3), dtype=np.uint8)
            large = Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)
            large.save(tmp_path / "images" / name / f"{index}.png")
    folder = ["image-folder", str(tmp_path / "images"), "--held-out", "0.5", "--name", "animals"]
    assert prepare([*folder, "--data-dir", str(tmp_path)]) == 0
    network = random_network("resnet18", num_classes=3)
    params, _ = trees_of(network)
    params["head"]["kernel"] *= 100  # the initial head hardly tells classes apart
    nnx.update(network, params)
    safetensors.numpy.save_file(tensors_of(network, "resnet18"), tmp_path / "weights.safetensors")

    words = ["--model", "weights.safetensors", "--dataset", "animals", "--data-dir", "."]
    ended = subprocess.run(
        [sys.executable, "-m", "train.evaluate", *words, "--num-devices", "1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "on all 9 test images of animals" in ended.stdout
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    crop = AUGMENTATIONS["crop-flip"].evaluation_crop
    files = [tmp_path / "images" / row["label"] / Path(row["file"]).name for row in rows]
    pixels = np.stack([crop(decode(file.read_bytes(), 3), 224) for file in files])
    inputs = ((pixels / 255 - mean) / std).astype(np.float32)
    probabilities = np.asarray(jax.nn.softmax(network(jnp.asarray(inputs), train=False)))
    for row, expected in zip(rows, probabilities, strict=True):
        assert row["class_1"] == ("ant", "bee", "cat")[expected.argmax()]
        assert float(row["probability_1"]) == pytest.approx(expected.max(), rel=1e-4)
    assert probabilities.max() > 0.5


def test_predictions_are_written_to_the_given_path(run: Path, tmp_path: Path):
    path = tmp_path / "mine.csv"
    assert main(["--workdir", str(run), "--predictions", str(path)]) == 0
    assert len(path.read_text().splitlines()) == 361
    assert {path.name for path in tmp_path.iterdir()} == {"mine.csv", "mine-confusion.png"}


def test_the_best_checkpoint_is_evaluated(run: Path, capsys: pytest.CaptureFixture[str]):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()}
    evaluated = [one for one in records if "eval/top1_error" in one and one["step"] in kept]
    best = min(evaluated, key=lambda one: (one["eval/top1_error"], -one["step"]))
    assert main(["--workdir", str(run), "--checkpoint", "best"]) == 0
    said = capsys.readouterr().out
    assert f"step {best['step']}: " in said
    assert f"top-1 error {100 * best['eval/top1_error']:.2f} %" in said


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0", "1"], "has 2 classes, and the network has 10"),
        ([*"012345678", "ten"], "class 9 is 'ten' instead of '9'"),
    ],
)
def test_a_data_set_with_other_classes_is_refused(
    run: Path, tmp_path: Path, names: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    for name in names:
        for split in ("train", "test"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "images" / split / name / "0.png")
    folder = ["image-folder", str(tmp_path / "images"), "--name", "others"]
    assert prepare([*folder, "--data-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["--workdir", str(run), "--dataset", "others", "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_the_classes_with_the_most_errors_are_listed_if_there_are_many(
    capsys: pytest.CaptureFixture[str],
):
    names = [f"class{index}" for index in range(30)]
    dataset: Any = SimpleNamespace(class_names=names, num_classes=30)
    errors = np.linspace(0, 1, 30)
    errors[3] = math.nan
    counts = np.where(np.arange(30) == 3, 0, 5)
    print_classes(dataset, ScoresOfClasses(counts, errors, errors))
    said = capsys.readouterr().out
    assert "the 20 classes with the highest error" in said
    assert said.index("class29 ") < said.index("class28 ") < said.index("class11 ")
    assert "class9 " not in said
    assert "class3 " not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--workdir or --model is missing"),
        (["--workdir", "a", "--model", "b"], "--workdir and --model exclude each other"),
        (["--model", "nowhere"], "--model nowhere does not exist"),
        (["--workdir", "nowhere"], "nowhere holds no run"),
        (["--workdri", "x"], "--workdri"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main(flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_run_without_checkpoints_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    assert main(["--workdir", str(tmp_path)]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
