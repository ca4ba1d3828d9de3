"""Files of a data set: patterns, and the splits that names or flags assign them to."""

import os
from pathlib import Path

import pytest
from webdataset.shardlists import expand_urls

from train.data.formats.splits import Options, expand_braces, find_files
from train.errors import UsageError
from train.prepare import main


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, *files: str, split: tuple[str, ...] = ()) -> dict[str, str]:
    """Splits by the names of files, whose patterns are relative to a folder."""
    assigned = tuple(text.replace("=", f"={folder}/", 1) for text in split)
    options = Options(name="x", files=tuple(f"{folder}/{f}" for f in files), split=(assigned,))
    return {file.name: file.split for file in find_files(options, ".tar")}


@pytest.mark.parametrize(
    "pattern",
    [
        "plain", "a-{000000..000003}.tar", "{train,val}-{0..3}.tar", "x{9..11}", "x{09..11}",
        "x{3..1}", "x{-2..1}", "{one}", "{}", "{,a}b", "{a,b}{c,d}",
    ],
)  # fmt: skip
def test_braces_expand_as_the_webdataset_library_expands_them(pattern: str):
    assert list(expand_braces(pattern)) == expand_urls(pattern)


def test_nested_braces_name_the_same_files():
    assert set(expand_braces("{a,b{c,{1..2}}}")) == {"a", "bc", "b1", "b2"}


def test_a_long_range_is_not_expanded_beyond_the_first_missing_file(tmp_path: Path):
    touch(tmp_path, "0.tar", "1.tar")
    with pytest.raises(UsageError, match=r"2\.tar' does not exist"):
        found(tmp_path, "{0..999999999999}.tar")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.tar", "train"),
        ("data/validation-00000-of-00001-ab12.tar", "validation"),
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k_VAL_0000.tar", "validation"),
        ("default/test/0000.tar", "test"),
        ("Training/0000.tar", "train"),
        ("x/valid/0.tar", "validation"),
        ("dev1.tar", "validation"),
        ("testing.tar", "test"),
        ("test/test-0.tar", "test"),
    ],
)
def test_the_name_of_a_file_or_a_folder_contains_its_split(tmp_path: Path, name: str, split: str):
    # The folder above all files has a split in its name too, which says nothing.
    touch(tmp_path / "test", name, "train.tar")
    assert found(tmp_path, "test") == {name: split, "train.tar": "train"}


@pytest.mark.parametrize("name", ["trained.tar", "contest.tar", "evaluation.tar", "devices.tar"])
def test_words_that_contain_a_split_do_not_count(tmp_path: Path, name: str):
    touch(tmp_path, name, "0.tar")
    assert set(found(tmp_path, name, "0.tar").values()) == {"train"}


def test_a_folder_stands_for_its_files_in_sorted_order(tmp_path: Path):
    touch(tmp_path, "b.tar", "a/c.tar", "a/d.txt", ".cache/e.tar", "a/.f.tar")
    assert list(found(tmp_path, ".")) == ["a/c.tar", "b.tar"]
    assert list(found(tmp_path, "b.tar", "*", "a/c.tar")) == ["a/c.tar", "b.tar"]


def test_a_flag_assigns_files_to_splits(tmp_path: Path):
    touch(tmp_path, "a0.tar", "a1.tar", "b.tar", "test/c.tar")
    split = ("train=a*.tar", "val=b.tar")
    expected = {"a0.tar": "train", "a1.tar": "train", "b.tar": "validation"}
    assert found(tmp_path, split=split) == expected
    assert found(tmp_path, ".", split=split) == expected | {"test/c.tar": "test"}
    # A flag has precedence over the name.
    assert found(tmp_path, split=("train=test",)) == {"c.tar": "train"}
    with pytest.raises(UsageError, match=r"a0\.tar has no split in its name"):
        found(tmp_path, ".", split=("val=b.tar",))


def test_a_path_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    for files, split in ((("~/*.tar",), ()), ((), (("train=~/a.tar",),))):
        (file,) = find_files(Options(name="x", files=files, split=split), ".tar")
        assert file.path == tmp_path / "a.tar"


def test_a_file_whose_name_has_braces_is_a_file(tmp_path: Path):
    touch(tmp_path, "{a,b}.tar")
    assert list(found(tmp_path, "{a,b}.tar")) == ["{a,b}.tar"]


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "FILES is missing; name *."),
        (["nowhere.bin"], "'nowhere.bin' does not exist"),
        (["nothing*"], "'nothing*' matches nothing"),
        (["train-{0..2}.bin"], "'train-2.bin' does not exist"),
        ([""], "'' does not exist"),
        (["empty"], "empty contains no *."),
        (["train-0.bin", "other.bin"], "other.bin has no split in its name"),
        (["train-0.bin", "other.bin"], "--split train="),
        (["train/test-0.bin", "other.bin"], "contains the splits test and train in its name"),
        (["--split", "eval=other.bin"], "--split eval=other.bin: the split eval is unknown"),
        (["--split", "other.bin"], "--split other.bin: it has no pattern"),
        (["--split", "train="], "--split train=: it has no pattern"),
        (
            ["--split", "train=*.bin", "val=a.bin"],
            "a.bin is in the splits 'train' and 'validation'",
        ),
        (["--split", "train=a.bin", "--split", "val=b.bin"], "a.bin, is in the splits 'train' and"),
        (["link/*.bin"], "test-0.bin, is in the splits 'test' and 'train'"),
        (["other.bin"], "other.bin is not a complete"),
        (["pointer.bin"], "pointer.bin is only a pointer of Git LFS"),
    ],
)
def test_unsuitable_files_are_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    args: list[str],
    words: str,
):
    touch(tmp_path, "train-0.bin", "train-1.bin", "train/test-0.bin", "empty/x.txt", "a.bin")
    (tmp_path / "other.bin").write_text("something else\n" * 100)
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    os.symlink("a.bin", tmp_path / "b.bin")
    touch(tmp_path, "link/test-0.bin")
    os.symlink("test-0.bin", tmp_path / "link" / "train-0.bin")
    monkeypatch.chdir(tmp_path)
    assert main([form, *args, "--name", "mine", "--data-dir", "data"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data").exists()
