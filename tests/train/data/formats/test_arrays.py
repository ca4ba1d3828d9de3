"""Tests of arrays in .npz files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.config import JsonObject
from train.data.dataset import open_dataset
from train.data.images import decode
from train.data.records import Dataset
from train.prepare import main
from train.recipes import tfds

Arrays = dict[str, Any]


def arrays(*shape: int) -> Arrays:
    """40 training and 20 test images of 4 classes."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(256, size=(40, *shape), dtype=np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 4,
        "x_test": rng.integers(256, size=(20, *shape), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 4,
    }


def command(folder: Path) -> list[str]:
    return ["arrays", str(folder / "a.npz"), "--name", "mine", "--data-dir", str(folder / "data")]


def prepared(folder: Path, values: Arrays, compress: bool = False) -> Dataset:
    (np.savez_compressed if compress else np.savez)(folder / "a.npz", **values)
    assert main(command(folder)) == 0
    return open_dataset(tfds().replace(dataset="mine", data_dir=folder / "data"))


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3)])
def test_images_and_labels_are_those_of_the_arrays(tmp_path: Path, shape: tuple[int, ...]):
    values = arrays(*shape)
    dataset = prepared(tmp_path, values, compress=len(shape) == 2)
    assert dataset.class_names == ["0", "1", "2", "3"]
    assert dataset.evaluation_split == "test"
    for records, end in ((dataset.train, "train"), (dataset.evaluation, "test")):
        assert len(records) == len(values[f"x_{end}"])
        for index in range(len(records)):
            pixels = decode(records[index]["image"], num_channels=(*shape, 1)[2])
            np.testing.assert_array_equal(pixels, values[f"x_{end}"][index].reshape(pixels.shape))
            assert records[index]["label"] == index % 4


def test_labels_may_be_a_column_as_in_cifar10(tmp_path: Path):
    values = arrays(8, 8, 3)
    values["y_train"] = values["y_train"].astype(np.int64)[:, None]
    dataset = prepared(tmp_path, values)
    assert [dataset.train[index]["label"] for index in range(5)] == [0, 1, 2, 3, 0]


def test_errors_are_measured_on_validation_arrays_if_there_are_any(tmp_path: Path):
    values = arrays(8, 8)
    values |= {"x_val": values["x_test"][:8], "y_val": values["y_test"][:8]}
    dataset = prepared(tmp_path, values)
    assert dataset.evaluation_split == "validation"
    assert len(dataset.evaluation) == 8


def test_a_share_is_held_out_if_there_are_only_training_arrays(tmp_path: Path):
    values = arrays(8, 8)
    dataset = prepared(tmp_path, {"x_train": values["x_train"], "y_train": values["y_train"]})
    assert (len(dataset.train), len(dataset.evaluation)) == (36, 4)


def test_from_arrays_to_an_exact_evaluation(
    tmp_path: Path, three_steps: Callable[[str, Path], JsonObject]
):
    prepared(tmp_path, arrays(8, 8, 3))
    last = three_steps("mine", tmp_path / "data")
    assert last["step"] == 3
    assert last["eval/num_examples"] == 20


def changed(**changes: Any) -> Callable[[Arrays], Arrays]:
    """Function that replaces arrays, or omits those that become None."""

    def change(values: Arrays) -> Arrays:
        values |= {name: make and make(values[name]) for name, make in changes.items()}
        return {name: value for name, value in values.items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(x_train=lambda x: x / 255), "x_train has the type float64; images must be uint8"),
        (changed(x_train=lambda x: x[:, 0, 0]), "x_train has the shape (40, 3); images"),
        (changed(x_train=lambda x: x.transpose(0, 3, 1, 2)), "x_train has the shape (40, 3, 8, 8)"),
        (changed(x_train=lambda x: x[..., [0, 1, 2, 2]]), "x_train has the shape (40, 8, 8, 4)"),
        (changed(x_test=lambda x: x[:, :, :0]), "x_test has the shape (20, 8, 0, 3)"),
        (changed(x_test=lambda x: x[:, :6]), "images of different shapes"),
        (changed(x_test=lambda x: x[:-1]), "x_test has 19 images, but y_test has 20 labels"),
        (changed(y_train=lambda y: y.astype(float)), "y_train has the type float64; labels"),
        (changed(y_train=lambda y: np.eye(4, dtype=int)[y]), "y_train has the shape (40, 4)"),
        (changed(y_test=lambda y: y.astype(int) - 1), "y_test contains -1; labels must be 0"),
        (changed(y_test=lambda y: np.array(y, object)), "Object arrays cannot be loaded"),
        (changed(y_train=lambda y: y + np.uint8(1), y_test=lambda y: y + np.uint8(1)), "(es) 0 "),
        (changed(y_train=lambda y: y.astype(int) * 10**4), "labels up to 30000"),
        (changed(y_test=None), "lacks y_test; it contains x_train, y_train, x_test"),
        (changed(x_train=None, y_train=None), "lacks x_train, y_train; it contains x_test, y_test"),
        (changed(x_train=lambda x: x[:0], y_train=lambda y: y[:0]), "only in the split(s) test"),
    ],
)
def test_unsuitable_arrays_are_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Arrays], Arrays],
    words: str,
):
    np.savez(tmp_path / "a.npz", **change(arrays(8, 8, 3)))
    assert main(command(tmp_path)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data" / "mine").exists()


def write_single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def truncate(path: Path) -> None:
    np.savez_compressed(path, **arrays(8, 8))
    path.write_bytes(path.read_bytes()[:-100])


def damage(path: Path) -> None:
    np.savez(path, **arrays(8, 8))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b""), "cannot be read as an .npz file"),
        (lambda path: path.write_text("<html>"), "cannot be read as an .npz file"),
        (truncate, "cannot be read as an .npz file"),
        (damage, "cannot be read as an .npz file of numbers: Bad CRC-32"),
        (write_single_array, "is a single array; save images and labels with np.savez"),
    ],
)
def test_files_that_are_not_npz_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None], words: str
):
    write(tmp_path / "a.npz")
    assert main(command(tmp_path)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
