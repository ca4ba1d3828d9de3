"""Tests of augmentation and the evaluation crop.

An image of coordinates holds the row in its first channel and the column in its second, so that a
crop reveals which pixels it holds.
"""

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.augmentation import (
    AUGMENTATIONS,
    AugmentationName,
    random_resized_crop,
    random_shifts,
    resize,
    shift,
)

sides = st.integers(1, 256)
seeds = st.integers(0, 2**32 - 1)
property_test = settings(deadline=None, derandomize=True, max_examples=200)

CROP_FLIP = AUGMENTATIONS["crop-flip"]


def coordinates(height: int, width: int) -> np.ndarray:
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns], axis=-1).astype(np.uint8)


def rectangle(crop: np.ndarray) -> tuple[int, int, int, int]:
    """First row, last row, first column and last column of an enlarged crop of coordinates."""
    (top, left), (bottom, right) = crop[0, 0].tolist(), crop[-1, -1].tolist()
    return top, bottom, left, right


def augment(name: AugmentationName, images: np.ndarray, seed: int, size: int = 64) -> np.ndarray:
    """Training images of decoded ones, (B, H, W, C)."""
    augmentation, rng = AUGMENTATIONS[name], np.random.default_rng(seed)
    if augmentation.random_crop:
        return np.stack([augmentation.crop(image, size, rng) for image in images])
    resized = np.stack([augmentation.evaluation_crop(image, size) for image in images])
    return shift(resized, random_shifts(len(images), size, flip=augmentation.flip, rng=rng))


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]), seeds)
@property_test
def test_shrinking_averages_over_areas(rows: int, columns: int, channels: int, seed: int):
    rng = np.random.default_rng(seed)
    image = rng.integers(256, size=(5 * rows, 4 * columns, channels), dtype=np.uint8)
    means = image.reshape(5, rows, 4, columns, channels).astype(float).mean(axis=(1, 3))
    resized = resize(image, 5, 4)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized.astype(float), means, rtol=0, atol=1)  # rounded


@pytest.mark.parametrize("transposed", [False, True])
def test_a_shrinking_side_is_averaged_even_if_the_other_grows(transposed: bool):
    """The stripes of a panorama average out; sampling single pixels would give stripes again."""
    stripes = np.zeros((10, 30_000, 1), np.uint8)
    stripes[:, ::2] = 255
    image = stripes.transpose(1, 0, 2) if transposed else stripes
    resized = resize(image, 32, 32)
    np.testing.assert_allclose(resized.astype(float), 127.5, atol=2)


@given(sides, sides, seeds)
@property_test
def test_a_random_crop_lies_inside_at_a_valid_area_and_ratio(height: int, width: int, seed: int):
    crop = random_resized_crop(coordinates(height, width), 256, np.random.default_rng(seed))
    assert crop.shape == (256, 256, 2)
    assert crop.dtype == np.uint8
    top, bottom, left, right = rectangle(crop)
    assert 0 <= top <= bottom < height
    assert 0 <= left <= right < width
    crop_height, crop_width = bottom - top + 1, right - left + 1
    if crop_height == crop_width == min(height, width):
        return  # the central square, if nothing else fits
    # Rounding to a whole pixel changes each side by at most half a pixel.
    assert (crop_height + 0.5) * (crop_width + 0.5) >= 0.08 * height * width
    assert (crop_height - 0.5) * (crop_width - 0.5) <= height * width
    assert (crop_width - 0.5) / (crop_height + 0.5) <= 4 / 3
    assert (crop_width + 0.5) / (crop_height - 0.5) >= 3 / 4


def test_random_crops_cover_the_ranges_of_the_paper():
    """Areas are uniform from 8 % to 100 %; ratios from 3/4 to 4/3 are as often wide as tall."""
    image = coordinates(200, 250)
    crops = [random_resized_crop(image, 256, np.random.default_rng(seed)) for seed in range(2000)]
    edges = np.array([rectangle(crop) for crop in crops], float)
    heights, widths = edges[:, 1] - edges[:, 0] + 1, edges[:, 3] - edges[:, 2] + 1
    areas, ratios = heights * widths / (200 * 250), widths / heights
    # Nearly all areas below one half fit, so a third of these is below 0.08 + 0.42/3.
    below_half = areas[areas < 0.5]
    assert 0.25 < (below_half < 0.08 + 0.42 / 3).mean() < 0.42
    assert areas.min() < 0.1
    assert areas.max() > 0.95
    assert (heights.max(), widths.max()) == (200, 250)
    assert ratios.min() < 0.78
    assert ratios.max() > 1.28
    small = areas < 0.3  # small crops fit at any ratio
    assert 0.4 < (ratios[small] > 1).mean() < 0.6
    # Even crops that do not fill the image reach each of its edges.
    narrow = edges[(heights < 100) & (widths < 100)]
    assert narrow.min(axis=0)[[0, 2]].tolist() == [0, 0]
    assert narrow.max(axis=0)[[1, 3]].tolist() == [199, 249]
    # The central square is used once in 10**5 times, after ten rectangles that do not fit.
    assert not ((heights == 200) & (widths == 200)).any()


