"""The confusion matrix of an evaluation, as a picture that can be read for 2 to 1,000 classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.run.fonts import drawable

MAX_WITH_NUMBERS, MAX_WITH_NAMES = 20, 60
MAX_NAME = 24  # characters of a class name on an axis
NUM_PAIRS = 25
"""Confused pairs of classes that are listed next to a matrix without names."""


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count images by their class, the row, and their predicted class, the column.

    Args:
        labels: classes of N images, int (N,).
        predicted: their predicted classes, int (N,); a negative one is not counted.
        num_classes: number of classes.

    Returns:
        int (classes, classes).
    """
    valid = predicted >= 0
    cells = labels[valid] * num_classes + predicted[valid]
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def save_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write a picture of a confusion matrix.

    Each row shows the shares of one class. Up to 20 classes, cells hold the numbers of images; up
    to 60, axes hold the names. For more, dots mark confusions, and the most frequent ones are
    listed.

    Args:
        matrix: counts, int (classes, classes).
        names: names of the classes.
        path: the PNG to write.
    """
    num_classes = len(names)
    has_names = num_classes <= MAX_WITH_NAMES
    side = min(16.0, max(5.0, 3 + 0.45 * num_classes)) if has_names else 11.0
    figure = Figure(figsize=(side + (0 if has_names else 5), side), layout="constrained")
    if has_names:
        axes = figure.subplots()
        _draw(axes, matrix)
        _label(axes, names)
        if num_classes <= MAX_WITH_NUMBERS:
            _write_numbers(axes, matrix)
    else:
        axes, text = figure.subplots(1, 2, width_ratios=(11, 5))
        _draw(axes, matrix)
        _mark_confusions(axes, matrix)
        text.axis("off")
        _list_pairs(text, matrix, names)
    images, right = int(matrix.sum()), int(np.trace(matrix))
    axes.set_title(f"{right} of {images} images correct\neach row shows the shares of one class")
    axes.set(xlabel="predicted class", ylabel="class")
    figure.savefig(path, dpi=100, bbox_inches="tight")  # with the whole title


def _draw(axes: Axes, matrix: np.ndarray) -> None:
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    # The square root makes rare confusions visible.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")


def _mark_confusions(axes: Axes, matrix: np.ndarray) -> None:
    """Draw a dot for each confusion, because a cell is smaller than a pixel of the picture."""
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    np.fill_diagonal(shares, 0)
    rows, columns = np.nonzero(shares)
    axes.scatter(columns, rows, s=60 * shares[rows, columns], color="tab:red", linewidths=0)


def _label(axes: Axes, names: Sequence[str]) -> None:
    drawn = [drawable(name, MAX_NAME) for name in names]
    texts, ticks = [text for text, _ in drawn], range(len(names))
    axes.set_xticks(ticks, texts, rotation=90, parse_math=False)
    axes.set_yticks(ticks, texts, parse_math=False)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, (_, families) in zip(labels, drawn, strict=True):
            label.set_fontfamily(families)


def _write_numbers(axes: Axes, matrix: np.ndarray) -> None:
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    for row, column in np.argwhere(matrix):
        axes.text(
            column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8,
            color="white" if shares[row, column] > 0.4 else "black",
        )  # fmt: skip


def _list_pairs(axes: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    """List the most frequent confusions."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_PAIRS]
    lines = ["images: class → predicted class", ""]
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            pair = (drawable(names[i], MAX_NAME + 8)[0] for i in (row, column))
            lines.append(f"{wrong[row, column]}: {' → '.join(pair)}")
    families = drawable("".join(lines))[1]
    axes.text(
        0, 1, "\n".join(lines), va="top", fontsize=9, parse_math=False, fontfamily=families,
        transform=axes.transAxes,
    )  # fmt: skip
