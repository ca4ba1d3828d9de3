"""Where a run stands: steps, epochs, examples and rates, also where its minibatch has changed.

A run at one minibatch is a run of one phase, whose numbers are those of its `LargeMinibatchRecipe`.
When the minibatch changes, in the middle of an epoch or not, the new phase goes on at the next
example of the epoch's order; what does not fill one of its minibatches is dropped, as ever. Epochs
are counted from their ends: of an epoch of E steps at the new minibatch, E - r are taken as made
where r are still to come. So a phase lies at the end of the whole run as its recipe would make it,
shifted by a number of steps, and milestones stay at their epochs.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import optax

from optax_warmup import BatchSizePhase, BatchSizePhases, LargeMinibatchRecipe
from train.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run at one minibatch: k workers with n images each.

    Attributes:
        first_step: updates made before it.
        num_workers: k.
        batch_size_per_worker: n.
    """

    first_step: int
    num_workers: int
    batch_size_per_worker: int

    @property
    def batch_size(self) -> int:
        """The minibatch kn."""
        return self.num_workers * self.batch_size_per_worker


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """A phase, with the place in the data where it begins.

    Attributes:
        phase: its minibatch.
        epoch_steps: steps of a whole epoch.
        own_first: the first step, as a run that was made of such minibatches alone would count it.
        position: of the first example, in the order of the epoch.
    """

    phase: Phase
    epoch_steps: int
    own_first: int
    position: int

    def own_step(self, step: int) -> int:
        return step - self.phase.first_step + self.own_first

    def place(self, step: int) -> tuple[int, int]:
        """Epoch, and position in its order, of the first example of update `step`."""
        kn = self.phase.batch_size
        epoch, made = divmod(self.own_step(step), self.epoch_steps)
        if epoch == self.own_first // self.epoch_steps:  # the epoch within which it began
            return epoch, self.position + (step - self.phase.first_step) * kn
        return epoch, made * kn


