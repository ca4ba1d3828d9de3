"""Maps steps to epochs, examples and learning rates, for runs whose batch size may change.

A run with one batch size has one phase, and its numbers are those of its `LargeMinibatchRecipe`;
readers who need no more may skip the rest of this file.

A change of the batch size starts a new phase at the next example of the epoch's order, possibly in
the middle of an epoch. Examples that do not fill a minibatch are dropped at the end of the epoch,
as always. Epochs are counted from their ends: if r of the E steps that an epoch has at the new
batch size remain, E - r count as completed. A phase is therefore the end of a whole run with its
batch size, shifted by a number of steps, and milestones stay at their epochs.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cached_property

import optax

from optax_warmup import BatchSizePhase, BatchSizePhases, LargeMinibatchRecipe, epochs_to_steps
from train.config import Experiment
from train.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run with one batch size: k workers with n images each."""

    first_step: int
    """Updates completed before the phase."""
    num_workers: int
    """k."""
    batch_size_per_worker: int
    """n."""

    @property
    def batch_size(self) -> int:
        """Images in a minibatch: kn."""
        return self.num_workers * self.batch_size_per_worker


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A phase and the place in the data at which it starts."""

    phase: Phase
    steps_per_epoch: int
    own_first: int
    """Index that `phase.first_step` would have if the whole run had used this batch size."""
    position: int
    """Position of the first example in the order of its epoch."""

    def own_step(self, step: int) -> int:
        """Index that `step` would have if the whole run had used this batch size."""
        return step - self.phase.first_step + self.own_first

    def place(self, step: int) -> tuple[int, int]:
        """Epoch of update `step`, and the position of its first example in the epoch's order."""
        kn = self.phase.batch_size
        epoch, completed = divmod(self.own_step(step), self.steps_per_epoch)
        if epoch == self.own_first // self.steps_per_epoch:  # the epoch in which the phase starts
            return epoch, self.position + (step - self.phase.first_step) * kn
        return epoch, completed * kn


