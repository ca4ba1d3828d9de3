"""The paper's claims, and whether the runs here reproduce them."""

import dataclasses
from typing import Literal

from experiments.effects import LARGE_TRIAL, REFERENCE_TRIAL, Runs, effect
from experiments.plan import base, variant, with_rate
from experiments.setting import LARGE, RATE, REFERENCE

Verdict = Literal["reproduced", "not reproduced", "undecided"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim of the paper about the errors of two trials.

    Attributes:
        text: the claim.
        trial: name of the trial that the claim is about.
        other: name of the trial that it is compared with.
        paper: the paper's effect in percentage points; None if it gives none for this comparison.
        expected: the claim about the error of `trial`, relative to that of `other`.
    """

    text: str
    trial: str
    other: str
    paper: float | None = None
    expected: Literal["worse", "equal", "different"] = "worse"

    def verdict(self, runs: Runs) -> Verdict:
        """Compare the claim with the effect that was measured.

        An effect that counts decides. An effect that does not count leaves the claim undecided,
        unless an effect as large as the paper's would have counted.
        """
        found = effect(runs, self.trial, self.other)
        if found is None:
            return "undecided"
        if found.counts:
            worse = self.expected == "worse" and found.points > 0
            return "reproduced" if worse or self.expected == "different" else "not reproduced"
        is_visible = self.paper is not None and self.paper > found.threshold
        return "not reproduced" if is_visible and self.expected == "worse" else "undecided"


def _large(what: str) -> str:
    return variant(LARGE, what)


TWICE = 2 * LARGE

FINDINGS = [
    Finding(f"linear scaling with gradual warmup keeps the error up to {LARGE // REFERENCE} × the "
            "reference (32 × in the paper)",
            LARGE_TRIAL, REFERENCE_TRIAL, +0.14, "equal"),
    Finding(f"no warmup is worse than gradual warmup at kn = {LARGE}",
            _large("none"), LARGE_TRIAL, +1.10),
    Finding(f"no warmup is worse than gradual warmup at kn = {TWICE}",
            variant(TWICE, "none"), base(TWICE)),
    Finding(f"constant warmup is worse than gradual warmup at kn = {LARGE}",
            _large("constant"), LARGE_TRIAL, +2.14),
    Finding(f"constant warmup is worse than gradual warmup at kn = {TWICE}",
            variant(TWICE, "constant"), base(TWICE)),
    Finding("constant warmup is worse than no warmup", _large("constant"), _large("none"), +1.04),
    Finding("an unscaled rate is worse than linear scaling",
            _large("fixed"), LARGE_TRIAL, +17.93),
    Finding("square-root scaling is worse than linear scaling",
            _large("sqrt"), LARGE_TRIAL, +2.48),
    Finding("linear scaling of half the rate is worse",
            with_rate(LARGE, RATE / 2), LARGE_TRIAL, +0.53),
    Finding("linear scaling of twice the rate is worse",
            with_rate(LARGE, 2 * RATE), LARGE_TRIAL, +0.31),
    Finding("γ = 1 everywhere is worse at the reference minibatch",
            variant(REFERENCE, "gamma-1"), REFERENCE_TRIAL, +0.24),
    Finding("γ = 1 everywhere is worse at the large minibatch",
            _large("gamma-1"), LARGE_TRIAL, +0.37),
    Finding("eq. 10 with momentum correction equals eq. 9",
            _large("eq-10-corrected"), LARGE_TRIAL, expected="equal"),
    Finding("eq. 10 without momentum correction differs from eq. 9",
            _large("eq-10"), LARGE_TRIAL, expected="different"),
    Finding("scaling the loss differs from scaling the rate",
            _large("scaled-loss"), LARGE_TRIAL, expected="different"),
    Finding("BN over the whole minibatch differs from BN per worker",
            _large("whole-bn"), LARGE_TRIAL, expected="different"),
]  # fmt: skip
