"""`--extend`: a run continues with another length, as if it had been planned so from the start."""

from collections.abc import Sequence

import numpy as np

from train.config import Config
from train.errors import UsageError
from train.run.workdir import recorded_config
from train.timeline import Phase, Timeline


def schedule_before(
    config: Config, now: Timeline, phases: Sequence[Phase], num_examples: int, step: int
) -> Timeline | None:
    """The schedule that `--extend` replaces, after a check that it may.

    Args:
        config: configuration of the run that is about to resume.
        now: its timeline.
        phases: phases of the completed updates; empty if there are none.
        num_examples: images in the training set.
        step: completed updates.

    Returns:
        The timeline of the configuration in config.json; None if it has the same schedule.

    Raises:
        UsageError: if the new schedule would change the learning rate of a completed update, or
            ends before the next one.
    """
    experiment, workdir = config.experiment, config.output.workdir
    saved = recorded_config(workdir) if config.machine.extend else None
    if saved is None:
        return None
    old, new = saved.experiment.milestones, experiment.milestones
    if (saved.experiment.num_epochs, old) == (experiment.num_epochs, new):
        return None
    before = Timeline(saved.experiment, num_examples, phases)
    if not step:
        return before
    if now.num_steps <= step and now.num_steps != before.num_steps:
        raise UsageError(
            f"--num-epochs is {experiment.num_epochs:g}, which makes {now.num_steps} steps; it "
            f"must make more than the {step} steps that the run in --workdir {workdir} has "
            "completed"
        )
    steps = np.arange(step)
    # The tolerance covers rounding where a ramp is divided differently.
    if not np.allclose(before.schedule()(steps), now.schedule()(steps), rtol=1e-6, atol=0):
        epochs = before.epoch(step)
        passed, planned = ([m for m in some if m < epochs] for some in (old, new))
        changes = [
            f"{verb} {_listed(sorted(some))}"
            for verb, some in (
                ("drops", set(passed) - set(planned)),
                ("adds", set(planned) - set(passed)),
            )
            if some
        ]
        raise UsageError(
            f"--extend cannot change the learning rates of the {step} steps ({epochs:.4g} epochs) "
            f"that the run in --workdir {workdir} has completed, but --milestones "
            f"{' and '.join(changes)}; before epoch {epochs:.4g} keep {_listed(passed) or 'none'}, "
            "and change only later ones"
        )
    return before


def _listed(milestones: Sequence[float]) -> str:
    return " ".join(f"{milestone:g}" for milestone in milestones)