class Timeline:
    """Steps, epochs, examples and learning rates of a run over all its phases.

    Args:
        experiment: the run's experiment.
        num_examples: images in the training set.
        phases: phases of the run; the last one has the batch size of `experiment`. Default: one
            phase from the start.
    """

    def __init__(
        self, experiment: Experiment, num_examples: int, phases: Sequence[Phase] = ()
    ) -> None:
        self._experiment, self._num_examples = experiment, num_examples
        self.phases = tuple(phases) or (_phase(experiment, 0),)
        self._segments: list[_Segment] = []
        for phase in self.phases:
            epoch, position = self.place(phase.first_step) if self._segments else (0, 0)
            steps_per_epoch = num_examples // phase.batch_size
            remaining = (num_examples - position) // phase.batch_size
            # If less than a minibatch remains of the epoch, the phase starts with the next one.
            own_first = (epoch + 1) * steps_per_epoch - remaining
            position = position if remaining else 0
            self._segments.append(_Segment(phase, steps_per_epoch, own_first, position))

    def place(self, step: int) -> tuple[int, int]:
        """Epoch and position in the epoch's order of the first example of update `step`.

        All three count from 0.
        """
        return self._segment(step).place(step)

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` updates."""
        segment = self._segment(step - 1)
        return segment.own_step(step) / segment.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends with the last of `step` updates."""
        segment = self._segment(step - 1)
        return segment.own_step(step) % segment.steps_per_epoch == 0

    def num_examples_seen(self, step: int) -> int:
        """Images used by the first `step` updates."""
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
        """Learning rate of each update.

        Raises:
            UsageError: if the recipe is impossible.
        """
        return self._rates.schedule()

    def describe(self, width: int | None = None) -> str:
        """The plan in words and as a table of rates, for a terminal of a number of columns."""
        if isinstance(self._rates, LargeMinibatchRecipe):
            return self._rates.describe(width=width)
        workers = [
            f"{'minibatch' if phase.first_step == 0 else '':<16}k = {phase.num_workers} workers x "
            f"n = {phase.batch_size_per_worker} images, kn = {phase.batch_size}, from step "
            f"{phase.first_step}"
            for phase in self.phases
        ]
        return "\n".join([*workers, self._rates.describe(epoch_of=self.epoch, width=width)])

    @cached_property
    def _rates(self) -> LargeMinibatchRecipe | BatchSizePhases:
        return self._recipes[0] if len(self.phases) == 1 else self.batch_size_phases()

    def batch_size_phases(self) -> BatchSizePhases:
        """The run as the library describes it, divided at batch-size changes and milestones.

        At a change the learning rate is scaled to the new batch size. An increase is ramped
        linearly over the warmup's epochs, unless the warmup is "none"; a milestone during the ramp
        lowers the rate that it leads to.
        """
        first = self._recipes[0]
        starts = [phase.first_step for phase in self.phases]
        is_constant = first.resolved_warmup == "constant"
        constant = min(first.warmup_steps, *self._ends) if is_constant else 0
        milestones = self._milestone_steps
        steps = sorted({constant, *starts, *milestones, self.num_steps})
        parts: list[BatchSizePhase] = []
        base_rate = self._experiment.base_learning_rate
        rate, warmup = base_rate, 0
        for start, end in itertools.pairwise(steps):
            recipe = self._recipes[sum(step <= start for step in starts) - 1]
            if start in starts:
                is_warmed_up = (
                    self._experiment.warmup != "none"
                    if start
                    else first.resolved_warmup == "gradual"
                )
                warmup = self._warmup_steps(recipe) if is_warmed_up else 0
            length = end - start
            factor = recipe.decay_factor ** sum(step <= start for step in milestones)
            if start < constant:
                factor = base_rate / recipe.peak_learning_rate
            rise = factor * recipe.peak_learning_rate - rate
            ramp = min(warmup, length) if rise > 0 else 0
            if 0 < ramp < warmup:  # the ramp continues in the next part
                factor = (rate + rise * ramp / warmup) / recipe.peak_learning_rate
            warmup -= min(warmup, length)
            rate = factor * recipe.peak_learning_rate
            parts.append(
                BatchSizePhase(
                    batch_size=recipe.batch_size,
                    num_steps=length,
                    warmup_steps=ramp,
                    decay_factor=factor,
                )
            )
        return BatchSizePhases(
            num_examples=self._num_examples,
            phases=tuple(parts),
            base_learning_rate=base_rate,
            base_batch_size=self._experiment.base_batch_size,
            scaling=self._experiment.scaling,
        )

    def _warmup_steps(self, recipe: LargeMinibatchRecipe) -> int:
        """Steps of a gradual warmup at a recipe's batch size, even if its own warmup is "none"."""
        return epochs_to_steps(self._experiment.warmup_epochs, recipe.steps_per_epoch)

    @cached_property
    def _recipes(self) -> list[LargeMinibatchRecipe]:
        """Recipe of each phase, as if the whole run had its batch size."""
        return [
            dataclasses.replace(
                self._experiment,
                num_workers=phase.num_workers,
                batch_size_per_worker=phase.batch_size_per_worker,
            ).large_minibatch_recipe(self._num_examples)
            for phase in self.phases
        ]

    @property
    def _ends(self) -> list[int]:
        """Updates completed at the end of each phase."""
        return [*(phase.first_step for phase in self.phases[1:]), self.num_steps]

    @property
    def _milestone_steps(self) -> list[int]:
        """The first update after each milestone, in the phase in which it is reached."""
        steps: list[int] = []
        for milestones in zip(*(recipe.milestone_steps for recipe in self._recipes), strict=True):
            for index, end in enumerate(self._ends):
                # A milestone between two phases is reached when the second one starts.
                step = max(self._run_step(index, milestones[index]), self.phases[index].first_step)
                if step < end:
                    steps.append(step)
                    break
        return steps

    def _run_step(self, index: int, own_step: int) -> int:
        """Step of the run that corresponds to a step of the recipe of phase `index`."""
        return own_step - self._segments[index].own_first + self.phases[index].first_step

    def _segment(self, step: int) -> _Segment:
        """The segment that contains update `step`."""
        started = [segment for segment in self._segments if segment.phase.first_step <= step]
        return started[-1] if started else self._segments[0]


def resume_timeline(
    experiment: Experiment, num_examples: int, phases: Sequence[Phase], step: int
) -> Timeline:
    """Timeline of a run resumed after `step` updates, possibly with a new batch size or other data.

    If the number of images has changed, epochs are counted as if it had always been the new one.

    Args:
        experiment: the experiment of the resumed run.
        num_examples: images in the training set.
        phases: phases of the completed updates; empty if there are none.
        step: completed updates.

    Raises:
        UsageError: if the images are too few for a minibatch of an earlier phase.
    """
    largest = max((phase.batch_size for phase in phases), default=0)
    if largest > num_examples:
        raise UsageError(
            f"the run so far used minibatches of up to {largest} images, more than the "
            f"{num_examples} training images that there are now; restore the data"
        )
    phase = _phase(experiment, step)
    is_same = bool(phases) and phase == dataclasses.replace(phases[-1], first_step=step)
    return Timeline(experiment, num_examples, phases if is_same else (*phases, phase))


def _phase(experiment: Experiment, first_step: int) -> Phase:
    return Phase(
        first_step=first_step,
        num_workers=experiment.num_workers,
        batch_size_per_worker=experiment.batch_size_per_worker,
    )
