"""The committed page is up to date, and what its text says is true of the results."""

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.markdown import fill
from experiments import tables
from experiments.effects import Runs
from experiments.findings import FINDINGS
from experiments.pictures import PICTURES
from experiments.plan import EXPERIMENTS, TRIALS, with_rate
from experiments.results import fields_of
from experiments.setting import RATE, RATES, REFERENCE

RESULTS = tables.FOLDER / "results"
PAGE = (tables.FOLDER / "README.md").read_text()
COMMITTED = Runs.load(tables.FOLDER)


def errors_of(name: str) -> list[float]:
    """Read the errors of a trial in percent, without the code under test."""
    runs = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return [100 * run["top1_error"] for run in runs.values()]


def test_the_committed_page_is_up_to_date():
    """Run `python -m experiments.tables` if this fails."""
    assert fill(PAGE, tables.make_tables(COMMITTED)) == PAGE


def test_the_warmup_table_has_the_means_and_deviations_of_five_runs():
    for name in EXPERIMENTS["warmup"].trials:
        errors = errors_of(name)
        assert len(errors) == 5
        score = f"{statistics.mean(errors):.2f} ±{statistics.stdev(errors):.2f}"
        assert f"| {TRIALS[name].title} | {score} |" in PAGE


def test_each_run_is_on_the_page():
    for path in RESULTS.glob("*.json"):
        errors = ", ".join(f"{error:.2f}" for error in errors_of(path.stem))
        assert f"| `{path.stem}` | {errors} |" in PAGE


def test_the_results_have_the_current_configurations():
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["config"] == fields_of(TRIALS[path.stem])


def test_the_last_epoch_alone_gives_the_same_verdicts():
    last_epoch = COMMITTED.of_last_epoch()
    assert last_epoch.errors("kn-64") != COMMITTED.errors("kn-64")
    for finding in FINDINGS:
        assert finding.verdict(last_epoch) == finding.verdict(COMMITTED)


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_up_to_date(name: str, tmp_path: Path):
    draw: Callable[[Runs], Figure]
    draw, trials = PICTURES[name]
    assert COMMITTED.has(*trials)
    with Image.open(tables.FOLDER / name) as picture:
        assert picture.info["Source"] == COMMITTED.digest
    draw(COMMITTED).savefig(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10_000


def test_the_reference_has_the_smallest_rate_within_a_quarter_of_a_point_of_the_best():
    first = {rate: errors_of(with_rate(REFERENCE, rate))[0] for rate in RATES}
    assert min(rate for rate in RATES if first[rate] <= min(first.values()) + 0.25) == RATE


def test_a_folder_of_ones_own_gets_the_tables_of_the_trials_that_were_run(tmp_path: Path):
    (tmp_path / "results").mkdir()
    for name in EXPERIMENTS["reference"].trials:
        (tmp_path / "results" / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())
    page = tables.save_page(tmp_path)
    assert page == tmp_path / "tables.md"
    headings = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## cost", "## reference", "## every-run"]
    assert not list(tmp_path.glob("*.png"))


def test_a_run_that_diverged_is_in_the_tables():
    runs = dict(COMMITTED.by_trial)
    runs["kn-2048-none"] = {0: {"diverged": "not finite", "versions": runs["kn-64"][0]["versions"]}}
    made = tables.make_tables(dataclasses.replace(COMMITTED, by_trial=runs))
    assert "| `kn-2048-none` | diverged | diverged |" in made["every-run"]
    assert "43.86 (1 run) | **+33.08** | diverged |  |" in made["minibatch"]
