"""Record the learning rates of other packages, for `test_golden.py`.

Run it in a separate environment. It does not need the library, and the tests do not need these
packages:

    pip install torch warmup-scheduler pytorch-warmup timm transformers fvcore keras
    KERAS_BACKEND=torch python tests/optax_warmup/golden/record.py

It writes one JSON file per package, with its version and cases: the name of a row in
`docs/coming-from.md`, the arguments by their names there, and the learning rate at each step.
"""

# These packages are not installed with the library.
# pyright: reportMissingImports=false

# The names are those of the documentation. No function outlives the loop that creates it.
# ruff: noqa: B023, N803, N806

from __future__ import annotations

import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import fvcore.common.param_scheduler as fv
import keras
import pytorch_warmup
import timm.scheduler
import torch
import transformers
import warmup_scheduler
from torch.optim import lr_scheduler as pt

Case = tuple[str, dict[str, Any], list[float]]


def optimizer(lr: float) -> torch.optim.Optimizer:
    """SGD with one parameter; the packages store the learning rate in the optimizer."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)


def follow(lr: float, make: Callable[[Any], Any], steps: int) -> list[float]:
    """Learning rates of a loop that steps the scheduler after each update."""
    opt = optimizer(lr)
    scheduler = make(opt)
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


def torch_cases() -> Iterator[Case]:
    for lr, start, W in ((0.1, 0.01, 10), (3.2, 1 / 32, 7), (1.0, 1 / 3, 1)):
        yield (
            "LinearLR",
            {"lr": lr, "start_factor": start, "W": W},
            follow(lr, lambda o: pt.LinearLR(o, start, total_iters=W), 20),
        )
    for lr, factor, W in ((0.1, 0.25, 5), (3.2, 1 / 32, 12)):
        yield (
            "ConstantLR",
            {"lr": lr, "factor": factor, "W": W},
            follow(lr, lambda o: pt.ConstantLR(o, factor, W), 20),
        )
    for lr, milestones, gamma in ((0.1, [5, 9, 12], 0.1), (3.2, [3], 0.5)):
        yield (
            "MultiStepLR",
            {"lr": lr, "milestones": milestones, "gamma": gamma},
            follow(lr, lambda o: pt.MultiStepLR(o, milestones, gamma), 20),
        )
    for lr, start, W, milestones in ((3.2, 1 / 32, 5, [4, 8, 11]), (0.5, 0.1, 3, [6])):
        yield (
            "LinearLR, MultiStepLR",
            {"lr": lr, "start_factor": start, "W": W, "milestones": milestones, "gamma": 0.1},
            follow(
                lr,
                lambda o: pt.SequentialLR(
                    o,
                    [pt.LinearLR(o, start, total_iters=W), pt.MultiStepLR(o, milestones, 0.1)],
                    [W],
                ),
                25,
            ),
        )
    for lr, start, W, T, eta_min in ((3.2, 1 / 32, 5, 20, 0.0), (0.4, 0.5, 8, 30, 0.01)):
        yield (
            "LinearLR, CosineAnnealingLR",
            {"lr": lr, "start_factor": start, "W": W, "T": T, "eta_min": eta_min},
            follow(
                lr,
                lambda o: pt.SequentialLR(
                    o,
                    [pt.LinearLR(o, start, total_iters=W), pt.CosineAnnealingLR(o, T, eta_min)],
                    [W],
                ),
                W + T,
            ),
        )
    for lr, T_0, T_mult, eta_min in ((0.1, 10, 1, 0.0), (3.2, 5, 2, 0.1)):
        yield (
            "CosineAnnealingWarmRestarts",
            {"lr": lr, "T_0": T_0, "T_mult": T_mult, "eta_min": eta_min},
            follow(lr, lambda o: pt.CosineAnnealingWarmRestarts(o, T_0, T_mult, eta_min), 35),
        )
    for lr, T, power in ((0.1, 12, 1.0), (3.2, 20, 2.0)):
        yield (
            "PolynomialLR",
            {"lr": lr, "T": T, "power": power},
            follow(lr, lambda o: pt.PolynomialLR(o, T, power), 25),
        )
    for lr, gamma in ((0.1, 0.9), (3.2, 0.5)):
        yield (
            "ExponentialLR",
            {"lr": lr, "gamma": gamma},
            follow(lr, lambda o: pt.ExponentialLR(o, gamma), 20),
        )
    metrics = [5.0, 4.0, 4.0, 4.5, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0]
    for factor, patience, cooldown in ((0.5, 1, 0), (0.1, 2, 0), (0.5, 1, 2)):
        opt = optimizer(0.8)
        plateau = pt.ReduceLROnPlateau(opt, factor=factor, patience=patience, cooldown=cooldown)
        rates = []
        for metric in metrics:
            plateau.step(metric)
            rates.append(opt.param_groups[0]["lr"])
        arguments = {"factor": factor, "patience": patience, "cooldown": cooldown}
        yield "ReduceLROnPlateau", {"lr": 0.8, "metrics": metrics, **arguments}, rates


def gradual_warmup_scheduler_cases() -> Iterator[Case]:
    afters: dict[str, Callable[[Any], Any]] = {
        "": lambda o: None,
        ", StepLR": lambda o: pt.StepLR(o, 4, 0.1),
        ", CosineAnnealingLR": lambda o: pt.CosineAnnealingLR(o, 20),
    }
    for name, after in afters.items():
        for lr, multiplier, W in ((0.4, 1.0, 5), (0.1, 8.0, 5), (0.1, 1.5, 10)):
            # With the epoch, as in the package's README, and without, as in PyTorch today.
            for given in (True, False):
                opt = optimizer(lr)
                scheduler = warmup_scheduler.GradualWarmupScheduler(opt, multiplier, W, after(opt))
                rates = [opt.param_groups[0]["lr"]]
                for epoch in range(1, 25):
                    opt.step()
                    scheduler.step(epoch) if given else scheduler.step()
                    rates.append(opt.param_groups[0]["lr"])
                row = f"GradualWarmupScheduler{name}"
                arguments = {"lr": lr, "multiplier": multiplier, "W": W}
                yield row + ("" if given else ", without epoch"), arguments, rates


def pytorch_warmup_cases() -> Iterator[Case]:
    def run(lr: float, T: int, make: Callable[[Any], Any]) -> list[float]:
        opt = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=lr, betas=(0.9, 0.95))
        cosine = pt.CosineAnnealingLR(opt, T)
        damping = make(opt)
        rates = []
        for _ in range(T):
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            with damping.dampening():
                cosine.step()
        return rates

    for lr, T, W in ((0.1, 30, 7), (0.01, 20, 1)):
        arguments = {"lr": lr, "T": T, "W": W}
        yield "LinearWarmup", arguments, run(lr, T, lambda o: pytorch_warmup.LinearWarmup(o, W))
    for lr, T, tau in ((0.1, 30, 5), (0.01, 20, 40)):
        arguments = {"lr": lr, "T": T, "tau": tau}
        yield (
            "ExponentialWarmup",
            arguments,
            run(lr, T, lambda o: pytorch_warmup.ExponentialWarmup(o, tau)),
        )
    arguments = {"lr": 0.1, "T": 30, "beta2": 0.95}
    yield (
        "UntunedExponentialWarmup",
        arguments,
        run(0.1, 30, pytorch_warmup.UntunedExponentialWarmup),
    )


def timm_cases() -> Iterator[Case]:
    def run(lr: float, steps: int, kind: Any, **arguments: Any) -> list[float]:
        opt = optimizer(lr)
        scheduler = kind(opt, **arguments)
        rates = []
        for step in range(steps):
            scheduler.step(step)
            rates.append(opt.param_groups[0]["lr"])
        return rates

    for lr, T, low, W, w0 in ((0.5, 30, 0.01, 5, 1e-4), (3.2, 20, 0.0, 8, 0.1)):
        for prefix in (True, False):
            yield (
                "CosineLRScheduler" if prefix else "CosineLRScheduler, warmup_prefix=False",
                {"lr": lr, "T": T, "lr_min": low, "W": W, "w0": w0},
                run(
                    lr, T + W * prefix, timm.scheduler.CosineLRScheduler, t_initial=T, lr_min=low,
                    warmup_t=W, warmup_lr_init=w0, warmup_prefix=prefix,
                ),
            )  # fmt: skip
    for lr, milestones, rate, W, w0 in ((3.2, [10, 20, 27], 0.1, 5, 0.1), (0.1, [8], 0.5, 3, 0.0)):
        yield (
            "MultiStepLRScheduler",
            {"lr": lr, "milestones": milestones, "decay_rate": rate, "W": W, "w0": w0},
            run(
                lr, 30, timm.scheduler.MultiStepLRScheduler, decay_t=milestones, decay_rate=rate,
                warmup_t=W, warmup_lr_init=w0,
            ),
        )  # fmt: skip
    for lr, T, power, W, w0 in ((0.5, 30, 0.5, 5, 1e-4), (3.2, 20, 2.0, 8, 0.1)):
        yield (
            "PolyLRScheduler",
            {"lr": lr, "T": T, "power": power, "W": W, "w0": w0},
            run(
                lr, T + W, timm.scheduler.PolyLRScheduler, t_initial=T, power=power,
                warmup_t=W, warmup_lr_init=w0, warmup_prefix=True,
            ),
        )  # fmt: skip


def transformers_cases() -> Iterator[Case]:
    for lr, W, T in ((1.0, 5, 25), (0.1, 8, 40)):
        basic = {"lr": lr, "W": W, "T": T}
        yield (
            "get_constant_schedule_with_warmup",
            basic,
            follow(lr, lambda o: transformers.get_constant_schedule_with_warmup(o, W), T),
        )
        yield (
            "get_linear_schedule_with_warmup",
            basic,
            follow(lr, lambda o: transformers.get_linear_schedule_with_warmup(o, W, T), T + 3),
        )
        yield (
            "get_cosine_schedule_with_warmup",
            basic,
            follow(lr, lambda o: transformers.get_cosine_schedule_with_warmup(o, W, T), T),
        )
        yield (
            "get_cosine_with_hard_restarts_schedule_with_warmup",
            {**basic, "num_cycles": 4},
            follow(
                lr,
                lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
                    o, W, T, 4
                ),
                T,
            ),
        )
        yield (
            "get_polynomial_decay_schedule_with_warmup",
            {**basic, "lr_end": 1e-3, "power": 2.0},
            follow(
                lr,
                lambda o: transformers.get_polynomial_decay_schedule_with_warmup(
                    o, W, T, lr_end=1e-3, power=2.0
                ),
                T + 3,
            ),
        )
        for timescale in (W, 20):
            yield (
                "get_inverse_sqrt_schedule",
                {**basic, "timescale": timescale},
                follow(
                    lr,
                    lambda o: transformers.get_inverse_sqrt_schedule(o, W, timescale),
                    T,
                ),
            )
        for decay_type, decay in (("linear", "linear"), ("cosine", "cosine"), ("1-sqrt", "sqrt")):
            yield (
                "get_wsd_schedule",
                {"lr": lr, "W": W, "S": 6, "D": 9, "min_lr_ratio": 0.1, "decay": decay},
                follow(
                    lr,
                    lambda o: transformers.get_wsd_schedule(
                        o, W, 9, num_stable_steps=6, min_lr_ratio=0.1, decay_type=decay_type
                    ),
                    W + 6 + 9 + 2,
                ),
            )
        yield (
            "get_wsd_schedule, warmup_type='cosine'",
            {"lr": lr, "W": W},
            follow(
                lr,
                lambda o: transformers.get_wsd_schedule(
                    o, W, 1000, num_stable_steps=1000, warmup_type="cosine"
                ),
                W + 6,
            ),
        )


def fvcore_cases() -> Iterator[Case]:
    """Schedules of detectron2: a linear ramp over the first W of T updates, then a decay."""
    for lr, factor, W, T, milestones in (
        (0.02, 0.001, 5, 40, [20, 30]),
        (3.2, 1 / 32, 8, 50, [15, 35]),
        (0.02, 0.001, 1000, 4_000_000, [2_000_000]),
    ):
        inner = fv.MultiStepParamScheduler([lr, lr * 0.1, lr * 0.01][: len(milestones) + 1],
                                           num_updates=T, milestones=milestones)  # fmt: skip
        ramp = fv.LinearParamScheduler(factor * lr, lr)
        both = fv.CompositeParamScheduler([ramp, inner], [W / T, 1 - W / T], ["rescaled", "fixed"])
        arguments = {"lr": lr, "factor": factor, "W": W, "T": T, "milestones": milestones}
        if T < 100:
            yield "WarmupParamScheduler", arguments, [both(t / T) for t in range(T)]
        else:
            around = list(range(milestones[0] - 8, milestones[0] + 3))
            arguments["steps"] = around
            yield "WarmupParamScheduler, long run", arguments, [both(t / T) for t in around]


def keras_cases() -> Iterator[Case]:
    keras.config.set_floatx("float64")
    schedules = keras.optimizers.schedules

    def run(schedule: Any, steps: int) -> list[float]:
        return [float(schedule(step)) for step in range(steps)]

    for lr, init, W, T, alpha in ((1.0, 0.0, 5, 20, 0.0), (3.2, 0.1, 8, 30, 0.1)):
        yield (
            "CosineDecay",
            {"lr": lr, "init": init, "W": W, "T": T, "alpha": alpha},
            run(schedules.CosineDecay(init, T, alpha, warmup_target=lr, warmup_steps=W), W + T),
        )
    for boundaries, values in (([3, 8], [1.0, 0.5, 0.1]), ([0], [0.25, 0.125])):
        yield (
            "PiecewiseConstantDecay",
            {"boundaries": boundaries, "values": values},
            run(schedules.PiecewiseConstantDecay(boundaries, values), 15),
        )
    for lr, T, rate, staircase in ((0.1, 4, 0.5, False), (3.2, 5, 0.1, True)):
        yield (
            "ExponentialDecay",
            {"lr": lr, "T": T, "rate": rate, "staircase": staircase},
            run(schedules.ExponentialDecay(lr, T, rate, staircase), 20),
        )
    for lr, T, end, power in ((0.1, 15, 1e-3, 1.0), (3.2, 10, 0.1, 2.0)):
        yield (
            "PolynomialDecay",
            {"lr": lr, "T": T, "end": end, "power": power},
            run(schedules.PolynomialDecay(lr, T, end, power), 20),
        )
    for lr, T, t_mul, m_mul, alpha in ((0.1, 10, 2.0, 1.0, 0.0), (3.2, 8, 1.0, 0.5, 0.1)):
        yield (
            "CosineDecayRestarts",
            {"lr": lr, "T": T, "t_mul": t_mul, "m_mul": m_mul, "alpha": alpha},
            run(schedules.CosineDecayRestarts(lr, T, t_mul, m_mul, alpha), 29),
        )


PACKAGES = {
    "torch": torch_cases,
    "warmup-scheduler": gradual_warmup_scheduler_cases,
    "pytorch-warmup": pytorch_warmup_cases,
    "timm": timm_cases,
    "transformers": transformers_cases,
    "fvcore": fvcore_cases,
    "keras": keras_cases,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # about the order of steps and the epoch argument
    for package, cases in PACKAGES.items():
        lines = [
            json.dumps({"row": row, "arguments": arguments, "rates": rates})
            for row, arguments, rates in cases()
        ]
        version = importlib.metadata.version(package)
        head = f'{{"package": "{package}", "version": "{version}", "cases": [\n'
        target = Path(__file__).parent / f"{package}.json"
        target.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
        print(f"{target.name}: {len(lines)} cases of {package} {version}")
