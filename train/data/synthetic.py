"""Noise images instead of a data set, to benchmark the training step in isolation."""

from collections.abc import Sequence

import cv2
import numpy as np

CLASSES_AND_IMAGES = {
    "digits": (10, 1_437),
    "fashion_mnist": (10, 60_000),
    "imagenet2012": (1_000, 1_281_167),
}
"""Numbers of classes and of training images of the data sets that noise can replace."""

SIDE = 8  # pixels; the pipeline resizes the stored images


class Noise:
    """Random-access noise images with random labels; each depends only on its index.

    Args:
        num_examples: number of images.
        num_classes: number of distinct labels.
    """

    def __init__(self, num_examples: int, num_classes: int) -> None:
        self._num_examples, self._num_classes = num_examples, num_classes

    def __len__(self) -> int:
        return self._num_examples

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, object]]:
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> dict[str, object]:
        rng = np.random.default_rng(index)
        _, png = cv2.imencode(".png", rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8))
        return {"image": png.tobytes(), "label": int(rng.integers(self._num_classes))}
