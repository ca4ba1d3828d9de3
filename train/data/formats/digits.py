"""Digits of scikit-learn: 1,797 images of 8x8 pixels, without a download."""

from typing import Any

import cv2
import numpy as np

from train.data.formats.source import TEST, TRAIN, Example, Source, shuffled

NAME = "digits"
TEST_EVERY = 5


def open_source() -> Source:
    """Read the handwritten digits: 1,437 training images and 360 test images.

    Every fifth image in scikit-learn's order is a test image. They come from scikit-learn's wheel
    (`sklearn.datasets.load_digits`), so nothing is downloaded.
    """
    # Imported here because scikit-learn takes a second to import and is needed only once.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # white is 16
    examples = [
        Example(TRAIN if index % TEST_EVERY else TEST, str(index), label, index)
        for index, label in enumerate(digits.target.tolist())
    ]
    return Source(
        origin="the test part of the UCI ML handwritten digits, as scikit-learn ships it",
        class_names=[str(digit) for digit in range(10)],
        examples=shuffled(examples),
        read=lambda example: cv2.imencode(".png", pixels[example.location])[1].tobytes(),
        image_shape=(8, 8, 1),
    )
