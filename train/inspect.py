"""Inspects the data before training on it: `python -m train.inspect [RECIPE] [--flags]`.

Prints what is known about the data, and writes WORKDIR/inspect.png: the first training images as
the network sees them, the first test images, and the number of images of each class. It needs no
accelerator and does not lock WORKDIR.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console

from train import command_line
from train.config import Config
from train.data import table, verification
from train.data.dataset import open_dataset
from train.data.minibatches import epoch_order, evaluation_minibatches, training_minibatches
from train.data.records import Dataset, Records
from train.errors import DataError, UsageError
from train.plan import Plan, make_plan
from train.run.fonts import drawable
from train.run.sheet import draw_sheet
from train.run.terminal import terminal_width, wrapped
from train.run.trained import check_initial
from train.run.workdir import check_folders
from train.step.examples import Examples
from train.step.workers import make_workers

PROG = "python -m train.inspect"
ROWS, COLUMNS = 5, 8
MAX_LABELS = 60_000  # per split; each is read with its image, about 3,000 per second
LABELS_AT_ONCE = 256
MAX_NAMED_CLASSES = 40  # that fit below a histogram
MAX_NAME = 14  # characters of a class name that fit above an image or below a bar
DESCRIPTION = """\
Inspect the data of a run before training on it. It takes the flags of 'python -m train'.

