"""What is kept of runs: one JSON for each trial, `results/NAME.json`.

    {"trial": ..., "config": {field: value, ...}, "runs": {seed: {...}, ...}}

`config` has the fields that differ from the recipe `fashion-mnist`. A run has its `top1_error` (the
median of the last five epochs, as all errors a fraction), `test_error` and `train_error` as pairs
of epoch and error, `noise_scale` likewise where it was logged, `params_digest`, `num_steps`,
`seconds` of training and `versions`; a run whose loss was not finite has `diverged` with what the
trainer said, in the place of the errors.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from experiments.plan import Trial
from train.config import RESUMABLE_FIELDS, UsageError
from train.metrics import Record, read_records
from train.recipes import RECIPES
from train.workdir import read_summary, write_whole

Run = dict[str, Any]

BINS_PER_EPOCH = 10  # single minibatches are noisy: of the training errors in each the mean is kept


def changes(trial: Trial) -> dict[str, Any]:
    """Fields in which a trial differs from the trainer's recipe, as JSON has them."""
    recipe = dataclasses.asdict(RECIPES["fashion-mnist"]())
    mine = dataclasses.asdict(trial.config)
    differing = {name: value for name, value in mine.items() if value != recipe[name]}
    return json.loads(json.dumps(differing))


def command(trial: Trial) -> str:
    """The trainer's command line for a trial, as far as flags say what it is."""
    words = ["python -m train fashion-mnist"]
    for name, value in changes(trial).items():
        flag = "--" + name.replace("_", "-")
        values = value if isinstance(value, list) else [value]
        words.append(flag if value is True else " ".join([flag, *(f"{v}" for v in values)]))
    return " ".join(words)


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
    kept, now = json.loads(path.read_text())["config"], changes(trial)
    names = (kept.keys() | now.keys()) - RESUMABLE_FIELDS  # on which numbers depend
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
    fields = {
        "trial": trial.name,
        "config": changes(trial),
        "runs": {str(seed): runs[seed] for seed in sorted(runs)},
    }
    write_whole(path, _json(fields))


def collect(workdir: Path, versions: dict[str, str]) -> Run:
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
        "train_error": _binned(records, "train/top1_error"),
        "num_steps": summary["num_steps"],
        "params_digest": summary["params_digest"],
        "seconds": round(records[-1]["train/seconds"]),
        "versions": versions,
    }
    if noise_scale := _binned(records, "train/noise_scale"):
        run["noise_scale"] = noise_scale
    return run


def _binned(records: list[Record], name: str) -> list[list[float]]:
    """Mean of a metric over each tenth of an epoch, with the epoch of its last record."""
    known = [record for record in records if record.get(name) is not None]
    groups = itertools.groupby(known, lambda r: -int(-r["epoch"] * BINS_PER_EPOCH // 1))
    return [
        [round(group[-1]["epoch"], 3), float(f"{statistics.mean(r[name] for r in group):.4g}")]
        for group in (list(records) for _, records in groups)
    ]


def _json(fields: dict[str, Any]) -> str:
    """Lay out JSON with one line for each innermost list or object's value."""
    runs = ",\n".join(
        f'  "{seed}": {{\n'
        + ",\n".join(f'   "{name}": {json.dumps(value)}' for name, value in run.items())
        + "\n  }"
        for seed, run in fields["runs"].items()
    )
    head = ",\n".join(f' "{name}": {json.dumps(fields[name])}' for name in ("trial", "config"))
    return f'{{\n{head},\n "runs": {{\n{runs}\n }}\n}}\n'
