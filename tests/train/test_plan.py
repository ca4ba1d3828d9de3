"""The plan that is printed before training."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import jax

from train.config import Config
from train.data.dataset import open_dataset
from train.plan import make_plan
from train.recipes import imagenet, with_optimizer
from train.run.terminal import wrapped
from train.step.workers import make_workers


def test_the_plan_describes_the_run(digits_config: Callable[..., Config]):
    config = digits_config(accumulation_steps=2)
    dataset = open_dataset(config)
    assert dataset.fingerprint is not None
    short = dataset.fingerprint.short
    assert re.fullmatch("[0-9a-f]{12}", short)
    text = make_plan(config, dataset, make_workers(config, jax.devices()[:4])).describe()
    for part in [
        "resnet8, float32, 8 x 8 pixels",
        "4 x cpu, 1 process(es)",
        "1 on each device at a time, 2 accumulation step(s)",  # 8 workers = 4 x 2 x 1
        f"data            digits 1.0.0, fingerprint {short}: 1437 training and 360 test images, 10 "
        "classes",
        "starts from     seed 0\n",
        "optimizer       sgd, momentum 0.9, weight decay 0.0005\n",
        f"writes to       {config.output.workdir}",
        "k = 8 workers x n = 16 images, kn = 128",
        "η = 0.0125 for 16 images",
        "kη = 0.1",
        "gradual, 55 steps (5 epochs)",
        "990 steps = 90 epochs x 11 steps",
    ]:
        assert part in text
    rows = {line.rsplit(None, 3)[0]: line.split()[-3:] for line in text.splitlines() if line}
    assert rows["first step after warmup"] == ["55", "5.00", "0.1"]
    assert rows["milestone, epoch 30"] == ["330", "30.00", "0.01"]
    assert rows["milestone, epoch 80"] == ["880", "80.00", "0.0001"]


def test_the_plan_fits_a_narrow_terminal(digits_config: Callable[..., Config]):
    config = digits_config(workdir=Path("runs/digits"))
    dataset = open_dataset(config)
    plan = make_plan(config, dataset, make_workers(config, jax.devices()[:4]))
    lines = wrapped(plan.describe(40), 40).splitlines()
    assert all(len(line) <= 40 for line in lines)
    words = " ".join(lines).split()
    for number in ("1437", "360", "0.0125", "990", "kn", "128/16:"):
        assert number in words
    assert f"{'milestone, epoch 30':<23}{330:>6}  0.01" in lines  # without the epochs


def test_the_plan_has_the_optimizers_default_rates(digits_config: Callable[..., Config]):
    config = with_optimizer(digits_config(), "lamb")
    dataset = open_dataset(config)
    text = make_plan(config, dataset, make_workers(config, jax.devices())).describe()
    assert "optimizer       lamb, weight decay 0.0001\n" in text
    assert "η = 0.005 for 16 images, scaled by √(128/16): 0.0141421" in text


def test_the_plan_of_imagenet_has_the_papers_numbers(digits_config: Callable[..., Config]):
    config = imagenet()
    digits = open_dataset(digits_config())
    dataset = dataclasses.replace(
        digits,
        name="imagenet2012:5.1.0",
        version="5.1.0",
        fingerprint=None,
        class_names=[str(label) for label in range(1000)],
        train=range(1_281_167),
        evaluation=range(50_000),
    )
    text = make_plan(config, dataset, make_workers(config, jax.devices())).describe()
    assert (
        "data            imagenet2012 5.1.0: 1281167 training and 50000 test images, 1000 classes"
        in text
    )
    assert "32 on each device at a time" in text
    assert "kn = 8192" in text
    assert "kη = 3.2" in text
