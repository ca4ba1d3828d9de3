"""Synthetic noise instead of a data set, to benchmark the step in isolation."""

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.__main__ import main
from train.config import Config
from train.data.dataset import open_dataset
from train.data.formats import digits as digits_format
from train.data.minibatches import evaluation_minibatches, training_minibatches
from train.data.records import Dataset
from train.data.synthetic import CLASSES_AND_IMAGES, Noise
from train.errors import UsageError
from train.plan import make_plan
from train.recipes import RECIPES, imagenet
from train.step.examples import Examples
from train.step.workers import Workers, make_workers


def small(**changes: Any) -> Config:
    """ImageNet's recipe with minibatches of k = 4 times n = 2 small images."""
    sizes = {"num_workers": 4, "batch_size_per_worker": 2, "image_size": 32}
    return imagenet().replace(data="synthetic", **(sizes | changes))


def opened(config: Config) -> tuple[Dataset, Config, Workers]:
    return open_dataset(config), config, make_workers(config, jax.devices()[:1])


def training(config: Config, first: int, last: int) -> list[Examples]:
    dataset, _, workers = opened(config)
    return list(training_minibatches(make_plan(config, dataset, workers), first, last))


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "imagenet"])
def test_noise_has_the_shapes_of_every_recipe_without_prepared_data(name: str, tmp_path: Path):
    config = RECIPES[name]().replace(data="synthetic", data_dir=tmp_path / "none", num_workers=2)
    dataset, _, workers = opened(config)
    assert dataset.name == f"synthetic {config.experiment.dataset}"
    assert (dataset.num_classes, len(dataset.train)) == CLASSES_AND_IMAGES[
        config.experiment.dataset
    ]
    assert len(dataset.evaluation) == config.experiment.batch_size
    for rows in (
        next(training_minibatches(make_plan(config, dataset, workers), 0, 1)),
        *evaluation_minibatches(make_plan(config, dataset, workers)),
    ):
        side, channels = config.experiment.image_size, len(config.experiment.mean)
        assert rows.images.shape == (config.experiment.batch_size, side, side, channels)
        assert rows.images.dtype == np.uint8
        assert rows.labels.shape == (config.experiment.batch_size,)
        assert 0 <= rows.labels.min() <= rows.labels.max() < dataset.num_classes
    assert not (tmp_path / "none").exists()


def test_synthetic_sizes_match_the_data_set(digits_dir: Path):
    digits = RECIPES["digits"]().replace(data_dir=digits_dir)
    dataset = open_dataset(digits)
    assert CLASSES_AND_IMAGES[digits_format.NAME] == (dataset.num_classes, len(dataset.train))


def test_every_step_reuses_the_same_minibatch():
    first, *others = training(small(), 0, 5)
    assert len(others) == 4
    assert all(rows is first for rows in others)
    (later,) = training(small(), 1_000_000, 1_000_001)
    np.testing.assert_array_equal(later.images, first.images)
    np.testing.assert_array_equal(later.labels, first.labels)


def test_images_and_labels_are_noise_that_depends_on_the_seed():
    (rows,), (same,), (other,) = (training(small(seed=seed), 0, 1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(rows.images, same.images)
    for one, another in itertools.combinations([*rows.images, *other.images], 2):
        assert (one != another).mean() > 0.9
    assert len(set(rows.labels.tolist())) > 4


def test_noise_depends_only_on_its_index():
    noise = Noise(100, 10)
    assert len(noise) == 100
    assert noise.__getitems__([3, 99]) == [noise.__getitems__([i])[0] for i in (3, 99)]


@pytest.mark.parametrize(("name", "words"), [("cifar10", "is cifar10"), ("", "is missing")])
def test_other_data_sets_cannot_be_synthetic(name: str, words: str):
    with pytest.raises(UsageError, match=f"digits, fashion_mnist, imagenet2012; .*{words}"):
        open_dataset(small(dataset=name))


def test_run_reports_synthetic_data_and_cannot_switch(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = ["--workdir", str(tmp_path / "run"), "--data-dir", str(digits_dir), "--num-steps", "2"]
    assert main([*run, "--data", "synthetic"]) == 0
    plan = "data            synthetic digits: 1437 training and 128 test images, 10 classes"
    assert plan in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["dataset"], summary["num_steps"]) == ("synthetic digits", 2)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["eval/num_examples"]) == (2, 128)
    assert main(run) == 2
    assert "--data was synthetic and is now prepared" in capsys.readouterr().err
