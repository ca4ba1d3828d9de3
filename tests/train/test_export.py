"""`python -m train.export`: files that other programs read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import train.model
from train.__main__ import main as train_main
from train.export import main
from train.run.metrics import read_records


@pytest.fixture(scope="module")
def run(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("export") / "run"
    flags = ["--num-epochs", "3", "--warmup-epochs", "1", "--milestones", "2"]
    flags += ["--checkpoint-every-epochs", "1"]
    assert train_main([*flags, "--workdir", str(workdir), "--data-dir", str(digits_dir)]) == 0
    return workdir


def test_a_model_has_torchvisions_names_and_everything_to_use_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--workdir", str(run), "--out", str(tmp_path / "a" / "model")]) == 0
    said = capsys.readouterr().out
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "model" / "model.safetensors")
    assert tensors["conv1.weight"].shape == (16, 1, 3, 3)
    assert tensors["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert tensors["fc.weight"].shape == (10, 64)
    assert tensors["bn1.num_batches_tracked"] == 33
    fields = json.loads((tmp_path / "a" / "model" / "model.json").read_text())
    error = read_records(run / "metrics.jsonl")[-1]["eval/top1_error"]
    assert (fields["model"], fields["step"], fields["top1_error"]) == ("resnet8", 33, error)
    assert fields["class_names"] == [str(digit) for digit in range(10)]
    assert fields["dataset"]["name"] == "digits"
    assert fields["recipe"]["num_workers"] == 8
    assert "jax" in fields["versions"]
    assert f"test error {100 * error:.2f} %" in said


def test_checkpoints_are_chosen_by_step_and_by_error(run: Path, tmp_path: Path):
    errors = {
        record["step"]: record["eval/top1_error"]
        for record in read_records(run / "metrics.jsonl")
        if "eval/top1_error" in record
    }
    best = min(errors, key=lambda step: (errors[step], -step))
    for checkpoint, step in (("11", 11), ("newest", 33), ("best", best)):
        out = tmp_path / checkpoint
        assert main(["--workdir", str(run), "--checkpoint", checkpoint, "--out", str(out)]) == 0
        fields = json.loads((out / "model.json").read_text())
        assert (fields["step"], fields["top1_error"]) == (step, errors[step])


RUN_ALONE = """
import sys
import jax, jax.export, numpy as np
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
assert not {"train", "flax", "optax"} & sys.modules.keys()
"""


@pytest.mark.parametrize("num_images", [1, 7])
def test_the_program_gives_the_same_probabilities_without_this_trainer(
    run: Path, tmp_path: Path, num_images: int
):
    model = tmp_path / "model"
    assert main(["--workdir", str(run), "--out", str(model), "--format", "stablehlo"]) == 0
    images = np.random.default_rng(0).integers(256, size=(num_images, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    files = (model / "model.stablehlo", tmp_path / "images.npy", tmp_path / "found.npy")
    subprocess.run([sys.executable, "-c", RUN_ALONE, *map(str, files)], cwd=tmp_path, check=True)
    expected = train.model.load(model)(images)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=1e-5, atol=1e-7)


def test_a_model_replaces_an_earlier_one_as_a_whole(run: Path, tmp_path: Path):
    words = ["--workdir", str(run), "--out", str(tmp_path)]
    assert main([*words, "--format", "stablehlo"]) == 0
    assert (tmp_path / "model.stablehlo").exists()
    assert main(words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "nowhere", "--out", "OUT"], "--workdir nowhere holds no run"),
        (["--workdir", "RUN", "--out", "OUT", "--checkpoint", "7"], "--checkpoint is 7; it must"),
        (
            ["--workdir", "RUN", "--out", "OUT", "--checkpoint", "last"],
            "--checkpoint is last; it must be a step, newest",
        ),
        (["--workdir", "RUN", "--out", "FILE"], "is a file"),
        (["--workdir", "RUN", "--out", "RUN"], "holds a run; name another folder"),
        (["--workdir", "RUN"], "--out"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    places = {"RUN": str(run), "OUT": str(tmp_path / "model"), "FILE": str(tmp_path / "file")}
    assert main([places.get(word, word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "model").exists()
