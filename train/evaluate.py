"""`python -m train.evaluate --workdir DIR`: evaluate a run's newest checkpoint."""

import csv
import dataclasses
import sys
from pathlib import Path

import jax

from train import command_line
from train.cluster.joining import check_platforms
from train.config import Config
from train.data.dataset import open_dataset
from train.errors import UsageError
from train.plan import make_plan
from train.run.checkpoint import load_network
from train.run.compilation_cache import keep_compiled
from train.run.predictions import EvaluationMinibatches, predict, scores
from train.run.terminal import terminal_width, wrapped
from train.run.workdir import differing_data
from train.step.evaluation import make_evaluation_step
from train.step.workers import make_workers

PROG = "python -m train.evaluate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a run's newest checkpoint on every test image and write each prediction."""

    workdir: Path
    """The run to evaluate."""

    predictions: Path | None = None
    """CSV file of image, label and likeliest classes. Default: WORKDIR/predictions.csv."""

    allow_data_change: bool = False
    """Evaluate on data that differs from that of the run. The classes must be the same."""

    data_dir: Path | None = None
    """Folder of prepared data sets. Default: that of the run."""

    compilation_cache_dir: Path | None = None
    """Folder that keeps compiled programs. Default: as for `python -m train`."""

    num_devices: int | None = None
    """Simulate this many CPU devices. Default: use all devices of the machine."""


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
    try:
        saved = (options.workdir / "config.json").read_text()
    except OSError as error:
        raise UsageError(
            f"--workdir {options.workdir} holds no run: config.json: {error.strerror}"
        ) from None
    path = options.predictions or options.workdir / "predictions.csv"
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"--predictions {path} cannot be written: it must be a file in a folder that exists"
        )
    # The number of workers does not affect an evaluation: one per device fits any machine.
    config = Config.from_json(saved).replace(
        num_workers=jax.device_count(),
        accumulation_steps=1,
        noise_scale=False,
        workdir=options.workdir,
        allow_data_change=options.allow_data_change,
    )
    if options.data_dir is not None:
        config = config.replace(data_dir=options.data_dir)
    dataset = open_dataset(config)
    if differences := differing_data(config, dataset.fingerprint, saved):
        print(f"the data has changed: {'; '.join(differences)}")
    plan = make_plan(config, dataset, make_workers(config))
    step = make_evaluation_step(config.experiment, dataset.num_classes, plan.workers)
    num_updates, network = load_network(options.workdir, plan.workers)
    predictions = predict(EvaluationMinibatches(plan), step, network)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        labels, classes = predictions.labels, predictions.classes
        table.writerow(
            ["image", "label", *(f"class_{place + 1}" for place in range(classes.shape[1]))]
        )
        table.writerows(
            [image, label, *likeliest]
            for image, (label, likeliest) in enumerate(
                zip(labels.tolist(), classes.tolist(), strict=True)
            )
        )
    found = scores(predictions, dataset.num_classes)
    loss = found["eval/loss"]
    parts = ["loss not finite" if loss is None else f"loss {loss:.4g}"]
    for name in ("top1", "top5"):
        if (error := found.get(f"eval/{name}_error")) is not None:
            parts.append(f"top-{name[-1]} error {100 * error:.2f} %")
    line = (
        f"step {num_updates}: {', '.join(parts)} on all {found['eval/num_examples']} test images "
        f"of {dataset.name}; predictions: {path}"
    )
    print(wrapped(line, terminal_width()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
