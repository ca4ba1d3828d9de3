"""Results of runs: one JSON file per trial, `results/NAME.json`.

    {"trial": ..., "config": {field: value, ...}, "runs": {seed: {...}, ...}}

`config` holds every field that results depend on, except for the seed. Errors are fractions. A run
has these fields:

- `top1_error`: median test error of the last five epochs.
- `test_error`, `train_error`: pairs of epoch and error.
- `noise_scale`, if it was logged: pairs of epoch and images (null while undefined).
- `params_digest`, `num_steps`, `versions`, and `seconds` of training.

A run with a loss that was not finite has only `diverged`, the trainer's message, and `versions`.
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
from train.run.atomic import write_atomically
from train.run.metrics import means, read_records
from train.run.workdir import read_summary

Run = dict[str, Any]

BINS_PER_EPOCH = 10


def fields_of(trial: Trial) -> dict[str, Any]:
    """Return the experiment of a trial as it is saved, without the seed, the key of each run."""
    fields = dataclasses.asdict(trial.config.experiment)
    del fields["seed"]
    return json.loads(json.dumps(fields, default=str))


def path_of(folder: Path, name: str) -> Path:
    """Return the path of the result file of a trial."""
    return folder / "results" / f"{name}.json"


def load_runs(folder: Path, name: str) -> dict[int, Run]:
    """Load the runs of a trial, by seed; empty if the trial has no result file."""
    path = path_of(folder, name)
    if not path.exists():
        return {}
    return {int(seed): run for seed, run in json.loads(path.read_text())["runs"].items()}


def check(folder: Path, trial: Trial) -> None:
    """Check that the saved runs of a trial have its current configuration.

    Raises:
        UsageError: if the configurations differ.
    """
    path = path_of(folder, trial.name)
    if not path.exists():
        return
    saved, now = json.loads(path.read_text())["config"], fields_of(trial)
    names = saved.keys() | now.keys()
    if differing := sorted(name for name in names if saved.get(name) != now.get(name)):
        raise UsageError(
            f"{path} holds runs of another configuration, which differs in "
            f"{', '.join(differing)}; move or delete it"
        )


def save_run(folder: Path, trial: Trial, seed: int, run: Run) -> None:
    """Add a run to the result file of its trial."""
    runs = load_runs(folder, trial.name) | {seed: run}
    path = path_of(folder, trial.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One line per field of a run keeps diffs readable.
    lines = ",\n".join(
        f'  "{seed}": {{\n'
        + ",\n".join(f'   "{name}": {json.dumps(value)}' for name, value in runs[seed].items())
        + "\n  }"
        for seed in sorted(runs)
    )
    head = f' "trial": "{trial.name}",\n "config": {json.dumps(fields_of(trial))},'
    write_atomically(path, f'{{\n{head}\n "runs": {{\n{lines}\n }}\n}}\n')


def collect(workdir: Path) -> Run:
    """Summarize a finished run from its workdir."""
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
    # The logged values are moving averages, so the last one of each bin represents it.
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
    """Return the versions of Python and of the packages that results depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")}
    return {"python": platform.python_version(), **packages}
