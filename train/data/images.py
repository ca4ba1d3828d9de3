"""From encoded bytes to uint8 arrays on the host, and from uint8 to normalised on the device.

Shapes: H, W, C are the height, width and channels of one image, S the side of the network's input.
Everything random takes its generator as an argument, so each function is pure.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import Literal

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

Augmentation = Literal["crop-flip", "shift", "shift-flip"]
"""`crop-flip`: random area and aspect ratio, then a flip (the paper's, section 5.1).
`shift`: zero padding by an eighth of the side and a random crop, for small images.
`shift-flip`: the same, then a flip, where a mirror image has the same meaning."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
"""What is decoded, whatever a file's name ends in."""

MAX_PIXELS = 2 * 89_478_485
"""Of one image: Pillow's own limit, half a GiB in RGB and more than cameras make. Without one, a
file of a few bytes that promises pixels enough would take the machine's memory."""

JPEG_START, START_OF_SCAN = b"\xff\xd8\xff", 0xDA

# Of libjpeg's warnings (jerror.h) those that mean missing or wrong pixels.
JPEG_DAMAGE = re.compile("[Pp]remature end|bad Huffman code|bad arithmetic code|found marker")

# How an image of each EXIF orientation but the first is flipped, in the words of OpenCV (0: upside
# down, 1: left and right, -1: both), after height and width have changed places for 5 and more.
FLIPS = {2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}

# Pillow's notes on odd metadata, which change no pixel.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Each reader thread decodes its own images; OpenCV's threads on top of that would only contend.
cv2.setNumThreads(1)


def decode(encoded: bytes, num_channels: int) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file, whatever its name, and turn it upright.

    Transparency is dropped, 16 bits become their upper 8, and of an animation the first frame is
    taken, as the field's loaders do.

    Args:
        encoded: the bytes of the file.
        num_channels: 3 for RGB, 1 for greyscale; the image is converted.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: in one line, if the bytes are no image, a truncated or visibly damaged one, or
            one of more than `MAX_PIXELS`. Damage that leaves a valid file cannot be seen.
    """
    try:
        pixels = None
        if encoded.startswith(JPEG_START):
            pixels = _decode_usual_jpeg(encoded, num_channels)
        if pixels is None:
            pixels = _decode_any(encoded, num_channels)
    except Exception as error:  # on broken files Pillow raises whatever its parsers run into
        what = "of no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        what = " ".join(what.split()).removesuffix(".") or type(error).__name__
        raise ValueError(
            f"not an image that can be decoded: {what} ({len(encoded)} bytes)"
        ) from None
    return pixels


def _decode_usual_jpeg(encoded: bytes, num_channels: int) -> np.ndarray | None:
    """Decode in half of Pillow's time; None for what is unusual and Pillow shall judge."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        if int(height) * int(width) > MAX_PIXELS:
            return None
        # Strict: libjpeg by itself fills in with grey what is missing.
        pixels = simplejpeg.decode_jpeg(encoded, "RGB" if num_channels == 3 else "GRAY")
    except ValueError as error:
        if JPEG_DAMAGE.search(str(error)):
            raise
        return None  # an oddity that loses no pixel, such as needless bytes between segments
    return _turn_upright(pixels, lambda: _exif_of_jpeg(encoded))


def _decode_any(encoded: bytes, num_channels: int) -> np.ndarray:
    # Opening reads the header alone, and refuses more than MAX_PIXELS.
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
        file.info.pop("transparency", None)
        if file.mode in ("I", "F"):
            raise ValueError("32 bits a pixel, whose white is not known")
        if file.mode.startswith("I;16"):  # Pillow would cut off at 255
            grey = (np.asarray(file) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], num_channels, axis=2)
        else:
            pixels = np.array(file.convert("RGB" if num_channels == 3 else "L"))
            pixels = pixels.reshape(*pixels.shape[:2], num_channels)
        return _turn_upright(pixels, file.getexif)


def _exif_of_jpeg(encoded: bytes) -> Image.Exif:
    """Walk over a JPEG's segments as far as its metadata reach."""
    exif = Image.Exif()
    start = 2
    while encoded[start : start + 1] == b"\xff" and encoded[start + 1] != START_OF_SCAN:
        end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
        if encoded.startswith(b"Exif\0\0", start + 4):
            exif.load(encoded[start + 4 : end])
            break
        start = end
    return exif


def _turn_upright(pixels: np.ndarray, read_exif: Callable[[], Image.Exif]) -> np.ndarray:
    """Turn an image as its orientation says (EXIF 2.32, tag 0x0112)."""
    try:
        orientation = read_exif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata make no broken image
        return pixels
    if orientation not in FLIPS:
        return pixels
    height, width, channels = pixels.shape
    if orientation >= 5:
        height, width, pixels = width, height, cv2.transpose(pixels)
    if (axes := FLIPS[orientation]) is not None:
        pixels = cv2.flip(pixels, axes)
    return pixels.reshape(height, width, channels)  # OpenCV drops a single channel


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
    size, _, channels = image.shape
    pad = size // 8
    top, left = rng.integers(2 * pad + 1, size=2)
    padded = np.zeros((size + 2 * pad, size + 2 * pad, channels), np.uint8)  # np.pad takes longer
    padded[pad : pad + size, pad : pad + size] = image
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
