"""The recipes: complete configurations, of which any flag overrides a field."""

from pathlib import Path

from train.config import Config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def digits() -> Config:
    """Train a small ResNet on the digits of scikit-learn: no download, seconds on a laptop.

    Command: `python -m train`. The paper's schedule at a small scale: n = 16, k = 8, 90 epochs of
    11 steps, the rate scaled from one worker's minibatch of 16 to kn = 128. On 2 CPU cores it takes
    30 s and ends at a test error of 0.83 % (median of the last 5 epochs, seed 0).
    """
    return Config(
        recipe="digits",
        workdir=Path("runs/digits"),
        dataset="digits",
        model="resnet8",
        image_size=8,
        augmentation="shift",
        mean=(0.3,),
        std=(0.38,),
        num_workers=8,
        batch_size_per_worker=16,
        base_learning_rate=0.0125,
        base_batch_size=16,
        checkpoint_every_epochs=10,
    )


def fashion_mnist() -> Config:
    """Train a small ResNet on Fashion-MNIST, prepared by tensorflow-datasets.

    Command: `python -m train fashion-mnist`, once `python -m train.prepare fashion_mnist --archives
    DIR` has prepared it from its four files. Time and accuracy: not measured.
    """
    return Config(
        recipe="fashion-mnist",
        workdir=Path("runs/fashion-mnist"),
        dataset="fashion_mnist",
        model="resnet8",
        image_size=28,
        augmentation="shift-flip",
        mean=(0.286,),
        std=(0.353,),
        num_workers=8,
        num_epochs=18,
        warmup_epochs=1,
        milestones=(6, 12, 16),
        base_batch_size=64,
    )


def imagenet() -> Config:
    """Train ResNet-50 on ImageNet as in the paper: kn = 8192, 90 epochs (arXiv:1706.02677).

    Command: `python -m train imagenet --dtype bfloat16`. The paper reaches 23.74 ± 0.09 % top-1
    error; time and accuracy of this trainer: not measured.
    """
    return Config(
        recipe="imagenet",
        workdir=Path("runs/imagenet"),
        dataset="imagenet2012",
        model="resnet50",
        image_size=224,
        augmentation="crop-flip",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=256,
    )


def tfds() -> Config:
    """Train ResNet-50 on any image classification data set of tensorflow-datasets.

    Command: `python -m train tfds --dataset NAME`. Time and accuracy: not measured.
    """
    return Config(
        recipe="tfds",
        workdir=Path("runs/tfds"),
        dataset="",
        model="resnet50",
        image_size=224,
        augmentation="crop-flip",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_workers=8,
    )


RECIPES = {"digits": digits, "fashion-mnist": fashion_mnist, "imagenet": imagenet, "tfds": tfds}
