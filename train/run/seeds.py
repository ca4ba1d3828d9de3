"""The score of several runs that differ in their seeds: seeds.json."""

import statistics
from collections.abc import Mapping

from train.config import JsonObject
from train.run.display import median_of

SCORES = {
    "top1_error": "top1_error_median_last5",
    "top1_error_last": "top1_error_last",
    "top1_error_best": "top1_error_best",
    "top5_error_last": "top5_error_last",
    "eval_loss_last": "eval_loss_last",
}
"""Name of each score in seeds.json, and in the summary of a run."""


def score_of_seeds(summaries: Mapping[int, JsonObject]) -> JsonObject:
    """Mean and standard deviation of each score over the seeds, and all summaries.

    Args:
        summaries: summary of each run, by seed.

    Returns:
        For each score NAME that every summary has: `NAME_mean`, `NAME_std` (None for a single
        seed) and `NAME`, the value of each seed. `num_epochs_in_median` belongs to `top1_error`,
        `seconds` is the sum over all runs, and `runs` holds the summaries.
    """
    score: JsonObject = {}
    for name, key in SCORES.items():
        values = {seed: summary.get(key) for seed, summary in summaries.items()}
        known = [value for value in values.values() if value is not None]
        if len(known) == len(values):
            score[f"{name}_mean"] = statistics.mean(known)
            score[f"{name}_std"] = statistics.stdev(known) if len(known) > 1 else None
            score[name] = values
    for name, combine in (("num_epochs_in_median", min), ("seconds", sum)):
        if all(name in summary for summary in summaries.values()):  # not in earlier versions
            score[name] = combine(summary[name] for summary in summaries.values())
    return score | {"runs": dict(summaries)}


def score_in_words(score: JsonObject) -> str:
    """The score in one line."""
    details = [
        f"{words} {_spread(score, name)}"
        for name, words in (
            ("top1_error_last", "last epoch"),
            ("top1_error_best", "best"),
            ("top5_error_last", "top-5"),
            ("eval_loss_last", "loss"),
        )
        if f"{name}_mean" in score
    ]
    first = (
        f"test error {_spread(score, 'top1_error')} over {len(score['runs'])} seeds "
        f"(mean ± standard deviation of the {median_of(score)})"
    )
    return "; ".join([first, *([", ".join(details)] if details else [])])


def _spread(score: JsonObject, name: str) -> str:
    mean, deviation = score[f"{name}_mean"], score[f"{name}_std"]
    if "loss" in name:
        return f"{mean:.4g}" + ("" if deviation is None else f" ± {deviation:.2g}")
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}") + " %"
