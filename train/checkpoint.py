"""Checkpoints of the state, by Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from train.config import UsageError
from train.state import Network, TrainState
from train.workers import Workers


class Checkpoints:
    """The checkpoints of one run, numbered by step; the newest three are kept.

    Args:
        folder: where they are; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=3, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: TrainState) -> None:
        """Write the state after `step` updates in the background, unless it is there already."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))

    def restore(self, like: TrainState) -> TrainState | None:
        """Load the newest state, with the shapes and shardings of `like`; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_dict(like))
        return TrainState(**self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))

    def close(self) -> None:
        """Wait until what was saved is on disk."""
        self._manager.close()


def load_network(path: Path, workers: Workers) -> Network:
    """Load the network of a run's newest checkpoint, or of the one given.

    Args:
        path: a run's workdir, or `checkpoints/STEP` in one.
        workers: on whose devices it is put, whole on each.

    Raises:
        UsageError: if there is no checkpoint.
    """
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path.parent
    if folder.name != "checkpoints" or not folder.is_dir():
        raise UsageError(f"{path} holds no checkpoint")
    options = ocp.CheckpointManagerOptions(create=False)
    handler = ocp.StandardCheckpointHandler()  # named, so that shapes can be asked for first
    with ocp.CheckpointManager(
        folder.absolute(), options=options, item_handlers=handler
    ) as manager:
        step = (
            int(path.name)
            if path.parent == folder and path.name.isdigit()
            else manager.latest_step()
        )
        if step not in manager.all_steps():
            raise UsageError(f"{path} holds no checkpoint")
        shapes = manager.item_metadata(step)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=workers.replicated),
            {name: shapes[name] for name in ("step", "params", "batch_stats", "opt_state")},
        )
        saved = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    return Network(
        step=int(saved["step"]), params=saved["params"], batch_stats=saved["batch_stats"]
    )


def _as_dict(state: TrainState) -> dict[str, object]:
    return {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state")}
