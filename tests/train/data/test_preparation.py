"""Preparation of a data set, and training and evaluation without its corrupt images."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from train.config import Config
from train.data import store, verification
from train.data.dataset import open_dataset
from train.data.formats.source import TEST, TRAIN, Example, Options, Source
from train.data.minibatches import evaluation_minibatches, training_minibatches
from train.data.preparation import (
    ELSEWHERE,
    CorruptImagesError,
    TakenError,
    origin_in,
    origin_of,
    prepare,
    prepared_from,
    verify,
)
from train.data.stored import find, open_builder
from train.errors import DataError, UsageError
from train.plan import make_plan
from train.recipes import tfds
from train.step.workers import make_workers

ROOT = Path(__file__).parents[3]


def ignore(_: int) -> None: ...


def quiet(*_: object) -> Callable[[int], None]:
    return ignore


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((9, 12, 3), value, np.uint8))[1].tobytes()


def source(corrupt: tuple[str, ...] = (), num_train: int = 20, num_test: int = 12) -> Source:
    """Images of one gray value each, which is also their location: 0.. and, for testing, 100..."""
    sizes = ((TRAIN, num_train, 0), (TEST, num_test, 100))
    return Source(
        origin="a test",
        class_names=["a", "b"],
        examples=[
            Example(split, f"{split}/{i}", i % 2, start + i)
            for split, size, start in sizes
            for i in range(size)
        ],
        read=lambda e: b"no image" if e.name in corrupt else png(e.location),
    )


def options(data_dir: Path, **changes: Any) -> Options:
    return Options(**({"name": "mine", "data_dir": data_dir} | changes))


def configured(data_dir: Path) -> Config:
    return tfds().replace(
        dataset="mine", data_dir=data_dir, num_workers=1, batch_size_per_worker=5,
        accumulation_steps=1, image_size=32, augmentation="shift", num_reader_processes=0,
    )  # fmt: skip


CORRUPT = ("train/3", "train/19", "test/0", "test/7")


def test_training_and_evaluation_omit_corrupt_images(tmp_path: Path):
    with pytest.raises(CorruptImagesError, match=r"4 image\(s\) of a test are corrupt") as caught:
        prepare(source(CORRUPT), options(tmp_path), quiet)
    assert [f"{image.split}/{image.index}" for image in caught.value.images] == [*CORRUPT]
    assert not list(tmp_path.iterdir())

    prepared = prepare(source(CORRUPT), options(tmp_path, skip_corrupt=True), quiet)
    lines = (prepared.folder / "corrupt_images.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == [*CORRUPT]
    config = configured(tmp_path)
    dataset = open_dataset(config)
    assert (len(dataset.train), len(dataset.evaluation)) == (18, 10)
    plan = make_plan(config, dataset, make_workers(config, jax.devices()[:1]))

    def seen(minibatches: Any) -> dict[int, int]:
        """Label of each image that was seen, by its gray value."""
        return {
            int(image.max()): int(label)
            for rows in minibatches
            for image, label in zip(rows.images, rows.labels, strict=True)
            if label >= 0
        }

    intact = {
        split: {e.location: e.label for e in source().examples if e.split == split}
        for split in (TRAIN, TEST)
    }
    for name in CORRUPT:
        split, index = name.split("/")
        del intact[split][int(index) + (100 if split == TEST else 0)]
    assert seen(evaluation_minibatches(plan)) == intact[TEST]
    epochs = seen(training_minibatches(plan, 0, 40))
    # The last images of an epoch do not fill a minibatch, but a later epoch has them.
    assert epochs == intact[TRAIN]


def test_a_data_set_may_lose_no_class_or_split_to_corruption(tmp_path: Path):
    allowed = options(tmp_path, skip_corrupt=True)
    every_b = tuple(
        f"{split}/{i}" for split, n in ((TRAIN, 20), (TEST, 12)) for i in range(1, n, 2)
    )
    with pytest.raises(UsageError, match=r"class\(es\) b have no images"):
        prepare(source(every_b), allowed, quiet)
    every_test = tuple(f"test/{i}" for i in range(12))
    with pytest.raises(UsageError, match="no intact images in its split 'test'"):
        prepare(source(every_test), allowed, quiet)
    assert not list(tmp_path.iterdir())


def test_a_repaired_data_set_is_verified_again(tmp_path: Path):
    prepared = prepare(source(CORRUPT), options(tmp_path, skip_corrupt=True), quiet)
    builder = open_builder("mine", tmp_path)
    arguments: Any = {"origin": "a test", "skipped": {}, "skip_corrupt": False}
    with pytest.raises(CorruptImagesError):
        verify(builder, quiet, **arguments)
    # What failed no longer counts as verified, but it is known what it was prepared from.
    assert verification.load(prepared.folder) is None
    assert not (prepared.folder / "corrupt_images.jsonl").exists()
    assert origin_in(builder) == "a test"
    elsewhere: dict[str, Any] = arguments | {"origin": ELSEWHERE}
    with pytest.raises(CorruptImagesError, match=rf"4 image\(s\) of {prepared.folder} are corrupt"):
        verify(builder, quiet, **elsewhere)
    prepare(source(), options(tmp_path, overwrite=True), quiet)
    assert verify(open_builder("mine", tmp_path), quiet, **arguments).corrupt == []


def test_an_interrupted_verification_keeps_the_result(tmp_path: Path):
    prepared = prepare(source(), options(tmp_path), quiet)

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(
            open_builder("mine", tmp_path), lambda *_: interrupt, origin="", skipped={},
            skip_corrupt=False,
        )  # fmt: skip
    assert verification.load(prepared.folder) == prepared.verified


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "lacks mine-test"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "are damaged: .*64KB"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"test/3", b"test/4")),
            "are damaged: .*hash",
        ),
    ],
)
def test_a_damaged_file_is_reported(tmp_path: Path, damage: Callable[[Path], None], words: str):
    prepared = prepare(source(), options(tmp_path), quiet)
    (path,) = prepared.folder.glob("mine-test*")
    damage(path)
    with pytest.raises(DataError, match=words):
        verify(
            open_builder("mine", tmp_path), quiet, origin="", skipped={}, skip_corrupt=True
        )  # fmt: skip
    assert verification.load(prepared.folder) is None


def test_an_empty_split_is_reported(tmp_path: Path):
    prepared = prepare(source(), options(tmp_path), quiet)
    path = prepared.folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        if split["name"] == "test":
            split["shardLengths"] = []
    path.write_text(json.dumps(info))
    with pytest.raises(UsageError, match="mine has no intact images in its split 'test'"):
        verify(open_builder("mine", tmp_path), quiet, origin="", skipped={}, skip_corrupt=False)


def test_images_in_both_splits_are_counted(tmp_path: Path):
    both = source(num_train=20, num_test=12)
    examples = [e._replace(location=e.location % 100 + 15) for e in both.examples]
    prepared = prepare(dataclasses.replace(both, examples=examples), options(tmp_path), quiet)
    assert prepared.verified.num_in_several_splits == 12
    (warning,) = prepared.warnings
    assert warning.startswith("12 image(s) of the split 'test' are in 'train' too, such as image 0")


def test_options_that_change_what_is_stored_are_part_of_the_origin(tmp_path: Path):
    both, only_train = source(), source(num_test=0)
    for some, changes, expected in (
        (both, {}, "a test"),
        (both, {"held_out": 0.2, "skip_corrupt": True, "overwrite": True}, "a test"),
        (both, {"shorter_side": 64}, "a test (reduced to 64 pixels)"),
        (only_train, {}, "a test"),
        (only_train, {"held_out": 0.2}, "a test (0.2 of each class held out)"),
        (
            only_train,
            {"held_out": 0.2, "shorter_side": 8},
            "a test (reduced to 8 pixels, 0.2 of each class held out)",
        ),
    ):
        assert origin_of(some, options(tmp_path, **changes)) == expected
    prepared = prepare(only_train, options(tmp_path, held_out=0.2), quiet)
    assert prepared.verified.origin == "a test (0.2 of each class held out)"
    builder = open_builder("mine", tmp_path)
    assert prepared_from(builder).startswith(f"prepared from {prepared.verified.origin} on 20")
    (prepared.folder / "verified.json").write_text("{")
    assert origin_in(builder) == prepared.verified.origin


@pytest.mark.parametrize("side", [-1, 0, 7])
def test_a_shorter_side_below_8_is_rejected(tmp_path: Path, side: int):
    with pytest.raises(UsageError, match=f"--shorter-side is {side}; it must be at least 8"):
        prepare(source(), options(tmp_path, shorter_side=side), quiet)
    assert not list(tmp_path.iterdir())


def test_a_name_that_another_process_has_just_taken_is_kept(tmp_path: Path):
    """The command line was read before the other process finished."""
    first = prepare(source(), options(tmp_path), quiet)
    before = (first.folder / "verified.json").stat().st_mtime_ns
    with pytest.raises(TakenError, match="has just prepared mine"):
        prepare(source(), options(tmp_path), quiet)
    assert (first.folder / "verified.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_overwriting_counts_versions_and_deletes_all_older_ones(tmp_path: Path):
    folders = [prepare(source(), options(tmp_path, overwrite=True), quiet).folder for _ in "123"]
    assert [folder.name for folder in folders] == ["1.0.0", "1.0.1", "1.0.2"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["1.0.2"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_failed_replacement_keeps_the_old_version(tmp_path: Path, skip_corrupt: bool):
    first = prepare(source(), options(tmp_path), quiet)
    corrupt = tuple(f"test/{i}" for i in range(12))
    replacing = options(tmp_path, overwrite=True, skip_corrupt=skip_corrupt)
    with pytest.raises((CorruptImagesError, UsageError)):
        prepare(source(corrupt), replacing, quiet)
    builder = find("mine", tmp_path)
    assert builder is not None
    assert Path(builder.data_dir) == first.folder
    assert verification.load(first.folder) == first.verified
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


OPEN_DIGITS = """
import sys
from pathlib import Path
from train.data.dataset import open_dataset
from train.recipes import digits

print(len(open_dataset(digits().replace(data_dir=Path(sys.argv[1]))).train))
"""


def test_processes_that_need_the_digits_at_once_prepare_them_once(tmp_path: Path):
    command = [sys.executable, "-c", OPEN_DIGITS, str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in said] == ["1437\n"] * 4, said
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_the_digits_wait_for_another_process(tmp_path: Path):
    with store.staging("digits", tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN_DIGITS, str(tmp_path)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10)
    assert process.communicate(timeout=300)[0] == "1437\n"
