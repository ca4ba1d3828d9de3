"""Checkpoints of the state, by Orbax, each with a manifest of what its files were when written.

Orbax writes in the background, into a temporary folder that it renames when all is there, so that a
kill leaves a whole checkpoint or none. A byte that changes later it would not notice: therefore
`manifest.json` holds the SHA-256 of each file, and what differs from it is never restored. The
files are arrays (OCDBT, Zarr) and JSON; nothing in them is unpickled or evaluated, and no path is
taken from them: only those of the folder itself are read, and compared with the manifest.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

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

from train.config import MINIBATCH_FIELDS, Config, RunError, UsageError, refused
from train.step.state import Network, TrainState
from train.step.workers import Workers
from train.timeline import Phase, Timeline

MANIFEST = "manifest.json"
PHASES = "phases.json"
DAMAGED = "damaged"

# Orbax writes these after the manifest; they say when a checkpoint was written, not what is in it.
UNSIGNED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "grain", "orbax-checkpoint")


class Checkpoints:
    """The checkpoints of one run, numbered by step; the newest few and the best are kept.

    To open them sets aside each that is newer than the newest whole one, in `damaged/`.

    Args:
        folder: where they are, absolute, or any path that epath takes; made if missing.
        config: of the run; written beside each checkpoint, with the versions of the packages.

    Attributes:
        set_aside: one line for each checkpoint that was damaged.
        newest_step: of the newest checkpoint when they were opened; 0 if there was none.
        phases: of the run up to there; to be set to those of the run that goes on, which each
            checkpoint holds.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder = epath.Path(folder)
        self._about = {"config": json.loads(config.to_json()), "versions": versions()}
        self._step: int | None = None
        self._best = _Best()
        self.set_aside: list[str] = []
        if jax.process_index() == 0:  # the others wait for it where the manager is made
            self.set_aside = _set_aside_damaged(self._folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(config.keep_checkpoints), self._best]
                ),
                cleanup_tmp_directories=True,  # what a kill kept from becoming a checkpoint
                lightweight_initialize=True,  # older ones may be damaged: they are not opened
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._sign),
            ),
        )
        self.newest_step = self._manager.latest_step() or 0
        self.phases = _phases(self._folder / str(self.newest_step)) if self.newest_step else ()

    def save(self, step: int, state: TrainState, errors: Mapping[int, float]) -> None:
        """Write the state after `step` updates in the background, unless it is there already.

        Args:
            step: updates made.
            state: after them; it may be given away as soon as this returns.
            errors: of all evaluations so far, by step; the checkpoint with the least is kept.

        Raises:
            RunError: if it, or the one before in the background, could not be written.
        """
        if step in self._manager.all_steps():
            return
        with self._writing():
            self._manager.wait_until_finished()  # the one before is signed by its own step
            self._step, self._best.errors = step, dict(errors)
            self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)), force=True)

    def restore(self, like: TrainState) -> TrainState | None:
        """Load the newest state, with the shapes and shardings of `like`; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(like))
        return TrainState(**self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))

    def close(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            RunError: if it could not be written.
        """
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Finish what is being saved when a run fails, and name the checkpoint that it leaves."""
        if isinstance(error, RunError | OSError):
            with contextlib.suppress(RunError):
                self.close()
            line = refused(error) if isinstance(error, OSError) else error
            newest = _newest_first(self._folder)
            last = f"the last good one is {newest[0]}" if newest else "there is none yet"
            raise RunError(f"{line}; of checkpoints, {last}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"checkpoint {self._step} cannot be written: {refused(error)}"
            ) from error
        except ValueError as error:  # tensorstore's; its last clause is the system's reason
            reason = str(error).splitlines()[0].split(" [os_error")[0].rsplit(": ", 1)[-1]
            raise RunError(f"checkpoint {self._step} cannot be written: {reason}") from error

    def _sign(self) -> None:
        """Write phases and manifest; called in the background, by process 0, before it is valid."""
        (folder,) = (
            path for path in self._folder.iterdir() if path.name.split(".")[0] == str(self._step)
        )
        phases = [dataclasses.asdict(phase) for phase in self.phases]
        (folder / PHASES).write_text(json.dumps(phases) + "\n")
        manifest = self._about | {"sha256": _digests(folder)}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@dataclasses.dataclass
class _Best(PreservationPolicy):
    """Preserve the checkpoint with the least error, of several the newest."""

    errors: dict[int, float] = dataclasses.field(default_factory=dict)

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        evaluated = [info.step for info in checkpoints if info.step in self.errors]
        best = min(evaluated, key=lambda step: (self.errors[step], -step), default=None)
        return [info.step == best for info in checkpoints]


class CheckpointTimes:
    """Says when a checkpoint is due: by epochs, by steps, or by minutes since the last one."""

    def __init__(self, config: Config, timeline: Timeline) -> None:
        self._config, self._timeline = config, timeline
        self._seconds = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether one is due after `step` updates; the minutes begin anew if so."""
        ends_epoch, epochs = self._timeline.ends_epoch(step), self._timeline.epoch(step)
        every_steps, minutes = (
            self._config.checkpoint_every_steps,
            self._config.checkpoint_every_minutes,
        )
        is_due = (
            (ends_epoch and epochs % self._config.checkpoint_every_epochs == 0)
            or (every_steps is not None and step % every_steps == 0)
            or (minutes is not None and self._have_passed(minutes, step))
        )
        if is_due:
            self._seconds = time.monotonic()
        return is_due

    def _have_passed(self, minutes: float, step: int) -> bool:
        """By the clock of process 0; to ask it takes a wait, so that it is not asked every step."""
        have_passed = time.monotonic() - self._seconds >= 60 * minutes
        if jax.process_count() == 1:
            return have_passed
        if step % self._config.log_every_steps:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.int32(have_passed)))


