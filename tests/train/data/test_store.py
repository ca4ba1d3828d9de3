"""Folders of prepared data sets: the lock, the files, and the rename that publishes them."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.sequential_writer import SequentialWriter

from train.data import store
from train.data.formats.source import TEST, TRAIN, Example, Source
from train.data.records import image_name
from train.data.stored import check_features, open_records
from train.errors import UsageError

ROOT = Path(__file__).parents[3]


def png(value: int) -> bytes:
    return cv2.imencode(".png", np.full((9, 12, 3), value % 256, np.uint8))[1].tobytes()


def source(num_train: int = 6, num_test: int = 4) -> Source:
    sizes = ((TRAIN, num_train), (TEST, num_test))
    return Source(
        origin="a test",
        class_names=["a", "b"],
        examples=[Example(s, f"{s}/{i}.png", i % 2, i) for s, size in sizes for i in range(size)],
        read=lambda example: png(example.location),
    )


def ignore(_: int) -> None: ...


def test_images_labels_and_names_are_stored_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "EXAMPLES_PER_FILE", 4)
    monkeypatch.setattr(store, "EXAMPLES_AT_ONCE", 3)
    done: list[int] = []
    builder = store.write(source(), "mine", tmp_path, lambda image: image + b" ", done.append)
    assert sum(done) == 10
    for split, size in ((TRAIN, 6), (TEST, 4)):
        records = open_records(builder, split)
        stored = [
            (record["image"], int(record["label"]), image_name(record))
            for record in records.__getitems__(range(size))
        ]
        assert stored == [(png(i) + b" ", i % 2, f"{split}/{i}.png") for i in range(size)]
    files = sorted(path.name for path in (tmp_path / "mine" / "1.0.0").glob("*array_record*"))
    assert files == [f"mine-{part}.array_record-0000{i}" for part, i in
                     (("test", 0), ("train", 0), ("train", 1))]  # fmt: skip
    assert store.origin_in(builder.info.description) == "a test"
    assert store.origin_in("Images of flowers.") is None


def test_only_a_few_images_are_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    num_read, num_written, most = 0, 0, 0

    def read(example: Example) -> bytes:
        nonlocal num_read
        num_read += 1
        return png(example.location)

    add = SequentialWriter.add_examples

    def counted(writer: SequentialWriter, batch: dict[str, list]) -> None:
        nonlocal num_written, most
        add(writer, batch)
        most = max(most, num_read - num_written)
        num_written += sum(map(len, batch.values()))

    monkeypatch.setattr(SequentialWriter, "add_examples", counted)
    large = dataclasses.replace(source(3000, 10), read=read)
    store.write(large, "mine", tmp_path, lambda image: image, ignore)
    assert num_written == 3010
    assert most <= store.EXAMPLES_AT_ONCE + 10 * joblib.cpu_count()


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\rb", "a\u2028b", "caf\udce9", "\t"])
def test_class_names_that_cannot_be_stored_are_rejected(tmp_path: Path, name: str):
    odd = dataclasses.replace(source(), class_names=["a", name])
    with pytest.raises(UsageError, match="cannot be stored"):
        store.write(odd, "mine", tmp_path, lambda image: image, ignore)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["[red]", "a b", "玫瑰", "e\u0301", "-", ".", "😀", "a\\nb", "'"])
def test_other_class_names_are_read_as_they_were_written(tmp_path: Path, name: str):
    odd = dataclasses.replace(source(), class_names=["a", name])
    builder = store.write(odd, "mine", tmp_path, lambda image: image, ignore)
    assert check_features(builder) == ["a", name]


def test_bytes_of_a_file_name_that_are_not_utf8_become_question_marks(tmp_path: Path):
    odd = dataclasses.replace(
        source(),
        origin="the folder /caf\udce9",
        examples=[Example(TRAIN, "caf\udce9/1.png", 0, 1), Example(TEST, "2.png", 1, 2)],
    )
    builder = store.write(odd, "mine", tmp_path, lambda image: image, ignore)
    assert image_name(open_records(builder, TRAIN)[0]) == "caf?/1.png"
    assert store.origin_in(builder.info.description) == "the folder /caf?"


def test_a_name_is_locked_and_its_folder_is_deleted(tmp_path: Path):
    data = tmp_path / "new" / "data"
    with store.staging("mine", data) as folder:
        (folder / "mine").mkdir()
        (folder / "mine" / "part").touch()
        with (
            pytest.raises(UsageError, match=f"mine is being prepared .* by process {os.getpid()} "),
            store.staging("mine", data),
        ):
            pass
        with store.staging("other", data):
            pass
        assert [path.name for path in data.iterdir()] == [folder.name]
        assert (folder / "mine" / "part").exists()
    assert not list(data.iterdir())


def test_what_a_killed_preparation_has_left_is_deleted(tmp_path: Path):
    left = tmp_path / "incomplete.mine" / "mine" / "1.0.0"
    left.mkdir(parents=True)
    (left / "part").touch()
    (tmp_path / "incomplete.mine" / "lock").write_text("process 1 on a machine\n")
    with store.staging("mine", tmp_path) as folder:
        assert [path.name for path in folder.iterdir()] == ["lock"]


def test_an_error_deletes_the_folder_too(tmp_path: Path):
    def interrupted() -> None:
        with store.staging("mine", tmp_path) as folder:
            (folder / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


TAKE_TURNS = """
import os, sys
from pathlib import Path
from train.data import store

