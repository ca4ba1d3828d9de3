"""Checkpoints of the training state by Orbax, each with a manifest.

Orbax writes in the background, into a temporary folder that it renames once it is complete, so a
kill leaves an intact checkpoint or none. The files are arrays (OCDBT, Zarr) and JSON. Nothing in
them is unpickled or evaluated, and no path is taken from them.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PolicyCheckpointInfo,
    PreservationContext,
    PreservationPolicy,
)

from train.config import Config, JsonObject
from train.data.fingerprint import Fingerprint, recorded_with
from train.errors import RunError, UsageError, from_os_error
from train.run.manifest import (
    corruption,
    move_corrupt,
    newest_first,
    read_manifest,
    version_change,
    write_manifest,
)
from train.step.network import Network, Tree
from train.step.state import TrainState
from train.step.workers import Workers
from train.timeline import Phase, Timeline

PHASES = "phases.json"


@dataclasses.dataclass
class _Pending:
    """What the background thread writes next to the arrays of a checkpoint."""

    step: int
    phases: Sequence[Phase]


class Checkpoints:
    """The checkpoints of one run, numbered by step; the newest few and the best are kept.

    Opening moves every corrupt checkpoint newer than the last intact one to `damaged/`.

    Args:
        folder: absolute path of the folder, created if missing.
        config: the run's configuration, recorded with each checkpoint.
        fingerprint: fingerprint of the run's data, recorded next to it; None for synthetic data.

    Attributes:
        moved: one line for each corrupt checkpoint that was moved.
        newest_step: step of the newest checkpoint on opening; 0 if there is none.
        phases: phases of the run up to that step.
    """

    def __init__(
        self, folder: Path, config: Config, fingerprint: Fingerprint | None = None
    ) -> None:
        self._folder = epath.Path(folder)
        self._config = recorded_with(json.loads(config.to_json()), fingerprint)
        self._pending, self._best = None, _Best()
        self.moved: list[str] = []
        if jax.process_index() == 0:  # the others block on it when they create the manager
            self.moved = move_corrupt(self._folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(config.output.keep_checkpoints), self._best]
                ),
                cleanup_tmp_directories=True,  # unfinished checkpoints of a killed process
                lightweight_initialize=True,  # do not open older ones, which may be corrupt
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._finalize),
            ),
        )
        self.newest_step = self._manager.latest_step() or 0
        self.phases = _read_phases(self._folder / str(self.newest_step)) if self.newest_step else ()

    def save(
        self, step: int, state: TrainState, phases: Sequence[Phase], errors: Mapping[int, float]
    ) -> None:
        """Write the state after `step` updates in the background, unless it exists already.

        Args:
            step: completed updates.
            state: state after them; it may be donated as soon as this returns.
            phases: phases of the run up to this step.
            errors: test error of every evaluation so far, by step; the checkpoint with the lowest
                is kept.

        Raises:
            RunError: if this checkpoint, or the previous one in the background, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()  # its thread still reads `_pending`
            self._pending, self._best.errors = _Pending(step, phases), dict(errors)
            self._manager.save(step, args=ocp.args.StandardSave(_to_tree(state)), force=True)

    def restore(self, abstract: TrainState) -> TrainState | None:
        """Load the newest state.

        Args:
            abstract: shapes, dtypes and shardings of the state.

        Returns:
            The state; None if there is no checkpoint.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        args = ocp.args.StandardRestore(_to_tree(abstract))
        return _from_tree(self._manager.restore(step, args=args))

    def close(self) -> None:
        """Block until everything saved is on disk.

        Raises:
            RunError: if it cannot be written.
        """
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """When a run fails, finish the pending save and name the newest checkpoint."""
        if isinstance(error, RunError | OSError):
            with contextlib.suppress(RunError):
                self.close()
            line = from_os_error(error) if isinstance(error, OSError) else error
            newest = newest_first(self._folder)
            last = f"the last good checkpoint is {newest[0]}" if newest else "no checkpoint yet"
            raise RunError(f"{line}; {last}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                reason = str(from_os_error(error))
            else:  # tensorstore's error; its last clause is the operating system's reason
                reason = str(error).splitlines()[0].split(" [os_error")[0].rsplit(": ", 1)[-1]
            step = self._pending.step if self._pending else self.newest_step
            raise RunError(f"checkpoint {step} cannot be written: {reason}") from error

    def _finalize(self) -> None:
        """Add phases and manifest; process 0 calls it in the background before the rename."""
        assert self._pending is not None
        step, phases = str(self._pending.step), self._pending.phases
        (folder,) = (path for path in self._folder.iterdir() if path.name.split(".")[0] == step)
        text = json.dumps([dataclasses.asdict(phase) for phase in phases])
        (folder / PHASES).write_text(text + "\n")
        write_manifest(folder, self._config)


@dataclasses.dataclass
class _Best(PreservationPolicy):
    """Keep the checkpoint with the lowest error, the newest one of equals."""

    errors: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        evaluated = [info.step for info in checkpoints if info.step in self.errors]
        best = min(evaluated, key=lambda step: (self.errors[step], -step), default=None)
        return [info.step == best for info in checkpoints]


class CheckpointTimes:
    """Decides when a checkpoint is due: by epochs, by steps, or by minutes since the last one."""

    def __init__(self, config: Config, timeline: Timeline) -> None:
        self._output, self._timeline = config.output, timeline
        self._seconds = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates. If so, the minutes restart."""
        output, epochs = self._output, self._timeline.epoch(step)
        steps, minutes = output.checkpoint_every_steps, output.checkpoint_every_minutes
        is_due = (
            (self._timeline.ends_epoch(step) and epochs % output.checkpoint_every_epochs == 0)
            or (steps is not None and step % steps == 0)
            or (minutes is not None and self._have_passed(minutes, step))
        )
        if is_due:
            self._seconds = time.monotonic()
        return is_due

    def _have_passed(self, minutes: float, step: int) -> bool:
        """Ask the clock of process 0. The broadcast blocks, so only logging steps do it."""
        have_passed = time.monotonic() - self._seconds >= 60 * minutes
        if jax.process_count() == 1:
            return have_passed
        if step % self._output.log_every_steps:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.int32(have_passed)))


