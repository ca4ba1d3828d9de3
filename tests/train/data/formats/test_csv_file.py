"""CSV files of paths and labels: prepared data sets, and every rejection and warning."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data.dataset import open_dataset
from train.data.formats.csv_file import Options, open_source
from train.data.formats.source import TEST, TRAIN, VALIDATION, Source
from train.errors import UsageError
from train.prepare import main
from train.recipes import tfds

ThreeSteps = Callable[[str, Path], dict[str, Any]]
Write = Callable[..., list[Path]]


def found(path: Path) -> Source:
    return open_source(Options(name="mine", path=path))


@pytest.fixture
def folder(write_images: Write, tmp_path: Path) -> Path:
    """Folder with images/0.png to images/11.png."""
    write_images(tmp_path / "images", 12)
    return tmp_path


def write_csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_with_splits_is_prepared(
    folder: Path, three_steps: ThreeSteps, capsys: pytest.CaptureFixture[str]
):
    splits = ["train"] * 4 + ["Training"] * 4 + ["val", "Valid", "TEST", "testing"]
    rows = [
        f"images/{index}.png,{('dog', 'cat')[index % 2]},{split},{index}"
        for index, split in enumerate(splits)
    ]
    path = write_csv(folder, "\n".join(["path,label,split,id", *rows]))
    data_dir = folder / "data"
    assert main(["csv", str(path), "--name", "mine", "--data-dir", str(data_dir)]) == 0
    said = capsys.readouterr().out
    assert "warning: the column(s) id were not used" in said
    assert "warning: runs evaluate on the split 'validation'; the split 'test' is stored" in said
    dataset = open_dataset(tfds().replace(dataset="mine", data_dir=data_dir))
    assert dataset.class_names == ["cat", "dog"]
    for index, record in enumerate(dataset.train.__getitems__(range(8))):  # in the file's order
        assert record["file_name"] == f"images/{index}.png"
        assert record["image"] == (folder / "images" / f"{index}.png").read_bytes()
        assert record["label"] == 1 - index % 2
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


def test_a_file_without_splits_has_a_share_held_out(folder: Path, three_steps: ThreeSteps):
    rows = [f"images/{index}.png,{index % 2}" for index in range(12)]
    path = write_csv(folder, "\n".join(["path,label", *rows]))
    data_dir = folder / "data"
    command = ["csv", str(path), "--name", "mine", "--data-dir", str(data_dir)]
    assert main([*command, "--held-out", "0.3"]) == 0
    assert three_steps("mine", data_dir)["eval/num_examples"] == 4


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nimages/0.png,a\nimages/1.png,b\n",
        b"\xef\xbb\xbfpath,label\r\nimages/0.png,a\r\nimages/1.png,b\r\n",
        "Path;Label\nimages/0.png;a\nimages/1.png;b",
        '"path";"label"\n"images/0.png";"a"\n"images/1.png";"b"\n',
        "LABEL\tPATH\na\timages/0.png\nb\timages/1.png\n",
        '"path", "label"\n"images/0.png", "a"\n\n images/1.png , b \n,\n',
        "file name,Class Name\n./images/../images/0.png,a\nimages//1.png,b\n",
        "filepaths,labels\nimages\\0.png,a\nimages\\1.png,b\n",
        "image,path,class,label\nx,images/0.png,y,a\nx,images/1.png,y,b\n",
        "filename;category;note\nimages/0.png;a;x, y\nimages/1.png;b;\n",
        "img_path,target,subset,\nimages/0.png,a,train,\nimages/1.png,b,TRAIN,\n",
    ],
)
def test_files_are_written_in_many_ways(folder: Path, text: str | bytes):
    source = found(write_csv(folder, text))
    assert source.class_names == ["a", "b"]
    assert [(e.split, e.name, e.label) for e in source.examples] == [
        (TRAIN, "images/0.png", 0),
        (TRAIN, "images/1.png", 1),
    ]
    for index, example in enumerate(source.examples):
        assert source.read(example) == (folder / "images" / f"{index}.png").read_bytes()


def test_absolute_paths_and_any_ending_are_allowed(folder: Path, write_images: Write):
    (outside,) = write_images(folder / "outside", 1)
    (folder / "inner").mkdir()
    (folder / "images" / "0.png").rename(folder / "images" / "0.scan")
    (folder / "inner" / "1.png").symlink_to(folder / "images" / "1.png")
    rows = f"{outside},a\n{folder}/inner/1.png,b\n../images/0.scan,b\n"
    source = found(write_csv(folder / "inner", f"path,label\n{rows}"))
    assert [example.name for example in source.examples] == [
        str(outside),
        "1.png",  # the same data set in another place
        "../images/0.scan",
    ]
    assert source.read(source.examples[2]) == (folder / "images" / "0.scan").read_bytes()


def test_accented_letters_may_be_composed_or_not(folder: Path):
    for index, (stored, written) in enumerate((("e\u0301", "\u00e9"), ("\u00f6", "o\u0308"))):
        (folder / "images" / f"{index}.png").rename(folder / f"{stored}.png")
        source = found(write_csv(folder, f"path,label\n{written}.png,{written}\n"))
        composed = "\u00e9\u00f6"[index]
        assert source.examples[0].name == f"{composed}.png"
        assert source.class_names == [composed]
        assert source.read(source.examples[0])


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [
        (["10", "2", "-1"], ["-1", "2", "10"]),
        (["10.0", "2.0", "1"], ["1", "2.0", "10.0"]),
        (["9007199254740993", "9007199254740992", "1"], None),
        (["10", "2", "x"], ["10", "2", "x"]),
    ],
)
def test_labels_are_sorted_as_numbers_if_all_are_numbers(
    folder: Path, labels: list[str], class_names: list[str] | None
):
    rows = [f"images/{index}.png,{label}" for index, label in enumerate(labels)]
    source = found(write_csv(folder, "\n".join(["path,label", *rows])))
    assert source.class_names == (class_names or labels[::-1])
    assert [source.class_names[example.label] for example in source.examples] == labels


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((word, TRAIN) for word in ("Train", "training")),
        *((word, VALIDATION) for word in ("val", "valid", "VALIDATION", "dev")),
        *((word, TEST) for word in ("test", "Testing")),
    ],
)
def test_splits_have_many_names(folder: Path, word: str, split: str):
    source = found(write_csv(folder, f"path,label,split\nimages/0.png,a,{word}\n"))
    assert source.splits == [split]


BIG = "x" * 200_000

# Contents of the file, and words of the rejection.
FILES: list[tuple[str | bytes, str]] = [
    ("", "labels.csv is empty; it must have the columns path and label"),
    (b"\xef\xbb\xbf\r\n", "labels.csv is empty"),
    ("path,label\n", "has only a header; add a row for each image"),
    ("a.png,cat\nb.png,dog\n", "has the columns a.png, cat; its first row must name"),
    ("id;label;x\n1;2;3\n", "has the columns id, label, x; its first row must name"),
    ("path\n1.png\n", "has the columns path; its first row"),
    (
        "file,image,label\na,b,c\n",
        "has the columns file, image, any of which may be the path; rename the right one to path",
    ),
    ("path,label,label\na,b,c\n", "has the columns label, label, any of which may be the label"),
    ("path,label\nimages/0.png\n", "row 2 of", ),
    ("path,label\nimages/0.png,a\nimages/1.png,a,b\n", "labels.csv has 3 cells, but the header"),
    ("path,label\nimages/0.png,a\n\nimages/1.png,\n", "row 4 of"),
    ("path,label\nimages/0.png, \n", "has no label; add it or remove the row"),
    ("path,label\n,a\n", "has no path; add it or remove the row"),
    ("path,label,split\nimages/0.png,a,\n", "has no split; add it or remove the row"),
    ("path,label,split\nimages/0.png,a,fold1\n", "has the split fold1; it must be train, valid"),
    ("path,label\nimages/0.png,a\nx.png,b\ny.png,b\n", "2 of the 3 files in"),
    ("path,label\nimages/0.png,a\nx.png,b\ny.png,b\n", "do not exist, such as x.png in row 3"),
    ("path,label\nimages,a\n", "1 of the 1 files"),
    ("path,label\nimages/0.png,a\n./images/0.png,b\n", "row 3 of"),
    ("path,label\nimages/0.png,a\n./images/0.png,b\n", "repeats the path images/0.png of row 2"),
    (
        "path,label,split\nimages/0.png,a,train\nimages/0.png,a,test\n",
        "repeats the path images/0.png of row 2",
    ),
    ("path,label\nimages/0.png,1\nimages/1.png,01\n", "labels 01 and 1, which are the same number"),
    ("path,label\nimages/0.png,a\nimages/1.png,a\n", "there is only one class, a"),
    ("path,label\nimages/0.png,a\nimages/1.png,b\n", "have fewer than two images"),
    ('path,label\nimages/0.png,"a\nb"\nimages/1.png,b\n', "'a\\nb' is blank or has a line break"),
    ("path,label,split\nimages/0.png,a,test\n", "images only in the split(s) test"),
    ('path,label\n"images/0.png,a\n', "is not a correct CSV file"),
    ('"path,label\n', "its first row must name the columns path and label"),
    (f"path,label\n{BIG},a\n", "is not a correct CSV file: field larger"),
    ("path,label\nimages/0.png,ä\n".encode("latin-1"), "is not a text file in UTF-8; save it"),
    ("path,label\n".encode("utf-16"), "is not a text file in UTF-8; save it"),
    ("path,label\n".encode("utf-16-le"), "is not a text file; save it"),
]  # fmt: skip


def rejection(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    command = ["csv", str(path), "--name", "mine", "--data-dir", str(path.parent / "data")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("python -m train.prepare: ")
    assert not (path.parent / "data").exists()
    return said


@pytest.mark.parametrize(("text", "words"), FILES, ids=[words for _, words in FILES])
def test_an_unsuitable_file_is_rejected(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, words: str
):
    assert words in rejection(write_csv(folder, text), capsys)


def test_a_missing_file_and_a_folder_are_rejected(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert "x.csv cannot be read: No such file" in rejection(folder / "x.csv", capsys)
    assert "images cannot be read: Is a directory" in rejection(folder / "images", capsys)


def test_only_named_columns_are_reported_as_unused(folder: Path):
    source = found(write_csv(folder, ",path,label,x\n0,images/0.png,a,1\n"))
    assert source.warnings == ["the column(s) x were not used"]


def test_the_rejection_of_missing_files_names_the_folder_of_the_paths(folder: Path):
    path = write_csv(folder, "path,label\nx.png,a\n")
    words = f"x.png in row 2; paths must be relative to {folder}, or absolute"
    with pytest.raises(UsageError, match=re.escape(words)):
        found(path)
