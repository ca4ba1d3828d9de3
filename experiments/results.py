"""What is kept of runs: one JSON for each trial, `results/NAME.json`.

    {"trial": ..., "config": {field: value, ...}, "runs": {seed: {...}, ...}}

`config` has all fields on which numbers depend, but for the seed. A run has its `top1_error` (the
median of the last five epochs, as all errors a fraction), `test_error` and `train_error` as pairs
of epoch and error, `noise_scale` likewise where it was logged (in images, null where it could not
be told), `params_digest`, `num_steps`, `seconds` of training and `versions`; a run whose loss was
not finite has `diverged` with what the trainer said, and `versions`.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

from experiments.plan import Trial
from train.errors import UsageError
from train.run.metrics import means, read_records
from train.run.workdir import read_summary, write_atomically

Run = dict[str, Any]

BINS_PER_EPOCH = 10


def fields_of(trial: Trial) -> dict[str, Any]:
    """The experiment of a trial without its seed, as JSON has it."""
    fields = dataclasses.asdict(trial.config.experiment)
    del fields["seed"]
    return json.loads(json.dumps(fields, default=str))


def path_of(folder: Path, name: str) -> Path:
    """Say where a trial's JSON lies."""
    return folder / "results" / f"{name}.json"


def runs_of(folder: Path, name: str) -> dict[int, Run]:
    """All runs of a trial that are kept, by seed; none where there is no file."""
    path = path_of(folder, name)
    if not path.exists():
        return {}
    return {int(seed): run for seed, run in json.loads(path.read_text())["runs"].items()}


def check(folder: Path, trial: Trial) -> None:
    """Check that what is kept of a trial is of its present configuration.

    Raises:
        UsageError: if not.
    """
    path = path_of(folder, trial.name)
    if not path.exists():
        return
    kept, now = json.loads(path.read_text())["config"], fields_of(trial)
    names = kept.keys() | now.keys()
    if differing := sorted(name for name in names if kept.get(name) != now.get(name)):
        raise UsageError(
            f"{path} holds runs of another configuration, which differs in "
            f"{', '.join(differing)}; move it away"
        )


def keep(folder: Path, trial: Trial, seed: int, run: Run) -> None:
    """Add a run to its trial's JSON."""
    runs = runs_of(folder, trial.name) | {seed: run}
    path = path_of(folder, trial.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One line for each part of a run, so that differences can be read.
    lines = ",\n".join(
        f'  "{seed}": {{\n'
        + ",\n".join(f'   "{name}": {json.dumps(value)}' for name, value in runs[seed].items())
        + "\n  }"
        for seed in sorted(runs)
    )
    head = f' "trial": "{trial.name}",\n "config": {json.dumps(fields_of(trial))},'
    write_atomically(path, f'{{\n{head}\n "runs": {{\n{lines}\n }}\n}}\n')


def collect(workdir: Path) -> Run:
    """Sum up a finished run."""
    summary = read_summary(workdir)
    records = read_records(workdir / "metrics.jsonl")
    run: Run = {
        "top1_error": summary["top1_error_median_last5"],
        "test_error": [
            [round(record["epoch"], 3), record["eval/top1_error"]]
            for record in records
            if "eval/top1_error" in record
        ],
        "train_error": [
            [round(epoch, 3), float(f"{error:.4g}")]
            for epoch, error in means(records, "train/top1_error", BINS_PER_EPOCH)
        ],
        "num_steps": summary["num_steps"],
        "params_digest": summary["params_digest"],
        "seconds": round(records[-1]["train/seconds"]),
        "versions": versions(),
    }
    # An average already: the last one of each part of an epoch.
    logged = {
        math.ceil(record["epoch"] * BINS_PER_EPOCH): record
        for record in records
        if "train/noise_scale" in record
    }
    if logged:
        run["noise_scale"] = [
            [round(record["epoch"], 3), record["train/noise_scale"]] for record in logged.values()
        ]
    return run


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")}
    return {"python": platform.python_version(), **packages}
