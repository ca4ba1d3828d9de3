"""Parquet files, in the layouts in which Hugging Face and others export data sets of images."""

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.data.dataset import open_dataset
from train.data.formats.parquet import Options, open_source
from train.data.formats.source import Source
from train.data.records import Records
from train.errors import UsageError
from train.prepare import main
from train.recipes import tfds


def images(number: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(number, 12, 10, 3), dtype=np.uint8)
    return [cv2.imencode(".png", image)[1].tobytes() for image in pixels]


def structs(encoded: list[bytes]) -> pa.Array:
    """A column as Hugging Face stores images; paths are not unique."""
    return pa.array([{"bytes": one, "path": "image.png"} for one in encoded])


def huggingface(table: pa.Table, **names: list[str]) -> pa.Table:
    """A table with Hugging Face's metadata; `names` are those of the classes by column."""
    features: dict[str, Any] = {
        name: {"_type": "ClassLabel", "names": names[name]}
        if name in names
        else {"_type": "Image" if pa.types.is_struct(table.schema.field(name).type) else "Value"}
        for name in table.column_names
    }
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write(path: Path, image: Any, label: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": image, "label": label}), path, **options)


def stored(records: Records) -> list[tuple[bytes, int, str]]:
    return [
        (record["image"], record["label"], record["file_name"])
        for record in records.__getitems__(range(len(records)))
    ]


LABELS = [0, 1] * 16
CATS_AND_DOGS = {"label": ["dog", "cat"]}


def test_files_of_hugging_face_are_trained_on(
    tmp_path: Path,
    three_steps: Callable[[str, Path], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
):
    files, data, train = tmp_path / "files" / "data", tmp_path / "data", images(32, 0)
    for name, encoded, labels in (
        ("train-00000-of-00002", train[:20], LABELS[:20]),
        ("train-00001-of-00002", train[20:], LABELS[20:]),
        ("validation-00000-of-00001-ab12", images(8, 1), LABELS[:8]),
        ("test-00000-of-00001", images(4, 2), [-1] * 4),
    ):
        table = pa.table({"image": structs(encoded), "label": labels, "id": labels})
        path = files / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(huggingface(table, **CATS_AND_DOGS), path)
    assert main(["parquet", str(files.parent), "--name", "mine", "--data-dir", str(data)]) == 0
    said = capsys.readouterr().out
    assert "32 train, 8 validation images" in said
    assert ["unlabeled", "test", "image(s)", "4"] in [line.split() for line in said.splitlines()]
    dataset = open_dataset(tfds().replace(dataset="mine", data_dir=data))
    assert dataset.class_names == ["dog", "cat"]
    names = [f"train-00000-of-00002.parquet:{row}" for row in range(20)]
    names += [f"train-00001-of-00002.parquet:{row}" for row in range(12)]
    assert stored(dataset.train) == list(zip(train, LABELS, names, strict=True))
    assert three_steps("mine", data)["eval/num_examples"] == 8


WORDS = ["cat" if label else "dog" for label in LABELS]


@pytest.mark.parametrize(
    ("image_name", "image", "label_name", "label", "class_names"),
    [
        ("image", structs, "label", lambda: pa.array(WORDS), ["cat", "dog"]),
        ("jpg", pa.array, "cls", lambda: pa.array(LABELS, pa.uint8()), ["0", "1"]),
        (
            "photo",
            lambda encoded: pa.array(encoded, pa.large_binary()),
            "class",
            lambda: pa.array(WORDS).dictionary_encode(),
            ["cat", "dog"],
        ),
        (
            "content",  # the only column that may hold images
            lambda encoded: pa.array([{"bytes": x} for x in encoded]),
            "Target",
            lambda: pa.array(WORDS, pa.large_string()),
            ["cat", "dog"],
        ),
    ],
)
def test_one_file_without_metadata_is_trained_on(
    tmp_path: Path,
    three_steps: Callable[[str, Path], dict[str, Any]],
    image_name: str,
    image: Callable[[list[bytes]], pa.Array],
    label_name: str,
    label: Callable[[], pa.Array],
    class_names: list[str],
):
    path, data, encoded = tmp_path / "animals.parquet", tmp_path / "data", images(32, 0)
    table = pa.table({"width": LABELS, image_name: image(encoded), label_name: label()})
    pq.write_table(table, path, row_group_size=5)
    flags = ["--name", "mine", "--data-dir", str(data), "--held-out", "0.25"]
    assert main(["parquet", str(path), *flags]) == 0
    dataset = open_dataset(tfds().replace(dataset="mine", data_dir=data))
    assert dataset.class_names == class_names
    assert (len(dataset.train), len(dataset.evaluation)) == (24, 8)
    examples = stored(dataset.train) + stored(dataset.evaluation)
    labels = [class_names.index(word) for word in WORDS] if "cat" in class_names else LABELS
    expected = [
        (one, label_, f"animals.parquet:{row}")
        for row, (one, label_) in enumerate(zip(encoded, labels, strict=True))
    ]
    assert sorted(examples) == sorted(expected)
    assert three_steps("mine", data)["eval/num_examples"] == 8


def test_columns_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    encoded, others = images(8, 0), images(8, 1)
    columns = {"image": structs(encoded), "mask": structs(others)}
    columns |= {
        "fine_label": [0, 1] * 4,
        "coarse_label": [1, 0] * 4,
        "label_name": list("abcdabcd"),
    }
    path = tmp_path / "a.parquet"
    classes = {"fine_label": ["a", "b"], "coarse_label": ["c", "d"]}
    pq.write_table(huggingface(pa.table(columns), **classes), path)

    source = opened(path)
    assert [source.read(example) for example in source.examples] == encoded
    assert [example.label for example in source.examples] == [0, 1] * 4
    assert source.class_names == ["a", "b"]
    assert source.warnings == [
        "the images are those of the column image; --image-column mask takes others",
        "the labels are those of the column fine_label; --label-column coarse_label takes others",
    ]
    source = opened(path, image_column="mask", label_column="coarse_label")
    assert [source.read(example) for example in source.examples] == others
    assert [example.label for example in source.examples] == [1, 0] * 4
    assert source.class_names == ["c", "d"]
    assert not source.warnings
    source = opened(path, label_column="label_name")
    assert source.class_names == ["a", "b", "c", "d"]


def opened(*paths: Path, **options: Any) -> Source:
    return open_source(Options(name="x", files=tuple(map(str, paths)), **options))


def test_threads_read_their_own_images(tmp_path: Path):
    """Threads ask in almost sorted order, across row groups, files and the gaps between splits."""
    encoded = [b"%d" % number * 10 for number in range(6000)]
    labels = [number % 2 for number in range(6000)]
    for name, start, stop, is_labeled in (
        ("a-train", 0, 1500, True),
        ("b-test", 1500, 1600, False),
        ("c-train", 1600, 1600, True),
        ("d-train", 1600, 1700, True),
        ("e-val", 1700, 6000, True),
    ):
        label = labels[start:stop] if is_labeled else [-1] * (stop - start)
        path = tmp_path / f"{name}.parquet"
        column = pa.array(
            [{"bytes": x} for x in encoded[start:stop]], pa.struct({"bytes": pa.binary()})
        )
        write(path, column, pa.array(label, pa.int64()), row_group_size=1000)
    del encoded[1500:1600]
    source = opened(tmp_path)
    assert source.skipped == {"unlabeled test image(s)": 100}
    (tmp_path / "b-test.parquet").unlink()  # its images are not read
    examples = list(zip(source.examples, encoded, strict=True))
    almost_sorted = sorted(
        range(5900), key=lambda place: place + random.Random(place).random() * 99
    )
    with ThreadPoolExecutor(16) as threads:
        read = list(threads.map(lambda place: source.read(examples[place][0]), almost_sorted))
    assert read == [encoded[place] for place in almost_sorted]
    for place in (5800, 3, 4, 1499, 1500, 3, 1601, 5899, 4000):  # far from sorted, and repeated
        assert source.read(examples[place][0]) == encoded[place]


def test_images_of_a_huge_row_group_are_not_all_in_memory(tmp_path: Path):
    encoded = [random.Random(number).randbytes(20_000) for number in range(2000)]
    labels = [number % 2 for number in range(2000)]
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 2000, "use_dictionary": False, "write_batch_size": 16}
    write(path, structs(encoded), labels, **options)
    assert pq.read_metadata(path).num_row_groups == 1
    source = opened(path)
    before, most = pa.total_allocated_bytes(), 0
    for example, expected in zip(source.examples, encoded, strict=True):
        assert source.read(example) == expected
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < sum(map(len, encoded)) / 8


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage(path: Path) -> None:
    """Overwrite the middle of the images."""
    contents = bytearray(path.read_bytes())
    contents[100:400] = b"\xff" * 300
    path.write_bytes(contents)


def null(number: int, **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        encoded: list[Any] = images(8, 0)
        encoded[:number] = [None] * number
        write(path, structs(encoded), LABELS[:8], **options)

    return make


def make_table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


ENCODED = images(8, 0)
IMAGES, EIGHT = structs(ENCODED), LABELS[:8]


def with_classes(*names: str) -> Callable[[Path], None]:
    table = pa.table({"image": IMAGES, "label": EIGHT})
    return lambda path: pq.write_table(huggingface(table, label=list(names)), path)


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        (cut, [], "train-1.parquet is not a complete Parquet file: Parquet magic bytes not found"),
        (make_table(label=EIGHT), [], "train-1.parquet has no column image, but"),
        (
            make_table(image=IMAGES, label=["a", "b"] * 4),
            [],
            "the column label has the type string in ",
        ),
        (
            make_table(image=ENCODED, label=EIGHT),
            [],
            "the column image has the type binary in ",
        ),
        (make_table(image=["a"] * 8, label=EIGHT), [], "has no such column of binary"),
        (with_classes("a", "b"), [], "name the classes of label differently"),
        (null(3), [], "3 row(s) of "),
        (null(1, write_statistics=False), [], "row 0 of "),
        (make_table(image=IMAGES, label=[0, 1, None, 1] * 2), [], "train-1.parquet has no label"),
        (make_table(image=IMAGES, label=[0, 1, -1, 1] * 2), [], "has the label -1"),
        (make_table(image=IMAGES, label=[0, 1, 16, 1] * 2), [], "from 0, and there are 16 images"),
        (make_table(image=IMAGES, label=[0, 1, 10**12, 1] * 2), [], "has the label 1000000000000"),
        (
            lambda path: (write(path, IMAGES, EIGHT, compression="gzip"), damage(path)),
            [],
            "train-1.parquet is not a complete Parquet file",
        ),
    ],
)
def test_an_unsuitable_second_file_is_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Any],
    flags: list[str],
    words: str,
):
    write(tmp_path / "train-0.parquet", IMAGES, EIGHT)
    write(tmp_path / "train-1.parquet", IMAGES, EIGHT)
    make(tmp_path / "train-1.parquet")
    reject(tmp_path, capsys, flags, words)


