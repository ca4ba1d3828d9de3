"""Verification of a data set: every image is decoded once, every label is checked."""

import dataclasses
import hashlib
import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.data import verification
from train.data.verification import CorruptImage, Verified, VerifiedSplit, verify_split
from train.errors import DataError, RunError


class InMemory:
    """Records in memory, which count the largest number that was read at a time."""

    def __init__(self, images: Sequence[bytes], labels: Sequence[int], named: bool = True) -> None:
        self.rows = list(zip(images, labels, strict=True))
        self.named, self.most = named, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.rows[index]
        name = {"file_name": f"{index}.jpg"} if self.named else {}
        return {"image": image, "label": np.int64(label), **name}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        self.most = max(self.most, len(indices))
        return [self[index] for index in indices]


def encode(kind: str, mode: str, width: int, height: int, value: int) -> bytes:
    file = io.BytesIO()
    pixel = value if mode == "L" else (value, 0, 99)
    Image.new(mode, (width, height), pixel).save(file, kind)
    return file.getvalue()


def ignore(_: int) -> None: ...


IMAGES = [
    *(encode("JPEG", "RGB", 20, 10, i) for i in range(40)),
    *(encode("PNG", "L", 8, 30, i) for i in range(30)),
    *(encode("WEBP", "RGB", 16, 16, i) for i in range(3)),
]
LABELS = [index % 3 for index in range(len(IMAGES))]


@pytest.mark.parametrize("corrupt", [[], [0, 31, 32, 72]])
def test_the_facts_are_those_of_the_intact_images(corrupt: list[int]):
    images = [b"no image" if i in corrupt else image for i, image in enumerate(IMAGES)]
    records = InMemory(images, LABELS)
    done: list[int] = []
    facts, found, digests = verify_split("train", records, 4, True, done.append)
    assert [image.index for image in found] == corrupt
    assert all(image.file_name == f"{image.index}.jpg" for image in found)
    assert all("unknown format (8 bytes)" in image.reason for image in found)
    assert sum(done) == len(IMAGES)
    assert records.most <= verification.AT_ONCE

    intact = [index for index in range(len(IMAGES)) if index not in corrupt]
    with_pillow = [Image.open(io.BytesIO(images[index])) for index in intact]
    kinds, sizes = [image.format for image in with_pillow], [image.size for image in with_pillow]
    assert facts.num_images == len(intact)
    assert facts.class_counts == [sum(LABELS[i] == c for i in intact) for c in range(4)]
    assert facts.formats == {kind: kinds.count(kind) for kind in ("JPEG", "PNG", "WEBP")}
    assert facts.num_gray == kinds.count("PNG")
    assert facts.sizes == {f"{w} x {h}": sizes.count((w, h)) for w, h in ((20, 10), (8, 30), (16, 16))}  # fmt: skip  # noqa: E501
    sides = sorted(min(size) for size in sizes)
    assert list(facts.shorter_sides) == [8, int(np.median(sides)), 16]
    hashes = [hashlib.sha256(images[index]).digest() for index in range(len(images))]
    assert [row.tobytes() for row in digests] == hashes
    text = b"".join(LABELS[i].to_bytes(8, "little") for i in intact)
    text += b"".join(hashes[i] for i in intact)
    assert facts.contents == hashlib.sha256(text).hexdigest()


def test_images_labels_and_their_order_change_the_contents():
    def contents(images: Sequence[bytes], labels: Sequence[int]) -> str:
        return verify_split("train", InMemory(images, labels), 3, True, ignore)[0].contents

    some, labels = IMAGES[:3], [0, 1, 2]
    others = [
        (IMAGES[:2], [0, 1]),
        (some[::-1], labels),
        ([*IMAGES[:2], IMAGES[50]], labels),
        (some, [0, 2, 1]),
    ]
    different = {contents(some, labels), *(contents(*other) for other in others)}
    assert len(different) == 5


@pytest.mark.parametrize("label", [-1, 3, 70_000])
@pytest.mark.parametrize("index", [0, 40, 72])
def test_a_label_outside_the_class_range_is_an_error(label: int, index: int):
    labels = [label if i == index else value for i, value in enumerate(LABELS)]
    with pytest.raises(DataError) as caught:
        verify_split("test", InMemory(IMAGES, labels), 3, True, ignore)
    line = str(caught.value)
    assert f"image {index} of the split 'test' ({index}.jpg): its label is {label}," in line
    assert "has 3 classes, 0 to 2" in line
    # A split that runs do not use may be unlabeled, but its labels are not counted.
    facts, *_ = verify_split("test", InMemory(IMAGES, labels), 3, False, ignore)
    assert len(facts.class_counts) == 3
    assert sum(facts.class_counts) == len(IMAGES) - 1


