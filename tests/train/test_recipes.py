"""The recipes, compared with the paper (arXiv:1706.02677)."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from train.data.dataset import open_dataset
from train.data.images import decode
from train.model.resnet import ARCHITECTURES
from train.recipes import RECIPES, digits, fashion_mnist, imagenet, tfds

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


def test_small_images_are_not_cropped_and_digits_not_mirrored():
    assert digits().experiment.augmentation == "shift"
    assert fashion_mnist().experiment.augmentation == "shift-flip"


def test_the_tfds_recipe_has_no_default_data_set():
    assert tfds().experiment.dataset == ""
