"""Fine-tuning on few images: the page, the flags, and what the text claims."""

import json
import statistics

import pytest

from benchmarks.markdown import fill
from experiments.fine_tuning import INPUT, PAGE, PRETRAINING, RESULTS, STARTS, comparison
from train.command_line import parse_run

REPORT = json.loads(RESULTS.read_text())
TEXT = " ".join(PAGE.read_text(encoding="utf-8").split())
ERRORS = {name: start["top1_error_last"] for name, start in REPORT["starts"].items()}


def test_the_committed_page_is_up_to_date():
    """Run `python -m experiments.tables` if this fails."""
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, {"fine-tuning": comparison(REPORT)}) == page


def test_the_results_are_those_of_the_current_flags():
    assert {name: start["flags"] for name, start in REPORT["starts"].items()} == STARTS
    assert REPORT["pretraining"]["flags"] == PRETRAINING


@pytest.mark.parametrize("flags", [PRETRAINING, *STARTS.values()])
def test_the_flags_are_valid(flags: str):
    config = parse_run([*flags.split(), *INPUT.split(), "--dataset", "few_0"], "prog", "")
    assert config.experiment.model == "resnet8"


def test_both_starts_have_the_same_number_of_updates():
    fine_tuned, from_scratch = (
        parse_run([*STARTS[name].split(), *INPUT.split()], "prog", "").experiment
        for name in ("fine-tuned", "from scratch, as long")
    )
    for field in ("num_epochs", "milestones", "batch_size"):
        assert getattr(fine_tuned, field) == getattr(from_scratch, field)


def test_what_the_text_claims_is_true():
    fine_tuned, as_long, longer = ERRORS.values()
    assert len(fine_tuned) == 5
    assert all(one < other for one, other in zip(fine_tuned, as_long, strict=True))
    gain = statistics.mean(as_long) - statistics.mean(fine_tuned)
    assert f"by {100 * gain:.1f} points on average" in TEXT
    assert 0 < statistics.mean(longer) - statistics.mean(fine_tuned) <= 0.0055
    assert sum(one > other for one, other in zip(fine_tuned, longer, strict=True)) == 1
