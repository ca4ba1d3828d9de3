"""Trials, by name, and the experiments that they belong to."""

import dataclasses
from collections.abc import Callable

import optax

from experiments import variants
from experiments.setting import LARGE, NUM_EXAMPLES, RATE, RATES, REFERENCE, setting
from train.config import Config
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Trial:
    """A configuration that is trained with one or more seeds.

    Attributes:
        name: name of its result file and of its folder of runs.
        title: name in tables.
        config: configuration of its runs, except for seed and folders.
        optimizer: factory with the signature of `make_optimizer`, for `train.loop.run`.
        start: factory with the signature of `initial_state`, for `train.loop.run`.
    """

    name: str
    title: str
    config: Config
    optimizer: Callable[..., optax.GradientTransformation] = make_optimizer
    start: Callable[..., TrainState] = initial_state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Trials that answer one question.

    Attributes:
        title: the question.
        trials: names of the trials.
        num_seeds: number of runs of each trial, with seeds from 0.
    """

    title: str
    trials: tuple[str, ...]
    num_seeds: int


def base(batch_size: int) -> str:
    """Return the name of the trial that follows the paper's rules at a minibatch of kn."""
    return f"kn-{batch_size}"


def variant(batch_size: int, what: str) -> str:
    """Return the name of the trial that differs from `base` in one respect."""
    return f"kn-{batch_size}-{what}"


def with_rate(batch_size: int, rate: float) -> str:
    """Return the name of the trial that linearly scales this rate of the reference."""
    return base(batch_size) if rate == RATE else variant(batch_size, f"rate-{rate:g}")


ALL_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
LARGER = tuple(size for size in ALL_SIZES if size > REFERENCE)
LARGE_RATES = (RATE / 2, RATE, 2 * RATE)
SQRT_SIZES = (256, 512, 1024, 2048)


def _trials() -> list[Trial]:
    trials = [Trial(base(kn), f"kn = {kn}", setting(kn)) for kn in ALL_SIZES]
    for kn, warmup in [
        *((kn, "none") for kn in LARGER),
        *((kn, "constant") for kn in (LARGE, 2 * LARGE)),
    ]:
        title = f"kn = {kn}, {'no' if warmup == 'none' else warmup} warmup"
        trials += [Trial(variant(kn, warmup), title, setting(kn, warmup=warmup))]
    trials += [
        Trial(
            with_rate(kn, rate),
            f"kn = {kn}, η = {rate:g} scaled linearly",
            setting(kn, base_learning_rate=rate),
        )
        for kn, rates in ((REFERENCE, RATES), (LARGE, LARGE_RATES))
        for rate in rates
        if rate != RATE
    ]
    # The trainer only scales linearly; another base minibatch gives the rates of other rules.
    trials += [
        Trial(
            variant(kn, "sqrt"),
            f"kn = {kn}, rate scaled by √k",
            setting(kn, base_batch_size=variants.sqrt_base(kn, REFERENCE)),
        )
        for kn in SQRT_SIZES
    ]
    trials += [
        Trial(
            variant(LARGE, "fixed"),
            f"kn = {LARGE}, rate not scaled",
            setting(LARGE, base_batch_size=LARGE),
        )
    ]
    for kn in (REFERENCE, LARGE):
        trials += [
            Trial(variant(kn, "gamma-1"), f"kn = {kn}, γ = 1 everywhere", setting(kn),
                  start=variants.gamma_one),
            Trial(variant(kn, "whole-bn"), f"kn = {kn}, BN over the minibatch",
                  setting(kn, num_workers=1, batch_size_per_worker=kn, accumulation_steps=1)),
            Trial(variant(kn, "noise-scale"), f"kn = {kn}, noise scale logged",
                  setting(kn, noise_scale=True, accumulation_steps=4)),
        ]  # fmt: skip
    rates = setting(LARGE).experiment.large_minibatch_recipe(NUM_EXAMPLES).schedule()
    trials += [
        Trial(variant(LARGE, "eq-10"), f"kn = {LARGE}, eq. 10 without correction", setting(LARGE),
              optimizer=variants.eq_10),
        Trial(variant(LARGE, "eq-10-corrected"), f"kn = {LARGE}, eq. 10 with correction",
              setting(LARGE), optimizer=variants.eq_10_corrected),
        Trial(variant(LARGE, "scaled-loss"), f"kn = {LARGE}, loss scaled instead of the rate",
              setting(LARGE, base_batch_size=LARGE), optimizer=variants.ScaledLoss(rates)),
    ]  # fmt: skip
    return trials


TRIALS = {trial.name: trial for trial in _trials()}

EXPERIMENTS = {
    "reference": Experiment(
        "The rate of the reference minibatch",
        tuple(with_rate(REFERENCE, rate) for rate in RATES),
        1,
    ),
    "warmup": Experiment(
        "Warmup for the large minibatch (Table 1, figure 2)",
        (
            base(REFERENCE), variant(LARGE, "none"), variant(LARGE, "constant"),
            base(LARGE),
        ),
        5,
    ),
    "minibatch": Experiment(
        "Error against the minibatch (figures 1 and 3)",
        (
            *(base(kn) for kn in ALL_SIZES),
            *(variant(kn, "none") for kn in LARGER),
            variant(2 * LARGE, "constant"),
            *(variant(kn, "sqrt") for kn in SQRT_SIZES),
        ),
        1,
    ),
    "rate": Experiment(
        "The rate of the large minibatch (Table 2a)",
        (
            *(with_rate(LARGE, rate) for rate in LARGE_RATES),
            variant(LARGE, "fixed"), variant(LARGE, "sqrt"),
        ),
        1,
    ),
    "initialization": Experiment(
        "γ = 1 in every batch normalization (Table 2b)",
        (base(REFERENCE), base(LARGE), variant(REFERENCE, "gamma-1"), variant(LARGE, "gamma-1")),
        1,
    ),
    "pitfalls": Experiment(
        "Batch normalization, momentum correction, scaled loss (sections 2.3 and 3)",
        (
            base(REFERENCE), variant(REFERENCE, "whole-bn"),
            base(LARGE), variant(LARGE, "whole-bn"), variant(LARGE, "eq-10-corrected"),
            variant(LARGE, "eq-10"), variant(LARGE, "scaled-loss"),
        ),
        1,
    ),
    "noise-scale": Experiment(
        "The gradient noise scale (McCandlish et al. 2018)",
        (variant(REFERENCE, "noise-scale"), variant(LARGE, "noise-scale")),
        1,
    ),
}  # fmt: skip