It prints the classes, the images of each, their sizes, and what was skipped. It writes
WORKDIR/inspect.png: the first training images as the network sees them, the first test images, and
a histogram of the classes."""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        config = command_line.parse_run(args, PROG, DESCRIPTION)
        jax.config.update("jax_platforms", "cpu")
        workdir = config.output.workdir
        path = workdir / "inspect.png"
        check_folders(config)
        if config.experiment.init_from is not None:
            check_initial(config)
        dataset = open_dataset(config)
        line = (
            f"inspecting {dataset.name}: {len(dataset.train)} training and "
            f"{len(dataset.evaluation)} test images, {dataset.num_classes} classes"
        )
        print(wrapped(line, terminal_width()))
        counts = {
            split: class_counts(dataset, split, config.experiment.seed)
            for split in ("train", dataset.evaluation_split)
        }
        _print_table(dataset, counts, config.machine.data_dir)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            draw(dataset, config, counts).savefig(path, dpi=120)
        except OSError as error:
            raise UsageError(f"--workdir {workdir} cannot be used: {error}") from None
        print(f"wrote {path}")
        return 0

    return command_line.run(PROG, command)


def class_counts(dataset: Dataset, split: str, seed: int) -> np.ndarray:
    """Number of images of each class: of all if the data set is verified, else of a sample.

    Args:
        dataset: the data set.
        split: one of its two splits.
        seed: seed of the sample.

    Raises:
        DataError: if a label is outside the class range.
    """
    verified = verification.load(dataset.folder) if dataset.folder else None
    if verified is not None:
        return np.asarray(verified.splits[split].class_counts)
    records = dataset.train if split == "train" else dataset.evaluation
    labels = sampled_labels(records, seed)
    if len(wrong := labels[(labels < 0) | (labels >= dataset.num_classes)]):
        raise DataError(
            f"{dataset.name} has the label {wrong[0]} in its split '{split}', but "
            f"{dataset.num_classes} classes, 0 to {dataset.num_classes - 1}; 'python -m "
            f"train.prepare verify {dataset.name}' says which image has it"
        )
    return np.bincount(labels, minlength=dataset.num_classes)


def _print_table(dataset: Dataset, counts: dict[str, np.ndarray], data_dir: Path | None) -> None:
    """Print what verification found, or else the number of images of each class and a hint."""
    console = Console(highlight=False, markup=False, emoji=False)
    folder = dataset.folder
    if folder is not None and (verified := verification.load(folder)) is not None:
        corrupt = [verification.load_corrupt(folder, split) for split in verified.splits]
        console.print(table.describe(dataset.class_names, verified, sum(map(len, corrupt))))
        return
    console.print(
        table.classes(dataset.class_names, {name: some.tolist() for name, some in counts.items()})
    )
    if folder is not None:
        where = f" --data-dir {data_dir}" if data_dir else ""
        line = (
            f"{dataset.name} is not verified: images that cannot be decoded will stop training; "
            f"'python -m train.prepare verify {dataset.name}{where}' finds them"
        )
        print(wrapped(line, terminal_width()))


def draw(dataset: Dataset, config: Config, counts: Mapping[str, np.ndarray]) -> Figure:
    """Draw a contact sheet with labels and a histogram of labels for each split.

    Args:
        dataset: the data set.
        config: configuration of the run.
        counts: number of images of each class, by split.
    """
    figure = Figure(figsize=(16, 10), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2, 1))
    sheets, histograms = halves
    train, evaluation = first_examples(dataset, config)
    left, right = sheets.subfigures(1, 2, wspace=0.02)
    augmented = f"training images, augmented ({config.experiment.augmentation})"
    for part, examples, title in (
        (left, train, augmented),
        (right, evaluation, "test images"),
    ):
        part.suptitle(title)
        names = [dataset.class_names[int(label)] for label in examples.labels]
        draw_sheet(part, examples.images, names, ROWS, COLUMNS, MAX_NAME)
    for axes, split, title in zip(
        histograms.subplots(1, 2),
        ("train", dataset.evaluation_split),
        ("training", "test"),
        strict=True,
    ):
        records = dataset.train if split == "train" else dataset.evaluation
        _draw_histogram(axes, counts[split], len(records), dataset.class_names, title)
    return figure


def first_examples(dataset: Dataset, config: Config) -> tuple[Examples, Examples]:
    """Read up to 40 of the first training and evaluation images, as a run of this config does."""

    def one_worker(num_images: int) -> Plan:
        # The first images of a run are the same for any number of workers.
        small = config.replace(
            num_workers=1,
            batch_size_per_worker=min(ROWS * COLUMNS, num_images),
            accumulation_steps=1,
            noise_scale=False,
        )
        return make_plan(small, dataset, make_workers(small, jax.devices()[:1]))

    return (
        next(training_minibatches(one_worker(len(dataset.train)), 0, 1)),
        next(evaluation_minibatches(one_worker(len(dataset.evaluation)))),
    )


def sampled_labels(records: Records, seed: int) -> np.ndarray:
    """Read the labels, int (N,), of all images, or of a random sample of `MAX_LABELS`.

    The sample holds the first images of a run's first epoch.
    """
    examples = epoch_order(seed, 0, len(records))[:MAX_LABELS].tolist()
    return np.array(
        [
            record["label"]
            for start in range(0, len(examples), LABELS_AT_ONCE)
            for record in records.__getitems__(examples[start : start + LABELS_AT_ONCE])
        ]
    )


def _draw_histogram(
    axes: Axes, counts: np.ndarray, num_images: int, names: Sequence[str], title: str
) -> None:
    num_counted = int(counts.sum())
    which = "all" if num_counted == num_images else f"a random {num_counted} of"
    least, most = int(counts.argmin()), int(counts.argmax())
    spread = f"each with {counts[least]} images"
    if counts[least] < counts[most]:
        shortened = [drawable(names[label], 2 * MAX_NAME)[0] for label in (least, most)]
        spread = f"from {counts[least]} images ({shortened[0]}) to {counts[most]} ({shortened[1]})"
    text, families = drawable(f"{len(names)} classes, {spread}")
    axes.set_title(
        f"labels of {which} {num_images} {title} images\n{text}",
        parse_math=False,  # a class name may contain $
        fontfamily=families,
    )
    axes.bar(range(len(names)), counts, width=0.8 if len(names) <= MAX_NAMED_CLASSES else 1)
    axes.set(ylabel="images", xlabel="class", xlim=(-0.5, len(names) - 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(names) <= MAX_NAMED_CLASSES:
        drawn = [drawable(name, MAX_NAME) for name in names]
        axes.set_xticks(
            range(len(names)),
            [name for name, _ in drawn],
            rotation=45,
            ha="right",
            parse_math=False,
        )
        for label, (_, families) in zip(axes.get_xticklabels(), drawn, strict=True):
            label.set_fontfamily(families)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