for turn in range(int(sys.argv[2])):
    with store.staging("mine", Path(sys.argv[1]), wait=True) as folder:
        assert [path.name for path in folder.iterdir()] == ["lock"]
        names = {f"{os.getpid()}.{number}" for number in range(200)}
        for name in sorted(names):
            (folder / name).touch()
        found = {path.name for path in folder.iterdir()} - {"lock"}
        assert found == names, (len(found), found - names)
print("done")
"""


def test_processes_that_wait_take_turns(tmp_path: Path):
    """Each has the folder for itself, also while another one deletes what it has left."""
    command = [sys.executable, "-c", TAKE_TURNS, str(tmp_path), "60"]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in said] == ["done\n"] * 4, said
    assert not list(tmp_path.iterdir())


def prepared(folder: Path, version: str) -> Path:
    path = folder / version
    path.mkdir(parents=True)
    (path / "features.json").touch()
    return path


def test_publishing_renames_whatever_does_not_exist_yet(tmp_path: Path):
    data = tmp_path / "data"
    for version, existing in (("1.0.0", []), ("1.0.1", ["1.0.0"])):
        with store.staging("mine", data) as folder:
            prepared(folder / "mine", version)
            store.publish("mine", folder, data)
        assert {path.name for path in (data / "mine").iterdir()} == {version, *existing}
    with store.staging("mine", data) as folder:
        prepared(folder / "mine" / "config", "2.0.0")
        store.publish("mine", folder, data)
    assert (data / "mine" / "config" / "2.0.0" / "features.json").exists()
    with store.staging("mine", data) as folder:
        (prepared(folder / "mine", "1.0.1") / "new").touch()
        with pytest.raises(UsageError, match=r"1\.0\.1 exists already"):
            store.publish("mine", folder, data)
    assert not (data / "mine" / "1.0.1" / "new").exists()


def test_only_versions_of_a_data_set_are_discarded(tmp_path: Path):
    folder = tmp_path / "mine"
    for version in ("1.0.0", "1.0.1", "1.0.0 copy"):
        prepared(folder, version)
    (folder / "2.0.0").mkdir()  # not a data set
    versions = store.versions(folder)
    assert [path.name for path in versions] == ["1.0.0", "1.0.1"]
    with store.staging("mine", tmp_path) as staging:
        store.discard(versions, staging)
    assert {path.name for path in folder.iterdir()} == {"1.0.0 copy", "2.0.0"}


@pytest.mark.parametrize("make", [lambda p: p.touch(), lambda p: (p / "train").mkdir(parents=True)])
def test_a_folder_with_other_contents_does_not_become_a_data_set(
    tmp_path: Path, make: Callable[[Path], None]
):
    make(tmp_path / "mine")
    with pytest.raises(UsageError, match="exists, but is not a prepared data set"):
        store.check_free("mine", tmp_path)


def test_an_absent_or_empty_folder_is_free(tmp_path: Path):
    store.check_free("mine", tmp_path)
    (tmp_path / "mine" / "incomplete.XYZ_1.0.0").mkdir(parents=True)
    store.check_free("mine", tmp_path)


def test_the_data_set_is_read_by_tensorflow_datasets(tmp_path: Path):
    store.write(source(), "mine", tmp_path, lambda image: image, ignore)
    data: Any = tfds.data_source("mine", split="train", data_dir=tmp_path)
    assert [int(example["label"]) for example in data] == [0, 1] * 3
    assert data[5]["image"].tolist() == np.full((9, 12, 3), 5).tolist()
