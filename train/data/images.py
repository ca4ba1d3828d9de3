"""Decoding and augmentation of images on the host.

Shapes: H, W, C are the height, width and channels of an image, S the side of the network's input.
Random functions take their generator as an argument, so every function is pure.
"""

import dataclasses
import importlib.util
import io
import re
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError, features

HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
HAS_AVIF = features.check("avif")

# Pillow raises KeyError for a format that it does not know.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"),
    *(["AVIF"] if HAS_AVIF else []),
    *(["HEIF"] if HAS_HEIF else []),
)
"""Image formats that are decoded, whatever the file's suffix. Pillow's wheels read AVIF; HEIF, the
format of phones, needs the package pillow-heif."""

MAX_PIXELS = 2 * 89_478_485
"""Maximum number of pixels of an image. This is Pillow's own limit: half a GiB in RGB, and more
than cameras produce. Without it, a file of a few bytes could exhaust the machine's memory."""

JPEG_START, START_OF_SCAN = b"\xff\xd8\xff", 0xDA

# libjpeg's warnings (jerror.h) that mean missing or wrong pixels.
JPEG_DAMAGE = re.compile("[Pp]remature end|bad Huffman code|bad arithmetic code|found marker")

# OpenCV's flip code for each EXIF orientation except 1 (0: vertical, 1: horizontal, -1: both).
# Orientations from `TRANSPOSED` on are transposed first.
FLIPS = {2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}
TRANSPOSED = 5

# Pillow's warnings about odd metadata do not concern the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")

if HAS_HEIF:
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()

# Each reader thread decodes its own images; OpenCV's own threads would only contend with them.
cv2.setNumThreads(1)


def decode(encoded: bytes, num_channels: int) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file and turn the image upright.

    Like other loaders, it drops transparency, reduces 16 bits to the upper 8, and takes the first
    frame of an animation.

    Args:
        encoded: the bytes of the file; their content, not a suffix, determines the format.
        num_channels: 3 for RGB, 1 for grayscale; the image is converted.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: in one line, if the bytes are not an image, or if it is truncated, visibly
            damaged or larger than `MAX_PIXELS`. Damage that leaves a valid file is not detected.
    """
    try:
        pixels = None
        if encoded.startswith(JPEG_START):
            pixels = _decode_usual_jpeg(encoded, num_channels)
        if pixels is None:
            pixels = _decode_any(encoded, num_channels)
    except Exception as error:  # on broken files Pillow raises whatever its parsers run into
        what = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        if what == "unknown format" and encoded[4:8] == b"ftyp":
            what = "HEIC or AVIF, which needs the package pillow-heif"
        what = " ".join(what.split()).removesuffix(".") or type(error).__name__
        raise ValueError(
            f"not an image that can be decoded: {what} ({len(encoded)} bytes)"
        ) from None
    return pixels


class Facts(NamedTuple):
    """Facts about an image that `decode` accepts."""

    format: str
    """One of `FORMATS`."""
    is_gray: bool
    """Whether the file has a single channel, apart from transparency."""
    height: int
    """Height of the upright image, in pixels."""
    width: int
    """Width of the upright image, in pixels."""


def examine(encoded: bytes) -> Facts:
    """Check that an image can be decoded, in less time than `decode` takes.

    All data of a JPEG are decoded, which finds what is missing or damaged, but only every eighth
    row and column is computed.

    Args:
        encoded: the bytes of the file.

    Raises:
        ValueError: if `decode` raises it.
    """
    if encoded.startswith(JPEG_START):
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
            if int(height) * int(width) <= MAX_PIXELS:
                simplejpeg.decode_jpeg(encoded, "GRAY", min_height=1, min_width=1, min_factor=8)
                if _orientation(lambda: _exif_of_jpeg(encoded)) >= TRANSPOSED:
                    height, width = width, height
                return Facts("JPEG", colorspace == "Gray", int(height), int(width))
        except ValueError:
            pass  # unusual or damaged, which `decode` tells apart
    height, width, _ = decode(encoded, 3).shape
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
        is_gray = file.mode in ("1", "L", "LA", "La") or file.mode.startswith("I")
        return Facts(file.format or "", is_gray, height, width)


def _decode_usual_jpeg(encoded: bytes, num_channels: int) -> np.ndarray | None:
    """Decode twice as fast as Pillow. Return None for unusual files, which are left to Pillow."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        if int(height) * int(width) > MAX_PIXELS:
            return None
        # simplejpeg is strict; libjpeg alone would fill missing parts with gray.
        pixels = simplejpeg.decode_jpeg(encoded, "RGB" if num_channels == 3 else "GRAY")
    except ValueError as error:
        if JPEG_DAMAGE.search(str(error)):
            raise
        return None  # a harmless oddity, such as extra bytes between segments
    return _turn_upright(pixels, lambda: _exif_of_jpeg(encoded))


def _decode_any(encoded: bytes, num_channels: int) -> np.ndarray:
    # Opening reads only the header, and raises if it claims more than MAX_PIXELS.
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
        file.info.pop("transparency", None)
        if file.mode in ("I", "F"):
            raise ValueError("32 bits per channel, with unknown white level")
        if file.mode.startswith("I;16"):  # Pillow would clip at 255
            gray = (np.asarray(file) >> 8).astype(np.uint8)
            pixels = np.repeat(gray[:, :, None], num_channels, axis=2)
        else:
            pixels = np.array(file.convert("RGB" if num_channels == 3 else "L"))
            pixels = pixels.reshape(*pixels.shape[:2], num_channels)
        return _turn_upright(pixels, file.getexif)


def _exif_of_jpeg(encoded: bytes) -> Image.Exif:
    """Read the EXIF metadata from the segments before a JPEG's first scan."""
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
    """Undo the EXIF orientation of an image (EXIF 2.32, tag 0x0112)."""
    orientation = _orientation(read_exif)
    if orientation not in FLIPS:
        return pixels
    height, width, channels = pixels.shape
    if orientation >= TRANSPOSED:
        height, width, pixels = width, height, cv2.transpose(pixels)
    if (axes := FLIPS[orientation]) is not None:
        pixels = cv2.flip(pixels, axes)
    return pixels.reshape(height, width, channels)  # OpenCV drops a channel axis of size 1


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """EXIF orientation of an image: 1 if upright or unknown."""
    try:
        orientation = read_exif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata does not invalidate the pixels
        return 1
    return orientation if orientation in FLIPS else 1


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

    def augment(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """Make a training image from a decoded image."""
        if self.random_crop:
            image = random_resized_crop(image, size, rng)
        else:
            image = random_shift(resize(image, size, size), rng)
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
            side = round(min(height, width) * 224 / 256)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[top : top + side, left : left + side]
        return resize(image, size, size)


AugmentationName = Literal["crop-flip", "shift", "shift-flip"]

AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    "crop-flip": Augmentation(random_crop=True, flip=True),  # for photographs, as in the paper
    "shift": Augmentation(random_crop=False, flip=False),  # for small images
    "shift-flip": Augmentation(random_crop=False, flip=True),  # if mirroring keeps the meaning
}


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


def random_shift(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pad (S, S, C) with zeros by S // 8 on each side and take a random crop of (S, S, C)."""
    size, _, channels = image.shape
    pad = size // 8
    top, left = rng.integers(2 * pad + 1, size=2)
    padded = np.zeros((size + 2 * pad, size + 2 * pad, channels), np.uint8)  # np.pad is slower
    padded[pad : pad + size, pad : pad + size] = image
    return padded[top : top + size, left : left + size]