def load_network(
    path: Path, workers: Workers, say: Callable[[str], None] = print
) -> tuple[int, Network]:
    """Load the network of a run's newest intact checkpoint, or of a given checkpoint.

    Args:
        path: a run's workdir, or `checkpoints/STEP` in one.
        workers: layout over the devices; the network is replicated.
        say: called with a line for each newer checkpoint that is corrupt, and for other versions.

    Returns:
        The number of completed updates, and the network.

    Raises:
        UsageError: if there is no checkpoint, or the given one is corrupt.
    """
    folder = epath.Path(path.absolute())
    if folder.parent.name == "checkpoints" and folder.name.isdecimal():
        checkpoints = [folder] if folder.is_dir() else []
    else:
        checkpoints = newest_first(folder / "checkpoints")
    if not checkpoints:
        raise UsageError(f"{path} has no checkpoint")
    for checkpoint in checkpoints:
        if not (reason := corruption(checkpoint)):
            if change := version_change(checkpoint):
                say(change)
            return int(checkpoint.name), _load_network(checkpoint, workers)
        say(f"{checkpoint} is corrupt: {reason}")
    raise UsageError(f"{path} has no intact checkpoint")


def _load_network(checkpoint: epath.Path, workers: Workers) -> Network:
    step = int(checkpoint.name)
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    handler = ocp.PyTreeCheckpointHandler()  # the only one that can skip the optimizer's state
    with ocp.CheckpointManager(
        checkpoint.parent, options=options, item_handlers=handler
    ) as manager:
        tree: Tree = manager.item_metadata(step)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=workers.replicated),
            {name: tree[name] for name in ("params", "batch_stats")},
        )
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        return Network(**manager.restore(step, args=arguments))


def _read_phases(checkpoint: epath.Path) -> tuple[Phase, ...]:
    """Read the phases that a run has gone through, from one of its checkpoints."""
    if (path := checkpoint / PHASES).exists():
        return tuple(Phase(**phase) for phase in json.loads(path.read_text()))
    # A checkpoint from before phases were recorded has one phase.
    config: JsonObject = read_manifest(checkpoint)["config"]
    sizes = {name: config[name] for name in ("num_workers", "batch_size_per_worker")}
    return (Phase(first_step=0, **sizes),)


def _to_tree(state: TrainState) -> JsonObject:
    """The state as the tree on disk, which knows no nested network."""
    network = state.network
    tree: JsonObject = {
        "step": state.step,
        "params": network.params,
        "batch_stats": network.batch_stats,
        "opt_state": state.opt_state,
    }
    return tree if state.noise_scale is None else tree | {"noise_scale": state.noise_scale}


def _from_tree(tree: Tree) -> TrainState:
    return TrainState(
        step=tree["step"],
        network=Network(params=tree["params"], batch_stats=tree["batch_stats"]),
        opt_state=tree["opt_state"],
        noise_scale=tree.get("noise_scale"),
    )
