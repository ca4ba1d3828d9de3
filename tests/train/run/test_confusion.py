"""The confusion matrix and its picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.run.confusion import confusion_matrix, save_confusion


def test_rows_are_classes_and_columns_are_predictions():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, -2])
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert confusion_matrix(labels, predicted, 3).tolist() == expected


@pytest.mark.parametrize("num_classes", [2, 10, 37, 100, 1000])
def test_the_picture_has_a_size_that_can_be_read(num_classes: int, tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = np.arange(num_classes).repeat(5)
    predicted = np.where(
        rng.random(labels.size) < 0.8, labels, rng.integers(num_classes, size=labels.size)
    )
    names = [f"class $_{label}$ 日本 of a long name" for label in range(num_classes)]
    path = tmp_path / "confusion.png"
    save_confusion(confusion_matrix(labels, predicted, num_classes), names, path)
    with Image.open(path) as picture:
        assert 500 <= picture.height <= 1700
        assert 500 <= picture.width <= 1700
