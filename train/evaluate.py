"""`python -m train.evaluate`: evaluate a trained network on every test image of a data set."""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from train import command_line
from train.cluster.joining import check_platforms
from train.data.dataset import open_dataset
from train.data.records import Dataset, image_name
from train.errors import UsageError, check_writable
from train.plan import make_plan
from train.run.compilation_cache import keep_compiled
from train.run.predictions import (
    EvaluationMinibatches,
    ScoresOfClasses,
    predict,
    scores,
    scores_of_classes,
)
from train.run.terminal import terminal_width, wrapped
from train.run.trained import NEWEST, Trained, check_checkpoint, check_run, load_trained
from train.run.workdir import differing_data
from train.step.evaluation import Predictions, make_evaluation_step

PROG = "python -m train.evaluate"
MAX_LISTED_CLASSES = 20
NAMES_AT_ONCE = 256
CONFUSION = "confusion.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a trained network on every test image of a data set.

    It prints the error and the loss of each class, and writes the prediction for each image to
    predictions.csv and the confusion matrix to confusion.png.
    """

    workdir: Path | None = None
    """The run to evaluate."""

    model: Path | None = dataclasses.field(default=None, metadata={"metavar": "PATH"})
    """Instead of a run: a folder that train.export has written, or a .safetensors or .pth file of
    torchvision, timm or Hugging Face."""

    checkpoint: str = dataclasses.field(default=NEWEST, metadata={"metavar": "STEP"})
    """The checkpoint of a run: a step, newest, or best for the one with the lowest test error."""

    dataset: str | None = dataclasses.field(default=None, metadata={"metavar": "NAME"})
    """Prepared data set with the same classes. Default: that of the run or the model."""

    predictions: Path | None = None
    """CSV file for each image's name, class, and likeliest classes with their probabilities; the
    confusion matrix is written next to it. Default: predictions.csv in WORKDIR, or in the current
    folder with --model."""

    allow_data_change: bool = False
    """Evaluate on data that differs from that of the run. The classes must be the same."""

    data_dir: Path | None = None
    """Folder of prepared data sets. Default: that of the run."""

    compilation_cache_dir: Path | None = None
    """Folder that keeps compiled programs. Default: as for `python -m train`."""

    num_devices: int | None = None
    """Simulate this many CPU devices. Default: use all devices of the machine."""

    def __post_init__(self) -> None:
        """Check everything that needs no network."""
        check_checkpoint(self.checkpoint)
        if (self.workdir is None) == (self.model is None):
            raise UsageError(
                "--workdir or --model is missing: name the run or the model to evaluate"
                if self.workdir is None
                else "--workdir and --model exclude each other"
            )

    @property
    def path(self) -> Path:
        """The run or the model."""
        path = self.workdir or self.model
        assert path is not None
        return path


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        command_line.simulate_devices(options.num_devices)
        check_platforms()
        keep_compiled(options.compilation_cache_dir)
        return _evaluate(options)

    return command_line.run(PROG, command)


def _evaluate(options: Options) -> int:
    folder = options.workdir or Path()
    path = options.predictions or folder / "predictions.csv"
    picture = path.with_name(f"{path.stem}-confusion.png" if options.predictions else CONFUSION)
    if options.workdir is not None:
        check_run(options.workdir)
    check_writable("predictions", path)
    trained = load_trained(options.path, options.checkpoint)
    config = trained.config.replace(allow_data_change=options.allow_data_change)
    if options.workdir is not None:
        config = config.replace(workdir=options.workdir)  # it may have been moved
    if options.dataset is not None:
        config = config.replace(dataset=options.dataset)
    if options.data_dir is not None:
        config = config.replace(data_dir=options.data_dir)
    dataset = open_dataset(config)
    if options.workdir and options.dataset in (None, trained.config.experiment.dataset):
        saved = (options.workdir / "config.json").read_text()
        if differences := differing_data(config, dataset.fingerprint, saved):
            print(f"the data has changed: {'; '.join(differences)}")
    if not len(dataset.evaluation):
        raise UsageError(f"--dataset {dataset.name} has no test images")
    _check_classes(trained, dataset)

    plan = make_plan(config, dataset, trained.workers)
    step = make_evaluation_step(
        config.experiment, dataset.num_classes, trained.workers, with_probabilities=True
    )
    found = predict(EvaluationMinibatches(plan), step, trained.network)
    _write_predictions(path, dataset, found)
    # Imported late: Matplotlib takes half a second.
    from train.run.confusion import confusion_matrix, save_confusion

    matrix = confusion_matrix(found.labels, found.classes[:, 0], dataset.num_classes)
    save_confusion(matrix, dataset.class_names, picture)
    print_classes(dataset, scores_of_classes(found, dataset.num_classes))
    print(wrapped(_summary(trained, dataset, found, path, picture), terminal_width()))
    return 0


def _check_classes(trained: Trained, dataset: Dataset) -> None:
    """Reject a data set with other classes than those of the network."""
    names, others = trained.description.class_names, tuple(dataset.class_names)
    if len(names) != len(others):
        raise UsageError(
            f"--dataset {dataset.name} has {len(others)} classes, and the network has {len(names)}"
        )
    if trained.description.has_names and names != others:
        label = next(label for label in range(len(names)) if names[label] != others[label])
        raise UsageError(
            f"--dataset {dataset.name} has other classes than the network: class {label} is "
            f"{others[label]!r} instead of {names[label]!r}"
        )


def _write_predictions(path: Path, dataset: Dataset, found: Predictions[np.ndarray]) -> None:
    """Write a line for each test image."""
    names, probabilities = dataset.class_names, found.probabilities
    assert probabilities is not None
    places = range(found.classes.shape[1])
    columns = [f"{what}_{place + 1}" for place in places for what in ("class", "probability")]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "file", "label", *columns])
        for image, name in enumerate(_image_names(dataset)):
            row = [image, name, names[found.labels[image]]]
            for label in found.classes[image].tolist():
                # No class is likeliest if the logits are not finite.
                row += [names[label], probabilities[image, label]] if label >= 0 else ["", ""]
            table.writerow(row)


def _image_names(dataset: Dataset) -> list[str]:
    """File name of each test image, or its index in the stored split if it has none."""
    split, records = dataset.evaluation_split, dataset.evaluation
    indices = range(len(records))
    if image_name(records.__getitems__([0])[0]) is None:
        return [str(dataset.stored_index(split, index)) for index in indices]
    return [
        image_name(record) or ""
        for first in indices[::NAMES_AT_ONCE]
        for record in records.__getitems__(indices[first : first + NAMES_AT_ONCE])
    ]


def print_classes(dataset: Dataset, classes: ScoresOfClasses) -> None:
    """Print images, error and loss of each class, or of those with the most errors."""
    order = np.argsort(-classes.errors, kind="stable")[:MAX_LISTED_CLASSES]
    is_all = dataset.num_classes <= MAX_LISTED_CLASSES
    if not is_all:
        print(f"the {MAX_LISTED_CLASSES} classes with the highest error")
    table = Table("class", "images", "error", "loss", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for label in range(dataset.num_classes) if is_all else order:
        table.add_row(
            dataset.class_names[label],
            str(classes.num_images[label]),
            *(
                (f"{100 * classes.errors[label]:.2f} %", f"{classes.losses[label]:.4g}")
                if classes.num_images[label]
                else ("", "")
            ),
        )
    Console(highlight=False, markup=False, emoji=False).print(table)


def _summary(
    trained: Trained, dataset: Dataset, found: Predictions[np.ndarray], path: Path, picture: Path
) -> str:
    """One line with the scores and the files."""
    record = scores(found, dataset.num_classes)
    loss = record["eval/loss"]
    parts = ["loss not finite" if loss is None else f"loss {loss:.4g}"]
    for name in ("top1", "top5"):
        if (error := record.get(f"eval/{name}_error")) is not None:
            parts.append(f"top-{name[-1]} error {100 * error:.2f} %")
    description = trained.description
    name = f"step {description.step}" if description.step else description.model
    return (
        f"{name}: {', '.join(parts)} on all {record['eval/num_examples']} "
        f"test images of {dataset.name}; predictions: {path}, {picture}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