class Timeline:
    """Steps, epochs, examples and rates of a run, over all its phases.

    Args:
        config: of the run.
        num_examples: images in the training set.
        phases: of the run, the last with the minibatch of `config`; left out, one from the start.
    """

    def __init__(self, config: Config, num_examples: int, phases: Sequence[Phase] = ()) -> None:
        self._config, self._num_examples = config, num_examples
        self.phases = tuple(phases) or (_phase(config, 0),)
        self._stretches: list[_Stretch] = []
        for phase in self.phases:
            epoch, position = self.place(phase.first_step) if self._stretches else (0, 0)
            epoch_steps = num_examples // phase.batch_size
            left = (num_examples - position) // phase.batch_size
            # Where no minibatch is left of the epoch, the next one begins.
            own_first = (epoch + 1) * epoch_steps - left
            position = position if left else 0
            self._stretches.append(_Stretch(phase, epoch_steps, own_first, position))

    def place(self, step: int) -> tuple[int, int]:
        """Say which examples update number `step`, from 0, begins with.

        Returns:
            The epoch, from 0, and the position in its order.
        """
        return self._stretch(step).place(step)

    def epoch(self, step: int) -> float:
        """Count the epochs after `step` updates."""
        stretch = self._stretch(step - 1)
        return stretch.own_step(step) / stretch.epoch_steps

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with the last of `step` updates."""
        stretch = self._stretch(step - 1)
        return stretch.own_step(step) % stretch.epoch_steps == 0

    def num_examples_seen(self, step: int) -> int:
        """Count the images used by the first `step` updates."""
        ends = [*(phase.first_step for phase in self.phases[1:]), step]
        return sum(
            max(min(end, step) - phase.first_step, 0) * phase.batch_size
            for phase, end in zip(self.phases, ends, strict=True)
        )

    @property
    def num_steps(self) -> int:
        """Updates in the whole run."""
        return self._run_step(-1, self._recipes[-1].num_steps)

    def schedule(self) -> optax.Schedule:
        """Learning rates over updates: those of the recipe, or of the phases where there are more.

        Raises:
            UsageError: if the recipe is impossible.
        """
        if len(self.phases) == 1:
            return self._recipes[0].schedule()
        return self.batch_size_phases().schedule()

    def batch_size_phases(self) -> BatchSizePhases:
        """The run as the library has it: cut where the minibatch changes, and at each milestone.

        At a change the rate is scaled to the new minibatch. Where that is a rise it is gradual,
        from the rate before and over the epochs of the warmup, unless there shall be none; a
        milestone meanwhile lowers what it leads to.
        """
        first = self._recipes[0]
        begins = [phase.first_step for phase in self.phases]
        is_constant = first.resolved_warmup == "constant"
        constant = min(first.warmup_steps, *self._ends) if is_constant else 0
        milestones = self._milestone_steps
        steps = sorted({constant, *begins, *milestones, self.num_steps})
        parts: list[BatchSizePhase] = []
        rate, warmup = self._config.base_learning_rate, 0
        for begin, end in itertools.pairwise(steps):
            recipe = self._recipes[sum(step <= begin for step in begins) - 1]
            if begin in begins:
                is_warmed = (
                    self._config.warmup != "none" if begin else first.resolved_warmup == "gradual"
                )
                warmup = _gradual_steps(recipe) if is_warmed else 0
            length = end - begin
            factor = recipe.decay_factor ** sum(step <= begin for step in milestones)
            if begin < constant:
                factor = self._config.base_learning_rate / recipe.peak_learning_rate
            rise = factor * recipe.peak_learning_rate - rate
            ramp = min(warmup, length) if rise > 0 else 0
            if 0 < ramp < warmup:  # the ramp goes on in the next part
                factor = (rate + rise * ramp / warmup) / recipe.peak_learning_rate
            warmup -= min(warmup, length)
            rate = factor * recipe.peak_learning_rate
            parts.append(
                BatchSizePhase(
                    num_epochs=length / recipe.steps_per_epoch,
                    batch_size=recipe.batch_size,
                    warmup_epochs=ramp / recipe.steps_per_epoch,
                    decay_factor=factor,
                )
            )
        return BatchSizePhases(
            num_examples=self._num_examples,
            phases=tuple(parts),
            base_learning_rate=self._config.base_learning_rate,
            base_batch_size=self._config.base_batch_size,
        )

    def describe(self) -> str:
        """The plan in words and as a table of rates, to be read before training."""
        if len(self.phases) == 1:
            return self._recipes[0].describe()
        plan = self.batch_size_phases()
        begins = [0, *plan.boundaries]
        warm = [begin + steps for begin, steps in zip(begins, plan.warmup_steps, strict=True)]
        steps = sorted({*begins, *warm, self.num_steps - 1})
        rates = np.asarray(self.schedule()(np.asarray(steps)))
        return "\n".join(
            [
                *(
                    f"{'minibatch' if phase.first_step == 0 else '':<16}k = {phase.num_workers} "
                    f"workers x n = {phase.batch_size_per_worker} images, kn = {phase.batch_size}, "
                    f"from step {phase.first_step}"
                    for phase in self.phases
                ),
                f"length          {self.num_steps} steps = {self._config.num_epochs:g} epochs",
                "",
                f"{'':<24}{'step':>10}{'epoch':>10}  learning rate",
                *(
                    f"{'':<24}{step:>10}{self.epoch(step):>10.2f}  {rate:.6g}"
                    for step, rate in zip(steps, rates, strict=True)
                ),
            ]
        )

    @cached_property
    def _recipes(self) -> list[LargeMinibatchRecipe]:
        """Of each phase, as if the whole run had its minibatch."""
        return [
            dataclasses.replace(
                self._config,
                num_workers=phase.num_workers,
                batch_size_per_worker=phase.batch_size_per_worker,
            ).large_minibatch_recipe(self._num_examples)
            for phase in self.phases
        ]

    @property
    def _ends(self) -> list[int]:
        """Updates made at the end of each phase."""
        return [*(phase.first_step for phase in self.phases[1:]), self.num_steps]

    @property
    def _milestone_steps(self) -> list[int]:
        """The first update after each milestone, in the phase in which it is reached."""
        steps: list[int] = []
        for milestones in zip(*(recipe.milestone_steps for recipe in self._recipes), strict=True):
            for index, end in enumerate(self._ends):
                # A milestone that lies between two phases is reached where the second begins.
                step = max(self._run_step(index, milestones[index]), self.phases[index].first_step)
                if step < end:
                    steps.append(step)
                    break
        return steps

    def _run_step(self, index: int, own_step: int) -> int:
        """Say at which step of the run a phase would be at a step of its recipe."""
        return own_step - self._stretches[index].own_first + self.phases[index].first_step

    def _stretch(self, step: int) -> _Stretch:
        """The one that makes update number `step`."""
        began = [stretch for stretch in self._stretches if stretch.phase.first_step <= step]
        return began[-1] if began else self._stretches[0]


def going_on(config: Config, num_examples: int, made: Sequence[Phase], step: int) -> Timeline:
    """The timeline of a run that goes on after `step` updates, perhaps at another minibatch.

    Args:
        config: of the run as it goes on.
        num_examples: images in the training set.
        made: phases of those updates; empty where there were none.
        step: updates made.
    """
    phase = _phase(config, step)
    is_same = bool(made) and dataclasses.replace(phase, first_step=made[-1].first_step) == made[-1]
    return Timeline(config, num_examples, made if is_same else (*made, phase))


def _gradual_steps(recipe: LargeMinibatchRecipe) -> int:
    """Steps that a gradual warmup takes at a recipe's minibatch, whatever its own warmup is."""
    level = dataclasses.replace(
        recipe,
        warmup="gradual",
        base_batch_size=recipe.batch_size,
        num_epochs=max(recipe.num_epochs, recipe.warmup_epochs),
        milestones=(),
    )
    return level.warmup_steps


def _phase(config: Config, first_step: int) -> Phase:
    return Phase(
        first_step=first_step,
        num_workers=config.num_workers,
        batch_size_per_worker=config.batch_size_per_worker,
    )
