"""Inspects the data before training on it: `python -m train.inspect [RECIPE] [--flags]`.

Writes WORKDIR/inspect.png: the first training images as the network sees them, the first test
images, and the number of images of each class. It needs no accelerator and does not lock WORKDIR.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train import command_line
from train.config import Config
from train.data.dataset import Dataset, Records, open_dataset
from train.data.minibatches import epoch_order, evaluation_minibatches, training_minibatches
from train.errors import UsageError
from train.plan import Plan, make_plan
from train.step.examples import NO_LABEL, Examples
from train.step.workers import make_workers

PROG = "python -m train.inspect"
ROWS, COLUMNS = 5, 8
MAX_LABELS = 60_000  # per split; each is read with its image, about 3,000 per second
LABELS_AT_ONCE = 256
MAX_NAMED_CLASSES = 40  # that fit below a histogram


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        config = command_line.parse_run(args, PROG)
        jax.config.update("jax_platforms", "cpu")
        workdir = config.output.workdir
        path = workdir / "inspect.png"
        dataset = open_dataset(config)
        print(
            f"inspecting {dataset.name}: {len(dataset.train)} training and "
            f"{len(dataset.evaluation)} test images, {dataset.num_classes} classes"
        )
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            draw(dataset, config).savefig(path, dpi=120)
        except OSError as error:
            raise UsageError(f"--workdir {workdir} cannot be used: {error}") from None
        print(f"wrote {path}")
        return 0

    return command_line.run(PROG, command)


def draw(dataset: Dataset, config: Config) -> Figure:
    """Draw a contact sheet with labels and a histogram of labels for each split."""
    figure = Figure(figsize=(16, 10), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2, 1))
    sheets, histograms = halves
    train, evaluation = first_examples(dataset, config)
    left, right = sheets.subfigures(1, 2, wspace=0.02)
    _draw_sheet(
        left, train, dataset, f"training images, augmented ({config.experiment.augmentation})"
    )
    _draw_sheet(right, evaluation, dataset, "test images")
    for axes, records, name in zip(
        histograms.subplots(1, 2),
        (dataset.train, dataset.evaluation),
        ("training", "test"),
        strict=True,
    ):
        _draw_histogram(axes, records, dataset.class_names, name, config.experiment.seed)
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


def _draw_sheet(figure: Any, examples: Examples, dataset: Dataset, title: str) -> None:
    figure.suptitle(title)
    cells = figure.subplots(ROWS, COLUMNS).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, image, label in zip(cells, examples.images, examples.labels, strict=False):
        gray = image.shape[-1] == 1
        axes.imshow(image.squeeze(-1) if gray else image, cmap="gray", vmin=0, vmax=255)
        name = "cannot be decoded" if label == NO_LABEL else dataset.class_names[label]
        axes.set_title(name[:14], fontsize=8, pad=2, parse_math=False)


def _draw_histogram(
    axes: Axes, records: Records, names: Sequence[str], split: str, seed: int
) -> None:
    labels = sampled_labels(records, seed)
    counts = np.bincount(labels, minlength=len(names))
    which = "all" if len(labels) == len(records) else f"a random {len(labels)} of"
    least, most = int(counts.argmin()), int(counts.argmax())
    spread = f"each with {counts[least]} images"
    if counts[least] < counts[most]:
        spread = f"from {counts[least]} images ({names[least]}) to {counts[most]} ({names[most]})"
    axes.set_title(
        f"labels of {which} {len(records)} {split} images\n{len(names)} classes, {spread}",
        parse_math=False,
    )
    axes.bar(range(len(names)), counts, width=0.8 if len(names) <= MAX_NAMED_CLASSES else 1)
    axes.set(ylabel="images", xlabel="class", xlim=(-0.5, len(names) - 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if len(names) <= MAX_NAMED_CLASSES:
        axes.set_xticks(
            range(len(names)),
            [name[:14] for name in names],
            rotation=45,
            ha="right",
            parse_math=False,  # a class name may contain $
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
