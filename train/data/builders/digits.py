"""Digits of scikit-learn: 1,797 images of 8x8 pixels, without a download."""

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

TEST_EVERY = 5


class Digits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits: 1,437 training images and 360 test images.

    Every fifth image in scikit-learn's order is a test image. Images are stored as encoded PNG, so
    neither preparing nor reading them needs TensorFlow. They come from scikit-learn's wheel
    (`sklearn.datasets.load_digits`), so nothing is downloaded.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The test part of the UCI ML handwritten digits, as scikit-learn ships it.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, object]:
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, *, test: bool) -> Iterator[tuple[int, dict[str, object]]]:
        # Imported here because scikit-learn takes a second to import and is needed only once.
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (index % TEST_EVERY == 0) == test:
                pixels = np.round(image * (255 / 16)).astype(np.uint8)  # white is 16
                _, png = cv2.imencode(".png", pixels)
                yield index, {"image": io.BytesIO(png.tobytes()), "label": int(label)}
