"""Reduction of large images before they are stored: decoding limits what a host can read."""

import cv2
import numpy as np
import simplejpeg

from train.data.images import decode, examine

QUALITY = 95
MAX_SIDE = 65_500  # pixels; libjpeg's JPEG_MAX_DIMENSION


def shrink(encoded: bytes, shorter_side: int) -> bytes:
    """Reduce an image whose shorter side is longer than `shorter_side` pixels.

    Args:
        encoded: an image file.
        shorter_side: pixels of the shorter side of the result.

    Returns:
        An upright JPEG of quality 95 that was averaged over areas; a PNG if it is too long for
        JPEG. A smaller image, or a corrupt one, is returned unchanged; verification finds the
        latter.
    """
    try:
        num_channels = 1 if examine(encoded).is_gray else 3
        image = decode(encoded, num_channels)
    except Exception:  # on broken files Pillow raises whatever its parsers run into
        return encoded
    height, width = image.shape[:2]
    if min(height, width) <= shorter_side:
        return encoded
    scale = shorter_side / min(height, width)
    new_size = max(round(width * scale), shorter_side), max(round(height * scale), shorter_side)
    reduced = cv2.resize(image, new_size, interpolation=cv2.INTER_AREA)
    if max(new_size) > MAX_SIDE:
        return cv2.imencode(".png", reduced[..., ::-1] if num_channels == 3 else reduced)[
            1
        ].tobytes()
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(reduced.reshape(*new_size[::-1], num_channels)),
        quality=QUALITY,
        colorspace="GRAY" if num_channels == 1 else "RGB",
        colorsubsampling="Gray" if num_channels == 1 else "420",
    )
