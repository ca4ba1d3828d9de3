"""`python -m train.evaluate`: exact errors and a prediction for each image."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from train.__main__ import main as train
from train.data.dataset import open_dataset
from train.evaluate import main
from train.recipes import digits


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
    truth = [record["label"] for record in source.__getitems__(range(360))]
    assert [int(row["label"]) for row in rows] == truth
    wrong = np.mean([row["label"] != row["class_1"] for row in rows])
    assert wrong == pytest.approx(last["eval/top1_error"], rel=1e-12)
    assert f"top-1 error {100 * wrong:.2f} %" in said
    assert "all 360 test images" in said
    assert f"loss {last['eval/loss']:.4g}, " in said
    assert f"top-5 error {100 * last['eval/top5_error']:.2f} %" in said


def test_predictions_are_written_to_the_given_path(run: Path, tmp_path: Path):
    path = tmp_path / "mine.csv"
    assert main(["--workdir", str(run), "--predictions", str(path)]) == 0
    assert len(path.read_text().splitlines()) == 361


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--workdir"),
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
