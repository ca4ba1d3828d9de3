"""Tests of decoding and normalization."""

import io
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train.data import images
from train.data.augmentation import AUGMENTATIONS
from train.recipes import IMAGENET_MEAN, IMAGENET_STD
from train.step.network import normalize

sides = st.integers(1, 256)
seeds = st.integers(0, 2**32 - 1)
property_test = settings(deadline=None, derandomize=True, max_examples=200)

CROP_FLIP = AUGMENTATIONS["crop-flip"]

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def encode(pixels: np.ndarray, file_format: str, mode: str = "", **options: Any) -> bytes:
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, file_format, **options)
    return file.getvalue()


def encode_by_opencv(ending: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colors with some noise, as in a photograph; none is black or white."""
    rows, columns = np.indices((height, width)) / max(height, width, 2)
    smooth = np.stack([rows, columns, 1 - (rows + columns) / 2], axis=-1) * 200 + 30
    return (smooth + np.random.default_rng(0).normal(size=smooth.shape) * 4).astype(np.uint8)


def two_colors(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    """An image of 16 x 32 pixels, large enough that JPEG blocks do not blur its halves."""
    return np.array([[left] * 16 + [right] * 16] * 16, np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@given(seed=seeds, height=st.integers(1, 20), width=st.integers(1, 20))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_lossless_files_decode_to_their_pixels(
    file_format: str, seed: int, height: int, width: int
):
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    encoded = encode(pixels, file_format, lossless=True)
    np.testing.assert_array_equal(images.decode(encoded, num_channels=3), pixels)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2", "restart_marker_rows": 1}),
        ("L", {}),
    ],
)
def test_photos_decode_as_in_pillow(mode: str, options: dict[str, Any], num_channels: int):
    encoded = encode(picture(), "JPEG", mode, quality=90, **options)
    decoded = images.decode(encoded, num_channels)
    with Image.open(io.BytesIO(encoded)) as file:
        if num_channels == 1:
            file.draft("L", None)  # the stored luminance, not converted from RGB
        expected = np.asarray(file.convert("L" if num_channels == 1 else "RGB"))
    assert decoded.shape == (48, 64, num_channels)
    np.testing.assert_allclose(decoded.astype(int), expected.reshape(decoded.shape), atol=1)


PALETTE = Image.fromarray(picture()).quantize(16)
DEEP = np.random.default_rng(0).integers(2**16, size=(48, 64, 4), dtype=np.uint16)


def paletted(**options: Any) -> bytes:
    file = io.BytesIO()
    PALETTE.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (paletted(), np.asarray(PALETTE.convert("RGB"))),
        (paletted(transparency=3), np.asarray(PALETTE.convert("RGB"))),
        (paletted(transparency=bytes([0, 128] + [255] * 14)), np.asarray(PALETTE.convert("RGB"))),
        (encode(np.dstack([picture(), picture()[..., 0]]), "PNG"), picture()),
        (encode(np.dstack([picture(), picture()[..., 0]]), "WEBP", lossless=True), picture()),
        (encode(picture(), "PNG", transparency=(1, 2, 3)), picture()),
        (encode(picture()[..., :2], "PNG"), picture()[..., [0, 0, 0]]),
        (encode(picture()[..., 0] > 99, "PNG"), (picture()[..., [0, 0, 0]] > 99) * 255),
        (encode(DEEP[..., 0], "PNG"), DEEP[..., [0, 0, 0]] >> 8),
        (encode(DEEP[..., 0], "TIFF"), DEEP[..., [0, 0, 0]] >> 8),
        (encode_by_opencv(".png", DEEP[..., :3]), DEEP[..., 2::-1] >> 8),
        (encode_by_opencv(".png", DEEP), DEEP[..., 2::-1] >> 8),
        (encode(picture(), "BMP"), picture()),
        (encode(picture(), "TIFF", compression="tiff_lzw"), picture()),
        (encode(np.asarray(PALETTE.convert("RGB")), "GIF"), np.asarray(PALETTE.convert("RGB"))),
    ],
    ids=[
        "palette", "palette, one transparent color", "palette with alpha", "PNG with alpha",
        "WebP with alpha", "one transparent color", "gray with alpha", "black and white",
        "16-bit gray", "16-bit gray TIFF", "16-bit color", "16-bit color with alpha", "BMP",
        "TIFF", "GIF",
    ],
)  # fmt: skip
def test_lossless_files_decode_to_8_bit_color_or_gray(encoded: bytes, expected: np.ndarray):
    color = images.decode(encoded, num_channels=3)
    np.testing.assert_array_equal(color, expected)
    gray = images.decode(encoded, num_channels=1)
    assert gray.shape == (48, 64, 1)
    luminance = expected @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(gray[..., 0].astype(float), luminance, atol=1.01)


def ycck(pixels: np.ndarray) -> bytes:
    """A YCCK file as Photoshop writes it, with inverted inks."""
    ink = 255 - np.asarray(Image.fromarray(pixels).convert("CMYK"))
    return simplejpeg.encode_jpeg(ink, 95, colorspace="CMYK", colorsubsampling="444")


@pytest.mark.parametrize(
    "encoded",
    [
        encode(picture(), "JPEG", "CMYK", quality=95),
        ycck(picture()),
    ],
    ids=["CMYK", "YCCK"],
)
def test_cmyk_and_ycck_photos_keep_their_colors(encoded: bytes):
    decoded = images.decode(encoded, num_channels=3).astype(int)
    assert np.abs(decoded - picture()).mean() < 4
    opencv = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(decoded, np.asarray(opencv), atol=2)
    gray = images.decode(encoded, num_channels=1)
    np.testing.assert_allclose(gray[..., 0], decoded @ [0.299, 0.587, 0.114], atol=2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 30_000), (30_000, 10)])
def test_the_smallest_and_the_longest_images_decode(height: int, width: int, file_format: str):
    if file_format == "WEBP":
        height, width = min(height, 16_383), min(width, 16_383)  # WebP's limit
    pixels = picture(height, width)
    decoded = images.decode(encode(pixels, file_format, quality=95), num_channels=3)
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 8
    crop = CROP_FLIP.crop(decoded, 32, np.random.default_rng(0))
    assert crop.shape == CROP_FLIP.evaluation_crop(decoded, 32).shape == (32, 32, 3)


def test_32_bit_images_are_refused():
    with pytest.raises(ValueError, match="32 bits per channel"):
        images.decode(encode(picture()[..., 0].astype(np.float32), "TIFF"), num_channels=3)


def test_color_channels_are_in_rgb_order():
    encoded = encode(two_colors(RED, BLUE), "JPEG", quality=95, subsampling=0)
    decoded = images.decode(encoded, num_channels=3)
    assert decoded.shape == (16, 32, 3)
    np.testing.assert_allclose(decoded[:, 0], [RED] * 16, atol=4)
    np.testing.assert_allclose(decoded[:, -1], [BLUE] * 16, atol=4)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_gray_file_decodes_to_the_requested_number_of_channels(file_format: str):
    pixels = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)
    encoded = encode(pixels, file_format)
    gray = images.decode(encoded, num_channels=1)
    color = images.decode(encoded, num_channels=3)
    assert (gray.shape, color.shape) == ((16, 32, 1), (16, 32, 3))
    np.testing.assert_allclose(gray[:, :, 0].astype(int), pixels, atol=4)
    np.testing.assert_array_equal(color, np.repeat(gray, 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_color_file_is_converted_to_gray_by_luminance(file_format: str):
    gray = images.decode(encode(two_colors(RED, GREEN), file_format), num_channels=1)
    assert gray.shape == (16, 32, 1)
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B
    np.testing.assert_allclose(gray[8, [0, -1], 0].astype(int), [75, 147], atol=5)


# Corner in which the first stored pixel is displayed (EXIF 2.32, tag 0x0112), and whether height
# and width are swapped.
EXIF_ORIENTATIONS = {
    1: ("top left", False), 2: ("top right", False), 3: ("bottom right", False),
    4: ("bottom left", False), 5: ("top left", True), 6: ("top right", True),
    7: ("bottom right", True), 8: ("bottom left", True),
}  # fmt: skip


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", EXIF_ORIENTATIONS)
def test_a_photo_is_turned_by_its_exif_orientation(
    orientation: int, file_format: str, num_channels: int
):
    corner, turned = EXIF_ORIENTATIONS[orientation]
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pixels, file_format, exif=exif.tobytes(), quality=95)
    decoded = images.decode(encoded, num_channels)
    assert decoded.shape[:2] == ((32, 16) if turned else (16, 32))
    row, column = -1 if "bottom" in corner else 0, -1 if "right" in corner else 0
    assert decoded[row, column].min() > 240
    assert decoded.astype(float).mean() < 50  # the bright corner is an eighth of the image


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"\x99" * 24, b"Exif\0\0II*\0\x08\0\0\0\x09"])
def test_broken_metadata_does_not_break_the_image(exif: bytes):
    whole = encode(picture(), "JPEG")
    segment = b"\xff\xe1" + (2 + len(exif)).to_bytes(2, "big") + exif
    decoded = images.decode(whole[:2] + segment + whole[2:], num_channels=3)
    np.testing.assert_array_equal(decoded, images.decode(whole, num_channels=3))


JPEG = encode(picture(), "JPEG", quality=90)
WHOLE = {
    "JPEG": JPEG,
    "progressive": encode(picture(), "JPEG", progressive=True),
    "in parts": encode(picture(), "JPEG", restart_marker_blocks=2),
    "CMYK": encode(picture(), "JPEG", "CMYK"),
    "PNG": encode(picture(), "PNG"),
    "palette": encode(picture(), "PNG", "P"),
    "WebP": encode(picture(), "WEBP"),
    "lossless WebP": encode(picture(), "WEBP", lossless=True),
    "GIF": encode(picture(), "GIF"),
    "BMP": encode(picture(), "BMP"),
    "TIFF": encode(picture(), "TIFF"),
}


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_a_truncated_file_never_decodes_to_different_pixels(encoded: bytes):
    """Truncation is an error, except in the last bytes of a PNG or GIF, which hold no pixels."""
    whole = images.decode(encoded, num_channels=3)
    for length in {*range(0, len(encoded), 41), *range(len(encoded) - 24, len(encoded))}:
        try:
            decoded = images.decode(encoded[:length], num_channels=3)
        except ValueError:
            continue
        assert len(encoded) - length < 24
        np.testing.assert_array_equal(decoded, whole)


@pytest.mark.parametrize("name", ["JPEG", "progressive", "in parts", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_refused(name: str):
    with pytest.raises(ValueError, match=r"(?i)truncated|premature end"):
        images.decode(WHOLE[name][:-2], num_channels=3)


START_OF_SCAN = JPEG.index(b"\xff\xda")
REVISION = JPEG.index(b"JFIF\0") + 5


@pytest.mark.parametrize(
    "encoded",
    [
        JPEG + b"needless" * 9,
        JPEG + JPEG,
        JPEG[:-2] + b"needless" + JPEG[-2:],
        JPEG[:START_OF_SCAN] + b"needless" + JPEG[START_OF_SCAN:],
        JPEG[:REVISION] + b"\0\0" + JPEG[REVISION + 2 :],
        JPEG[:2] + b"\xff\xe2\0\x10ICC_PROFILE\0\5\2" + JPEG[2:],
    ],
    ids=["after the end", "twice", "before the end", "between segments", "revision", "bad profile"],
)
def test_harmless_oddities_of_real_photos_are_accepted(encoded: bytes):
    for channels in (1, 3):
        np.testing.assert_array_equal(
            images.decode(encoded, channels), images.decode(JPEG, channels)
        )


def test_detectable_jpeg_damage_is_an_error():
    bad_codes = JPEG[: START_OF_SCAN + 200] + b"\xff\0" * 99 + JPEG[START_OF_SCAN + 400 :]
    in_parts = WHOLE["in parts"]
    first, second, third = (m.start() for m in re.finditer(rb"\xff[\xd0-\xd2]", in_parts))
    for encoded, reason in (
        (bad_codes, "bad Huffman code"),
        (in_parts[:second] + in_parts[third:], "found marker 0xd2 instead of RST1"),
        (in_parts[: first + 2] + in_parts[second:], "premature end of data segment"),
    ):
        with pytest.raises(ValueError, match=reason):
            images.decode(encoded, num_channels=3)


def with_bytes(encoded: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    start = encoded.index(after) + offset
    return encoded[:start] + new + encoded[start + len(new) :]


def png_of_claimed_size(width: int, height: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    png = with_bytes(encode(np.zeros((1, 1, 3), np.uint8), "PNG"), b"IHDR", 4, size)
    return with_bytes(png, b"IHDR", 17, zlib.crc32(png[12:29]).to_bytes(4, "big"))


DOT = np.zeros((1, 1, 3), np.uint8)
# Files of a few hundred bytes whose headers claim 60,000 x 60,000 pixels, or the format's maximum.
BOMBS = {
    "PNG": png_of_claimed_size(60_000, 60_000),
    "JPEG": with_bytes(encode(DOT, "JPEG"), b"\xff\xc0", 5, b"\xea\x60" * 2),
    "progressive": with_bytes(
        encode(DOT, "JPEG", progressive=True), b"\xff\xc2", 5, b"\xea\x60" * 2
    ),
    "GIF": with_bytes(encode(DOT, "GIF"), b"GIF8", 6, b"\x60\xea" * 2),
    "BMP": with_bytes(encode(DOT, "BMP"), b"BM", 18, b"\x60\xea\0\0" * 2),
    "WebP": with_bytes(encode(DOT, "WEBP"), b"\x9d\x01\x2a", 3, b"\xff\x3f" * 2),
}


@pytest.mark.parametrize("encoded", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_decompression_bomb_is_refused(encoded: bytes, num_channels: int):
    with pytest.raises(ValueError, match=rf"exceeds limit of {images.MAX_PIXELS} pixels.*\("):
        images.decode(encoded, num_channels)


@pytest.mark.parametrize(
    "encoded",
    [b"", b"\x00", b"no image at all" * 100, JPEG[:2], JPEG[:300], WHOLE["PNG"][:20]],
    ids=["empty", "one byte", "text", "magic only", "within a header", "within PNG's header"],
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_garbage_is_a_value_error_that_reports_its_size(encoded: bytes, num_channels: int):
    with pytest.raises(ValueError, match=rf"^not an image .*\({len(encoded)} bytes\)$"):
        images.decode(encoded, num_channels)


# Runs in its own process, so that a crash or a hang of native code does not take the tests down.
# Arguments: the number of files to generate, and a folder of intact files and bombs.
FUZZ = """
import faulthandler, pathlib, resource, sys
import numpy as np
from train.data import images
from train.data.augmentation import AUGMENTATIONS

faulthandler.dump_traceback_later(100, exit=True)
number, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
whole, bombs = (
    [path.read_bytes() for path in sorted(folder.glob(kind))] for kind in ("whole*", "bomb*")
)

def mutate(rng):
    data = bytearray(whole[rng.integers(len(whole))])
    other = whole[rng.integers(len(whole))]
    for kind in rng.integers(9, size=rng.integers(1, 3)):
        start, end = sorted(rng.integers(len(data) + 1, size=2).tolist())
        head = int(rng.integers(64))
        if kind == 0:
            data[start:] = b""
        elif kind == 1:
            data[min(head, len(data) - 1)] = rng.integers(256)
        elif kind == 2:
            data[:head] = other[:head]
        elif kind == 3:
            data[start:end] = other[start:end]
        elif kind == 4:
            data[start:end] = bytes(end - start)
        elif kind == 5:
            data[start:start] = rng.bytes(head)
        else:
            for place in rng.integers(len(data), size=rng.integers(1, 5)):
                data[place] ^= 1 << rng.integers(8)
        data = data or bytearray(1)
    return bytes(data)

def mebibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for encoded in whole:
    images.decode(encoded, 3)
before = mebibytes()
for encoded in bombs:
    try:
        images.decode(encoded, 3)
    except ValueError:
        continue
    raise AssertionError("a bomb was decoded")
assert mebibytes() - before < 100, mebibytes() - before

decoded = refused = 0
for seed in range(number):
    print(seed, flush=True)
    rng = np.random.default_rng(seed)
    encoded, channels = mutate(rng), int(rng.choice([1, 3]))
    try:
        image = images.decode(encoded, channels)
    except ValueError as error:
        assert str(error).startswith("not an image that can be decoded: "), error
        assert str(error).endswith(f" ({len(encoded)} bytes)"), error
        assert len(str(error).splitlines()) == 1, error
        refused += 1
        continue
    height, width, found = image.shape
    assert image.dtype == np.uint8 and found == channels
    assert 1 <= height * width <= images.MAX_PIXELS
    crop_flip = AUGMENTATIONS["crop-flip"]
    augmented, evaluated = crop_flip.crop(image, 16, rng), crop_flip.evaluation_crop(image, 16)
    assert augmented.shape == evaluated.shape == (16, 16, channels)
    decoded += 1
print(decoded, refused)
"""


def test_mutated_files_decode_or_raise_the_error(tmp_path: Path):
    small = picture(20, 33)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, encoded in enumerate(
        [
            encode(small, "JPEG"),
            encode(small, "JPEG", exif=exif.tobytes()),
            encode(small, "JPEG", progressive=True),
            encode(small, "JPEG", "L", restart_marker_blocks=1),
            encode(small, "JPEG", "CMYK"),
            encode(small, "PNG"),
            encode(small, "PNG", "P", exif=exif.tobytes()),
            encode(small, "PNG", "LA"),
            encode(DEEP[:20, :33, 0], "PNG"),
            encode(small, "WEBP"),
            encode(small, "WEBP", lossless=True, exif=exif.tobytes()),
            encode(small, "WEBP", "RGBA"),
            encode(small, "GIF"),
            encode(small, "BMP"),
            encode(small, "TIFF", compression="tiff_lzw"),
        ]
    ):
        (tmp_path / f"whole{number:02}").write_bytes(encoded)
    for name, encoded in BOMBS.items():
        (tmp_path / f"bomb {name}").write_bytes(encoded)
    fuzzed = subprocess.run(
        [sys.executable, "-c", FUZZ, "3000", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=200,
    )
    *seeds_tried, last = fuzzed.stdout.splitlines() or ["none"]
    assert fuzzed.returncode == 0, f"seed {last}: {fuzzed.returncode}: {fuzzed.stderr[-2000:]}"
    decoded, refused = map(int, last.split())
    assert decoded + refused == len(seeds_tried) == 3000
    assert decoded > 500
    assert refused > 500


ROTATED = Image.Exif()
ROTATED[0x0112] = 6


def verdict(function: Callable[[bytes], Any], encoded: bytes) -> Any:
    """Height and width that a function finds, or None if it rejects the image."""
    try:
        result = function(encoded)
    except ValueError:
        return None
    return (result.height, result.width) if isinstance(result, images.Facts) else result.shape[:2]


def damaged(encoded: bytes, rng: np.random.Generator) -> bytes:
    """Truncate a file, or change, delete or insert bytes."""
    data, place = bytearray(encoded), int(rng.integers(2, len(encoded)))
    match rng.integers(4):
        case 0:
            del data[place:]
        case 1:
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(2, len(data))] = rng.integers(256)
        case 2:
            del data[place : place + rng.integers(1, 30)]
        case _:
            data[place:place] = rng.bytes(int(rng.integers(1, 20)))
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_examining_a_jpeg_finds_what_decoding_finds(mode: str, options: dict[str, Any]):
    rng = np.random.default_rng(0)
    encoded = encode(picture(70, 90), "JPEG", mode, quality=90, **options)
    files = [encoded, *(damaged(encoded, rng) for _ in range(150))]
    expected = [verdict(lambda data: images.decode(data, 3), file) for file in files]
    assert [verdict(images.examine, file) for file in files] == expected
    assert 20 < expected.count(None) < 140


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(picture(48, 64), "JPEG"), ("JPEG", False, 48, 64)),
        (encode(picture(48, 64), "JPEG", "L"), ("JPEG", True, 48, 64)),
        (encode(picture(48, 64), "JPEG", exif=ROTATED), ("JPEG", False, 64, 48)),
        (encode(picture(48, 64), "PNG"), ("PNG", False, 48, 64)),
        (encode(picture(48, 64), "PNG", "L"), ("PNG", True, 48, 64)),
        (encode(picture(48, 64), "PNG", "LA"), ("PNG", True, 48, 64)),
        (encode(picture(48, 64), "TIFF", "I;16"), ("TIFF", True, 48, 64)),
        (encode(picture(48, 64), "GIF"), ("GIF", False, 48, 64)),
        (encode(picture(48, 64), "AVIF"), ("AVIF", False, 48, 64)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_examining_an_image_finds_its_format_channels_and_upright_size(
    encoded: bytes, expected: tuple[str, bool, int, int]
):
    assert images.examine(encoded) == expected


def test_an_image_of_a_missing_package_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "FORMATS", ("JPEG",))  # as if no plugin read HEIC or AVIF
    with pytest.raises(ValueError, match="needs the package pillow-heif"):
        images.decode(encode(picture(), "AVIF"), 3)


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.3,), (0.38,))], ids=["color", "gray"]
)
def test_normalize_subtracts_the_mean_and_divides_by_the_deviation(
    mean: tuple[float, ...], std: tuple[float, ...]
):
    every_value = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, len(mean)))
    pixels = every_value.reshape(2, 8, 16, len(mean))
    expected = (pixels / 255 - np.asarray(mean)) / np.asarray(std)
    got = jax.jit(lambda x: normalize(x, mean, std, jnp.dtype(jnp.float32)))(pixels)
    assert got.dtype == jnp.float32
    # The absolute tolerance is needed because a value may equal the mean.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_normalize_rounds_to_bfloat16_only_at_the_end():
    pixels = np.arange(256, dtype=np.uint8).reshape(256, 1)
    expected = (np.arange(256) / 255 - 0.3)[:, None] / 0.38
    got = normalize(jnp.asarray(pixels), (0.3,), (0.38,), jnp.dtype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 significant bits; near the mean, bfloat16 arithmetic
    # would lose all of them.
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8)