@pytest.mark.parametrize(("height", "width"), [(8, 255), (255, 8)])
def test_the_central_square_is_used_if_no_rectangle_fits(height: int, width: int):
    crop = random_resized_crop(coordinates(height, width), 256, np.random.default_rng(0))
    start = (255 - 8) // 2
    expected = (0, 7, start, start + 7) if width == 255 else (start, start + 7, 0, 7)
    assert rectangle(crop) == expected


def is_mirrored(image: np.ndarray) -> bool:
    return int(image[0, 0, 1]) > int(image[0, -1, 1])


@pytest.mark.parametrize(
    ("augmentation", "share"), [("crop-flip", 0.5), ("shift-flip", 0.5), ("shift", 0)]
)
def test_a_flip_mirrors_half_of_the_images(augmentation: AugmentationName, share: float):
    augmented = augment(augmentation, np.stack([coordinates(64, 64) + np.uint8(1)] * 400), seed=0)
    mirrored = [is_mirrored(crop[10:-10, 10:-10]) for crop in augmented]
    assert abs(np.mean(mirrored) - share) <= (0.1 if share else 0)
    # Never upside down.
    assert all(crop[10, 10, 0] <= crop[-10, 10, 0] for crop in augmented)


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (28, 3), (7, 0)])
def test_shifts_cover_all_offsets_and_pad_with_zeros(size: int, pad: int):
    image = coordinates(size, size) + np.uint8(1)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    num_images = 100 * (2 * pad + 1)
    shifts = random_shifts(num_images, size, flip=False, rng=np.random.default_rng(0))
    seen = set()
    for index, shifted in enumerate(shift(np.stack([image] * num_images), shifts)):
        middle = shifted[size // 2, size // 2].astype(int)
        top, left = middle - 1 - size // 2 + pad
        np.testing.assert_array_equal(shifted, padded[top : top + size, left : left + size])
        assert (top, left) == (shifts.top[index], shifts.left[index])
        seen.add((top, left))
    assert seen == {(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)}


@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from([1, 3]), st.booleans(), seeds)
@property_test
def test_each_image_is_shifted_by_its_own_offset(
    count: int, size: int, channels: int, flip: bool, seed: int
):
    """One at a time, by slicing and reversing."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, size, size, channels), dtype=np.uint8)
    before = images.copy()
    shifts = random_shifts(count, size, flip=flip, rng=rng)
    shifted = shift(images, shifts)
    assert (shifted.shape, shifted.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    border = (size // 8, size // 8)
    for image, result, top, left, mirrored in zip(images, shifted, *shifts, strict=True):
        window = np.pad(image, (border, border, (0, 0)))[top : top + size, left : left + size]
        np.testing.assert_array_equal(result, window[:, ::-1] if mirrored else window)
    some = rng.permutation(count)[: 1 + count // 2]
    np.testing.assert_array_equal(shift(images[some], shifts.of(some)), shifted[some])


@given(
    sides, sides, st.sampled_from([1, 3]), st.integers(8, 64),
    st.sampled_from(get_args(AugmentationName)), seeds,
)  # fmt: skip
@property_test
def test_any_image_becomes_a_square_of_the_requested_size(
    height: int, width: int, channels: int, size: int, augmentation: Any, seed: int
):
    image = np.full((height, width, channels), 7, np.uint8)
    evaluated = AUGMENTATIONS[augmentation].evaluation_crop(image, size)
    [augmented] = augment(augmentation, image[None], seed, size)
    assert augmented.shape == evaluated.shape == (size, size, channels)
    assert augmented.dtype == evaluated.dtype == np.uint8
    assert (evaluated == 7).all()  # evaluation images are not padded
    if augmentation == "crop-flip":
        assert (augmented == 7).all()


def test_a_random_crop_depends_only_on_its_generator():
    image = coordinates(50, 60)
    once, again, other = (
        CROP_FLIP.crop(image, 32, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_an_image_of_256_pixels_is_evaluated_on_its_central_224():
    image = np.random.default_rng(0).integers(256, size=(256, 300, 3), dtype=np.uint8)
    crop = CROP_FLIP.evaluation_crop(image, 224)
    np.testing.assert_array_equal(crop, image[16:240, 38:262])


@given(sides, sides)
@property_test
def test_the_evaluation_crop_is_central(height: int, width: int):
    crop = CROP_FLIP.evaluation_crop(coordinates(height, width), 256)
    top, bottom, left, right = rectangle(crop)
    side = bottom - top + 1
    assert right - left + 1 == side
    assert abs(side - min(height, width) * 224 / 256) <= 0.5 or side == 1
    assert abs(top - (height - 1 - bottom)) <= 1
    assert abs(left - (width - 1 - right)) <= 1


def test_small_images_are_evaluated_whole():
    image = coordinates(28, 28)
    np.testing.assert_array_equal(AUGMENTATIONS["shift-flip"].evaluation_crop(image, 28), image)
