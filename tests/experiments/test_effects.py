"""Effects, the noise that they are compared with, and the verdicts on the paper's claims."""

from collections.abc import Sequence
from typing import Any

import pytest

from experiments import effects
from experiments.effects import Runs
from experiments.findings import Finding

SPREAD = (10.0, 10.2, 10.4, 10.6, 10.8)  # standard deviation 0.32


def runs_with(**errors: Sequence[float | None]) -> Runs:
    """Make runs with these errors, in percent; None is a run that diverged."""

    def run(error: float | None) -> dict[str, Any]:
        return {"diverged": "not finite"} if error is None else {"top1_error": error / 100}

    named = {name.replace("_", "-"): some for name, some in errors.items()}
    return Runs({name: dict(enumerate(map(run, some))) for name, some in named.items()})


def test_an_effect_has_the_pooled_deviation_of_both_trials():
    runs = runs_with(kn_64=[10, 11, 12], kn_512=[14, 14, 14, 18])  # variances 1 and 4
    found = effects.effect(runs, "kn-512", "kn-64")
    assert found is not None
    assert found.points == pytest.approx(15 - 11)
    assert found.deviation == pytest.approx(((2 * 1 + 3 * 4) / 5) ** 0.5)
    assert found.num_runs == (4, 3)


def test_a_single_run_borrows_the_deviation_of_the_reference_and_the_large_minibatch():
    runs = runs_with(kn_64=[10, 11, 12], kn_512=[13, 13, 13], kn_512_none=[20])
    found = effects.effect(runs, "kn-512-none", "kn-512")
    assert found is not None
    assert found.deviation == pytest.approx((2 * 1 / 4) ** 0.5)


def test_an_effect_counts_above_three_standard_errors():
    """These are 1.90 deviations for five runs against five, and 3.29 for one against five."""
    for num_runs, least in (((5, 5), 1.90), ((1, 5), 3.29)):
        assert effects.Effect(2 * (least + 0.01), 2.0, num_runs).counts
        assert not effects.Effect(-2 * (least - 0.01), 2.0, num_runs).counts


@pytest.mark.parametrize(
    "errors", [{"kn_64": [10, 11], "kn_512": [12, 13]}, {"kn_64": [10] * 5, "kn_512": [11] * 5}]
)
def test_too_few_runs_or_runs_without_any_deviation_give_no_effect(errors: dict[str, list[float]]):
    assert effects.effect(runs_with(**errors), "kn-512", "kn-64") is None


@pytest.mark.parametrize(
    ("errors", "worse", "equal", "different"),
    [
        ([11.8], "reproduced", "not reproduced", "reproduced"),
        ([10.6], "undecided", "undecided", "undecided"),
        ([9.0], "not reproduced", "not reproduced", "reproduced"),
        ([10.4, None], "undecided", "undecided", "undecided"),
    ],
)
def test_an_effect_that_counts_decides(errors: list[float], worse: str, equal: str, different: str):
    runs = runs_with(kn_64=SPREAD, kn_512=SPREAD, kn_512_none=errors)
    assert Finding("", "kn-512-none", "kn-512").verdict(runs) == worse
    assert Finding("", "kn-512-none", "kn-512", expected="equal").verdict(runs) == equal
    assert Finding("", "kn-512-none", "kn-512", expected="different").verdict(runs) == different


def test_a_claim_is_refuted_if_the_papers_effect_would_have_counted():
    runs = runs_with(kn_64=SPREAD, kn_512=SPREAD, kn_512_none=SPREAD)  # counts above 0.6
    assert Finding("", "kn-512-none", "kn-512", 0.5).verdict(runs) == "undecided"
    assert Finding("", "kn-512-none", "kn-512", 0.7).verdict(runs) == "not reproduced"
    assert Finding("", "kn-512-none", "kn-512", 0.7, "equal").verdict(runs) == "undecided"


def test_the_score_names_runs_that_diverged():
    runs = runs_with(kn_64=SPREAD, kn_512=[12, None])
    assert effects.effect(runs, "kn-512", "kn-64") is None
    assert runs.score("kn-512") == "12.00 (1 run), 1 diverged"


def test_linear_scaling_breaks_at_the_size_from_which_every_larger_one_is_worse():
    sizes = {"kn_128": [13], "kn_256": [10.5], "kn_1024": [15], "kn_2048": [None]}
    runs = runs_with(kn_64=SPREAD, kn_512=[12 + error - 10.4 for error in SPREAD], **sizes)
    assert effects.breaking_size(runs) == 512  # 128 is an outlier: 256 is not worse
    assert effects.breaking_size(runs_with(kn_64=SPREAD, kn_512=SPREAD)) is None
