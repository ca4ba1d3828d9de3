"""Everything that is decided before the first step: configuration, data, layout and schedule."""

import dataclasses

import jax

from train.config import Config
from train.data.records import Dataset
from train.step.workers import Workers
from train.timeline import Timeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is ready to start or to resume."""

    config: Config
    dataset: Dataset
    workers: Workers
    timeline: Timeline

    @property
    def last_step(self) -> int:
        """Number of completed updates at which the run ends."""
        num_steps = self.timeline.num_steps
        return min(num_steps, self.config.machine.num_steps or num_steps)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, ends after `step` updates."""
        return self.timeline.ends_epoch(step) or step == self.last_step

    def describe(self, width: int | None = None) -> str:
        """The plan in words and as a table of learning rates, to be read before training.

        Args:
            width: columns of the terminal, which the table must fit; None without one.
        """
        experiment, machine = self.config.experiment, self.config.machine
        devices = self.workers.mesh.devices.size
        at_a_time = experiment.num_workers // (devices * machine.accumulation_steps)
        size = f"{experiment.image_size} x {experiment.image_size} pixels"
        momentum = f"momentum {experiment.momentum:g}, " if experiment.optimizer != "lamb" else ""
        dataset, fingerprint = self.dataset, self.dataset.fingerprint
        identity = f"{dataset.name.split(':')[0]} {dataset.version}".rstrip()
        if fingerprint is not None:
            identity += f", fingerprint {fingerprint.short}"
        return "\n".join(
            [
                f"network         {experiment.model}, {experiment.dtype}, {size}",
                f"devices         {devices} x {jax.devices()[0].device_kind}, "
                f"{jax.process_count()} process(es)",
                f"workers         {at_a_time} on each device at a time, "
                f"{machine.accumulation_steps} accumulation step(s)",
                f"data            {identity}: {len(dataset.train)} training and "
                f"{len(dataset.evaluation)} test images, {dataset.num_classes} classes",
                f"starts from     {experiment.init_from or f'seed {experiment.seed}'}",
                f"optimizer       {experiment.optimizer}, {momentum}weight decay "
                f"{experiment.weight_decay:g}",
                f"writes to       {self.config.output.workdir}",
                self.timeline.describe(width),
                *([f"stops after     {machine.num_steps} steps"] if machine.num_steps else []),
            ]
        )


def make_plan(config: Config, dataset: Dataset, workers: Workers) -> Plan:
    """The plan of a run that starts from the beginning."""
    timeline = Timeline(config.experiment, len(dataset.train))
    return Plan(config=config, dataset=dataset, workers=workers, timeline=timeline)
