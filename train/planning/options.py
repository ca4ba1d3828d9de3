"""Flags of the commands that compile a training step without running it."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from train.config import Config, Model
from train.data.dataset import size_of
from train.errors import UsageError, check_folder, check_number
from train.recipes import RECIPES


class Data(NamedTuple):
    """The data set of a step, as far as it matters for the compiler."""

    name: str
    num_classes: int
    num_images: int | None
    """Training images; None if no data set was named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """The training step to compile."""

    recipe: Literal["digits", "fashion-mnist", "imagenet", "tfds"] = dataclasses.field(
        metadata={"positional": "RECIPE"}
    )
    """Recipe whose training step is compiled."""

    workers_per_device: int = 1
    """Workers on each chip or GPU. The number of workers k grows with the devices."""

    accumulation_steps: int = 1
    """Sequential parts of each minibatch. They must divide --workers-per-device."""

    model: Model | None = None
    """The network. Default: the recipe's."""

    image_size: int | None = None
    """Side of the network's input, in pixels. Default: the recipe's."""

    dataset: str | None = None
    """Data set with the classes and the images. Default: the recipe's."""

    data_dir: Path | None = None
    """Folder of prepared data sets. Default: that of tensorflow-datasets."""

    num_classes: int | None = None
    """Number of classes. Default: those of the data set, else 1000."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Compute dtype of the network. Default: the recipe's."""

    def __post_init__(self) -> None:
        """Check everything that needs no devices."""
        for name in ("workers_per_device", "num_classes"):
            check_number(name, getattr(self, name), minimum=1)
        if self.data_dir is not None:
            check_folder("data_dir", self.data_dir)
        self.config_for(1, 1)  # checks the rest
        if self.workers_per_device % self.accumulation_steps:
            raise UsageError(
                f"--workers-per-device is {self.workers_per_device}; it must be a multiple of "
                f"--accumulation-steps, {self.accumulation_steps}: pass --workers-per-device "
                f"{self.accumulation_steps}"
            )

    def data(self) -> Data:
        """What the step depends on, and what bounds its minibatch.

        Raises:
            UsageError: if --dataset is neither known nor prepared.
        """
        name = self.dataset or RECIPES[self.recipe]().experiment.dataset
        num_classes, num_images = size_of(name, self.data_dir) if name else (1000, None)
        return Data(name, self.num_classes or num_classes, num_images)

    def config_for(self, num_devices: int, batch_size_per_worker: int) -> Config:
        """The run on a number of devices with a number of images per worker."""
        config = RECIPES[self.recipe]()
        experiment = config.experiment
        return config.replace(
            num_workers=num_devices * self.workers_per_device,
            batch_size_per_worker=batch_size_per_worker,
            accumulation_steps=self.accumulation_steps,
            model=experiment.model if self.model is None else self.model,
            image_size=experiment.image_size if self.image_size is None else self.image_size,
            dtype=experiment.dtype if self.dtype is None else self.dtype,
        )
