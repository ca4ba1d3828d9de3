"""The recipes, compared with the paper (arXiv:1706.02677)."""

import inspect
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from train.command_line import parse_run
from train.data.dataset import open_dataset
from train.data.images import decode
from train.model.resnet import ARCHITECTURES
from train.recipes import RECIPES, digits, fashion_mnist, imagenet, tfds, with_optimizer

NUM_IMAGENET = 1_281_167


def test_imagenet_has_the_papers_numbers():
    """Sections 2.1 to 2.3 and 5.1."""
    config = imagenet()
    assert config.experiment.model == "resnet50"
    assert (config.experiment.num_workers, config.experiment.batch_size_per_worker) == (256, 32)
    assert (config.experiment.base_learning_rate, config.experiment.base_batch_size) == (0.1, 256)
    assert (config.experiment.num_epochs, config.experiment.milestones) == (90, (30, 60, 80))
    assert (config.experiment.warmup, config.experiment.warmup_epochs) == ("auto", 5)
    assert (config.experiment.image_size, config.experiment.augmentation) == (224, "crop-flip")
    assert (config.experiment.optimizer, config.experiment.seed, config.experiment.init_from) == (
        "sgd",
        0,
        None,
    )


def test_imagenet_has_the_papers_schedule():
    recipe = imagenet().experiment.large_minibatch_recipe(NUM_IMAGENET)
    assert (recipe.batch_size, recipe.steps_per_epoch) == (8192, 156)
    assert recipe.resolved_warmup == "gradual"
    schedule = recipe.schedule()
    at_epoch = {0: 0.1, 2.5: 1.65, 5: 3.2, 30: 0.32, 60: 0.032, 80: 0.0032, 89: 0.0032}
    rates = [float(schedule(int(epoch * 156))) for epoch in at_epoch]
    np.testing.assert_allclose(rates, list(at_epoch.values()), rtol=1e-6)


def test_the_papers_baseline_has_no_warmup():
    """Only batch sizes above 256 have a warmup (section 2.2)."""
    baseline = imagenet().replace(num_workers=8).experiment.large_minibatch_recipe(NUM_IMAGENET)
    assert baseline.resolved_warmup == "none"
    assert float(baseline.schedule()(0)) == pytest.approx(0.1, rel=1e-6)


def test_digits_are_the_papers_recipe_at_a_small_scale():
    config, recipe = digits(), digits().experiment.large_minibatch_recipe(1437)
    assert (
        config.experiment.num_epochs,
        config.experiment.milestones,
        config.experiment.warmup_epochs,
    ) == (90, (30, 60, 80), 5)
    assert recipe.resolved_warmup == "gradual"
    # The base rate is for one worker's minibatch; 8 workers have 8 times that rate.
    assert config.experiment.base_batch_size == config.experiment.batch_size_per_worker
    assert recipe.peak_learning_rate == pytest.approx(
        8 * config.experiment.base_learning_rate, rel=1e-6
    )


def test_digits_are_normalized_by_their_own_statistics(digits_dir: Path):
    config = digits().replace(data_dir=digits_dir)
    train = open_dataset(config).train
    records = train.__getitems__(range(len(train)))
    pixels = np.stack([decode(record["image"], 1) for record in records]) / 255
    assert config.experiment.mean == pytest.approx((pixels.mean(),), rel=0.03)
    assert config.experiment.std == pytest.approx((pixels.std(),), rel=0.03)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_is_complete_and_documents_its_command(name: str):
    make = RECIPES[name]
    config, about = make(), inspect.getdoc(make)
    assert config.experiment.recipe == name
    assert config.experiment.model in ARCHITECTURES
    assert about is not None
    command = "python -m train" if name == "digits" else f"python -m train {name}"
    assert f"Command: `{command}" in about
    assert len(config.experiment.mean) == len(config.experiment.std)
    assert config.output.workdir.parts == ("runs", name)


@pytest.mark.parametrize("name", RECIPES)
def test_sgd_is_the_default_optimizer(name: str):
    config = RECIPES[name]()
    assert with_optimizer(config, "sgd") == config
    experiment = config.experiment
    assert experiment.momentum == 0.9  # section 5.1, as the weight decay of 1e-4
    assert experiment.weight_decay == (5e-4 if name == "digits" else 1e-4)
    assert experiment.scaling == "linear"


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_other_optimizers_have_the_papers_weight_decay_on_the_digits(
    optimizer: Literal["lars", "lamb"],
):
    assert with_optimizer(digits(), optimizer).experiment.weight_decay == 1e-4


def test_lars_has_the_learning_rate_of_mlperf():
    """10 at a minibatch of 8192, after 5 epochs of warmup."""
    experiment = with_optimizer(imagenet(), "lars").experiment
    recipe = experiment.large_minibatch_recipe(NUM_IMAGENET)
    assert (recipe.batch_size, recipe.warmup_epochs) == (8192, 5)
    assert recipe.peak_learning_rate == pytest.approx(10, rel=1e-12)
    assert (experiment.momentum, experiment.weight_decay) == (0.9, 1e-4)


@pytest.mark.parametrize("doublings", range(7))
def test_lamb_has_the_learning_rates_of_its_paper(doublings: int):
    """You et al. 2019, table 5: 4/(2^3 · 100) at 512 up to 4/(2^0 · 100) at 32768."""
    experiment = with_optimizer(imagenet(), "lamb").replace(num_workers=16 * 2**doublings)
    recipe = experiment.experiment.large_minibatch_recipe(NUM_IMAGENET)
    assert recipe.batch_size == 512 * 2**doublings
    expected = 4 / (2 ** (3 - doublings / 2) * 100)
    assert recipe.peak_learning_rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("args", "rate", "scaling"),
    [
        ("imagenet --optimizer lars", 0.3125, "linear"),
        ("imagenet --optimizer=lamb", 0.02 / 32**0.5, "sqrt"),
        ("imagenet --optimizer lars --base-learning-rate 0.1", 0.1, "linear"),
        ("imagenet --optimizer lamb --scaling linear", 0.02 / 32**0.5, "linear"),
        ("imagenet --optimizer lars --optimizer sgd", 0.1, "linear"),
        ("--optimizer lars", 1.0, "linear"),
        ("--optimizer lamb", 0.005, "sqrt"),
    ],
)
def test_the_optimizer_selects_defaults_that_flags_override(args: str, rate: float, scaling: str):
    experiment = parse_run(args.split()).experiment
    assert experiment.base_learning_rate == pytest.approx(rate, rel=1e-12)
    assert experiment.scaling == scaling


def test_small_images_are_not_cropped_and_digits_not_mirrored():
    assert digits().experiment.augmentation == "shift"
    assert fashion_mnist().experiment.augmentation == "shift-flip"


def test_the_tfds_recipe_has_no_default_data_set():
    assert tfds().experiment.dataset == ""
