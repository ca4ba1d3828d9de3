"""Checkpoints of the state, by Orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from train.state import TrainState


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


def _as_dict(state: TrainState) -> dict[str, object]:
    return {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state")}
