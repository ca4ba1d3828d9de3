"""ImageNet as Kaggle has it, with the labels of its validation images in a CSV file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data.formats.image_folder import Options, open_source
from train.data.formats.source import TRAIN, VALIDATION, Source
from train.data.records import Dataset
from train.prepare import main

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


def rejection(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line that the command prints when it rejects a folder."""
    data_dir = root.parent / "rejected"
    assert main(["image-folder", str(root), "--name", "mine", "--data-dir", str(data_dir)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not data_dir.exists()
    return said


SOLUTION = "LOC_val_solution.csv"


@pytest.fixture
def kaggle(write_images: Write, root: Path) -> Path:
    """Kaggle's archive of ImageNet with a few images."""
    folder = root / "ILSVRC" / "Data" / "CLS-LOC"
    for synset in SYNSETS:
        write_images(folder / "train" / synset, 4, ".JPEG")
    write_images(folder / "test", 2, ".JPEG")
    rows = ["ImageId,PredictionString"]
    for index, path in enumerate(write_images(folder / "val", 6, ".JPEG")):
        path.rename(path.with_name(f"ILSVRC2012_val_0000000{index}.JPEG"))
        rows.append(f"ILSVRC2012_val_0000000{index},{SYNSETS[index % 3 == 0]} 1 2 3 4 ")
    (root / SOLUTION).write_text("\n".join(rows) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("")
    for path in ("ILSVRC/Annotations/CLS-LOC/val/x.xml", "ILSVRC/ImageSets/CLS-LOC/val.txt"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text("")
    return root


def test_kaggles_imagenet_is_labeled_by_its_csv_file(
    kaggle: Path, data_dir: Path, three_steps: ThreeSteps, prepare_folder: PrepareFolder
):
    dataset = prepare_folder(kaggle, data_dir)
    assert tuple(dataset.class_names) == SYNSETS
    records = dataset.evaluation.__getitems__(range(6))
    # The names are those of the layout for torchvision, and so is their order.
    assert [record["file_name"] for record in records] == [
        *(f"n01440764/ILSVRC2012_val_0000000{index}.JPEG" for index in (1, 2, 4, 5)),
        *(f"n01443537/ILSVRC2012_val_0000000{index}.JPEG" for index in (0, 3)),
    ]
    folder = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for record in records:
        synset, _, file = record["file_name"].partition("/")
        assert record["label"] == SYNSETS.index(synset)
        assert record["image"] == (folder / file).read_bytes()
    assert verified(data_dir)["skipped"] == {
        "files ending in .txt": 1,
        "files in the folder Annotations": 1,
        "files in the folder ImageSets": 1,
        "images in the folder test, without labels": 2,
    }
    assert three_steps("mine", data_dir)["eval/num_examples"] == 6


@pytest.mark.parametrize("path", ["ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", ".."])
def test_kaggles_imagenet_is_found_from_any_folder(kaggle: Path, path: str):
    source = found(kaggle / path)
    assert [sum(e.split == split for e in source.examples) for split in (TRAIN, VALIDATION)] == [
        8,
        6,
    ]


@pytest.mark.parametrize("place", ["ILSVRC", "ILSVRC/Data/CLS-LOC", "labels/kaggle"])
def test_kaggles_csv_file_is_found_in_several_places(kaggle: Path, place: str):
    (kaggle / place).mkdir(parents=True, exist_ok=True)
    (kaggle / SOLUTION).rename(kaggle / place / SOLUTION)
    assert len(names_of(found(kaggle), VALIDATION)) == 6


def shorten(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def repeat_a_row(path: Path) -> None:
    path.write_text(path.read_text() + path.read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / SOLUTION).unlink(), f"put Kaggle's {SOLUTION}, which labels them"),
        (lambda root: shorten(root / SOLUTION), "does not list 1 of the 6 validation images"),
        (
            lambda root: next(root.glob("ILSVRC/Data/CLS-LOC/val/*4.JPEG")).unlink(),
            "lists 1 that do not exist (ILSVRC2012_val_00000004)",
        ),
        (lambda root: (root / SOLUTION).write_text("a,b\n1,2\n"), "must have the columns ImageId"),
        (
            lambda root: (root / SOLUTION).write_text("ImageId,PredictionString\nx,cat 1\n"),
            "row 2 of",
        ),
        (lambda root: repeat_a_row(root / SOLUTION), "row 8 of"),
        (lambda root: (root / SOLUTION).write_bytes(b"\xff\xfe"), "is not a CSV file"),
    ],
)
def test_unusable_labels_of_kaggles_imagenet_are_reported(
    kaggle: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], words: str
):
    damage(kaggle)
    said = rejection(kaggle, capsys)
    assert words in said
    assert SOLUTION in said
