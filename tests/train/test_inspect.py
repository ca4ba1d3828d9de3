"""The picture of the data: a run's exact images, and the number of images in each class."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from train.config import Config
from train.data import store
from train.data.dataset import open_dataset
from train.data.formats.source import TEST, TRAIN, Example, Source
from train.data.minibatches import evaluation_minibatches, training_minibatches
from train.data.records import Dataset
from train.inspect import MAX_LABELS, class_counts, draw, main, sampled_labels
from train.plan import make_plan
from train.prepare import main as prepare
from train.recipes import imagenet
from train.step.workers import make_workers


class Squares:
    """Images of one color in memory, labeled by their index modulo the number of classes."""

    def __init__(self, num_examples: int, num_classes: int) -> None:
        self.num_examples, self.num_classes = num_examples, num_classes

    def __len__(self) -> int:
        return self.num_examples

    def __getitems__(self, indices: Any) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.png(index), "label": index % self.num_classes}

    def png(self, index: int) -> bytes:
        color = [index % 256, index // 256 % 256, 7]
        return cv2.imencode(".png", np.full((9, 12, 3), color, np.uint8))[1].tobytes()


def squares(num_train: int, num_evaluation: int, class_names: list[str]) -> Dataset:
    return Dataset(
        name="squares",
        class_names=class_names,
        train=Squares(num_train, len(class_names)),
        evaluation=Squares(num_evaluation, len(class_names)),
    )


def counts_of(dataset: Dataset) -> dict[str, np.ndarray]:
    return {split: class_counts(dataset, split, 0) for split in ("train", dataset.evaluation_split)}


def drawn(dataset: Dataset, config: Config) -> tuple[list[Axes], list[Axes], list[Axes]]:
    """Cells of both contact sheets that hold an image, and the two histograms."""
    sheets, histograms = draw(dataset, config, counts_of(dataset)).subfigs
    left, right = ([axes for axes in s.axes if axes.images] for s in sheets.subfigs)
    return left, right, histograms.axes


def pixels(cells: list[Axes]) -> np.ndarray:
    return np.stack([np.asarray(axes.images[0].get_array()) for axes in cells])


def heights(histogram: Axes) -> list[float]:
    return [bar.get_height() for bar in histogram.patches]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("num_workers", [8, 64])
def test_the_images_are_those_of_the_first_minibatch(
    digits_config: Callable[..., Config], num_workers: int
):
    config = digits_config(num_workers=num_workers, seed=3)
    dataset = open_dataset(config)
    workers = make_workers(config)
    train = next(training_minibatches(make_plan(config, dataset, workers), 0, 1))
    evaluation = next(evaluation_minibatches(make_plan(config, dataset, workers)))
    left, right, histograms = drawn(dataset, config)
    for cells, rows in ((left, train), (right, evaluation)):
        assert len(cells) == 40
        np.testing.assert_array_equal(pixels(cells), rows.images[:40, :, :, 0])
        assert [axes.get_title() for axes in cells] == [str(i) for i in rows.labels[:40]]
    for histogram, records in zip(histograms, (dataset.train, dataset.evaluation), strict=True):
        labels = [record["label"] for record in records.__getitems__(range(len(records)))]
        assert heights(histogram) == np.bincount(labels).tolist()
    assert histograms[0].get_title() == (
        "labels of all 1437 training images\n10 classes, from 133 images (9) to 154 (1)"
    )


def test_histogram_of_a_thousand_classes_omits_their_names():
    config = imagenet().replace(image_size=16)
    dataset = squares(1500, 20, [f"n{label:08d}" for label in range(1000)])
    left, right, (train, evaluation) = drawn(dataset, config)
    assert (len(left), len(right)) == (40, 20)
    workers = make_workers(config, jax.devices()[:1])
    rows = next(evaluation_minibatches(make_plan(config, dataset, workers)))
    np.testing.assert_array_equal(pixels(right), rows.images[:20])
    assert right[19].get_title() == "n00000019"
    assert heights(train) == [2] * 500 + [1] * 500
    assert "1000 classes, from 0 images (n00000020) to 1 (n00000000)" in evaluation.get_title()
    assert len(train.get_xticks()) < 20


def test_any_class_name_can_be_drawn():
    names = [
        "$_$",
        "a name that is too long to stand above an image",
        "Русский",
        "a\nb",
        "\u0378",  # no font has it
        "العربية",
    ]
    config = imagenet().replace(image_size=16)
    dataset = squares(6, 6, names)
    figure = draw(dataset, config, counts_of(dataset))
    figure.savefig(io.BytesIO())  # warnings, such as those about missing glyphs, are errors
    shown = ["$_$", "a name that i…", "Русский", r"a\nb", r"\u0378", "العربية"]
    histogram = figure.subfigs[1].axes[0]
    assert [tick.get_text() for tick in histogram.get_xticklabels()] == shown
    right = figure.subfigs[0].subfigs[1]
    assert [axes.get_title() for axes in right.axes if axes.images] == shown


def test_class_names_are_drawn_with_the_fonts_that_have_them(monkeypatch: pytest.MonkeyPatch):
    serif = ["DejaVu Sans", "DejaVu Serif"]
    for module in ("inspect", "run.sheet"):
        monkeypatch.setattr(f"train.{module}.drawable", lambda text, max_length=None: (text, serif))
    dataset = squares(7, 6, ["a", "b"])
    sheets, histograms = draw(
        dataset, imagenet().replace(image_size=16), counts_of(dataset)
    ).subfigs
    texts = [axes.title for sheet in sheets.subfigs for axes in sheet.axes if axes.images]
    for axes in histograms.axes:
        texts += [axes.title, *axes.get_xticklabels()]
    assert len(texts) == 7 + 6 + 2 * 3
    assert all(text.get_fontfamily() == serif for text in texts)


class NoImages(Squares):
    """Labels without images, for speed."""

    def png(self, index: int) -> bytes:
        return b""


def test_labels_of_large_data_sets_are_sampled():
    labels = sampled_labels(NoImages(MAX_LABELS + 1000, MAX_LABELS + 1000), seed=0)
    assert len(labels) == len(set(labels.tolist())) == MAX_LABELS
    assert labels.max() > MAX_LABELS  # not the first ones
    assert sorted(sampled_labels(NoImages(300, 300), seed=0)) == list(range(300))


def test_the_command_writes_only_the_picture_to_the_workdir(digits_dir: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "train.inspect", "--workdir", str(workdir)]
    done = subprocess.run(
        [*command, "--data-dir", str(digits_dir), "--num-workers", "64"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cuda"},  # no accelerator is needed
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, *lines, last = done.stdout.splitlines()
    assert first == "inspecting digits: 1437 training and 360 test images, 10 classes"
    assert last == f"wrote {workdir / 'inspect.png'}"
    words = [line.split() for line in lines]
    assert ["images", "1437", "360"] in words
    assert ["10", "classes", "train", "test"] in words
    assert ["most", "frequent", "size", "8", "x", "8", "8", "x", "8"] in words
    assert [path.name for path in workdir.iterdir()] == ["inspect.png"]
    with Image.open(workdir / "inspect.png") as picture:
        assert picture.size == (1920, 1200)


def write(data_dir: Path, read: Callable[[Example], bytes], names: list[str]) -> list[str]:
    """Write a data set that is not verified; return the flags that inspect it."""
    source = Source(
        origin="a test",
        class_names=names,
        examples=[
            Example(split, f"{i}.png", i % len(names), i)
            for split, size in ((TRAIN, 130), (TEST, 50))
            for i in range(size)
        ],
        read=read,
    )
    store.write(source, "mine", data_dir, lambda image: image, lambda _: None)
    return ["tfds", "--dataset", "mine", "--data-dir", str(data_dir), "--image-size", "16"]


def inspected(flags: list[str], workdir: Path) -> int:
    return main([*flags, "--workdir", str(workdir)])


def test_the_classes_of_unverified_data_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images, names = Squares(130, 3), ["[red]", "玫瑰", "a\x1bb"]
    flags = write(tmp_path, lambda example: images.png(example.location), names)
    assert inspected(flags, tmp_path / "run") == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    assert ["3", "classes", "train", "test"] in lines
    for name, train, test in (("[red]", 44, 17), ("玫瑰", 43, 17), (r"a\x1bb", 43, 16)):
        assert [name, str(train), str(test)] in lines
    verify = ["verify", "mine", "--data-dir", str(tmp_path)]
    assert "mine is not verified: " in said
    assert f"'python -m train.prepare {' '.join(verify)}' finds them" in said

    assert prepare(verify) == 0
    table = capsys.readouterr().out.splitlines()[:-2]  # the last lines are a warning and the result
    assert inspected(flags, tmp_path / "run") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:-1] == table
    assert "not verified" not in "".join(said)


def test_omitted_images_are_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = Squares(130, 2)
    flags = write(
        tmp_path, lambda e: b"" if e.location == 7 else images.png(e.location), ["a", "b"]
    )
    assert prepare(["verify", "mine", "--data-dir", str(tmp_path), "--skip-corrupt"]) == 0
    capsys.readouterr()
    assert inspected(flags, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "inspecting mine: 129 training and 49 test images" in said
    assert ["corrupt", "image(s)", "2"] in [line.split() for line in said.splitlines()]


def test_images_that_cannot_be_decoded_are_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = write(tmp_path, lambda example: b"no image", ["a", "b"])
    assert inspected(flags, tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert said.startswith("python -m train.inspect: ")
    assert "not an image that can be decoded" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "inspect.png").exists()


def test_a_label_outside_the_class_range_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = Squares(130, 3)
    flags = write(tmp_path, lambda example: images.png(example.location), ["a", "b", "c"])
    path = tmp_path / "mine" / "1.0.0" / "label.labels.txt"
    path.write_text("a\nb\n")
    features = path.with_name("features.json")
    features.write_text(features.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    assert inspected(flags, tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "mine has the label 2 in its split 'train', but 2 classes, 0 to 1" in said
    assert said.count("\n") == 1


def test_help_describes_the_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "Inspect the data of a run" in said
    assert "inspect.png" in said
    assert "python -m train.inspect RECIPE --help" in said
    with pytest.raises(SystemExit):
        main(["tfds", "--help"])
    assert "--dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["imagenet"], "imagenet2012 is not prepared"),
        (["--workdir", "/dev/null/run"], "--workdir /dev/null/run cannot be used"),
        (["--image-size", "4"], "--image-size is 4"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    digits_dir: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
):
    assert main([*flags, "--data-dir", str(digits_dir)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("python -m train.inspect: ")
    assert words in said
    assert said.count("\n") == 1
