"""Tests of CIFAR-10 and CIFAR-100 from archives in both published versions, with fewer images."""

import hashlib
import importlib.util
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets

from train.config import JsonObject
from train.data.dataset import open_dataset
from train.data.formats.cifar import CIFAR10, CIFAR100, NUM_VALUES, load_pickle
from train.data.images import decode
from train.data.records import Dataset, image_name
from train.errors import UsageError
from train.prepare import main
from train.recipes import tfds

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
BINARY, PYTHON = 0, 1  # places in CIFAR10 and CIFAR100
NAMES = {
    "cifar10": [
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ],
    "cifar100": [f"fine_{number}" for number in range(100)],
}  # fmt: skip


Pickler: Any = pickle._Pickler  # pyright: ignore[reportPrivateUsage]


class Python2Pickler(Pickler):
    """Writes pickles of protocol 2 as Python 2 and its NumPy did."""

    dispatch: ClassVar[dict[type, Any]] = dict(Pickler.dispatch)

    def save_string(self, value: bytes | str) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        start = pickle.SHORT_BINSTRING + bytes([len(data)]) if short else b""
        self.write((start or pickle.BINSTRING + struct.pack("<i", len(data))) + data)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string

    def save_array(self, array: np.ndarray) -> None:
        self.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        self.save((0,))
        self.save("b")
        self.write(pickle.TUPLE3 + pickle.REDUCE)
        self.memoize(array)
        self.write(pickle.MARK)
        self.save(1)
        self.save(array.shape)
        self.write(b"cnumpy\ndtype\n")
        self.save((array.dtype.str[1:], 0, 1))
        self.write(pickle.REDUCE)
        self.save((3, "|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(array.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[np.ndarray] = save_array


def python2_pickle(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def images_and_labels(name: str) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Rows of 3,072 values and their labels, of 200 training and 100 test images."""
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(256, size=(number, NUM_VALUES), dtype=np.uint8),
            [label % NUM_CLASSES[name] for label in range(number)],
        )
        for split, number in (("train", 200), ("test", 100))
    }


def files_of(name: str, version: int) -> dict[str, bytes]:
    """Contents of the files of an archive."""
    description = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name][version]
    key = {"cifar10": "label", "cifar100": "fine_label"}[name]
    files = {
        description.class_names: "\n".join([*NAMES[name], ""]).encode()
        if version == BINARY
        else python2_pickle({f"{key}_names": NAMES[name], "num_vis": NUM_VALUES})
    }
    if (name, version) == ("cifar100", BINARY):
        files["coarse_label_names.txt"] = "".join(f"coarse_{n}\n" for n in range(20)).encode()
    for split, (rows, labels) in images_and_labels(name).items():
        names = description.files[split]
        for place, file in enumerate(names):
            part = slice(place * len(rows) // len(names), (place + 1) * len(rows) // len(names))
            if version == BINARY:
                columns = [np.array(labels[part], np.uint8)[:, None], rows[part]]
                if name == "cifar100":
                    columns.insert(0, columns[0] // 5)  # the coarse label
                files[file] = np.hstack(columns).tobytes()
            else:
                fields = {"batch_label": "of 5", f"{key}s": labels[part], "data": rows[part]}
                if name == "cifar100":
                    fields["coarse_labels"] = [label // 5 for label in labels[part]]
                files[file] = python2_pickle(fields)
    return files


def write_archive(folder: Path, name: str, version: int, files: dict[str, bytes]) -> Path:
    description = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name][version]
    folder.mkdir(exist_ok=True)
    path = folder / description.archive
    with tarfile.open(path, "w:gz") as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(f"{description.folder}/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpack(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(archive.parent, filter="data")
    archive.unlink()


def command(name: str, folder: Path) -> list[str]:
    return [name, "--archives", str(folder / "archives"), "--data-dir", str(folder / "data")]


def opened(name: str, folder: Path) -> Dataset:
    return open_dataset(tfds().replace(dataset=name, data_dir=folder / "data"))


@pytest.mark.parametrize("unpacked", [False, True])
@pytest.mark.parametrize("version", [BINARY, PYTHON])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_images_labels_names_and_order_are_those_of_tensorflow_datasets(
    tmp_path: Path, name: str, version: int, unpacked: bool
):
    archive = write_archive(tmp_path / "archives", name, version, files_of(name, version))
    if unpacked:
        unpack(archive)
    assert main(command(name, tmp_path)) == 0
    dataset = opened(name, tmp_path)
    assert dataset.class_names == NAMES[name]
    assert dataset.version == "3.0.2"
    for split, records in (("train", dataset.train), ("test", dataset.evaluation)):
        rows, labels = images_and_labels(name)[split]
        # tensorflow-datasets sorts by the MD5 of the split's name and the index.
        digests = [hashlib.md5(f"{split}{n}".encode()).digest() for n in range(len(rows))]
        assert len(records) == len(rows)
        for place, index in enumerate(np.argsort(digests).tolist()):
            record = records[place]
            assert image_name(record) == f"{split}_{index:05d}"
            assert record["label"] == labels[index]
            pixels = decode(record["image"], num_channels=3)
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1).ravel(), rows[index])


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_data_set_equals_the_one_of_tensorflow_datasets(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    archive = write_archive(tmp_path / "archives", name, BINARY, files_of(name, BINARY))
    assert main(command(name, tmp_path)) == 0
    unpack(archive)
    manager = tensorflow_datasets.download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda *_: str(archive.parent))
    assert main([name, "--data-dir", str(tmp_path / "theirs" / "data")]) == 0
    ours, theirs = opened(name, tmp_path), opened(name, tmp_path / "theirs")
    assert (ours.class_names, ours.version) == (theirs.class_names, theirs.version)
    for mine, other in ((ours.train, theirs.train), (ours.evaluation, theirs.evaluation)):
        assert len(mine) == len(other)
        for index in range(len(mine)):
            assert mine[index]["label"] == other[index]["label"]
            np.testing.assert_array_equal(
                decode(mine[index]["image"], 3), decode(other[index]["image"], 3)
            )


def test_from_an_archive_to_an_exact_evaluation(
    tmp_path: Path, three_steps: Callable[[str, Path], JsonObject]
):
    write_archive(tmp_path / "archives", "cifar100", PYTHON, files_of("cifar100", PYTHON))
    assert main(command("cifar100", tmp_path)) == 0
    last = three_steps("cifar100", tmp_path / "data")
    assert last["step"] == 3
    assert last["eval/num_examples"] == 100


def replaced(file: str, change: Callable[[bytes], bytes | None]) -> Callable[..., dict[str, bytes]]:
    """Function that changes one file of an archive, or omits it if the change returns None."""

    def replace(files: dict[str, bytes]) -> dict[str, bytes]:
        files[file] = change(files[file]) or b""
        return {name: data for name, data in files.items() if data}

    return replace


def fields(**changes: Any) -> Callable[[bytes], bytes]:
    """Function that changes the fields of a pickle."""
    return lambda data: python2_pickle(
        {**{key.decode(): value for key, value in load_pickle(data, "").items()}, **changes}
    )


ROW = bytes(NUM_VALUES)


@pytest.mark.parametrize(
    ("name", "version", "change", "words"),
    [
        ("cifar10", BINARY, replaced("data_batch_3.bin", lambda _: None), "lacks data_batch_3.bin"),
        ("cifar10", BINARY, replaced("test_batch.bin", lambda data: data[:-1]), "a multiple of"),
        ("cifar10", BINARY, replaced("test_batch.bin", lambda _: b"\x0a" + ROW), "the label 10; "),
        ("cifar100", BINARY, replaced("train.bin", lambda _: b"\0\x64" + ROW), "the label 100; "),
        ("cifar10", BINARY, replaced("batches.meta.txt", lambda _: b"a\nb\n"), "has 2 names"),
        ("cifar10", PYTHON, replaced("batches.meta", fields(label_names=["a"])), "has 1 names"),
        ("cifar10", PYTHON, replaced("batches.meta", fields(label_names=3)), "has no list"),
        ("cifar10", PYTHON, replaced("test_batch", lambda data: data[:-9]), "test_batch cannot be"),
        ("cifar10", PYTHON, replaced("test_batch", lambda _: b"<html>"), "test_batch cannot be"),
        ("cifar10", PYTHON, replaced("test_batch", lambda _: python2_pickle([1])), "contains list"),
        (
            "cifar10",
            PYTHON,
            replaced("test_batch", fields(labels=[0])),
            "must have an array 'data'",
        ),
        ("cifar10", PYTHON, replaced("test_batch", fields(data=b"")), "must have an array 'data'"),
        (
            "cifar10",
            PYTHON,
            replaced("test_batch", fields(labels=[10] * 100)),
            "test_batch has the label 10; it must be 0 to 9",
        ),
        (
            "cifar10",
            PYTHON,
            replaced("test_batch", fields(labels=["x"] * 100)),
            "test_batch has the label b'x'; it must be 0 to 9",
        ),
        (
            "cifar10",
            PYTHON,
            replaced("test_batch", fields(data=np.zeros((100, NUM_VALUES), np.int64))),
            "it has an array of b'i8' instead of bytes",
        ),
    ],
)
def test_unsuitable_files_are_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    version: int,
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    words: str,
):
    write_archive(tmp_path / "archives", name, version, change(files_of(name, version)))
    assert main(command(name, tmp_path)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / name).exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # of the CRC, which nothing else depends on
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "contains none of cifar-10-binary.tar.gz, cifar-10-batches"),
        (cut, "is damaged"),
        (flip_a_bit, "is damaged: CRC check failed"),
        (lambda path: path.write_bytes(b"<html>"), "is damaged"),
    ],
)
def test_damaged_archives_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
):
    damage(write_archive(tmp_path / "archives", "cifar10", BINARY, files_of("cifar10", BINARY)))
    assert main(command("cifar10", tmp_path)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


class RunsCommand:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def test_a_malicious_pickle_is_rejected_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = files_of("cifar10", PYTHON)
    files["data_batch_1"] = pickle.dumps({b"data": RunsCommand(tmp_path / "ran")}, protocol=2)
    write_archive(tmp_path / "archives", "cifar10", PYTHON, files)
    assert main(command("cifar10", tmp_path)) == 2
    said = capsys.readouterr().err
    assert "data_batch_1 cannot be read: it asks for posix.system, which CIFAR does not" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_pickle_cannot_create_objects_from_addresses():
    """NumPy would take these bytes as the address of a Python object."""
    text = b"cnumpy\nndarray\n((I1\ntS'O'\nS'AAAAAAAA'\ntR."
    with pytest.raises(UsageError, match="file cannot be read: "):
        load_pickle(text, "file")


def test_pickles_of_python_3_are_read():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in (2, 3, 4):
        loaded = load_pickle(pickle.dumps({b"data": array, b"names": [b"a"]}, protocol), "file")
        np.testing.assert_array_equal(loaded[b"data"], array)
        assert loaded[b"names"] == [b"a"]
