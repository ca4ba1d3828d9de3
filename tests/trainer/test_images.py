"""Decoding, augmentation, the evaluation crop and normalisation.

An image of coordinates has its row in the first channel and its column in the second, so that a
crop of it says where it was taken.
"""

import io
import zlib
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from train import images
from train.recipes import IMAGENET_MEAN, IMAGENET_STD

sides = st.integers(1, 256)
seeds = st.integers(0, 2**32 - 1)
property_test = settings(deadline=None, derandomize=True, max_examples=200)

RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def coordinates(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns], axis=-1).astype(np.uint8)


def rectangle(crop: np.ndarray) -> tuple[int, int, int, int]:
    """First row, last row, first column and last column of an enlarged crop of coordinates."""
    (top, left), (bottom, right) = crop[0, 0].tolist(), crop[-1, -1].tolist()
    return top, bottom, left, right


def encode(pixels: np.ndarray, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def two_colours(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    """An image of 16 x 32 pixels, large enough for JPEG's blocks not to blur its halves."""
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


def test_colours_come_in_the_order_of_rgb():
    encoded = encode(two_colours(RED, BLUE), "JPEG", quality=95, subsampling=0)
    decoded = images.decode(encoded, num_channels=3)
    assert decoded.shape == (16, 32, 3)
    np.testing.assert_allclose(decoded[:, 0], [RED] * 16, atol=4)
    np.testing.assert_allclose(decoded[:, -1], [BLUE] * 16, atol=4)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_grey_file_decodes_to_as_many_channels_as_are_asked_for(file_format: str):
    pixels = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)
    encoded = encode(pixels, file_format)
    grey = images.decode(encoded, num_channels=1)
    colour = images.decode(encoded, num_channels=3)
    assert (grey.shape, colour.shape) == ((16, 32, 1), (16, 32, 3))
    np.testing.assert_allclose(grey[:, :, 0].astype(int), pixels, atol=4)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_colour_file_becomes_grey_by_luminance(file_format: str):
    grey = images.decode(encode(two_colours(RED, GREEN), file_format), num_channels=1)
    assert grey.shape == (16, 32, 1)
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B
    np.testing.assert_allclose(grey[8, [0, -1], 0].astype(int), [75, 147], atol=5)


# Where the pixel that was stored first is shown (EXIF 2.32, tag 0x0112), and whether height and
# width change places.
EXIF_ORIENTATIONS = {
    1: ("top left", False), 2: ("top right", False), 3: ("bottom right", False),
    4: ("bottom left", False), 5: ("top left", True), 6: ("top right", True),
    7: ("bottom right", True), 8: ("bottom left", True),
}  # fmt: skip


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("orientation", EXIF_ORIENTATIONS)
def test_a_photo_is_turned_as_its_exif_tag_says(orientation: int, num_channels: int):
    corner, turned = EXIF_ORIENTATIONS[orientation]
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pixels, "JPEG", exif=exif.tobytes(), quality=95)
    decoded = images.decode(encoded, num_channels)
    assert decoded.shape[:2] == ((32, 16) if turned else (16, 32))
    row, column = -1 if "bottom" in corner else 0, -1 if "right" in corner else 0
    assert decoded[row, column].min() > 240
    assert decoded.astype(float).mean() < 50  # a quarter of the half that the corner is in


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A file of some hundred bytes whose header promises any number of pixels."""
    png = bytearray(encode(np.zeros((1, 1, 3), np.uint8), "PNG"))
    png[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    return bytes(png)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x00",
        b"no image at all" * 100,
        encode(two_colours(RED, BLUE), "JPEG")[:300],
        png_of_claimed_size(60_000, 60_000),
    ],
    ids=["empty", "one byte", "text", "cut in the header", "decompression bomb"],
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_rubbish_is_a_value_error_that_tells_its_size(encoded: bytes, num_channels: int):
    with pytest.raises(ValueError, match=rf"not an image .*\({len(encoded)} bytes\)"):
        images.decode(encoded, num_channels)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]), seeds)
@property_test
def test_shrinking_takes_the_mean_over_areas(rows: int, columns: int, channels: int, seed: int):
    rng = np.random.default_rng(seed)
    image = rng.integers(256, size=(5 * rows, 4 * columns, channels), dtype=np.uint8)
    means = image.reshape(5, rows, 4, columns, channels).astype(float).mean(axis=(1, 3))
    resized = images.resize(image, 5, 4)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized.astype(float), means, rtol=0, atol=1)  # rounded


@pytest.mark.parametrize("transposed", [False, True])
def test_one_side_is_averaged_also_where_the_other_grows(transposed: bool):
    """A panorama of stripes becomes even, where taking single pixels would give stripes again."""
    stripes = np.zeros((10, 30_000, 1), np.uint8)
    stripes[:, ::2] = 255
    image = stripes.transpose(1, 0, 2) if transposed else stripes
    resized = images.resize(image, 32, 32)
    np.testing.assert_allclose(resized.astype(float), 127.5, atol=2)


@given(sides, sides, seeds)
@property_test
def test_a_random_crop_lies_inside_with_area_and_ratio_in_range(height: int, width: int, seed: int):
    crop = images.random_resized_crop(coordinates(height, width), 256, np.random.default_rng(seed))
    assert crop.shape == (256, 256, 2)
    assert crop.dtype == np.uint8
    top, bottom, left, right = rectangle(crop)
    assert 0 <= top <= bottom < height
    assert 0 <= left <= right < width
    crop_height, crop_width = bottom - top + 1, right - left + 1
    if crop_height == crop_width == min(height, width):
        return  # the central square, where nothing else fits
    # Each side is rounded to a whole pixel, which moves it by half of one at most.
    assert (crop_height + 0.5) * (crop_width + 0.5) >= 0.08 * height * width
    assert (crop_height - 0.5) * (crop_width - 0.5) <= height * width
    assert (crop_width - 0.5) / (crop_height + 0.5) <= 4 / 3
    assert (crop_width + 0.5) / (crop_height - 0.5) >= 3 / 4


def test_random_crops_fill_the_ranges_of_the_paper():
    """Uniform areas from 8 % to 100 %, and ratios from 3/4 to 4/3, as likely wide as high."""
    image = coordinates(200, 250)
    crops = [
        images.random_resized_crop(image, 256, np.random.default_rng(seed)) for seed in range(2000)
    ]
    edges = np.array([rectangle(crop) for crop in crops], float)
    heights, widths = edges[:, 1] - edges[:, 0] + 1, edges[:, 3] - edges[:, 2] + 1
    areas, ratios = heights * widths / (200 * 250), widths / heights
    # Nearly all of the areas fit below a half, so of those a third is below (0.08 + 0.42/3).
    below_half = areas[areas < 0.5]
    assert 0.25 < (below_half < 0.08 + 0.42 / 3).mean() < 0.42
    assert areas.min() < 0.1
    assert areas.max() > 0.95
    assert (heights.max(), widths.max()) == (200, 250)
    assert ratios.min() < 0.78
    assert ratios.max() > 1.28
    small = areas < 0.3  # small ones fit whatever their ratio
    assert 0.4 < (ratios[small] > 1).mean() < 0.6
    # They reach each edge of the image, also those that do not fill it.
    narrow = edges[(heights < 100) & (widths < 100)]
    assert narrow.min(axis=0)[[0, 2]].tolist() == [0, 0]
    assert narrow.max(axis=0)[[1, 3]].tolist() == [199, 249]
    # The central square is for the one in 10**5 where ten rectangles in a row do not fit.
    assert not ((heights == 200) & (widths == 200)).any()


@pytest.mark.parametrize(("height", "width"), [(8, 255), (255, 8)])
def test_where_no_rectangle_fits_the_central_square_is_taken(height: int, width: int):
    crop = images.random_resized_crop(coordinates(height, width), 256, np.random.default_rng(0))
    start = (255 - 8) // 2
    expected = (0, 7, start, start + 7) if width == 255 else (start, start + 7, 0, 7)
    assert rectangle(crop) == expected


def is_mirrored(image: np.ndarray) -> bool:
    return int(image[0, 0, 1]) > int(image[0, -1, 1])


@pytest.mark.parametrize(
    ("augmentation", "share"), [("crop-flip", 0.5), ("shift-flip", 0.5), ("shift", 0)]
)
def test_half_of_the_images_are_mirrored_where_a_flip_is_asked_for(
    augmentation: images.Augmentation, share: float
):
    image = coordinates(64, 64) + np.uint8(1)
    augmented = [
        images.augment(image, 64, augmentation, np.random.default_rng(seed))[10:-10, 10:-10]
        for seed in range(400)
    ]
    mirrored = [is_mirrored(crop) for crop in augmented]
    assert abs(np.mean(mirrored) - share) <= (0.1 if share else 0)
    # Never upside down.
    assert all(crop[0, 0, 0] <= crop[-1, 0, 0] for crop in augmented)


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (28, 3)])
def test_shifts_cover_all_offsets_and_bring_in_zeros(size: int, pad: int):
    image = coordinates(size, size) + np.uint8(1)
    padded = np.zeros((size + 2 * pad, size + 2 * pad, 2), np.uint8)
    padded[pad:-pad, pad:-pad] = image
    seen = set()
    for seed in range(100 * (2 * pad + 1)):
        shifted = images.random_shift(image, np.random.default_rng(seed))
        middle = shifted[size // 2, size // 2].astype(int)
        top, left = middle - 1 - size // 2 + pad
        np.testing.assert_array_equal(shifted, padded[top : top + size, left : left + size])
        seen.add((top, left))
    assert seen == {(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)}


@given(
    sides, sides, st.sampled_from([1, 3]), st.integers(8, 64),
    st.sampled_from(get_args(images.Augmentation)), seeds,
)  # fmt: skip
@property_test
def test_any_image_becomes_a_square_of_the_size_asked_for(
    height: int, width: int, channels: int, size: int, augmentation: Any, seed: int
):
    image = np.full((height, width, channels), 7, np.uint8)
    augmented = images.augment(image, size, augmentation, np.random.default_rng(seed))
    evaluated = images.evaluation_crop(image, size, augmentation)
    assert augmented.shape == evaluated.shape == (size, size, channels)
    assert augmented.dtype == evaluated.dtype == np.uint8
    assert (evaluated == 7).all()  # an evaluation image has no padding
    if augmentation == "crop-flip":
        assert (augmented == 7).all()


def test_augmentation_is_a_function_of_its_generator():
    image = coordinates(50, 60)
    once, again, other = (
        images.augment(image, 32, "crop-flip", np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_an_image_of_256_pixels_is_evaluated_on_its_central_224():
    image = np.random.default_rng(0).integers(256, size=(256, 300, 3), dtype=np.uint8)
    crop = images.evaluation_crop(image, 224, "crop-flip")
    np.testing.assert_array_equal(crop, image[16:240, 38:262])


@given(sides, sides)
@property_test
def test_the_evaluation_crop_is_central(height: int, width: int):
    crop = images.evaluation_crop(coordinates(height, width), 256, "crop-flip")
    top, bottom, left, right = rectangle(crop)
    side = bottom - top + 1
    assert right - left + 1 == side
    assert abs(side - min(height, width) * 224 / 256) <= 0.5 or side == 1
    assert abs(top - (height - 1 - bottom)) <= 1
    assert abs(left - (width - 1 - right)) <= 1


def test_small_images_are_evaluated_whole():
    image = coordinates(28, 28)
    np.testing.assert_array_equal(images.evaluation_crop(image, 28, "shift-flip"), image)


@pytest.mark.parametrize(
    ("mean", "std"), [(IMAGENET_MEAN, IMAGENET_STD), ((0.3,), (0.38,))], ids=["colour", "grey"]
)
def test_normalize_is_the_distance_from_the_mean_in_deviations(
    mean: tuple[float, ...], std: tuple[float, ...]
):
    every_value = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, len(mean)))
    pixels = every_value.reshape(2, 8, 16, len(mean))
    expected = (pixels / 255 - np.asarray(mean)) / np.asarray(std)
    got = jax.jit(lambda x: images.normalize(x, mean, std, jnp.dtype(jnp.float32)))(pixels)
    assert got.dtype == jnp.float32
    # Relative to a deviation, because a value may lie on the mean.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_normalize_rounds_to_bfloat16_only_at_the_end():
    pixels = np.arange(256, dtype=np.uint8).reshape(256, 1)
    expected = (np.arange(256) / 255 - 0.3)[:, None] / 0.38
    got = images.normalize(jnp.asarray(pixels), (0.3,), (0.38,), jnp.dtype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 places. At the mean, bfloat16 arithmetic would lose
    # all of them.
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8)
