"""`python -m train.predict`: the same bits as evaluation, in several formats, despite bad files."""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import train.model
from train.__main__ import main as train_main
from train.data.dataset import open_dataset
from train.data.images import decode
from train.evaluate import main as evaluate
from train.export import main as export
from train.predict import main
from train.recipes import digits


@pytest.fixture(scope="module")
def run(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("predict") / "run"
    flags = ["--num-epochs", "3", "--warmup-epochs", "1", "--milestones", "2"]
    assert train_main([*flags, "--workdir", str(workdir), "--data-dir", str(digits_dir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    folder = run.parent / "model"
    assert export(["--workdir", str(run), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All test images as files, in the order of the data set."""
    folder = tmp_path_factory.mktemp("images")
    records = open_dataset(digits().replace(data_dir=digits_dir)).evaluation
    paths = [folder / f"{index:03}.png" for index in range(len(records))]
    for path, record in zip(paths, records.__getitems__(range(len(records))), strict=True):
        path.write_bytes(record["image"])
    return paths


def test_probabilities_are_those_of_evaluate_to_the_bit(
    run: Path, model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
):
    assert evaluate(["--workdir", str(run)]) == 0
    with (run / "predictions.csv").open() as file:
        expected = list(csv.DictReader(file))
    capsys.readouterr()
    assert main(["--model", str(model), "--format", "csv", str(images[0].parent)]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(found) == len(expected) == 360
    for one, other, path in zip(found, expected, images, strict=True):
        assert one["file"] == str(path)
        assert one["error"] == ""
        for place in range(1, 6):
            assert one[f"class_{place}"] == other[f"class_{place}"]
            name = f"probability_{place}"
            assert float(one[name]) == float(other[name])


def test_a_run_and_its_model_predict_the_same(
    run: Path, model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
):
    said: list[str] = []
    for path in (run, model):
        assert main(["--model", str(path), "--format", "jsonl", *map(str, images[:20])]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    first = json.loads(said[0].splitlines()[0])
    assert first["file"] == str(images[0])
    assert len(first["classes"]) == len(first["probabilities"]) == 5
    assert sorted(first["probabilities"], reverse=True) == first["probabilities"]


def test_the_library_gives_the_same_probabilities(
    model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
):
    classify = train.model.load(model)
    probabilities = classify(decode(path.read_bytes(), 1) for path in images[:30])
    assert probabilities.shape == (30, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (
        main(["--model", str(model), "--top", "1", "--format", "jsonl", *map(str, images[:30])])
        == 0
    )
    for line, row in zip(capsys.readouterr().out.splitlines(), probabilities, strict=True):
        record = json.loads(line)
        assert record["classes"] == [classify.class_names[row.argmax()]]
        assert np.float32(record["probabilities"][0]) == row.max()


def test_the_example_of_the_readme_works(
    run: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    text = (Path(__file__).parents[2] / "README.md").read_text()
    [example] = [part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "load(" in part]
    assert len([line for line in example.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(run)
    (tmp_path / "digit.png").symlink_to(images[7])
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    assert main(["--model", str(run), "--format", "jsonl", str(images[7])]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert name == expected["classes"][0]
    assert float(probability) == expected["probabilities"][0]


def test_images_of_other_sizes_and_colors_are_converted(model: Path):
    classify = train.model.load(model)
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    color = np.repeat(gray[:, :, None], 3, axis=2)
    rows = classify([gray, gray[:, :, None], color])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-2)  # conversion to gray rounds
    assert classify([np.zeros((30, 50, 3), np.uint8)]).shape == (1, 10)
    assert classify([]).shape == (0, 10)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8)),
        np.zeros(8, np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_an_error(model: Path, image: np.ndarray):
    with pytest.raises(ValueError, match="it must be uint8 of the shape"):
        train.model.load(model)([image])


def test_a_bad_file_has_a_line_and_the_others_are_classified(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    paths = [str(tmp_path / "bad.png"), str(images[3]), str(tmp_path / "missing.png")]
    assert main(["--model", str(model), *paths]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{paths[0]}: not an image that can be decoded")
    assert " %, " in lines[1]
    assert lines[2] == f"{paths[2]}: No such file or directory"
    assert said.err == "2 of 3 files have no prediction\n"


def test_paths_come_from_standard_input(
    model: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    piped = "\n".join(map(str, images[:3])) + "\n\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
    assert main(["--model", str(model)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_name_that_is_not_text_is_read_and_written(
    model: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    odd = os.fsencode(tmp_path) + b"/odd\xff \xe2\x80\xa8.png"
    try:
        shutil.copyfile(images[0], odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(odd), encoding="ascii"))
    out = tmp_path / "out.csv"
    assert main(["--model", str(model), "--format", "csv", "--out", str(out)]) == 0
    [row] = csv.DictReader(out.read_text(encoding="utf-8").split("\n"))
    assert row["file"] == f"{tmp_path}/odd\\udcff \u2028.png"
    assert row["error"] == ""


def test_a_network_that_is_not_finite_has_no_prediction(
    model: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = safetensors.numpy.load_file(broken / "model.safetensors")
    tensors["fc.bias"][3] = -np.inf  # its softmax would be finite
    safetensors.numpy.save_file(tensors, broken / "model.safetensors")
    assert main(["--model", str(broken), "--format", "jsonl", str(images[0])]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"file": str(images[0]), "error": "the network's output is not finite"}


def test_a_file_of_parameters_in_a_models_folder_stands_for_the_folder(
    model: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
):
    said: list[str] = []
    for path in (model, model / "model.safetensors"):
        assert main(["--model", str(path), "--format", "jsonl", str(images[0])]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_the_sheet_shows_the_images(model: Path, images: list[Path], tmp_path: Path):
    sheet, out = tmp_path / "sheet.png", tmp_path / "predictions.csv"
    words = ["--model", str(model), "--sheet", str(sheet), "--format", "csv", "--out", str(out)]
    assert main([*words, *map(str, images[:9])]) == 0
    with Image.open(sheet) as picture:
        assert picture.size == (1600, 440)  # two rows of eight
    assert len(out.read_text().splitlines()) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere", "x.png"], "--model nowhere does not exist"),
        (["--model", "MODEL", "--top", "0", "x.png"], "--top is 0; it must be at least 1"),
        (["--model", "MODEL", "--checkpoint", "best", "x.png"], "is a model, not a run"),
        (["--model", "MODEL", "EMPTY"], "has no images"),
        (["--model", "MODEL", "HEIC"], "has no images: no file below it has the ending of one (HE"),
        (["--model", "DOWNLOAD", "x.png"], "is not a run; name the file in it: --model "),
        (["--model", "MODEL", "--sheet", "s.jpg", "x.png"], "--sheet is s.jpg; its name must end"),
        (["--model", "MODEL", "--out", "nowhere/x.csv", "x.png"], "--out nowhere/x.csv cannot be"),
        (["x.png"], "--model"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    words: list[str], message: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    places = {"MODEL": str(model)}
    for name in ("EMPTY", "HEIC", "DOWNLOAD"):
        (tmp_path / name).mkdir()
        places[name] = str(tmp_path / name)
    (tmp_path / "HEIC" / "a.heic").write_bytes(b"")
    (tmp_path / "DOWNLOAD" / "config.json").write_text("{}")
    (tmp_path / "DOWNLOAD" / "pytorch_model.bin").write_bytes(b"")
    assert main([places.get(word, word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