def reject(folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str) -> None:
    data = folder / "data"
    assert main(["parquet", str(folder), "--name", "mine", "--data-dir", str(data), *flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (data / "mine").exists()


@pytest.mark.parametrize(
    ("columns", "flags", "words"),
    [
        ({"label": EIGHT}, [], "needs a column of images, but has no such column; choose"),
        ({"label": EIGHT}, [], "with --image-column; its columns are label (int64)"),
        (
            {"a": IMAGES, "b": IMAGES, "label": EIGHT},
            [],
            "needs a column of images, but has several columns of images; choose",
        ),
        ({"image": IMAGES, "id": EIGHT}, [], "needs a column of labels, but has no such column"),
        ({"image": IMAGES, "id": EIGHT}, [], "--label-column; its columns are image (struct<"),
        (
            {"image": IMAGES, "label": EIGHT, "target": EIGHT},
            [],
            "needs a column of labels, but has several columns of labels; choose",
        ),
        (
            {"image": IMAGES, "label": EIGHT},
            ["--image-column", "label"],
            "--image-column is label, but ",
        ),
        (
            {"image": IMAGES, "label": EIGHT},
            ["--label-column", "nothing"],
            "has no such column of integers or strings; its columns are image (struct<",
        ),
        ({"image": IMAGES, "label": [0.5] * 8}, [], "label (double)"),
    ],
)
def test_unclear_columns_are_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: dict[str, Any],
    flags: list[str],
    words: str,
):
    make_table(**columns)(tmp_path / "a.parquet")
    reject(tmp_path, capsys, flags, words)


def test_a_label_beyond_the_class_names_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with_classes("a")(tmp_path / "a.parquet")
    reject(
        tmp_path, capsys, [], "has the label 1; labels must number the classes from 0, and there"
    )


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write(path, IMAGES, EIGHT)
    source = opened(path)
    write(path, IMAGES[:4], EIGHT[:4])
    for _ in range(2):  # any thread may be the first to notice
        with pytest.raises(UsageError, match="it changed while it was read"):
            source.read(source.examples[6])


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": []}}', b'"x"'])
def test_damaged_metadata_is_ignored(tmp_path: Path, metadata: bytes):
    table = pa.table({"image": IMAGES, "label": EIGHT})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").class_names == ["0", "1"]
