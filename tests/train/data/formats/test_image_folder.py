"""Image folders: every layout through three training steps."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data.formats.image_folder import Options, open_source
from train.data.formats.source import TEST, TRAIN, VALIDATION, Source
from train.data.records import Dataset

ThreeSteps = Callable[[str, Path], dict[str, Any]]
PrepareFolder = Callable[..., Dataset]
Write = Callable[..., list[Path]]
WriteSplits = Callable[..., None]

SYNSETS = ("n01440764", "n01443537")


def found(root: Path) -> Source:
    return open_source(Options(name="mine", path=root))


def names_of(source: Source, split: str) -> list[str]:
    return [example.name for example in source.examples if example.split == split]


def verified(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "mine" / "1.0.0" / "verified.json").read_text())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_split_folders_are_prepared(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    split: str,
    prepare_folder: PrepareFolder,
):
    write_splits(root, **{"train": 4, split: 3})
    dataset = prepare_folder(root, data_dir)
    assert dataset.evaluation_split == split
    assert list(dataset.class_names) == ["a", "b"]
    assert len(dataset.train) == 8
    assert three_steps("mine", data_dir)["eval/num_examples"] == 6


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "VAL", VALIDATION),
        ("TRAIN", "Valid", VALIDATION),
        ("training", "dev", VALIDATION),
        ("Training", "Testing", TEST),
        ("seg_train", "seg_test", TEST),
        ("training_set", "test_set", TEST),
        ("trainset", "valset", VALIDATION),
        ("train2017", "val2017", VALIDATION),
    ],
)
def test_split_folders_have_many_names(
    write_splits: WriteSplits, root: Path, train: str, other: str, split: str
):
    write_splits(root, **{train: 2, other: 1})
    source = found(root)
    assert source.class_names == ["a", "b"]
    assert names_of(source, TRAIN) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert names_of(source, split) == ["a/0.png", "b/0.png"]


def test_three_splits_are_stored_and_the_test_split_is_not_used(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    capsys: pytest.CaptureFixture[str],
    prepare_folder: PrepareFolder,
):
    write_splits(root, train=4, val=3, test=2)
    prepare_folder(root, data_dir)
    said = capsys.readouterr().out
    assert "warning: runs evaluate on the split 'validation'; the split 'test' is stored" in said
    assert "8 train, 6 validation, 4 test images" in said
    assert three_steps("mine", data_dir)["eval/num_examples"] == 6


def test_class_folders_at_the_top_level_have_a_share_held_out(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root.parent, images=10)
    prepare_folder(root, data_dir, "--held-out", "0.2")
    assert three_steps("mine", data_dir)["eval/num_examples"] == 4


def test_a_train_folder_alone_has_a_share_held_out(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root, train=10)
    assert names_of(found(root), TRAIN)[:2] == ["a/0.png", "a/1.png"]
    prepare_folder(root, data_dir)
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


def test_single_folders_around_the_data_set_are_entered(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root / "flowers" / "flowers", train=4, test=2)
    (root / "README.txt").write_text("flowers")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.jpg").write_text("")
    prepare_folder(root, data_dir)
    assert verified(data_dir)["skipped"] == {
        "files ending in .txt": 1,
        "files of the operating system": 1,
    }
    assert three_steps("mine", data_dir)["eval/num_examples"] == 4


def test_wrappers_inside_of_splits_and_around_classes_are_entered(
    write_images: Write, write_splits: WriteSplits, root: Path
):
    for name in "ab":
        write_images(root / "seg_train" / "seg_train" / name, 2)
        write_images(root / "seg_test" / "seg_test" / name, 1)
    write_images(root / "seg_pred" / "seg_pred", 5)
    source = found(root)
    assert names_of(source, TRAIN) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert names_of(source, TEST) == ["a/0.png", "b/0.png"]
    assert source.skipped == {"files in the folder seg_pred": 5}
    write_splits(root.parent / "outer", animals=2)
    assert names_of(found(root.parent / "outer"), TRAIN) == names_of(source, TRAIN)
    write_splits(root.parent / "twice" / "train", train=2)
    write_splits(root.parent / "twice" / "test", Test=1)
    twice = found(root.parent / "twice")
    assert [names_of(twice, split) for split in (TRAIN, TEST)] == [
        names_of(source, split) for split in (TRAIN, TEST)
    ]


def test_nested_class_folders_belong_to_their_class(
    write_images: Write,
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root, train=4, val=1)
    write_images(root / "val" / "b" / "also", 1)
    write_images(root / "val" / "b" / "deep" / "deeper", 2)
    source = found(root)
    assert names_of(source, VALIDATION) == [
        "a/0.png",
        "b/0.png",
        "b/also/0.png",
        "b/deep/deeper/0.png",
        "b/deep/deeper/1.png",
    ]
    assert [example.label for example in source.examples[-5:]] == [0, 1, 1, 1, 1]
    prepare_folder(root, data_dir)
    assert three_steps("mine", data_dir)["eval/num_examples"] == 5


def test_the_same_images_elsewhere_give_the_same_records(
    write_images: Write, root: Path, tmp_path: Path, prepare_folder: PrepareFolder
):
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    for index, name in enumerate((composed, "b")):
        write_images(root / "train" / name, 5 + index)
    shutil.copytree(root, tmp_path / "copy" / "deep")
    (tmp_path / "copy" / "deep" / "train" / composed).rename(
        tmp_path / "copy" / "deep" / "train" / decomposed
    )
    one = prepare_folder(root, tmp_path / "one")
    other = prepare_folder(tmp_path / "copy", tmp_path / "other")
    records = one.train.__getitems__(range(len(one.train)))
    assert records == other.train.__getitems__(range(len(other.train)))
    assert one.class_names == other.class_names == ["b", composed]
    for split in ("train", "validation"):
        (path,) = (tmp_path / "one").rglob(f"*-{split}.array_record*")
        (copy,) = (tmp_path / "other").rglob(f"*-{split}.array_record*")
        assert path.read_bytes() == copy.read_bytes()


def test_an_unlabeled_test_folder_is_counted_and_a_share_held_out(
    write_images: Write,
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root, train=10)
    write_images(root / "test", 3)
    dataset = prepare_folder(root, data_dir)
    assert dataset.evaluation_split == VALIDATION
    assert verified(data_dir)["skipped"] == {"images in the folder test, without labels": 3}
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


@pytest.mark.parametrize("inner", ["unknown", "test"])
def test_a_single_unknown_folder_does_not_label_the_test_images(
    write_images: Write, write_splits: WriteSplits, root: Path, inner: str
):
    write_splits(root, train=2, val=1)
    write_images(root / "test" / inner, 3)
    source = found(root)
    assert source.splits == [TRAIN, VALIDATION]
    assert source.skipped == {"images in the folder test, without labels": 3}


def test_a_class_may_be_called_train(
    write_images: Write,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    capsys: pytest.CaptureFixture[str],
    prepare_folder: PrepareFolder,
):
    for name in ("bus", "train"):
        write_images(root / name, 10)
    dataset = prepare_folder(root, data_dir)
    assert list(dataset.class_names) == ["bus", "train"]
    assert "train is a class, since its images are directly inside" in capsys.readouterr().out
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


def test_the_same_folders_in_each_class_are_a_warning(write_splits: WriteSplits, root: Path):
    write_splits(root, first=1, second=1)
    (warning,) = found(root).warnings
    assert "contains the folders a, b, whose images are mixed; if these are the classes" in warning
    (root / "first" / "a").rename(root / "first" / "c")
    assert found(root).warnings == []


def test_class_names_that_contain_split_words_are_classes(write_images: Write, root: Path):
    names = ["bullet train", "detest", "detrain", "test tube", "valley"]
    for name in names:
        write_images(root / name, 2)
    assert found(root).class_names == names


def test_an_imagenet_for_torchvision_is_prepared(
    write_images: Write,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    for synset in reversed(SYNSETS):
        write_images(root / "train" / synset, 4, ".JPEG")
        write_images(root / "val" / synset, 2, ".JPEG")
    dataset = prepare_folder(root, data_dir)
    assert tuple(dataset.class_names) == SYNSETS
    assert three_steps("mine", data_dir)["eval/num_examples"] == 4
