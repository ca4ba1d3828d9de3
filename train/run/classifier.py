"""A trained network as a function from images of any size to probabilities.

Shapes: N images, B images in a minibatch, S the side of the network's input, C channels.
"""

import itertools
from collections.abc import Iterable, Sequence

import cv2
import jax
import numpy as np

from train.data.augmentation import AUGMENTATIONS
from train.run.trained import Trained
from train.step.evaluation import make_evaluation_step
from train.step.examples import NO_LABEL, Examples


class Classifier:
    """A trained network that classifies uint8 images.

    Its minibatches are those of `train.evaluate`, so both compute the same bits.

    Args:
        trained: the network.

    Attributes:
        class_names: names of the classes, in the order of the probabilities.
        batch_size: images that are processed at once.
    """

    def __init__(self, trained: Trained) -> None:
        self.class_names: Sequence[str] = trained.description.class_names
        self._experiment, self._workers = trained.config.experiment, trained.workers
        self.batch_size = self._experiment.batch_size
        self._network = trained.network
        self._step = make_evaluation_step(
            self._experiment, len(self.class_names), self._workers, with_probabilities=True
        )

    @property
    def num_channels(self) -> int:
        """Channels of the network's input: 3 for RGB, 1 for gray."""
        return self._experiment.num_channels

    def __call__(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Probabilities of all classes, float32 (N, classes).

        Args:
            images: N images of any size, uint8 (H, W, 3), (H, W, 1) or (H, W). They are resized
                and cropped as for evaluation.

        Raises:
            ValueError: if an image has another shape or type.
        """
        prepared = map(self.prepared, images)
        parts = [np.empty((0, len(self.class_names)), np.float32)]
        while some := list(itertools.islice(prepared, self.batch_size)):
            parts.append(self.probabilities(some))
        return np.concatenate(parts)

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """Resize and crop an image to the network's input, uint8 (S, S, C)."""
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[:, :, None]
        is_image = image.ndim == 3 and image.shape[2] in (1, 3) and image.size > 0
        if not is_image or image.dtype != np.uint8:
            raise ValueError(
                f"an image has the shape {image.shape} and the type {image.dtype}; it must be "
                "uint8 of the shape (H, W), (H, W, 1) or (H, W, 3)"
            )
        if image.shape[2] > self.num_channels:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
        elif image.shape[2] < self.num_channels:
            image = np.repeat(image, 3, axis=2)
        augmentation = AUGMENTATIONS[self._experiment.augmentation]
        return augmentation.evaluation_crop(image, self._experiment.image_size)

    def probabilities(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities of the classes for at most B prepared images, float32 (N, classes)."""
        side = self._experiment.image_size
        rows = np.zeros((self.batch_size, side, side, self.num_channels), np.uint8)
        if prepared:
            rows[: len(prepared)] = prepared
        labels = np.full(self.batch_size, NO_LABEL, np.int32)
        minibatch = Examples(*map(self._workers.to_devices, (rows, labels)))
        found = jax.device_get(self._step(self._network, minibatch).probabilities)
        return found.reshape(-1, found.shape[-1])[: len(prepared)]