def load_network(path: Path, workers: Workers, say: Callable[[str], None] = print) -> Network:
    """Load the network of a run's newest whole checkpoint, or of the one given.

    Args:
        path: a run's workdir, or `checkpoints/STEP` in one.
        workers: on whose devices it is put, whole on each.
        say: called with a line for each newer checkpoint that is damaged.

    Raises:
        UsageError: if there is no checkpoint, or if the one given is damaged.
    """
    folder = epath.Path(path.absolute())
    if folder.parent.name == "checkpoints" and folder.name.isdecimal():
        checkpoints = [folder] if folder.is_dir() else []
    else:
        checkpoints = _newest_first(folder / "checkpoints")
    if not checkpoints:
        raise UsageError(f"{path} holds no checkpoint")
    for checkpoint in checkpoints:
        if not (damage := _damage(checkpoint)):
            return _load_network(checkpoint, workers)
        say(f"{checkpoint} is damaged: {damage}")
    raise UsageError(f"{path} holds no checkpoint that is whole")


def _load_network(checkpoint: epath.Path, workers: Workers) -> Network:
    step = int(checkpoint.name)
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    handler = ocp.PyTreeCheckpointHandler()  # which can leave the optimizer's state where it is
    with ocp.CheckpointManager(
        checkpoint.parent, options=options, item_handlers=handler
    ) as manager:
        tree: Any = manager.item_metadata(step)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=workers.replicated),
            {name: tree[name] for name in ("step", "params", "batch_stats")},
        )
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        saved = manager.restore(step, args=arguments)
    return Network(
        step=int(saved["step"]), params=saved["params"], batch_stats=saved["batch_stats"]
    )


def _phases(checkpoint: epath.Path) -> tuple[Phase, ...]:
    """Read of which phases a run was made up to a checkpoint."""
    if (path := checkpoint / PHASES).exists():
        return tuple(Phase(**phase) for phase in json.loads(path.read_text()))
    # A checkpoint that is older than the file is of one phase.
    config = json.loads((checkpoint / MANIFEST).read_text())["config"]
    return (Phase(first_step=0, **{name: config[name] for name in MINIBATCH_FIELDS}),)


def _newest_first(folder: epath.Path) -> list[epath.Path]:
    """Checkpoints in a folder, whole or not."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch("[1-9][0-9]*", path.name))
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _set_aside_damaged(folder: epath.Path) -> list[str]:
    """Move each checkpoint that is newer than the newest whole one into `damaged/`."""
    lines = []
    for checkpoint in _newest_first(folder):
        if not (damage := _damage(checkpoint)):
            break
        number, target = 1, folder / DAMAGED / checkpoint.name
        while target.exists():  # a checkpoint of the same step was damaged before
            number += 1
            target = folder / DAMAGED / f"{checkpoint.name}.{number}"
        target.parent.mkdir(exist_ok=True)
        checkpoint.rename(target)
        lines.append(f"checkpoint {checkpoint.name} is damaged: {damage}; set aside as {target}")
    return lines


def _damage(checkpoint: epath.Path) -> str:
    """Say how a checkpoint differs from its manifest; empty if it is whole."""
    try:
        written = json.loads((checkpoint / MANIFEST).read_text())["sha256"].items()
        differing = {name for name, _ in written ^ _digests(checkpoint).items()}
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not as it was written"
    return f"{min(differing)} is not as it was written" if differing else ""


def _digests(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of each file in a checkpoint, by its path in it."""
    digests = {}
    for path in sorted(root / name for root, _, names in folder.walk() for name in names):
        name = str(path.relative_to(folder))
        if name not in UNSIGNED:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
            digests[name] = digest.hexdigest()
    return digests


def versions() -> dict[str, str]:
    """Of the packages on which the numbers of a run depend, by name."""
    python = {"python": sys.version.split()[0]}
    return python | {name: importlib.metadata.version(name) for name in PACKAGES}


def _as_dict(state: TrainState) -> dict[str, object]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    # None is not written: without the noise scale a checkpoint is what it was before there was one.
    return {name: value for name, value in fields.items() if value is not None}
