"""Runs that resume, or are evaluated, on other data than they were trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import optax
import pytest

from train.__main__ import main
from train.data import verification
from train.data.dataset import open_dataset
from train.data.minibatches import epoch_order
from train.data.records import Dataset, image_name
from train.evaluate import main as evaluate
from train.prepare import main as prepare_main
from train.recipes import tfds

CLASSES = ("ant", "bee", "cat")
NUM_TRAIN, NUM_TEST = 16, 4  # of each class: 48 and 12 images
# Six steps for each epoch of 48 images, five for 47.
FLAGS = [
    *("tfds", "--dataset", "pets", "--model", "resnet8", "--image-size", "8"),
    *("--augmentation", "shift", "--num-workers", "8", "--batch-size-per-worker", "1"),
    *("--num-epochs", "2", "--warmup-epochs", "0.5", "--milestones", "1"),
    *("--log-every-steps", "1"),
]

Main = Callable[..., str]


class Pets:
    """A folder of images, the data set that is prepared from it, and a run on it."""

    def __init__(self, folder: Path) -> None:
        self.images, self.data, self.workdir = folder / "images", folder / "data", folder / "run"

    def image(self, split: str, name: str, index: int) -> Path:
        return self.images / split / name / f"{index}.png"

    def add(self, split: str, name: str, index: int) -> None:
        path = self.image(split, name, index)
        rng = np.random.default_rng([CLASSES.index(name) if name in CLASSES else 9, index])
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(256, size=(8, 8, 3), dtype=np.uint8))

    def prepare(self, *flags: str) -> None:
        command = ["image-folder", str(self.images), "--name", "pets", "--data-dir", str(self.data)]
        assert prepare_main([*command, "--overwrite", *flags]) == 0

    @property
    def stored(self) -> Path:
        (folder,) = (self.data / "pets").iterdir()
        return folder

    def swap_labels(self) -> None:
        """Exchange an ant and a bee, so that every class keeps its size."""
        ant, bee = self.image("train", "ant", 3), self.image("train", "bee", 3)
        ant.rename(ant.with_suffix(".moved"))
        bee.rename(ant)
        ant.with_suffix(".moved").rename(bee)

    def flags(self, *flags: str) -> list[str]:
        return [*FLAGS, "--workdir", str(self.workdir), "--data-dir", str(self.data), *flags]

    @property
    def opened(self) -> Dataset:
        return open_dataset(tfds().replace(dataset="pets", data_dir=self.data))

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.workdir / "config.json").read_text())

    @property
    def records(self) -> list[dict[str, Any]]:
        lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def manifest(self, step: int) -> dict[str, Any]:
        return json.loads((self.workdir / "checkpoints" / str(step) / "manifest.json").read_text())


@pytest.fixture(scope="module")
def unprepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pets = Pets(tmp_path_factory.mktemp("pets"))
    for name in CLASSES:
        for split, number in (("train", NUM_TRAIN), ("validation", NUM_TEST)):
            for index in range(number):
                pets.add(split, name, index if split == "train" else 100 + index)
    return pets.images


@pytest.fixture
def pets(tmp_path: Path, unprepared: Path) -> Pets:
    shutil.copytree(unprepared, tmp_path / "images")
    pets = Pets(tmp_path)
    pets.prepare()
    return pets


@pytest.fixture
def train(pets: Pets, capsys: pytest.CaptureFixture[str]) -> Main:
    """Train up to a number of steps; return what was said."""

    def call(*flags: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(pets.flags(*flags)) == code
        said = capsys.readouterr()
        if code:
            assert said.out == ""
            assert said.err.count("\n") == 1
            assert said.err.startswith("python -m train: ")
        return said.err if code else said.out

    return call


def test_swapped_labels_are_an_error_unless_the_change_is_allowed(pets: Pets, train: Main):
    said = train("--num-steps", "2")
    before = pets.config["data_fingerprint"]
    assert f"data            pets 1.0.0, fingerprint {before['short']}: 48 training and 12" in said
    assert before["class_names"] == list(CLASSES)
    assert before["split_sizes"] == {"train": 48, "validation": 12}

    pets.swap_labels()
    pets.prepare()
    assert pets.stored.name == "1.0.1"
    config = (pets.workdir / "config.json").read_text()
    said = train("--num-steps", "4", code=2)
    assert said.startswith(
        f"python -m train: --workdir {pets.workdir} holds a run on other data: now labels or "
        "images differ (same classes and sizes) (pets, fingerprint "
    )
    assert said.endswith(
        f" instead of {before['short']}); restore the data, or accept the change with "
        "--allow-data-change\n"
    )
    assert (pets.workdir / "config.json").read_text() == config

    said = train("--num-steps", "4", "--allow-data-change")
    assert "the data has changed: labels or images differ (same classes and sizes)\n" in said
    assert "resuming after step 2\n" in said
    now = pets.config["data_fingerprint"]
    assert f"data            pets 1.0.1, fingerprint {now['short']}: 48" in said
    change = {
        "step": 2,
        "before": before["short"],
        "differences": ["labels or images differ (same classes and sizes)"],
    }
    assert pets.config["data_changes"] == [change]
    assert pets.manifest(2)["config"]["data_fingerprint"] == before
    assert pets.manifest(4)["config"]["data_fingerprint"] == now

    said = train()  # the new data is now the run's own
    assert "the data has changed" not in said
    assert "resuming after step 4\n" in said
    assert pets.config["data_changes"] == [change]
    assert [record["step"] for record in pets.records] == list(range(1, 13))
    assert "already finished: 12 steps" in train()


def test_preparing_the_same_images_again_changes_nothing(pets: Pets):
    before = pets.opened.fingerprint
    pets.prepare()
    assert pets.stored.name == "1.0.1"
    after = pets.opened.fingerprint
    assert before is not None
    assert after is not None
    assert (after.files == before.files, after.short == before.short) == (False, True)
    assert after.differences(before) == []


def test_other_classes_are_always_an_error(pets: Pets, train: Main):
    train("--num-steps", "2")
    for split in ("train", "validation"):
        (pets.images / split / "bee").rename(pets.images / split / "bird")
    pets.prepare()
    for allow in ([], ["--allow-data-change"]):
        said = train("--num-steps", "4", *allow, code=2)
        assert "on other data: now class 1 is bird instead of bee (pets, fingerprint" in said
        assert said.endswith("; restore the data or choose another --workdir\n")
    for split in ("train", "validation"):
        pets.add(split, "dog", 0 if split == "train" else 100)
    pets.prepare()
    assert "it has 4 classes instead of 3" in train("--allow-data-change", code=2)


def test_data_that_is_verified_after_the_start_still_matches(pets: Pets, train: Main):
    (pets.stored / verification.VERIFIED).unlink()
    train("--num-steps", "2")
    assert pets.config["data_fingerprint"]["contents"] is None
    assert prepare_main(["verify", "pets", "--data-dir", str(pets.data)]) == 0
    said = train("--num-steps", "4")
    assert "resuming after step 2\n" in said
    assert "the data has changed" not in said
    assert pets.config["data_fingerprint"]["contents"] is not None
    assert "data_changes" not in pets.config


def test_images_that_are_omitted_after_the_start_change_the_data(pets: Pets, train: Main):
    """The run continues at the same step, and counts epochs with the new number of images."""
    position = 30  # after the first three minibatches
    name = image_name(pets.opened.train[epoch_order(0, 0, 48)[position]])
    corrupt = pets.images / "train" / str(name)
    corrupt.write_bytes(corrupt.read_bytes()[:60])
    pets.prepare("--skip-corrupt")
    for name in (verification.VERIFIED, verification.CORRUPT):
        (pets.stored / name).unlink()
    train("--num-steps", "3")
    assert prepare_main(["verify", "pets", "--skip-corrupt", "--data-dir", str(pets.data)]) == 0
    said = train(code=2)
    assert "other data: now the split 'train' has 47 images instead of 48 (pets, finger" in said
    assert said.endswith("accept the change with --allow-data-change\n")

    said = train("--allow-data-change")
    assert "the data has changed: the split 'train' has 47 images instead of 48\n" in said
    assert "resuming after step 3\n" in said
    assert "10 steps = 2 epochs x 5 steps" in said
    records = pets.records
    assert [record["step"] for record in records] == list(range(1, 11))
    epochs = [step / 6 for step in (1, 2, 3)] + [step / 5 for step in range(4, 11)]
    assert [record["epoch"] for record in records] == epochs
    assert [r["step"] for r in records if "eval/top1_error" in r] == [3, 5, 10]
    assert not [r for r in records if "eval/top5_error" in r]  # there are three classes
    assert [r["train/num_examples_seen"] for r in records] == [8 * step for step in range(1, 11)]
    rates = [record["train/learning_rate"] for record in records]
    assert rates[4] == pytest.approx(10 * rates[5], rel=1e-6)  # the milestone is at epoch 1
    phases = json.loads((pets.workdir / "checkpoints" / "10" / "phases.json").read_text())
    assert [phase["first_step"] for phase in phases] == [0]
    assert "already finished: 10 steps, 80 images seen" in train()


def test_a_finished_run_on_other_data_is_an_error_too(pets: Pets, train: Main):
    """Otherwise its result would be taken for one of the new data."""
    train()
    kept = {name: (pets.workdir / name).read_text() for name in ("config.json", "summary.json")}
    pets.swap_labels()
    pets.prepare()
    said = train(code=2)
    assert "holds a run on other data: now labels or images differ" in said
    said = train("--allow-data-change")
    assert "the data has changed: labels or images differ (same classes and sizes)\n" in said
    assert "already finished: 12 steps" in said
    for name, text in kept.items():  # nothing was trained on the new data
        assert (pets.workdir / name).read_text() == text


def test_a_finished_run_continues_if_the_change_adds_steps(pets: Pets, train: Main):
    train()
    for index in range(20, 30):
        pets.add("train", "ant", index)
    pets.prepare()
    said = train("--allow-data-change")
    assert "the split 'train' has 58 images instead of 48\n" in said
    assert "resuming after step 12\n" in said
    assert "finished: 14 steps, 112 images seen" in said


def test_a_run_beyond_the_end_of_the_new_schedule_is_an_error(
    pets: Pets, train: Main, capsys: pytest.CaptureFixture[str]
):
    train("--num-steps", "9")
    for index in range(7):
        for name in CLASSES:
            pets.image("train", name, index).unlink()
    pets.prepare()
    (pets.workdir / "summary.json").unlink()  # as after a signal or a kill
    # The plan is printed first, so the error is not the only line.
    capsys.readouterr()
    assert main(pets.flags("--allow-data-change")) == 2
    assert capsys.readouterr().err == (
        f"python -m train: --workdir {pets.workdir} holds a run of 9 steps, but its schedule on "
        "the changed data has only 6; restore the data or choose another --workdir\n"
    )
    assert pets.config["data_fingerprint"]["split_sizes"]["train"] == 48


def test_a_run_from_before_fingerprints_resumes_on_any_data(pets: Pets, train: Main):
    train("--num-steps", "2")
    config = pets.config
    del config["data_fingerprint"]
    (pets.workdir / "config.json").write_text(json.dumps(config))
    pets.swap_labels()
    pets.prepare()
    assert "the data has changed" not in train("--num-steps", "4")
    assert pets.config["data_fingerprint"]["class_names"] == list(CLASSES)
    assert "data_changes" not in pets.config


def test_the_config_is_that_of_the_last_command_that_trained(pets: Pets, train: Main):
    train("--num-steps", "2", "--keep-checkpoints", "7")
    assert pets.config["keep_checkpoints"] == 7
    pets.data = pets.data.rename(pets.data.with_name("moved"))
    train("--num-steps", "4", "--prefetch-steps", "2")
    assert (pets.config["keep_checkpoints"], pets.config["prefetch_steps"]) == (3, 2)
    assert pets.config == pets.manifest(4)["config"]
    assert evaluate(["--workdir", str(pets.workdir)]) == 0  # it finds the data
    written = (pets.workdir / "config.json").read_text()
    train("--num-steps", "4", "--prefetch-steps", "5")  # it is finished, so nothing ran
    assert main(pets.flags("--num-steps", "3", "--prefetch-steps", "5")) == 0
    assert main(pets.flags("--seed", "1")) == 2
    assert (pets.workdir / "config.json").read_text() == written


def test_a_checkpoint_of_other_versions_is_reported(
    pets: Pets, train: Main, capsys: pytest.CaptureFixture[str]
):
    assert "other versions" not in train("--num-steps", "2")
    path = pets.workdir / "checkpoints" / "2" / "manifest.json"
    path.write_text(path.read_text().replace(optax.__version__, "0.0.1"))
    line = f"was written with other versions: optax 0.0.1 (now {optax.__version__})\n"
    assert evaluate(["--workdir", str(pets.workdir)]) == 0
    assert capsys.readouterr().out.startswith(f"checkpoint 2 {line}")
    said = train("--num-steps", "3")
    assert f"resuming after step 2\ncheckpoint 2 {line}" in said
    assert "other versions" not in train("--num-steps", "4")
    for step, number in ((2, 2), (4, 4)):  # each checkpoint holds the configuration that wrote it
        assert pets.manifest(step)["config"]["num_steps"] == number


def test_evaluation_on_other_data_is_an_error_unless_it_is_allowed(
    pets: Pets, train: Main, capsys: pytest.CaptureFixture[str]
):
    train("--num-steps", "2", "--allow-data-change")  # this flag is for training only
    command = ["--workdir", str(pets.workdir)]
    assert evaluate(command) == 0
    assert "top-5" not in capsys.readouterr().out  # there are three classes
    header = (pets.workdir / "predictions.csv").read_text().splitlines()[0]
    assert header.startswith("image,file,label,class_1,probability_1,class_2,")
    pets.image("validation", "ant", 100).unlink()
    pets.prepare()
    capsys.readouterr()
    assert evaluate(command) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(
        f"python -m train.evaluate: --workdir {pets.workdir} holds a run on other data: now the "
        "split 'validation' has 11 images instead of 12 (pets, fingerprint "
    )
    assert said.err.endswith("or accept the change with --allow-data-change\n")
    moved = shutil.copytree(pets.workdir, pets.workdir.with_name("moved"))
    assert evaluate(["--workdir", str(moved)]) == 2
    assert f"--workdir {moved} holds a run on other data" in capsys.readouterr().err
    assert evaluate([*command, "--allow-data-change"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the data has changed: the split 'validation' has 11 images instead of 12"
    assert "on all 11 test images of pets" in lines[-1]
    assert pets.config["data_fingerprint"]["split_sizes"]["validation"] == 12
