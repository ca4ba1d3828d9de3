"""Fill the tables of the pages from results, and draw pictures: `python -m experiments.tables`.

It needs no data and trains nothing.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.markdown import fill, table
from experiments import fine_tuning
from experiments.effects import LARGE_TRIAL, REFERENCE_TRIAL, Effect, Runs, effect
from experiments.findings import FINDINGS
from experiments.pictures import save_pictures
from experiments.plan import ALL_SIZES, EXPERIMENTS, LARGE_RATES, TRIALS, base, variant, with_rate
from experiments.results import Run
from experiments.setting import LARGE, RATES, REFERENCE

FOLDER = Path(__file__).parent

# Rows of the tables that compare trials: a trial, the one it is compared with, the paper's error.
COMPARISONS: dict[str, list[tuple[str, str | None, str]]] = {
    "warmup": [
        (REFERENCE_TRIAL, None, "23.60 ±0.12"),
        (variant(LARGE, "none"), REFERENCE_TRIAL, "24.84 ±0.37"),
        (variant(LARGE, "constant"), REFERENCE_TRIAL, "25.88 ±0.56"),
        (LARGE_TRIAL, REFERENCE_TRIAL, "23.74 ±0.09"),
    ],
    "rate": [
        (LARGE_TRIAL, None, "23.74 (.1)"),
        (with_rate(LARGE, LARGE_RATES[0]), LARGE_TRIAL, "24.27 (.05)"),
        (with_rate(LARGE, LARGE_RATES[2]), LARGE_TRIAL, "24.05 (.2)"),
        (variant(LARGE, "fixed"), LARGE_TRIAL, "41.67 (.1)"),
        (variant(LARGE, "sqrt"), LARGE_TRIAL, "26.22 (.1)"),
    ],
    "initialization": [
        (REFERENCE_TRIAL, None, "23.60"),
        (variant(REFERENCE, "gamma-1"), REFERENCE_TRIAL, "23.84"),
        (LARGE_TRIAL, None, "23.74"),
        (variant(LARGE, "gamma-1"), LARGE_TRIAL, "24.11"),
    ],
    "pitfalls": [
        (REFERENCE_TRIAL, None, ""),
        (variant(REFERENCE, "whole-bn"), REFERENCE_TRIAL, ""),
        (LARGE_TRIAL, None, ""),
        *(
            (variant(LARGE, what), LARGE_TRIAL, "")
            for what in ("whole-bn", "eq-10-corrected", "eq-10", "scaled-loss")
        ),
    ],
}

# The paper's errors at kn = 256 to 8k, by the minibatch here at the same multiple of the reference.
PAPER_ERRORS = {
    32: "23.49 ±0.12", 64: "23.60 ±0.12", 128: "23.48 ±0.09", 256: "23.53 ±0.08",
    512: "23.49 ±0.11", 1024: "23.56 ±0.12", 2048: "23.74 ±0.09",
}  # fmt: skip

PHASES = ("rate at its peak", "÷ 10", "÷ 100", "÷ 1000")


def effect_cell(found: Effect | None) -> str:
    """Format an effect in percentage points; bold if it counts."""
    if found is None:
        return ""
    return f"**{found.points:+.2f}**" if found.counts else f"{found.points:+.2f}"


def error_cell(run: Run) -> str:
    """Format the error of one run in percent."""
    return f"{100 * run['top1_error']:.2f}" if "top1_error" in run else "diverged"


def findings(runs: Runs) -> str:
    """The paper's claims, ordered by verdict."""
    rows: list[list[str]] = []
    for finding in FINDINGS:
        if found := effect(runs, finding.trial, finding.other):
            paper = "" if finding.paper is None else f"{finding.paper:+.2f}"
            cells = [paper, f"{found.points:+.2f}", f"{found.threshold:.2f}"]
            rows.append([finding.text, *cells, finding.verdict(runs)])
    order = ["reproduced", "not reproduced", "undecided"]
    rows.sort(key=lambda row: order.index(row[-1]))
    return table(["claim", "effect in the paper", "effect here", "counts above", "verdict"], rows)


def compare(runs: Runs, name: str) -> str:
    """The trials of one of `COMPARISONS`."""
    rows = (
        [
            TRIALS[trial].title,
            runs.score(trial),
            effect_cell(effect(runs, trial, other)) if other else "",
            paper,
        ]
        for trial, other, paper in COMPARISONS[name]
    )
    return table(["trial", "test error (%)", "effect", "the paper's error"], rows)


def spikes(runs: Runs) -> str:
    """Training error around the end of the warmup."""
    trials = [
        variant(LARGE, "constant"), LARGE_TRIAL, variant(2 * LARGE, "constant"), base(2 * LARGE),
    ]  # fmt: skip
    rows: list[list[str]] = []
    for name in trials:
        end = (
            TRIALS[name].config.experiment.warmup_epochs + 0.01
        )  # the warmup ends within a bin of the curve
        epochs, values = runs.curve(name, "train_error")
        errors = [100 * statistics.mean(points) for points in values]
        last = max(index for index, epoch in enumerate(epochs) if epoch <= end)
        after = [e for epoch, e in zip(epochs, errors, strict=True) if end < epoch <= end + 0.5]
        rows.append([TRIALS[name].title, f"{errors[last]:.1f}", f"{max(after):.1f}"])
    return table(["training error (%)", "at the end of the warmup", "highest after it"], rows)


