"""Tests of the embedded digits, prepared and read by tensorflow-datasets."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from train.data.dataset import open_dataset
from train.data.images import decode
from train.data.records import Dataset, Records
from train.recipes import digits

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def dataset(digits_dir: Path) -> Dataset:
    return open_dataset(digits().replace(data_dir=digits_dir))


def sixteenths(records: Records) -> list[tuple[int, ...]]:
    """Sorted rows of each record's label and 64 pixels, on scikit-learn's scale from 0 to 16."""
    rows = []
    for record in records.__getitems__(range(len(records))):
        pixels = decode(record["image"], num_channels=1).ravel().astype(int) * 16 / 255
        np.testing.assert_allclose(pixels, pixels.round(), atol=0.04)
        rows.append((int(record["label"]), *pixels.round().astype(int).tolist()))
    return sorted(rows)


def test_images_are_those_of_scikit_learn_and_every_fifth_is_held_out(dataset: Dataset):
    original: Any = load_digits()
    columns = [original.target[:, None], original.images.reshape(-1, 64).astype(int)]
    rows = [tuple(row) for row in np.concatenate(columns, axis=1).tolist()]
    held_out = [row for index, row in enumerate(rows) if index % 5 == 0]
    trained_on = [row for index, row in enumerate(rows) if index % 5 != 0]
    assert sixteenths(dataset.evaluation) == sorted(held_out)
    assert sixteenths(dataset.train) == sorted(trained_on)
    assert (len(dataset.train), len(dataset.evaluation)) == (1437, 360)


def test_each_digit_is_well_represented_in_both_splits(dataset: Dataset):
    assert dataset.num_classes == 10
    for part in (dataset.train, dataset.evaluation):
        labels = [row[0] for row in sixteenths(part)]
        counts = np.bincount(labels, minlength=10)
        assert counts.shape == (10,)
        assert counts.min() > 0.07 * len(part)


def test_preparation_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was requested")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    dataset = open_dataset(digits().replace(data_dir=tmp_path))
    assert len(dataset.train.__getitems__([0, 1436])) == 2


PREPARE_TOGETHER = """
import dataclasses, pathlib, sys, time
from train.data.dataset import open_dataset
from train.recipes import digits

data_dir, started = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
(started / sys.argv[3]).touch()
while len(list(started.iterdir())) < 2:
    time.sleep(0.01)
dataset = open_dataset(digits().replace(data_dir=data_dir))
print(len(dataset.train.__getitems__(range(1437))))
"""


def test_two_runs_can_prepare_the_digits_at_the_same_time(tmp_path: Path):
    """The jobs of an array do so when they first start."""
    started = tmp_path / "started"
    started.mkdir()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE_TOGETHER, tmp_path / "data", started, name],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    for run in runs:
        said, complained = run.communicate(timeout=300)
        assert run.returncode == 0, complained
        assert said.splitlines()[-1] == "1437"
    assert [path.name for path in (tmp_path / "data" / "digits").iterdir()] == ["1.0.0"]
