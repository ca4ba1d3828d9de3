"""Fine-tuning against training from scratch on 200 images: `python -m experiments.fine_tuning`.

A network is trained on some classes of Fashion-MNIST. Then the recipe `fine-tune` starts from it on
200 images of the other classes, and the recipe `tfds` starts from random parameters on the same
200 images. Each seed has 200 images of its own; the 5,000 test images are the same. Results go to
fine_tuning.json and into docs/fine-tuning.md.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np

from benchmarks.markdown import fill, table
from train import command_line
from train.data.stored import open_builder
from train.errors import RunError
from train.run.manifest import versions
from train.run.workdir import read_summary

PROG = "python -m experiments.fine_tuning"
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("fine_tuning.json")
PAGE = ROOT / "docs" / "fine-tuning.md"

PRETRAINING_CLASSES, CLASSES = range(5), range(5, 10)
IMAGES_PER_CLASS = 40
SEEDS = range(5)

INPUT = "--model resnet8 --image-size 28 --augmentation shift-flip --mean 0.286 --std 0.353"
PRETRAINING = "tfds --base-batch-size 64 --num-epochs 9 --warmup-epochs 1 --milestones 3 6 8"
SHORT = "--num-epochs 60 --milestones 32 48"
FROM_SCRATCH = "tfds --num-workers 2 --warmup-epochs 1 --base-batch-size 32 --base-learning-rate"
STARTS = {
    "fine-tuned": f"fine-tune {SHORT} --base-learning-rate 0.04",
    "from scratch, as long": f"{FROM_SCRATCH} 0.2 {SHORT}",
    "from scratch, 1.5 times as long": f"{FROM_SCRATCH} 0.2 --num-epochs 90 --milestones 48 72",
}
"""What is compared: recipe and flags, without those of the input and of folders.

The rates are the best of 0.0025, 0.01, 0.04 and 0.1 for fine-tuning and of 0.0125, 0.05, 0.2 and
0.4 from scratch, with 200 other images.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare fine-tuning with training from scratch on 200 images of Fashion-MNIST.

    Prepare the data first: `python -m train.prepare fashion_mnist --archives DIR`. The same command
    resumes runs that were stopped.
    """

    data_dir: Path
    """Folder with the prepared Fashion-MNIST."""

    workdir: Path = Path("runs/fine-tuning")
    """Folder for images, data sets and runs."""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        RESULTS.write_text(json.dumps(run(options), indent=1) + "\n")
        save_page()
        return 0

    return command_line.run(PROG, command)


def run(options: Options) -> dict[str, Any]:
    """Prepare the data, train, and collect the test errors."""
    folder = options.workdir.absolute()
    prepare(options, "pretraining", PRETRAINING_CLASSES, None, seed=0)
    pretrained = folder / "runs" / "pretraining"
    pretraining_error = train(folder, "pretraining", pretrained, PRETRAINING.split())

    def errors(seed: int) -> dict[str, float]:
        prepare(options, f"few_{seed}", CLASSES, IMAGES_PER_CLASS, seed)
        found: dict[str, float] = {}
        for start, flags in STARTS.items():
            words = [*flags.split(), "--seed", str(seed)]
            if start == "fine-tuned":
                words += ["--init-from", str(pretrained)]
            workdir = folder / "runs" / f"{start.replace(',', '').replace(' ', '-')}-{seed}"
            found[start] = train(folder, f"few_{seed}", workdir, words)
            print(f"seed {seed}, {start}: {100 * found[start]:.2f} %", flush=True)
        return found

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        seeds = [*pool.map(errors, SEEDS)]
    return {
        "pretraining": {"flags": PRETRAINING, "top1_error_last": pretraining_error},
        "starts": {
            name: {"flags": flags, "top1_error_last": [found[name] for found in seeds]}
            for name, flags in STARTS.items()
        },
        "versions": versions(),
    }


def prepare(
    options: Options, name: str, classes: range, images_per_class: int | None, seed: int
) -> None:
    """Write some classes of Fashion-MNIST as image files, and prepare them like anyone's images.

    Args:
        options: folders.
        name: name of the new data set.
        classes: labels of its classes.
        images_per_class: number of training images of each class; None for all.
        seed: of the choice of the training images.
    """
    data_dir = options.workdir / "data"
    if (data_dir / name).exists():
        return
    builder: Any = open_builder("fashion_mnist", options.data_dir)
    names = [label.replace("/", "-") for label in builder.info.features["label"].names]
    images, rng = options.workdir / "images" / name, np.random.default_rng(seed)
    for split in ("train", "test"):
        source = builder.as_data_source(split)
        labels = np.array([record["label"] for record in source])
        for label in classes:
            chosen = np.flatnonzero(labels == label)
            if split == "train" and images_per_class is not None:
                chosen = rng.choice(chosen, images_per_class, replace=False)
            folder = images / split / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            for index in chosen.tolist():
                cv2.imwrite(str(folder / f"{index:05}.png"), source[index]["image"])
    words = ["image-folder", str(images), "--name", name, "--data-dir", str(data_dir)]
    execute("train.prepare", words)


def train(folder: Path, dataset: str, workdir: Path, words: Sequence[str]) -> float:
    """Train, unless it is done already, and return the test error of the last epoch."""
    places = ["--data-dir", str(folder / "data"), "--workdir", str(workdir)]
    execute("train", [*words, *INPUT.split(), "--dataset", dataset, *places])
    return read_summary(workdir)["top1_error_last"]


def execute(module: str, words: list[str]) -> None:
    """Run a command of the trainer; what it prints goes to standard error if it fails."""
    command = [sys.executable, "-m", module, *words]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    if ended.returncode:
        raise RunError(f"{' '.join(command)} failed: {ended.stderr.strip()[-1000:]}")


def comparison(report: dict[str, Any]) -> str:
    """Test errors of each start: mean, standard deviation, and each seed."""
    rows = (
        [
            name,
            f"{100 * statistics.mean(errors):.2f}",
            f"{100 * statistics.stdev(errors):.2f}",
            ", ".join(f"{100 * error:.2f}" for error in errors),
        ]
        for name, start in report["starts"].items()
        for errors in [start["top1_error_last"]]
    )
    return table(["start", "test error (%)", "deviation", "each seed"], rows)


def save_page() -> Path:
    """Fill the table of docs/fine-tuning.md from fine_tuning.json; return the path of the page."""
    tables = {"fine-tuning": comparison(json.loads(RESULTS.read_text()))}
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return PAGE


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
