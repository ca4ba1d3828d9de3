"""Images and labels in the arrays of an .npz file, as Keras publishes MNIST and others."""

import dataclasses
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from train.data.formats.source import TEST, TRAIN, VALIDATION, Example, Source
from train.data.formats.source import Options as SourceOptions
from train.errors import UsageError

SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}  # the ends of the arrays' names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Prepare the arrays of an .npz file: x_train, y_train, x_test, y_test, as in Keras' mnist.npz.

    x_* are uint8 images (N, H, W) or (N, H, W, C) with 1 or 3 channels, and y_* are integer labels
    (N,). x_val and y_val are optional, and so are x_test and y_test.
    """

    path: Path = dataclasses.field(metadata={"positional": "FILE"})
    """The .npz file."""


def open_source(options: Options) -> Source:
    """Read the arrays.

    Raises:
        UsageError: if the file is damaged, or lacks arrays, or has unsuitable ones.
    """
    path = options.path
    arrays = _load(path)
    images: dict[str, np.ndarray] = {}
    examples: list[Example] = []
    for end, split in SPLITS.items():
        if split != TRAIN and f"x_{end}" not in arrays and f"y_{end}" not in arrays:
            continue
        if missing := [name for name in (f"x_{end}", f"y_{end}") if name not in arrays]:
            raise UsageError(
                f"{path} lacks {', '.join(missing)}; it contains "
                f"{', '.join(arrays) or 'no arrays'}, and must contain x_train and y_train, and "
                "x_test and y_test unless a part of the training images is to be held out"
            )
        images[split] = _images(arrays[f"x_{end}"], f"{path}: x_{end}")
        labels = _labels(arrays[f"y_{end}"], f"{path}: y_{end}")
        if len(images[split]) != len(labels):
            raise UsageError(
                f"{path}: x_{end} has {len(images[split])} images, but y_{end} has {len(labels)} "
                "labels; both must have the same length"
            )
        examples += [
            Example(split, str(index), label, (split, index))
            for index, label in enumerate(labels.tolist())
        ]
    shapes = {split: some.shape[1:] for split, some in images.items()}
    if len(set(shapes.values())) > 1:
        raise UsageError(f"{path} has images of different shapes: {shapes}; they must be the same")
    largest = max((example.label for example in examples), default=0)
    if largest >= len(examples) > 0:
        raise UsageError(
            f"{path} has {len(examples)} images, but labels up to {largest}; number the classes "
            "from 0 without gaps"
        )
    return Source(
        origin=f"the file {path.absolute()}",
        class_names=[str(label) for label in range(largest + 1)],
        examples=examples,
        read=lambda example: as_png(images[example.location[0]][example.location[1]]),
        image_shape=shapes[TRAIN],
    )


def as_png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 (H, W, C) with 1 or 3 channels, in RGB."""
    if image.shape[-1] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"{path} is not a file; name an .npz file")
    ours = {f"{kind}_{end}" for kind in "xy" for end in SPLITS}
    try:
        with path.open("rb") as file:  # given a path, numpy does not close a damaged file
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise UsageError(f"{path} is a single array; save images and labels with np.savez")
            return {
                name: np.asarray(arrays[name]) if name in ours else np.empty(0)
                for name in arrays.files
            }
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{path} cannot be read as an .npz file of numbers: {reason}; write it with np.savez"
        ) from None


def _images(images: np.ndarray, name: str) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UsageError(
            f"{name} has the type {images.dtype}; images must be uint8 from 0 to 255, so convert "
            "them"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise UsageError(
            f"{name} has the shape {images.shape}; images must have the shape (N, H, W), (N, H, W, "
            "1) or (N, H, W, 3): transpose others, and drop an alpha channel"
        )
    return images


def _labels(labels: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{name} has the type {labels.dtype}; labels must be integers")
    if labels.ndim != 1 and labels.shape[1:] != (1,):
        raise UsageError(
            f"{name} has the shape {labels.shape}; labels must have the shape (N,) or (N, 1), so "
            "use np.argmax on one-hot labels"
        )
    if (labels < 0).any():
        raise UsageError(f"{name} contains {labels.min()}; labels must be 0 or more")
    return labels.ravel()