def minibatch(runs: Runs) -> str:
    """Errors by minibatch, scaling rule and warmup."""

    def cells(trial: str, other: str) -> list[str]:
        if trial not in TRIALS or trial == other:
            return [runs.score(trial) if trial in TRIALS else "", ""]
        return [runs.score(trial), effect_cell(effect(runs, trial, other))]

    rows = (
        [
            f"{kn} ({kn / REFERENCE:g} ×)",
            *cells(base(kn), REFERENCE_TRIAL),
            *cells(variant(kn, "none"), base(kn)),
            *cells(variant(kn, "sqrt"), base(kn)),
            PAPER_ERRORS.get(kn, ""),
        ]
        for kn in ALL_SIZES
    )
    header = [
        "kn", "linear, gradual warmup (%)", "above the reference", "linear, no warmup (%)",
        "above gradual", "√k, gradual warmup (%)", "above linear", "the paper's error",
    ]  # fmt: skip
    return table(header, rows)


def reference(runs: Runs) -> str:
    """Errors by rate of the reference, with seed 0."""
    first = [runs.by_trial[with_rate(REFERENCE, rate)].get(0) for rate in RATES]
    header = [f"rate at kn = {REFERENCE}", *(f"{rate:g}" for rate in RATES)]
    cells = [error_cell(run) if run else "not run" for run in first]
    return table(header, [["test error (%), seed 0", *cells]])


def noise_scale(runs: Runs) -> str:
    """Median noise scale in the second half of each phase of the learning rate."""
    rows: list[list[str]] = []
    for kn in (REFERENCE, LARGE):
        epochs, values = runs.curve(variant(kn, "noise-scale"), "noise_scale")
        config = TRIALS[base(kn)].config
        cells: list[str] = []
        for begin, end in itertools.pairwise(
            [0.0, *config.experiment.milestones, config.experiment.num_epochs]
        ):
            median = statistics.median(
                math.inf if value is None else value
                for epoch, points in zip(epochs, values, strict=True)
                if (begin + end) / 2 < epoch <= end
                for value in points
            )
            cells.append(f"{median:.0f}" if math.isfinite(median) else "undefined")
        rows.append([f"measured at kn = {kn}", *cells])
    return table(["noise scale (images)", *PHASES], rows)


def every_run(runs: Runs) -> str:
    """The error of each run."""

    def errors(scored: Runs, name: str) -> str:
        return ", ".join(error_cell(run) for _, run in sorted(scored.by_trial[name].items()))

    rows = (
        [f"`{name}`", errors(runs, name), errors(runs.of_last_epoch(), name)]
        for name in TRIALS
        if runs.by_trial[name]
    )
    return table(["trial", "test error (%), by seed", "test error of the last epoch (%)"], rows)


def cost(runs: Runs) -> str:
    """Number of runs, their time, and the versions."""
    every = [run for of_trial in runs.by_trial.values() for run in of_trial.values()]
    names = list(every[0]["versions"])
    versions = [", ".join(sorted({run["versions"][name] for run in every})) for name in names]
    hours = sum(run.get("seconds", 0) for run in every) / 3600
    return table(["runs", "core-hours", *names], [[len(every), f"{hours:.1f}", *versions]])


# Each table, with the trials that it needs.
TABLES: dict[str, tuple[Callable[[Runs], str], tuple[str, ...]]] = {
    "findings": (findings, (REFERENCE_TRIAL, LARGE_TRIAL)),
    "cost": (cost, ()),
    "warmup": (lambda runs: compare(runs, "warmup"), EXPERIMENTS["warmup"].trials),
    "spikes": (
        spikes,
        tuple(name for kn in (LARGE, 2 * LARGE) for name in (base(kn), variant(kn, "constant"))),
    ),
    "minibatch": (minibatch, (REFERENCE_TRIAL, LARGE_TRIAL)),
    "reference": (reference, EXPERIMENTS["reference"].trials),
    "rate": (lambda runs: compare(runs, "rate"), EXPERIMENTS["rate"].trials),
    "initialization": (
        lambda runs: compare(runs, "initialization"),
        EXPERIMENTS["initialization"].trials,
    ),
    "pitfalls": (lambda runs: compare(runs, "pitfalls"), EXPERIMENTS["pitfalls"].trials),
    "noise-scale": (noise_scale, EXPERIMENTS["noise-scale"].trials),
    "every-run": (every_run, ()),
}


def make_tables(runs: Runs) -> dict[str, str]:
    """Make each table whose trials have been run."""
    return {name: make(runs) for name, (make, trials) in TABLES.items() if runs.has(*trials)}


def save_page(folder: Path) -> Path:
    """Save the tables and the pictures of FOLDER/results.

    The committed folder has a page with text, README.md, of which the tables are filled. Any other
    folder gets a tables.md with the tables alone.

    Returns:
        The path of the page.
    """
    runs = Runs.load(folder)
    save_pictures(runs, folder)
    tables = make_tables(runs)
    if folder.resolve() == FOLDER.resolve():
        path = folder / "README.md"
        text = fill(path.read_text(encoding="utf-8"), tables)
    else:
        path = folder / "tables.md"
        parts = [f"## {name}\n\n{content}" for name, content in tables.items()]
        text = "\n\n".join(["experiments/README.md explains these tables.", *parts]) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    print(save_page(FOLDER))
    print(fine_tuning.save_page())
