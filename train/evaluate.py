"""`python -m train.evaluate --workdir DIR`: evaluate a run's newest checkpoint."""

import csv
import dataclasses
import sys
from pathlib import Path

import jax
import tyro

from train import command_line
from train.config import Config, UsageError
from train.data.minibatches import NO_LABEL, open_dataset
from train.run.checkpoint import load_network
from train.run.compilation_cache import keep_compiled
from train.run.corrupt import CorruptImages
from train.step.evaluation import error_rates, predict
from train.step.optimizer import make_optimizer
from train.step.train_step import make_steps
from train.step.workers import make_workers

PROG = "python -m train.evaluate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a run's newest checkpoint on every test image, and write down each prediction."""

    workdir: Path
    """Of the run."""

    predictions: Path | None = None
    """CSV of image, label and the likeliest classes; WORKDIR/predictions.csv if left out."""

    data_dir: Path | None = None
    """Where tensorflow-datasets keeps prepared data; that of the run if left out."""

    max_corrupt_images: int | None = None
    """How many images that cannot be decoded may be left out; as in the run if left out."""

    compilation_cache_dir: Path | None = None
    """Where compiled programs are kept; as for `python -m train` if left out."""

    num_devices: int | None = None
    """Simulate this many CPU devices; left out, all devices of the machine are used."""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse(lambda: tyro.cli(Options, prog=PROG, args=args))
        command_line.simulate_devices(options.num_devices)
        keep_compiled(options.compilation_cache_dir)
        return _evaluate(options)

    return command_line.run(PROG, command)


def _evaluate(options: Options) -> int:
    try:
        saved = (options.workdir / "config.json").read_text()
    except OSError as error:
        raise UsageError(
            f"--workdir {options.workdir} holds no run: config.json: {error.strerror}"
        ) from None
    config = Config.from_json(saved)
    # Workers do not enter an evaluation: as many as there are devices fit any machine.
    config = dataclasses.replace(
        config,
        data_dir=options.data_dir or config.data_dir,
        max_corrupt_images=(
            config.max_corrupt_images
            if options.max_corrupt_images is None
            else options.max_corrupt_images
        ),
        num_workers=jax.device_count(),
        accumulation_steps=1,
        noise_scale=False,
    )
    dataset = open_dataset(config)
    workers = make_workers(config)
    steps = make_steps(config, dataset.num_classes, make_optimizer(lambda step: 0.0), workers)
    network = load_network(options.workdir, workers)
    labels, classes = predict(network.params, network.batch_stats, steps, dataset, config, workers)
    corrupt = CorruptImages(config, dataset)
    corrupt.meet_in_evaluation(network.step, labels)
    path = options.predictions or options.workdir / "predictions.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["image", "label", *(f"class_{place + 1}" for place in range(classes.shape[1]))]
        )
        table.writerows(
            [image, label, *likeliest]
            for image, (label, likeliest) in enumerate(
                zip(labels.tolist(), classes.tolist(), strict=True)
            )
            if label != NO_LABEL
        )
    errors = error_rates(labels, classes)
    print(
        f"step {network.step}: top-1 error {100 * errors['eval/top1_error']:.2f} %, "
        f"top-5 error {100 * errors['eval/top5_error']:.2f} % on all "
        f"{errors['eval/num_examples']} test images of {dataset.name}"
        f"{f' but {len(corrupt)} that cannot be decoded' if corrupt else ''}; predictions: {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
