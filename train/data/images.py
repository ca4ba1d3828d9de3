"""Decoding of images on the host.

Shapes: H, W, C are the height, width and channels of an image.
"""

import importlib.util
import io
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

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
