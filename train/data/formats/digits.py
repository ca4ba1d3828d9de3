"""Digits of scikit-learn: 1,797 images of 8x8 pixels, without a download."""

from importlib import metadata

import cv2
import numpy as np

from train.data.formats.source import TEST, TRAIN, Example, Source, shuffled

NAME = "digits"
FILE = "sklearn/datasets/data/digits.csv.gz"
TEST_EVERY = 5


def open_source() -> Source:
    """Read the handwritten digits: 1,437 training images and 360 test images.

    Every fifth image in scikit-learn's order is a test image. They come from scikit-learn's wheel,
    so nothing is downloaded.
    """
    # `sklearn.datasets.load_digits` returns the same, but importing scikit-learn takes two seconds.
    path = metadata.distribution("scikit-learn").locate_file(FILE)
    rows = np.loadtxt(str(path), delimiter=",")  # 64 pixels, row by row, and the label
    pixels = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # white is 16
    examples = [
        Example(TRAIN if index % TEST_EVERY else TEST, str(index), int(label), index)
        for index, label in enumerate(rows[:, -1])
    ]
    return Source(
        origin="the test part of the UCI ML handwritten digits, as scikit-learn ships it",
        class_names=[str(digit) for digit in range(10)],
        examples=shuffled(examples),
        read=lambda example: cv2.imencode(".png", pixels[example.location])[1].tobytes(),
        image_shape=(8, 8, 1),
    )
