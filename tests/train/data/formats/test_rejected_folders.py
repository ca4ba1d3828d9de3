"""Image folders that are rejected, in one line that says what to do."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from train.prepare import main

Write = Callable[..., list[Path]]


def rejection(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    data_dir = root.parent / "rejected"
    assert main(["image-folder", str(root), "--name", "mine", "--data-dir", str(data_dir)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("python -m train.prepare: ")
    assert not data_dir.exists()
    return said


# Folders with their number of images, and words of the rejection.
FOLDERS: list[tuple[dict[str, int], str]] = [
    ({"train/a": 2, "train/b": 2, "val/a": 1, "valid/b": 1}, "val and valid for the split"),
    ({"train/a": 2, "Train/b": 2}, "Train and train for the split 'train'; merge them"),
    ({"val/a": 2, "test/a": 2}, "folder(s) test and val, but no folder 'train'"),
    ({"Testing/a": 2, "Testing/b": 2}, "folder(s) Testing, but no folder 'train'"),
    ({"cats": 2, "dogs": 2, "test": 2}, "folder(s) test, but no folder 'train'"),
    ({"train": 3, "test": 2}, "train has 3 images, but no class folders"),
    ({"train": 3, "test": 2, "cat": 1}, "train has 3 images, but no class folders"),
    ({"train": 3}, "'python -m train.prepare csv FILE'"),
    ({"train": 0, "test/a": 2, "test/b": 2}, "train contains no images; add images"),
    ({"train/a": 2, "train/b": 2, "test": 0}, "test contains no images; add images or remove"),
    (
        {"train/a": 2, "train/b": 2, "val": 3},
        "a folder for each class, or list paths, labels and splits in a CSV file",
    ),
    ({"train/a": 2, "train/b": 2, "val/images": 3}, "val has 3 images that are not in folders"),
    ({"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1}, "class(es) c have images only in"),
    ({"a": 2, "b": 2, "c": 0, "d": 0}, "folder(s) c, d of"),
    ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 0}, "folder(s) b of"),
    ({"a/train": 2, "a/test": 2, "b/train": 2, "b/test": 2}, "such as train/CLASS and test/CLASS"),
    ({"a": 2, "b": 2, "more/a": 2, "more/b": 2}, "more contains the folders a, b, which are also"),
    ({"x/train/a": 2, "x/test/a": 2, "docs": 1}, "images/x instead"),
    ({"i_train/a": 2, "i_test/a": 2, "j_train/a": 2, "j_test/a": 2}, "several training folders"),
    ({"a": 3}, "only one class, a"),
    ({"a": 2, "a/x": 1, "a/y": 1}, "only one class, a"),
    ({"a": 3, "b": 1}, "class(es) b of the folder"),
    ({".": 3}, "(skipped: 3 images outside class folders); make a folder for each class"),
    ({".": 0}, "images contains no images in class folders; make"),
    ({"caf\udce9": 2, "b": 2}, "the class name 'caf\\udce9' is not valid UTF-8"),
    ({"a\nb": 2, "b": 2}, "the class name 'a\\nb' is blank or has a line break"),
    ({"  ": 2, "b": 2}, "is blank or has a line break"),
    ({"e\u0301": 2, "\u00e9": 2, "b": 2}, "several folders for the class '\\xe9'"),
    ({"a": 2, "a ": 2, "b": 2}, "several folders for the class 'a'"),
]


@pytest.mark.parametrize(("folders", "words"), FOLDERS, ids=[words for _, words in FOLDERS])
def test_an_unsuitable_folder_is_rejected(
    write_images: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folders: dict[str, int],
    words: str,
):
    for name, number in folders.items():
        write_images(tmp_path / "images" / name, number)
    assert words in rejection(tmp_path / "images", capsys)


def test_a_folder_of_other_files_is_rejected_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("x/1.npy", "y/2.npy", "y/notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_text("")
    words = "(skipped: 2 files ending in .npy, 1 files ending in .txt)"
    assert words in rejection(tmp_path / "images", capsys)
    (tmp_path / "images").rename(tmp_path / "train")
    (tmp_path / "images").mkdir()
    (tmp_path / "train").rename(tmp_path / "images" / "train")
    assert f"train contains no images {words}" in rejection(tmp_path / "images", capsys)


def test_a_missing_folder_and_a_file_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert "missing is not a folder that exists" in rejection(tmp_path / "missing", capsys)
    (tmp_path / "images.zip").write_text("")
    assert "images.zip is a file, not a folder; unpack" in rejection(
        tmp_path / "images.zip", capsys
    )


def test_a_folder_without_access_is_rejected(
    write_images: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """The refusal is simulated, since administrators may read everything."""
    for name in "ab":
        write_images(tmp_path / "images" / name, 2)
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("images/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "images/b cannot be read: Permission denied" in rejection(tmp_path / "images", capsys)


def test_odd_bytes_in_file_names_are_kept_as_text(
    write_images: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in "ab":
        write_images(tmp_path / "images" / name, 2)
    (tmp_path / "images" / "a" / "0.png").rename(tmp_path / "images" / "a" / "caf\udce9.png")
    (tmp_path / "images" / "a" / "x.caf\udce9").write_text("")
    data_dir = tmp_path / "data"
    command = ["image-folder", str(tmp_path / "images"), "--name", "mine"]
    assert main([*command, "--data-dir", str(data_dir)]) == 0
    assert "files ending in .caf\\xe9" in capsys.readouterr().out
