"""Augmentation of training images, and the crop of evaluation images, on the host.

Shapes: N examples in a training set, B images, H, W, C the height, width and channels of an image,
S the side of the network's input. Random functions take their generator as an argument, so every
function is pure.
"""

import dataclasses
from typing import Literal, NamedTuple

import cv2
import numpy as np

CENTER_CROP = 224 / 256
"""Share of the shorter side of a photograph that its evaluation image spans (paper, section
5.1)."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Transformation of decoded images, uint8 (H, W, C), to network inputs, uint8 (S, S, C)."""

    random_crop: bool
    """Crop a random area and aspect ratio for training, and the center for evaluation. Otherwise
    resize the whole image, and shift it at random for training."""
    flip: bool
    """Mirror half of the training images."""

    @property
    def for_photographs(self) -> bool:
        """Whether the images are photographs, so that decoding dominates the reading time."""
        return self.random_crop

    def crop(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """Make a training image from a photograph, if `random_crop`."""
        image = random_resized_crop(image, size, rng)
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1).reshape(image.shape)  # a view takes 30 times as long to copy
        return image

    def evaluation_crop(self, image: np.ndarray, size: int) -> np.ndarray:
        """Make an evaluation image from a decoded image; nothing is random.

        The center crop spans 224/256 of the shorter side. It gives the same pixels as resizing the
        shorter side to 256 and cropping the central 224 (paper, section 5.1), without resizing what
        is cut off.
        """
        if self.random_crop:
            height, width = image.shape[:2]
            side = round(min(height, width) * CENTER_CROP)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top : top + side, left : left + side]
        return resize(image, size, size)


AugmentationName = Literal["crop-flip", "shift", "shift-flip"]

AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    "crop-flip": Augmentation(random_crop=True, flip=True),  # for photographs, as in the paper
    "shift": Augmentation(random_crop=False, flip=False),  # for small images
    "shift-flip": Augmentation(random_crop=False, flip=True),  # if mirroring keeps the meaning
}


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, C) to (height, width, C).

    A side that shrinks by a factor of 2 or more is averaged over areas. Below that factor, linear
    interpolation already reads every pixel, in a third of the time.
    """
    channels = image.shape[2]
    # OpenCV averages only if neither side grows, so a growing side is resized in a second pass.
    averaged = tuple(
        new if old >= 2 * new else old
        for old, new in zip(image.shape[:2], (height, width), strict=True)
    )
    for shape, interpolation in (
        (averaged, cv2.INTER_AREA),
        ((height, width), cv2.INTER_LINEAR),
    ):
        if image.shape[:2] != shape:
            image = cv2.resize(image, shape[::-1], interpolation=interpolation)
    return image.reshape(height, width, channels)  # OpenCV drops a channel axis of size 1


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crop 8 % to 100 % of the area at an aspect ratio of 3/4 to 4/3 and resize it to (S, S, C).

    This is the scale and aspect-ratio augmentation of the paper, section 5.1 (Szegedy et al. 2015).
    If ten random rectangles in a row do not fit, the largest central square is used.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect_ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width = max(1, round(np.sqrt(area * aspect_ratio)))
        crop_height = max(1, round(np.sqrt(area / aspect_ratio)))
        if crop_width <= width and crop_height <= height:
            top = rng.integers(height - crop_height + 1)
            left = rng.integers(width - crop_width + 1)
            break
    else:
        crop_height = crop_width = min(height, width)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return resize(image[top : top + crop_height, left : left + crop_width], size, size)


class Shifts(NamedTuple):
    """Random shifts and flips of images.

    Attributes:
        top: first row of each image's window in the padded image, int (N,).
        left: first column of the window, int (N,).
        mirrored: whether the window is mirrored, bool (N,).
    """

    top: np.ndarray
    left: np.ndarray
    mirrored: np.ndarray

    def of(self, examples: np.ndarray) -> "Shifts":
        """The shifts of some examples, by index."""
        return Shifts(*(column[examples] for column in self))


def random_shifts(num_images: int, size: int, *, flip: bool, rng: np.random.Generator) -> Shifts:
    """Draw shifts by up to S // 8 pixels in each direction, and flips of half of the images."""
    top, left = rng.integers(2 * (size // 8) + 1, size=(2, num_images))
    mirrored = rng.random(num_images) < 0.5 if flip else np.zeros(num_images, bool)
    return Shifts(top, left, mirrored)


def shift(images: np.ndarray, shifts: Shifts) -> np.ndarray:
    """Pad uint8 (B, S, S, C) with zeros by S // 8 on each side, take windows, and mirror some."""
    count, size, _, channels = images.shape
    pad = size // 8
    padded = np.zeros((count, size + 2 * pad, size + 2 * pad, channels), np.uint8)
    padded[:, pad : pad + size, pad : pad + size] = images
    # A row of a window is one run of bytes, which NumPy copies as a whole.
    rows = padded.reshape(count, size + 2 * pad, -1)
    windows = np.lib.stride_tricks.sliding_window_view(rows, (size, size * channels), axis=(1, 2))
    shifted = windows[np.arange(count), shifts.top, shifts.left * channels].reshape(images.shape)
    shifted[shifts.mirrored] = shifted[shifts.mirrored, :, ::-1]
    return shifted
