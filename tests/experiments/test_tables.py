"""The committed page is what the committed script makes of the committed readings."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import effects, page
from experiments.pictures import PICTURES
from experiments.plan import EXPERIMENTS, TRIALS, with_rate
from experiments.results import fields_of
from experiments.setting import RATE, RATES, REFERENCE
from train.config import UsageError

RESULTS = page.FOLDER / "results"


def kept(name: str) -> list[float | None]:
    """Errors of a trial's runs, in percent, read without the page's own code; None: diverged."""
    runs = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return [100 * run["top1_error"] if "top1_error" in run else None for run in runs.values()]


def test_the_committed_page_is_made_of_the_committed_readings():
    assert page.page(effects.read(page.FOLDER)) == (page.FOLDER / "README.md").read_text()


def test_the_first_table_has_the_means_and_deviations_of_five_runs():
    text = (page.FOLDER / "README.md").read_text()
    for name in EXPERIMENTS["warmup"].trials:
        errors = [error for error in kept(name) if error is not None]
        assert len(errors) == 5
        score = f"{statistics.mean(errors):.2f} ±{statistics.stdev(errors):.2f}"
        assert f"| {TRIALS[name].title} | {score} |" in text


def test_each_run_is_on_the_page():
    text = (page.FOLDER / "README.md").read_text()
    for path in RESULTS.glob("*.json"):
        errors = ["diverged" if error is None else f"{error:.2f}" for error in kept(path.stem)]
        assert f"| `{path.stem}` | {', '.join(errors)} |" in text


def test_the_readings_are_of_the_trials_as_they_stand():
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["config"] == fields_of(TRIALS[path.stem])


@pytest.mark.parametrize(("name", "draw", "trials"), PICTURES, ids=[name for name, *_ in PICTURES])
def test_the_pictures_are_drawn_of_the_committed_readings(
    name: str, draw: Callable[[effects.Readings], Figure], trials: tuple[str, ...], tmp_path: Path
):
    committed = effects.read(page.FOLDER)
    assert committed.has(*trials)
    with Image.open(page.FOLDER / name) as picture:
        assert picture.info["Source"] == effects.source(committed)
    draw(committed).savefig(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10_000


def test_the_rate_of_the_reference_is_the_one_that_was_to_be_chosen():
    first = {rate: 100 * errors_of_seed_0(rate) for rate in RATES}
    assert min(rate for rate in RATES if first[rate] <= min(first.values()) + 0.25) == RATE


def errors_of_seed_0(rate: float) -> float:
    runs = json.loads((RESULTS / f"{with_rate(REFERENCE, rate)}.json").read_text())["runs"]
    return runs["0"]["top1_error"]


def readings(**errors: Sequence[float | None]) -> effects.Readings:
    """Runs with these errors, in percent; None is one that diverged."""

    def run(error: float | None) -> dict[str, Any]:
        if error is None:
            return {"diverged": "not finite"}
        return {"top1_error": error / 100, "test_error": [[9.0, error / 100]]}

    named = {name.replace("_", "-"): some for name, some in errors.items()}
    return effects.Readings({name: dict(enumerate(map(run, some))) for name, some in named.items()})


def test_an_effect_is_measured_in_pooled_deviations():
    some = readings(kn_64=[10, 11, 12], kn_512=[14, 14, 14, 18])  # variances 1 and 4
    found = effects.effect(some, "kn-512", "kn-64")
    assert found is not None
    assert found.points == pytest.approx(15 - 11)
    assert found.deviation == pytest.approx(((2 * 1 + 3 * 4) / 5) ** 0.5)
    assert found.num_runs == (4, 3)


def test_of_a_single_run_the_deviation_is_that_of_the_first_table():
    some = readings(kn_64=[10, 11, 12], kn_512=[13, 13, 13], kn_512_none=[20])
    found = effects.effect(some, "kn-512-none", "kn-512")
    assert found is not None
    assert found.deviation == pytest.approx((2 * 1 / 4) ** 0.5)


def test_an_effect_counts_past_three_standard_errors():
    """Of five runs from five, 1.90 deviations; of one from five, 3.29."""
    for num_runs, least in (((5, 5), 1.90), ((1, 5), 3.29)):
        assert effects.Effect(2 * (least + 0.01), 2.0, num_runs).counts
        assert not effects.Effect(-2 * (least - 0.01), 2.0, num_runs).counts


@pytest.mark.parametrize(
    "errors", [{"kn_64": [10, 11], "kn_512": [12, 13]}, {"kn_64": [10] * 5, "kn_512": [11] * 5}]
)
def test_too_few_runs_or_none_that_differ_tell_nothing(errors: dict[str, list[float]]):
    assert effects.effect(readings(**errors), "kn-512", "kn-64") is None
    assert page.findings(readings(**errors)) == ""


SPREAD = (10.0, 10.2, 10.4, 10.6, 10.8)  # a deviation of 0.32


@pytest.mark.parametrize(
    ("errors", "verdicts"),
    [
        ([11.6], ("yes", "no", "yes")),
        ([10.6], ("no", "yes", "no")),
        ([9.0], ("no", "no", "yes")),
        ([None], ("yes", "no", "yes")),
        ([10.4, 10.4, None], ("yes", "no", "yes")),
    ],
)
def test_what_is_found_again(errors: list[float | None], verdicts: tuple[str, ...]):
    some = readings(kn_64=SPREAD, kn_512=SPREAD, kn_512_none=errors)
    expectations: tuple[page.Expected, ...] = ("worse", "the same", "different")
    for expected, verdict in zip(expectations, verdicts, strict=True):
        finding = page.Finding("", "", "kn-512-none", "kn-512", expected)
        assert finding.verdict(some).startswith(f"**{verdict}**, ")


def test_where_what_it_is_compared_with_diverges_nothing_is_found():
    some = readings(kn_64=SPREAD, kn_512=[None], kn_512_none=[12])
    finding = page.Finding("", "", "kn-512-none", "kn-512", "worse")
    assert finding.verdict(some).startswith("**no**, 0 of these runs diverged, 1 of those")


def test_what_has_diverged_is_said_beside_what_has_not():
    some = readings(kn_64=SPREAD, kn_512=[12, None])
    assert effects.effect(some, "kn-512", "kn-64") is None
    assert some.score("kn-512") == "12.00 (1 run), 1 diverged"


def test_linear_scaling_breaks_where_all_larger_ones_are_worse():
    sizes = {"kn_128": [13], "kn_256": [10.5], "kn_1024": [15], "kn_2048": [None]}
    some = readings(kn_64=SPREAD, kn_512=[12 + error - 10.4 for error in SPREAD], **sizes)
    assert effects.breaking_size(some) == 512  # 128 is a stray, since 256 is as good as ever
    assert effects.breaking_size(readings(kn_64=SPREAD, kn_512=SPREAD)) is None


def test_a_page_takes_no_other_files_place(tmp_path: Path):
    (tmp_path / "README.md").write_text("# Mine\n")
    for make in (page.check, page.make_page):
        with pytest.raises(UsageError, match=r"README.md is not a page of comparisons"):
            make(tmp_path)


def test_without_results_there_is_no_page(tmp_path: Path):
    with pytest.raises(UsageError, match="has no results"):
        page.make_page(tmp_path)
    assert not any(tmp_path.iterdir())
