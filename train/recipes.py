"""The recipes: complete configurations, any field of which a flag overrides."""

from collections.abc import Callable
from pathlib import Path

from optax_warmup import linear_scaling, sqrt_scaling
from train.config import WEIGHT_DECAY, Config, Experiment, Optimizer, Output

FINE_TUNE = "fine-tune"
"""Name of the recipe that needs a network to start from."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A step of LARS or LAMB changes a layer by a share of its norm, whatever the gradient. At the rates
# for ImageNet, the 990 steps on the digits change too little: 33 and 46 % test error. Twice the
# rates here stay below 1 %; four times the rate of LAMB ends at 17.5 %.
DIGITS_LARS_RATE = 1.0
DIGITS_LAMB_RATE = 0.005

# The usual value for small images. With the paper's 1e-4, the test error of seed 4 is 1.39 %.
DIGITS_WEIGHT_DECAY = 5e-4


def digits() -> Config:
    """Train a small ResNet on the digits of scikit-learn; nothing is downloaded.

    Command: `python -m train`. The paper's schedule at a small scale: n = 16, k = 8, 90 epochs of
    11 steps, learning rate scaled from one worker's 16 images to kn = 128. The test error is below
    1 % (median of the last 5 epochs, seeds 0 to 4). It takes 23 seconds on two cores of an AMD
    EPYC, and 17 when it is repeated in another workdir.
    """
    return Config(
        experiment=Experiment(
            recipe="digits",
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
            weight_decay=DIGITS_WEIGHT_DECAY,
        ),
        output=Output(workdir=Path("runs/digits"), checkpoint_every_epochs=10),
    )


def fashion_mnist() -> Config:
    """Train a small ResNet on Fashion-MNIST.

    Command: `python -m train fashion-mnist`, after `python -m train.prepare fashion_mnist
    --archives DIR` has prepared the data set from its four files. Time and accuracy: not measured.
    """
    return Config(
        experiment=Experiment(
            recipe="fashion-mnist",
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
        ),
        output=Output(workdir=Path("runs/fashion-mnist")),
    )


def imagenet() -> Config:
    """Train ResNet-50 on ImageNet as in the paper: kn = 8192, 90 epochs (arXiv:1706.02677).

    Command: `python -m train imagenet --dtype bfloat16`. The paper reaches 23.74 ± 0.09 % top-1
    error. Time and accuracy of this trainer: not measured.
    """
    return Config(
        experiment=Experiment(
            recipe="imagenet",
            dataset="imagenet2012",
            model="resnet50",
            image_size=224,
            augmentation="crop-flip",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            num_workers=256,
        ),
        output=Output(workdir=Path("runs/imagenet")),
    )


def tfds() -> Config:
    """Train ResNet-50 on any prepared image classification data set.

    Command: `python -m train tfds --dataset NAME`. Time and accuracy: not measured.
    """
    return Config(
        experiment=Experiment(
            recipe="tfds",
            dataset="",
            model="resnet50",
            image_size=224,
            augmentation="crop-flip",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            num_workers=8,
        ),
        output=Output(workdir=Path("runs/tfds")),
    )


def fine_tune() -> Config:
    """Fine-tune a pretrained network on any prepared image classification data set.

    Command: `python -m train fine-tune --dataset NAME --init-from PATH`. PATH is a .safetensors
    file of torchvision, timm or Hugging Face, a folder that train.export has written, or the
    workdir of a run. The warmup is constant, as the paper recommends for pretrained layers
    (section 2.2), and lasts one epoch. The new last layer learns ten times as fast as the others.
    docs/fine-tuning.md shows how much length and rate matter for few images. Time and accuracy with
    networks trained on ImageNet: not measured.
    """
    return Config(
        experiment=Experiment(
            recipe=FINE_TUNE,
            dataset="",
            model="resnet50",
            image_size=224,
            augmentation="crop-flip",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            num_workers=2,
            num_epochs=30,
            warmup_epochs=1,
            milestones=(16, 24),
            base_learning_rate=0.01,
            base_batch_size=32,
            head_learning_rate_multiplier=10,
        ),
        output=Output(workdir=Path("runs/fine-tune")),
    )


def with_optimizer(config: Config, optimizer: Optimizer) -> Config:
    """A recipe with another optimizer and the default learning rate for it.

    Momentum and weight decay stay the paper's, 0.9 and 1e-4.

    Args:
        config: a recipe, which has the default learning rate of `sgd`.
        optimizer: name of the optimizer.

    Source:
        `lars`: 10 at a minibatch of 8192, scaled linearly, after 5 epochs of warmup, as in MLPerf's
        reference for ResNet-50 with the optimizer of You et al. (2017, arXiv:1708.03888). `lamb`:
        4/(2 · 100) at 8192, scaled by the square root, after 5 epochs of warmup, as for ResNet-50
        in table 5 of You et al. (2019, arXiv:1904.00962). Both decay the rate polynomially; here
        it drops at the milestones.
    """
    size = config.experiment.base_batch_size
    if optimizer != "sgd":
        config = config.replace(weight_decay=WEIGHT_DECAY)
    if optimizer == "lars":
        rate = linear_scaling(10.0, size, base_batch_size=8192)
        if config.experiment.recipe == "digits":
            rate = DIGITS_LARS_RATE
        return config.replace(optimizer=optimizer, base_learning_rate=rate)
    if optimizer == "lamb":
        rate = sqrt_scaling(0.02, size, base_batch_size=8192)
        if config.experiment.recipe == "digits":
            rate = DIGITS_LAMB_RATE
        return config.replace(optimizer=optimizer, base_learning_rate=rate, scaling="sqrt")
    return config


RECIPES: dict[str, Callable[[], Config]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "imagenet": imagenet,
    "tfds": tfds,
    FINE_TUNE: fine_tune,
}
