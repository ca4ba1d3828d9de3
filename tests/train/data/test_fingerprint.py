"""The fingerprint of a data set: what makes two data sets differ, and what does not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from train.data import verification
from train.data.dataset import open_dataset
from train.data.fingerprint import Fingerprint, recorded_in, recorded_with
from train.data.formats.source import Example, Source
from train.data.preparation import verify
from train.data.store import write
from train.data.stored import files_digest, open_builder
from train.recipes import tfds

SAVED = Fingerprint(
    class_names=["cat", "dog"], split_sizes={"train": 8, "test": 2}, contents="abc", files="def"
)


def changed(**fields: Any) -> Fingerprint:
    return dataclasses.replace(SAVED, **fields)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (changed(class_names=["cat"]), ["it has 1 classes instead of 2"]),
        (changed(class_names=["cat", "fox"]), ["class 1 is fox instead of dog"]),
        (changed(class_names=["dog", "cat"]), ["class 0 is dog instead of cat"]),
        (
            changed(split_sizes={"train": 7, "test": 3}),
            [
                "the split 'test' has 3 images instead of 2",
                "the split 'train' has 7 images instead of 8",
            ],
        ),
        (
            changed(split_sizes={"train": 8, "validation": 2}),
            [
                "the split 'test' has 0 images instead of 2",
                "the split 'validation' has 2 images instead of 0",
            ],
        ),
        (changed(contents="xyz"), ["labels or images differ (same classes and sizes)"]),
        (changed(contents=None, files="xyz"), ["its files differ (same classes and sizes)"]),
    ],
)
def test_differences_say_what_differs(now: Fingerprint, expected: list[str]):
    assert now.differences(SAVED) == expected
    assert len(SAVED.differences(now)) == len(expected)
    assert now.short != SAVED.short


@pytest.mark.parametrize(
    "same",
    [
        changed(class_names=("cat", "dog"), split_sizes={"test": 2, "train": 8}),
        changed(files="xyz"),  # the same images in other files
        changed(contents=None),  # not verified, or not yet
    ],
)
def test_the_same_data_has_no_differences(same: Fingerprint):
    assert same.differences(SAVED) == SAVED.differences(same) == []
    assert (same.short == SAVED.short) == (same.contents == SAVED.contents)


def test_the_fingerprint_is_saved_next_to_other_fields():
    fields = json.loads(json.dumps(recorded_with({"seed": 3}, SAVED)))
    assert fields["seed"] == 3
    assert fields["data_fingerprint"]["short"] == SAVED.short
    assert recorded_in(fields) == SAVED
    assert recorded_with({"seed": 3}, None) == {"seed": 3}
    assert recorded_in({"seed": 3}) is None
    for damaged in ({"data_fingerprint": {}}, {"data_fingerprint": "abc"}):
        with pytest.raises(ValueError, match="not a fingerprint"):
            recorded_in(damaged)


def images_of(number: int, sides: int = 8) -> list[bytes]:
    rng = np.random.default_rng(number)
    pixels = rng.integers(256, size=(number, sides, sides, 3), dtype=np.uint8)
    return [cv2.imencode(".png", image)[1].tobytes() for image in pixels]


def store(data_dir: Path, images: list[bytes], labels: list[int]) -> Path:
    """Write images as both splits of the data set `pets`, without verification."""
    source = Source(
        origin="noise",
        class_names=["cat", "dog"],
        examples=[
            Example(split, str(index), label, index)
            for split in ("train", "test")
            for index, label in enumerate(labels)
        ],
        read=lambda example: images[example.location],
    )
    builder = write(source, "pets", data_dir, lambda encoded: encoded, lambda _: None)
    return Path(builder.data_dir)


def digest(data_dir: Path) -> str:
    return files_digest(open_builder("pets", data_dir), ["train", "test"])


def fingerprint(data_dir: Path) -> Fingerprint:
    found = open_dataset(tfds().replace(dataset="pets", data_dir=data_dir)).fingerprint
    assert found is not None
    return found


def verify_pets(data_dir: Path, *, skip_corrupt: bool = False) -> None:
    verify(
        open_builder("pets", data_dir),
        lambda *_: lambda _: None,
        origin="noise",
        skipped={},
        skip_corrupt=skip_corrupt,
    )


def test_verification_changes_no_digest_of_the_files(tmp_path: Path):
    """Data that was verified after a run started must still match the run."""
    images = images_of(6)
    images[4] = images[4][:40]
    folder = store(tmp_path, images, [0, 1] * 3)
    before = fingerprint(tmp_path)
    assert before.contents is None
    verify_pets(tmp_path, skip_corrupt=True)
    assert (folder / verification.VERIFIED).exists()
    assert (folder / verification.CORRUPT).exists()
    after = fingerprint(tmp_path)
    assert after.contents is not None
    assert after.files == before.files == digest(tmp_path)
    assert after.differences(before) == [
        "the split 'test' has 5 images instead of 6",
        "the split 'train' has 5 images instead of 6",
    ]


def test_a_verified_copy_is_the_same_data_and_a_changed_label_is_not(tmp_path: Path):
    images, labels = images_of(6), [0, 1] * 3
    store(tmp_path / "one", images, labels)
    store(tmp_path / "copy", images, labels)
    store(tmp_path / "other", images, [0, 1, 1, 0, 0, 1])
    unverified = [fingerprint(tmp_path / name) for name in ("one", "copy", "other")]
    assert unverified[1].differences(unverified[0]) == []
    assert unverified[2].differences(unverified[0]) == ["its files differ (same classes and sizes)"]
    for name in ("one", "copy", "other"):
        verify_pets(tmp_path / name)
    one, copy, other = (fingerprint(tmp_path / name) for name in ("one", "copy", "other"))
    assert copy.differences(one) == []
    assert other.differences(one) == ["labels or images differ (same classes and sizes)"]


def test_an_image_in_the_middle_of_a_large_file_moves_the_offsets_at_its_end(tmp_path: Path):
    """The middle is not read, but every file ends with the offset of each record."""
    images, labels = images_of(64, sides=100), [0, 1] * 32
    folder = store(tmp_path / "one", images, labels)
    assert all(path.stat().st_size > 1_000_000 for path in folder.glob("*array_record*"))
    # Both images still fill the same space together.
    images[30], images[31] = images[30] + bytes(40), images[31][:-40]
    other = store(tmp_path / "other", images, labels)
    for path in folder.glob("*array_record*"):
        assert path.stat().st_size == (other / path.name).stat().st_size
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


@pytest.mark.parametrize("place", [100, -1])
def test_one_changed_byte_at_either_end_of_a_large_file_is_noticed(tmp_path: Path, place: int):
    folder = store(tmp_path, images_of(64, sides=100), [0, 1] * 32)
    before = digest(tmp_path)
    for path in folder.glob("*array_record*"):
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)
        assert digest(tmp_path) != before
        data[place] ^= 1
        path.write_bytes(data)
        assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "label.labels.txt"])
def test_changed_metadata_is_noticed(tmp_path: Path, name: str):
    folder = store(tmp_path, images_of(4), [0, 1] * 2)
    before = digest(tmp_path)
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert digest(tmp_path) != before
