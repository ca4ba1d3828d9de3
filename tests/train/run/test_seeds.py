"""The score of several runs in numbers and words."""

import pytest

from train.run.seeds import score_in_words, score_of_seeds

OLD = {"num_steps": 990, "top1_error_median_last5": 0.02}
NEW = OLD | {
    "num_epochs_in_median": 3, "top1_error_last": 0.03, "top1_error_best": 0.01,
    "eval_loss_last": 0.05, "seconds": 10.0,
}  # fmt: skip


def test_three_classes_have_no_top5_error():
    score = score_of_seeds({0: NEW, 1: NEW | {"eval_loss_last": 0.07, "top1_error_last": 0.05}})
    assert score_in_words(score) == (
        "test error 2.00 ± 0.00 % over 2 seeds (mean ± standard deviation of the median of the "
        "last 3 epochs); last epoch 4.00 ± 1.41 %, best 1.00 ± 0.00 %, loss 0.06 ± 0.014"
    )
    assert score["eval_loss_last"] == {0: 0.05, 1: 0.07}
    assert not [name for name in score if "top5" in name]


@pytest.mark.parametrize("summaries", [{0: OLD, 1: NEW}, {0: OLD}])
def test_summaries_of_an_earlier_version_have_a_score(summaries: dict[int, dict[str, float]]):
    score = score_of_seeds(summaries)
    assert score["top1_error_mean"] == pytest.approx(0.02)
    assert "seconds" not in score
    assert "at most the last 5 epochs" in score_in_words(score)