def test_an_error_without_file_names_names_the_index():
    with pytest.raises(DataError, match=r"^image 2 of the split 'train': its label is 9"):
        verify_split("train", InMemory(IMAGES[:3], [0, 0, 9], named=False), 2, True, ignore)
    _, corrupt, _ = verify_split("train", InMemory([b""], [0], named=False), 2, True, ignore)
    assert corrupt[0].file_name is None


def test_a_split_whose_images_are_all_corrupt_has_no_sizes():
    facts, corrupt, _ = verify_split("train", InMemory([b"a", b"b"], [0, 1]), 2, True, ignore)
    assert (facts.num_images, facts.class_counts, facts.shorter_sides) == (0, [0, 0], [])
    assert len(corrupt) == 2


def test_images_in_both_splits_are_found():
    _, _, some = verify_split("a", InMemory(IMAGES[:10], LABELS[:10]), 3, True, ignore)
    _, _, others = verify_split("b", InMemory(IMAGES[8:30], LABELS[8:30]), 3, True, ignore)
    assert verification.common(others, some) == [0, 1]
    assert verification.common(some, others) == [8, 9]


SPLIT = VerifiedSplit(
    num_images=3,
    class_counts=[1, 2],
    contents="0" * 64,
    num_gray=3,
    formats={"PNG": 3},
    sizes={"8 x 8": 3},
    shorter_sides=[8, 8, 8],
)
VERIFIED = Verified(
    origin="a test", date="2026-01-01 10:00", files="1" * 64, splits={"train": SPLIT}, skipped={}
)
CORRUPT = [CorruptImage("train", 3, "a/3.png", "broken"), CorruptImage("test", 1, None, "empty")]


def test_what_is_saved_is_loaded(tmp_path: Path):
    assert verification.load(tmp_path) is None
    verification.save(tmp_path, VERIFIED, CORRUPT)
    assert verification.load(tmp_path) == VERIFIED
    assert [verification.load_corrupt(tmp_path, name) for name in ("train", "test")] == [[3], [1]]
    verification.save(tmp_path, VERIFIED, [])  # repaired
    assert verification.load_corrupt(tmp_path, "train") == []
    assert [path.name for path in tmp_path.iterdir()] == ["verified.json"]
    verification.forget(tmp_path)
    assert not list(tmp_path.iterdir())
    verification.forget(tmp_path)


def test_an_interrupted_save_leaves_no_result_beside_the_list_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    verification.save(tmp_path, VERIFIED, CORRUPT)
    write = verification.write_atomically

    def full(path: Path, text: str) -> None:
        if path.name == verification.VERIFIED:
            raise OSError("disk full")
        write(path, text)

    monkeypatch.setattr(verification, "write_atomically", full)
    with pytest.raises(OSError, match="disk full"):
        verification.save(tmp_path, dataclasses.replace(VERIFIED, origin="new"), CORRUPT[:1])
    assert verification.load(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"splits": {"train": {}}}', "\0"])
def test_a_damaged_result_is_reported(tmp_path: Path, text: str):
    (tmp_path / verification.VERIFIED).write_text(text)
    with pytest.raises(DataError, match=r"verified\.json is damaged; verify the data set again"):
        verification.load(tmp_path)


@pytest.mark.parametrize("text", ["{\n", "[]\n", json.dumps({"split": "train"}) + "\n", "x"])
def test_a_damaged_list_is_reported(tmp_path: Path, text: str):
    (tmp_path / verification.CORRUPT).write_text(text)
    with pytest.raises(DataError, match=r"corrupt_images\.jsonl is damaged"):
        verification.load_corrupt(tmp_path, "train")


def test_a_read_only_folder_is_reported(tmp_path: Path):
    verification.check_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"only root may mount: {done.stderr.strip()}")
    try:
        with pytest.raises(RunError, match=r"cannot be written to \(Read-only file system\)"):
            verification.check_writable(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
