"""Make the page of the comparisons and its pictures of the JSON in results/.

    python -m experiments.page

It needs no data and trains nothing. A section whose trials were not all run is left out.
"""

import dataclasses
import itertools
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.page import table
from experiments.effects import (
    ERRORS,
    LARGE_TRIAL,
    REFERENCE_TRIAL,
    Effect,
    Readings,
    breaking_size,
    effect,
    first_worse,
    is_worse,
    read,
    source,
)
from experiments.pictures import PICTURES
from experiments.plan import (
    ALL_SIZES,
    EXPERIMENTS,
    LARGE_RATES,
    LARGER,
    TRIALS,
    base,
    variant,
    with_rate,
)
from experiments.setting import LARGE, RATE, RATES, REFERENCE
from train.config import UsageError

FOLDER = Path(__file__).parent
TITLE = "# The paper's findings, on Fashion-MNIST"

Expected = Literal["worse", "the same", "different"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that the paper found, or says, and how it can be seen here.

    Attributes:
        text: of the paper.
        paper: its effect, in percentage points.
        trial: whose error should be `expected`, compared with that of `other`.
        other: likewise.
        expected: as the paper has it.
    """

    text: str
    paper: str
    trial: str
    other: str
    expected: Expected

    def verdict(self, readings: Readings) -> str:
        """Say whether it was found again; empty where that cannot be said."""
        found = effect(readings, self.trial, self.other)
        if found is not None:
            if not found.counts:
                return f"**{'yes' if self.expected == 'the same' else 'no'}**, not told apart"
            is_found = self.expected in (found.seen, "different")
            return f"**{'yes' if is_found else 'no'}**, {found.seen}"
        ours, theirs = readings.num_diverged(self.trial), readings.num_diverged(self.other)
        if not ours and not theirs:
            return ""
        is_found = self.expected != "the same" and ours > 0 and not theirs
        diverged = f"{ours} of these runs diverged, {theirs} of those it is compared with"
        return f"**{'yes' if is_found else 'no'}**, {diverged}"


FINDINGS = [
    Finding(
        f"linear scaling with gradual warmup keeps the error ({LARGE // REFERENCE} × the reference "
        "here, 32 × there)",
        "+0.14", LARGE_TRIAL, REFERENCE_TRIAL, "the same",
    ),
    Finding("no warmup is worse than gradual", "+1.10",
            variant(LARGE, "none"), LARGE_TRIAL, "worse"),
    Finding(f"the same at kn = {2 * LARGE}", "", variant(2 * LARGE, "none"), base(2 * LARGE),
            "worse"),
    Finding("constant warmup is worse than gradual", "+2.14",
            variant(LARGE, "constant"), LARGE_TRIAL, "worse"),
    Finding(f"the same at kn = {2 * LARGE}", "", variant(2 * LARGE, "constant"), base(2 * LARGE),
            "worse"),
    Finding("constant warmup is worse than none", "+1.04",
            variant(LARGE, "constant"), variant(LARGE, "none"), "worse"),
    Finding("a rate that is not scaled is worse", "+17.93",
            variant(LARGE, "fixed"), LARGE_TRIAL, "worse"),
    Finding("square-root scaling is worse than linear", "+2.48",
            variant(LARGE, "sqrt"), LARGE_TRIAL, "worse"),
    Finding("half the rate, scaled, is worse", "+0.53",
            with_rate(LARGE, RATE / 2), LARGE_TRIAL, "worse"),
    Finding("twice the rate, scaled, is worse", "+0.31",
            with_rate(LARGE, 2 * RATE), LARGE_TRIAL, "worse"),
    Finding("γ = 1 everywhere is worse at the reference", "+0.24",
            variant(REFERENCE, "gamma-1"), REFERENCE_TRIAL, "worse"),
    Finding("γ = 1 everywhere is worse at the large minibatch", "+0.37",
            variant(LARGE, "gamma-1"), LARGE_TRIAL, "worse"),
    Finding("eq. 10 with momentum correction is eq. 9", "none given",
            variant(LARGE, "eq-10-corrected"), LARGE_TRIAL, "the same"),
    Finding("eq. 10 without correction is not", "none given",
            variant(LARGE, "eq-10"), LARGE_TRIAL, "different"),
    Finding("scaling the loss is not scaling the rate", "none given",
            variant(LARGE, "scaled-loss"), LARGE_TRIAL, "different"),
    Finding("BN over the whole minibatch is another loss function", "none given",
            variant(LARGE, "whole-bn"), LARGE_TRIAL, "different"),
]  # fmt: skip


def effect_cells(found: Effect | None) -> tuple[str, str]:
    """The effect in percentage points, and in standard deviations."""
    if found is None:
        return "", ""
    return f"{found.points:+.2f}", f"{found.points / found.deviation:+.1f}"


def compared(readings: Readings, names: Sequence[str], other: str, paper: Sequence[str]) -> str:
    """A table of trials beside the paper's errors, each with its effect over another trial."""
    return table(
        ["", "test error (%)", f"above {TRIALS[other].title}", "in std", "the paper's"],
        (
            [
                TRIALS[name].title,
                readings.score(name),
                *effect_cells(effect(readings, name, other) if name != other else None),
                theirs,
            ]
            for name, theirs in zip(names, paper, strict=True)
        ),
    )


def findings(readings: Readings) -> str:
    """What the paper found, and what is found here."""
    last_epoch = readings.of_last_epoch()
    rows: list[list[str]] = []
    changed: list[str] = []
    for finding in FINDINGS:
        if verdict := finding.verdict(readings):
            cells = effect_cells(effect(readings, finding.trial, finding.other))
            rows.append([finding.text, finding.paper, *cells, verdict])
            if finding.verdict(last_epoch) != verdict:
                changed.append(f"{finding.text} ({finding.verdict(last_epoch)})")
    if not rows:
        return ""
    by_last = f"for {'; '.join(changed)}" if changed else "in none"
    return f"""## What was found again, at kn = {LARGE}

An effect is the difference of two mean errors, in percentage points, set beside the standard
deviation of runs that differ in their seed alone. It counts where it is more than {ERRORS:g}
standard errors, which is {ERRORS * math.sqrt(2 / 5):.1f} deviations of five runs from five, and
{ERRORS * math.sqrt(1 + 1 / 5):.1f} of a single run from five; what has fewer runs borrows the
deviation of the reference and of the large minibatch. "Not told apart" is not "equal".

{table(["the paper", "its effect", "here", "in std", "found again"], rows)}

Scored by the test error of the last epoch alone, the verdict differs {by_last}."""


def reference(readings: Readings) -> str:
    """Of which rate the reference was chosen."""
    names = [with_rate(REFERENCE, rate) for rate in RATES]
    first = readings.of_seed(0)
    rates = table(
        [f"η at kn = {REFERENCE}", *(f"{rate:g}" for rate in RATES)],
        [
            ["test error (%) with seed 0", *(first.score(name, of=1) for name in names)],
            ["of all seeds", *(readings.score(name) for name in names)],
        ],
    )
    text = (
        "Chosen before anything was compared with it, on seed 0 alone: the smallest rate whose "
        f"error is within a quarter of a point of the least, {RATE:g}. So short a run likes large "
        "rates, of which the largest that was tried does best; the paper's reference leaves more "
        "room to scale."
    )
    return f"""## The reference

{textwrap.fill(text, 100)}

{rates}"""


def warmup(readings: Readings) -> str:
    """Table 1 and figure 2."""
    names = [REFERENCE_TRIAL, variant(LARGE, "none"), variant(LARGE, "constant"), LARGE_TRIAL]
    paper = ["23.60 ±0.12", "24.84 ±0.37", "25.88 ±0.56", "23.74 ±0.09"]
    spikes = [
        [TRIALS[name].title, *(f"{value:.1f}" for value in spike(readings, name))]
        for name in (
            variant(LARGE, "constant"), LARGE_TRIAL, variant(2 * LARGE, "constant"),
            base(2 * LARGE),
        )
        if readings.has(name)
    ]  # fmt: skip
    return f"""## Warmup: Table 1 and figure 2

{compared(readings, names, REFERENCE_TRIAL, paper)}

![Training and test error with each warmup](warmup.png)

Training error is the mean over each tenth of an epoch; of kn = {REFERENCE} every tenth minibatch is
counted. The paper's spike: training error as the warmup ends, and the largest within half an epoch
after it.

{table(["training error (%)", "as the warmup ends", "at most after it"], spikes)}"""


def spike(readings: Readings, name: str) -> tuple[float, float]:
    """Training error as the warmup ends, and the largest within half an epoch after it."""
    end = TRIALS[name].config.warmup_epochs + 0.01  # it ends with a step, not with a tenth
    epochs, values = readings.curve(name, "train_error")
    errors = [100 * statistics.mean(points) for points in values]
    pairs = list(zip(epochs, errors, strict=True))
    before = [error for epoch, error in pairs if epoch <= end]
    return before[-1], max(error for epoch, error in pairs if end < epoch <= end + 0.5)


def minibatch(readings: Readings) -> str:
    """Figures 1 and 3."""
    paper = {
        32: "23.49 ±0.12", 64: "23.60 ±0.12", 128: "23.48 ±0.09", 256: "23.53 ±0.08",
        512: "23.49 ±0.11", 1024: "23.56 ±0.12", 2048: "23.74 ±0.09",
    }  # fmt: skip

    def cells(kn: int) -> list[str]:
        none, sqrt = (
            [readings.score(name), *effect_cells(effect(readings, name, base(kn)))]
            if (name := variant(kn, what)) in TRIALS
            else ["", "", ""]
            for what in ("none", "sqrt")
        )
        found = effect(readings, base(kn), REFERENCE_TRIAL) if kn != REFERENCE else None
        return [
            f"{kn} ({kn / REFERENCE:g} ×)", readings.score(base(kn)), *effect_cells(found), *none,
            *sqrt[:2], paper.get(kn, ""),
        ]  # fmt: skip

    header = [
        "kn", "linear, gradual warmup (%)", "above the reference", "in std",
        "linear, no warmup (%)", "above gradual", "in std", "√k, gradual warmup (%)",
        "above linear", "the paper's at this multiple of 256",
    ]  # fmt: skip
    breaks = breaking_size(readings)
    where = (
        "Linear scaling with gradual warmup is worse than the reference from "
        f"**kn = {breaks}** on, {breaks // REFERENCE} × the reference"
        if breaks
        else f"Up to kn = {LARGER[-1]} linear scaling with gradual warmup is not worse than the "
        "reference"
    )
    no_warmup = first_worse(lambda kn: is_worse(readings, variant(kn, "none"), base(kn)))
    and_none = (
        f"No warmup is worse than gradual from **kn = {no_warmup}** on."
        if no_warmup
        else "At no kn from which on it stays so is no warmup worse than gradual."
    )
    text = (
        f"{where}; the paper's breaks after 32 × its reference. {and_none} Up to the reference "
        "there is no warmup. Most of these are single runs, whose deviation is borrowed from kn = "
        f"{REFERENCE} and {LARGE}; where training is less stable it is larger."
    )
    if not any(effect(readings, base(kn), REFERENCE_TRIAL) for kn in LARGER):
        text = "There are too few runs to say where it breaks."
    return f"""## The minibatch: figures 1 and 3

{table(header, map(cells, ALL_SIZES))}

![Test error against the minibatch](minibatch.png)

{textwrap.fill(text, 100)}"""


def rate(readings: Readings) -> str:
    """Table 2a."""
    names = [*(with_rate(LARGE, value) for value in LARGE_RATES)]
    names += [variant(LARGE, "fixed"), variant(LARGE, "sqrt")]
    paper = ["24.27 (.05)", "23.74 (.1)", "24.05 (.2)", "41.67 (.1)", "26.22 (.1)"]
    return f"""## The rate: Table 2a

{compared(readings, names, LARGE_TRIAL, paper)}"""


def initialisation(readings: Readings) -> str:
    """Table 2b."""
    rows = [
        [
            f"kn = {kn}",
            readings.score(base(kn)),
            readings.score(variant(kn, "gamma-1")),
            *effect_cells(effect(readings, variant(kn, "gamma-1"), base(kn))),
            theirs,
        ]
        for kn, theirs in ((REFERENCE, "23.60 and 23.84"), (LARGE, "23.74 and 24.11"))
    ]
    header = ["", "γ = 0 in each block's last BN (%)", "γ = 1 everywhere (%)", "effect", "in std"]
    return f"""## The initialisation: Table 2b

{table([*header, "the paper's"], rows)}"""


def pitfalls(readings: Readings) -> str:
    """Sections 2.3 and 3."""
    names = [variant(LARGE, what) for what in ("eq-10-corrected", "eq-10", "scaled-loss")]
    names = [LARGE_TRIAL, *names, variant(LARGE, "whole-bn")]
    large = compared(readings, names, LARGE_TRIAL, [""] * 5)
    whole = [REFERENCE_TRIAL, variant(REFERENCE, "whole-bn")]
    small = compared(readings, whole, REFERENCE_TRIAL, [""] * 2)
    return f"""## Batch normalisation, momentum and the loss: sections 2.3 and 3

The paper gives no errors for these. Where the loss is scaled, its factor follows the same warmup,
and the rate is that of the reference. Without momentum correction trouble is to be expected where
the rate jumps; gradual warmup changes it by 12 % a step at most, which leaves the three drops.

{large}

{small}"""


PHASES = ("rate at its peak", "÷ 10", "÷ 100", "÷ 1000")


def noise_scale(readings: Readings) -> str:
    """How far linear scaling should hold."""
    breaks = breaking_size(readings)
    rows: list[list[str]] = []
    for kn in (REFERENCE, LARGE):
        epochs, values = readings.curve(variant(kn, "noise-scale"), "noise_scale")
        cells: list[str] = []
        ends = [*TRIALS[base(kn)].config.milestones, TRIALS[base(kn)].config.num_epochs]
        for begin, end in itertools.pairwise([0.0, *ends]):
            some = [
                math.inf if value is None else value
                for epoch, points in zip(epochs, values, strict=True)
                if (begin + end) / 2 < epoch <= end
                for value in points
            ]
            middle = statistics.median(some)
            cells.append(f"{middle:.0f}" if math.isfinite(middle) else "too large to tell")
        rows.append([f"measured at kn = {kn}", *cells])
    text = (
        "The minibatch from which on linear scaling is worse than the reference, in the figure "
        f"above: {breaks or f'none up to {LARGER[-1]}'}. Of each phase of the rate the second half "
        "counts, since the scale is an average over the last 100 steps or so, of which kn = "
        f"{LARGE} has 117 an epoch."
    )
    return f"""## How far linear scaling holds: the gradient noise scale

`--noise-scale` logs the minibatch, in images, at which noise and signal of a gradient are equal
(McCandlish et al. 2018, arXiv:1812.06162): well below it a larger minibatch saves as many steps as
it is larger, well above it hardly any. The trainer estimates it from the gradients of the parts in
which a minibatch goes through the devices anyway. Medians, in images:

{table(["noise scale", *PHASES], rows)}

![The noise scale during training](noise_scale.png)

{textwrap.fill(text, 100)}"""


def every_run(readings: Readings) -> str:
    """All runs, whatever they show."""

    def errors(name: str, scored: Readings) -> str:
        runs = scored.runs[name]
        return ", ".join(
            f"{100 * runs[seed]['top1_error']:.2f}" if "top1_error" in runs[seed] else "diverged"
            for seed in sorted(runs)
        )

    last_epoch = readings.of_last_epoch()
    seed_0 = readings.of_seed(0)
    rows = [
        [f"`{name}`", errors(name, readings), errors(name, last_epoch)]
        for name in TRIALS
        if readings.runs.get(name)
    ]
    twins = "; ".join(
        f"{errors(base(kn), seed_0)} and {errors(twin, seed_0)} at kn = {kn}"
        for kn in (REFERENCE, LARGE)
        if seed_0.has(base(kn), twin := variant(kn, "noise-scale"))
    )
    text = (
        "`python -m experiments.trial NAME --seed S` trains one. `experiments/plan.py` says what "
        "each is."
    )
    if twins:
        text += (
            " With the noise scale logged, a run differs from the one of its seed without in the "
            "order in which floats are added, and in nothing else: what chance does within a seed "
            f"is the difference of {twins}."
        )
    return f"""## Every run

{textwrap.fill(text, 100)}

{table(["trial", "test error (%) by seed, from 0", "of the last epoch alone"], rows)}"""


def intro(readings: Readings) -> str:
    """What this page is."""
    runs = [run for of_trial in readings.runs.values() for run in of_trial.values()]
    seconds = sum(run.get("seconds", 0) for run in runs)
    config = TRIALS[REFERENCE_TRIAL].config
    all_versions = sorted(
        {", ".join(f"{name} {v}" for name, v in run["versions"].items()) for run in runs}
    )
    experiments = "\n".join(
        f"python -m experiments {name:<16}{experiment.title}"
        for name, experiment in EXPERIMENTS.items()
    )
    about = (
        "Goyal et al. (2017) scaled ImageNet's minibatch from 256 to 8192. Here the same rules meet"
        f" a problem that fits on a laptop: Fashion-MNIST at {config.image_size}×"
        f"{config.image_size} pixels, shifted and mirrored, a ResNet of eight layers, "
        f"{config.num_epochs:g} epochs with the rate divided by ten at "
        f"{', '.join(f'{m:g}' for m in config.milestones)}, warmup for {config.warmup_epochs:g} of "
        f"an epoch (the paper's shape at a tenth of its length), n = "
        f"{config.batch_size_per_worker}. The reference minibatch is {REFERENCE} with a rate of "
        f"{RATE:g}, the large one {LARGE}. Optimizer, weight decay, initialisation, shuffling and "
        f"batch normalisation are the paper's. {len(runs)} runs, {seconds / 3600:.1f} core-hours; "
        f"{'; '.join(all_versions)}."
    )
    return f"""{TITLE}

{textwrap.fill(about, 100)}

Error is the paper's score, the median test error of the last five epochs; ± is the standard
deviation over five seeds, where nothing else is said. Of nine epochs five are more than half: they
have three rates, and a run that comes down early is scored better than in the paper, where all five
have the last rate. The last epoch's error stands beside it in the table of all runs.

```text
{experiments}
```

Each command makes its runs side by side, one a core, goes on where it was stopped, and draws its
part of this page into its `--workdir`; with no name it makes all of them. `python -m
experiments.page` made this one of `results/`."""


SECTIONS: list[tuple[Callable[[Readings], str], tuple[str, ...]]] = [
    (intro, ()),
    (findings, (REFERENCE_TRIAL, LARGE_TRIAL)),
    (reference, EXPERIMENTS["reference"].trials),
    (warmup, EXPERIMENTS["warmup"].trials),
    (minibatch, (REFERENCE_TRIAL, LARGE_TRIAL, base(LARGER[0]))),
    (rate, EXPERIMENTS["rate"].trials),
    (initialisation, EXPERIMENTS["initialisation"].trials),
    (pitfalls, EXPERIMENTS["pitfalls"].trials),
    (noise_scale, EXPERIMENTS["noise-scale"].trials),
    (every_run, ()),
]


def page(readings: Readings) -> str:
    """The text of the page, of the sections whose trials were run."""
    sections = [make(readings) for make, names in SECTIONS if readings.has(*names)]
    return "\n\n".join(section for section in sections if section) + "\n"


def check(folder: Path) -> None:
    """Check that a page would take no other file's place.

    Raises:
        UsageError: if it would.
    """
    path = folder / "README.md"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(TITLE):
        raise UsageError(f"{path} is not a page of comparisons; choose another folder")


def make_page(folder: Path) -> Path:
    """Write README.md and its pictures beside results/.

    Returns:
        The page.

    Raises:
        UsageError: if there are no results, or another README.md.
    """
    check(folder)
    readings = read(folder)
    if not any(readings.runs.values()):
        raise UsageError(f"{folder / 'results'} has no results; run python -m experiments first")
    for name, draw, trials in PICTURES:
        if readings.has(*trials):
            draw(readings).savefig(folder / name, dpi=110, metadata={"Source": source(readings)})
    path = folder / "README.md"
    path.write_text(page(readings), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(make_page(FOLDER))
