"""From encoded bytes to uint8 arrays on the host, and from uint8 to normalised on the device.

Shapes: H, W, C are the height, width and channels of one image, S the side of the network's input.
Everything random takes its generator as an argument, so each function is pure.
"""

from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np

Augmentation = Literal["crop-flip", "shift", "shift-flip"]
"""`crop-flip`: random area and aspect ratio, then a flip (the paper's, section 5.1).
`shift`: zero padding by an eighth of the side and a random crop, for small images.
`shift-flip`: the same, then a flip, where a mirror image has the same meaning."""

# Each reader thread decodes its own images; OpenCV's threads on top of that would only contend.
cv2.setNumThreads(1)


def decode(encoded: bytes, num_channels: int) -> np.ndarray:
    """Decode a JPEG, PNG or WebP file.

    Args:
        encoded: the bytes of the file.
        num_channels: 3 for RGB, 1 for greyscale; the image is converted.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: if the bytes are no image, or one of more than 2**30 pixels.
    """
    flag = cv2.IMREAD_GRAYSCALE if num_channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:  # no bytes at all, or more than 2**30 pixels
        image = None
    if image is None:
        raise ValueError(f"not an image that can be decoded ({len(encoded)} bytes)")
    return image.reshape(*image.shape[:2], num_channels)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, C) to (height, width, C); a side that shrinks by 2 or more is averaged.

    By less than 2, linear interpolation already reads every pixel, in a third of the time.
    """
    channels = image.shape[2]
    # OpenCV averages only where neither side grows, so a side that grows has its turn afterwards.
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
    return image.reshape(height, width, channels)  # OpenCV drops a single channel


def augment(
    image: np.ndarray, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> np.ndarray:
    """Make one training image, uint8 (S, S, C), of uint8 (H, W, C)."""
    if augmentation == "crop-flip":
        image = random_resized_crop(image, size, rng)
    else:
        image = random_shift(resize(image, size, size), rng)
    if augmentation != "shift" and rng.random() < 0.5:
        image = cv2.flip(image, 1).reshape(image.shape)  # a view takes 30 times as long to copy
    return image


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crop 8 % to 100 % of the area at an aspect ratio of 3/4 to 4/3 and resize it to (S, S, C).

    The scale and aspect-ratio augmentation of the paper, section 5.1 (Szegedy et al. 2015). After
    ten rectangles that do not fit, the largest central square is taken.
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


def random_shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pad (S, S, C) with zeros by S // 8 on each side and take a random crop of (S, S, C)."""
    size = image.shape[0]
    pad = size // 8
    top, left = rng.integers(2 * pad + 1, size=2)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return padded[top : top + size, left : left + size]


def evaluation_crop(image: np.ndarray, size: int, augmentation: Augmentation) -> np.ndarray:
    """Make one evaluation image, uint8 (S, S, C), of uint8 (H, W, C), with nothing random.

    For `crop-flip` it is the central square of 224/256 of the shorter side: the same pixels as
    resizing the shorter side to 256 and taking the centre of 224 (paper, section 5.1), without
    resizing what is cut off. Small images are only resized where they are of another size.
    """
    if augmentation == "crop-flip":
        height, width = image.shape[:2]
        side = round(min(height, width) * 224 / 256)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    return resize(image, size, size)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """Subtract the per-colour mean and divide by the per-colour deviation, on the device.

    Args:
        images: uint8 (..., C).
        mean: of each of the C colours, on the scale from 0 to 1.
        std: likewise.
        dtype: of the result; the arithmetic is float32.
    """
    mean_c = np.asarray(mean, np.float32) * np.float32(255)
    scale_c = np.float32(1) / (np.asarray(std, np.float32) * np.float32(255))
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    centred = images.astype(jnp.float32) - mean_c.reshape(shape)
    return (centred * scale_c.reshape(shape)).astype(dtype)
