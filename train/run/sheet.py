"""Contact sheets: images in rows, each with a line of text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.run.fonts import drawable

COLUMNS = 8
MAX_TEXT = 20  # characters that fit above an image


def draw_sheet(
    figure: Any,
    images: Sequence[np.ndarray],
    texts: Sequence[str],
    rows: int,
    columns: int,
    max_length: int,
) -> None:
    """Draw images with a text above each.

    Args:
        figure: Matplotlib's figure or part of one.
        images: uint8 (H, W, C) each, at most rows × columns.
        texts: a line for each image.
        rows: number of rows.
        columns: number of columns.
        max_length: characters to which texts are shortened.
    """
    cells = np.ravel(figure.subplots(rows, columns))
    for axes in cells:
        axes.axis("off")
    for axes, image, text in zip(cells, images, texts, strict=False):
        gray = image.shape[-1] == 1
        axes.imshow(image.squeeze(-1) if gray else image, cmap="gray", vmin=0, vmax=255)
        shortened, families = drawable(text, max_length)
        axes.set_title(shortened, fontsize=8, pad=2, parse_math=False, fontfamily=families)


def save_sheet(images: Sequence[np.ndarray], texts: Sequence[str], path: Path) -> None:
    """Write a picture of images with a text above each."""
    rows = max(1, math.ceil(len(images) / COLUMNS))
    figure = Figure(figsize=(2 * COLUMNS, 2.2 * rows), layout="constrained")
    draw_sheet(figure, images, texts, rows, COLUMNS, MAX_TEXT)
    figure.savefig(path, dpi=100)
