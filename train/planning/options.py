"""Flags of the commands that compile a training step without running it."""

import dataclasses
from typing import Annotated, Literal

import tyro

from train.config import Config, Model
from train.errors import UsageError, flag
from train.recipes import RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """The training step to compile."""

    recipe: Annotated[Literal["digits", "fashion-mnist", "imagenet", "tfds"], tyro.conf.Positional]
    """Recipe whose training step is compiled."""

    workers_per_device: int = 1
    """Workers on each chip or GPU. The number of workers k grows with the devices."""

    accumulation_steps: int = 1
    """Sequential parts of each minibatch."""

    model: Model | None = None
    """The network. Default: the recipe's."""

    image_size: int | None = None
    """Side of the network's input, in pixels. Default: the recipe's."""

    num_classes: int = 1000
    """Number of classes."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype of the network. Default: the recipe's."""

    def __post_init__(self) -> None:
        """Check what `Config` does not."""
        for name in ("workers_per_device", "num_classes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{flag(name)} is {getattr(self, name)}; it must be at least 1")

    def config_for(self, num_devices: int, batch_size_per_worker: int) -> Config:
        """The run on a number of devices with a number of images per worker."""
        config = RECIPES[self.recipe]()
        return config.replace(
            num_workers=num_devices * self.workers_per_device,
            batch_size_per_worker=batch_size_per_worker,
            accumulation_steps=self.accumulation_steps,
            model=self.model or config.experiment.model,
            image_size=self.image_size or config.experiment.image_size,
            dtype=self.dtype or config.experiment.dtype,
        )
