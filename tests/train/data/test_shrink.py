"""Images that are reduced before they are stored, compared with NumPy and Pillow."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from train.data.images import decode
from train.data.shrink import MAX_SIDE, QUALITY, shrink


def photograph(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colors with some noise, so that JPEG's losses are small."""
    rows, columns = np.mgrid[:height, :width]
    planes = [(rows * (c + 1) / height + columns / width) * 60 + 20 for c in range(channels)]
    noise = np.random.default_rng(0).normal(0, 4, (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind, **options)
    return file.getvalue()


def area_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean((1, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(160, 240), (240, 160)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_averaged_over_areas(kind: str, height: int, width: int, channels: int):
    encoded = encode(photograph(height, width, channels), kind)
    reduced = shrink(encoded, 40)
    with Image.open(io.BytesIO(reduced)) as file:
        assert (file.format, file.mode) == ("JPEG", "L" if channels == 1 else "RGB")
        assert (file.height, file.width) == (height // 4, width // 4)
    expected = area_means(decode(encoded, channels), 4)
    difference = np.abs(decode(reduced, channels) - expected)
    assert difference.mean() < 2  # a single pixel of each area would differ by 3 and more
    assert difference.max() < 16


def test_the_quality_is_95():
    reduced = shrink(encode(photograph(160, 240), "PNG"), 40)
    with Image.open(io.BytesIO(reduced)) as file, Image.open(io.BytesIO(reduced)) as again:
        expected = io.BytesIO()
        again.save(expected, "JPEG", quality=95)
        with Image.open(expected) as reference:
            assert file.quantization == reference.quantization  # pyright: ignore[reportAttributeAccessIssue]
    assert QUALITY == 95


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_result_is_upright(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(photograph(160, 240), "JPEG", exif=exif, quality=95)
    reduced = shrink(encoded, 40)
    with Image.open(io.BytesIO(reduced)) as file:
        assert file.getexif().get(0x0112, 1) == 1
        assert (file.width < file.height) == (orientation >= 5)
    expected = area_means(decode(encoded, 3), 4)
    assert np.abs(decode(reduced, 3) - expected).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (8, 8), (1, 500)])
def test_a_small_image_is_stored_unchanged(kind: str, height: int, width: int):
    encoded = encode(photograph(height, width), kind)
    assert shrink(encoded, 40) == encoded


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(41, 80, (40, 78)), (4000, 41, (3902, 40)), (41, 4000, (40, 3902)), (1001, 77, (520, 40))],
)
def test_the_shorter_side_is_exact(height: int, width: int, expected: tuple[int, int]):
    reduced = shrink(encode(photograph(height, width), "PNG"), 40)
    assert decode(reduced, 3).shape[:2] == expected


def test_an_image_too_long_for_jpeg_is_stored_as_png():
    pixels = np.zeros((16, 2 * MAX_SIDE + 400, 3), np.uint8)
    pixels[..., 0] = 200
    reduced = shrink(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes(), 8)
    with Image.open(io.BytesIO(reduced)) as file:
        assert (file.format, file.size) == ("PNG", (MAX_SIDE + 200, 8))
        assert file.getpixel((5, 5)) == (200, 0, 0)


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_a_corrupt_image_is_left_to_verification(encoded: bytes):
    assert shrink(encoded, 40) == encoded


def test_a_truncated_image_is_left_to_verification():
    for kind in ("JPEG", "PNG"):
        encoded = encode(photograph(160, 240), kind)[:-2000]
        assert shrink(encoded, 40) == encoded
