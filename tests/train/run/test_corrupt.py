"""Corrupt images: each is listed once, and their number is limited."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from train.config import Config
from train.data.dataset import Dataset
from train.errors import DataError, UsageError
from train.recipes import digits
from train.run.corrupt import CorruptImages
from train.step.examples import INTACT, NO_LABEL

PNG = cv2.imencode(".png", np.full((8, 8), 99, np.uint8))[1].tobytes()


class Truncated:
    """Truncated images."""

    def __init__(self, **more: Any) -> None:
        self.more = more

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": PNG[:40], "label": 0, **self.more}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


DATASET = Dataset(
    name="birds",
    class_names=["owl"],
    train=Truncated(file_name=b"owl/1.png"),
    evaluation=Truncated(id="7a"),
    evaluation_split="validation",
)


def allowing(max_corrupt_images: int) -> Config:
    return digits().replace(max_corrupt_images=max_corrupt_images)


def minibatch(*corrupt: int) -> Any:
    return jnp.asarray([[INTACT, *corrupt, INTACT]], jnp.int32)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_image_is_listed_once_with_its_step_and_the_reason(tmp_path: Path):
    path = tmp_path / "corrupt_images.jsonl"
    corrupt = CorruptImages(allowing(3), DATASET, 0, path)
    corrupt.add_from_training(2, minibatch(5, 3))
    corrupt.add_from_training(9, minibatch(3))
    corrupt.add_from_evaluation(9, np.array([4, NO_LABEL, 4]))
    assert len(corrupt) == 3
    found = lines(path)
    places = [(line["step"], line["split"], line["index"], line["file_name"]) for line in found]
    assert places == [
        (2, "train", 5, "owl/1.png"),
        (2, "train", 3, "owl/1.png"),
        (9, "validation", 1, "7a"),
    ]
    assert all("not an image that can be decoded: " in line["reason"] for line in found)


def test_exceeding_the_limit_is_an_error_that_names_the_image(tmp_path: Path):
    path = tmp_path / "corrupt_images.jsonl"
    corrupt = CorruptImages(allowing(1), DATASET, 0, path)
    corrupt.add_from_training(2, minibatch(5))
    with pytest.raises(DataError) as error:
        corrupt.add_from_training(3, minibatch(8))
    message = str(error.value)
    start = "birds, split 'train', image 8 (owl/1.png): not an image that can be decoded: "
    assert message.startswith(start)
    assert message.endswith(
        f"(40 bytes); corrupt images so far: 2, --max-corrupt-images allows 1; {path} lists them"
    )
    assert len(lines(path)) == 2


def test_limit_of_zero_applies_to_evaluation_too():
    with pytest.raises(DataError, match=r"^birds, split 'validation', image 2 \(7a\): not an im"):
        CorruptImages(allowing(0), DATASET).add_from_evaluation(0, np.array([0, 1, NO_LABEL]))


def test_image_without_a_name_is_identified_by_its_index():
    nameless = dataclasses.replace(DATASET, train=Truncated())
    with pytest.raises(DataError, match=r"^birds, split 'train', image 6: not an image"):
        CorruptImages(allowing(0), nameless).add_from_training(1, minibatch(6))


def test_resumed_run_keeps_earlier_entries_and_drops_later_ones(tmp_path: Path):
    path = tmp_path / "corrupt_images.jsonl"
    first = CorruptImages(allowing(9), DATASET, 0, path)
    for step in (2, 4, 6):
        first.add_from_training(step, minibatch(step))
    resumed = CorruptImages(allowing(2), DATASET, 4, path)
    assert [line["step"] for line in lines(path)] == [2, 4]
    assert len(resumed) == 2
    resumed.add_from_training(5, minibatch(4))
    with pytest.raises(DataError, match="corrupt images so far: 3, --max-corrupt-images allows 2"):
        resumed.add_from_training(6, minibatch(6))
    stricter = CorruptImages(allowing(1), DATASET, 5, path)
    with pytest.raises(DataError, match="corrupt images so far: 2, --max-corrupt-images allows 1"):
        stricter.add_from_training(6, minibatch(2))


def test_negative_limit_is_refused():
    with pytest.raises(UsageError, match="--max-corrupt-images is -1; it must be at least 0"):
        allowing(-1)
