"""Checkpoints on disk, through other devices, kills and donated buffers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.checkpoint import Checkpoints
from train.optimizer import make_optimizer
from train.recipes import digits
from train.state import TrainState
from train.workers import make_workers

REPOSITORY = Path(__file__).parents[2]

OPTIMIZER = make_optimizer(optax.constant_schedule(0.1))

# Bits that arithmetic or a conversion would not keep: two NaNs, infinity, -0, the smallest number.
AWKWARD = np.array([0x7FC00000, 0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32)


def make(step: int, num_devices: int = 8) -> TrainState:
    """A small state of the real form, with noise that differs from step to step."""
    rng = np.random.default_rng(step)
    noise = rng.normal(size=(7, 5)).astype(np.float32)
    params = {"conv": {"kernel": noise}, "bn": {"scale": AWKWARD.view(np.float32)}}
    opt_state = jax.tree.map(
        lambda x: jnp.full(x.shape, rng.normal(), x.dtype) if x.shape else x + x.dtype.type(step),
        OPTIMIZER.init(params),
    )
    state = TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"bn": {"mean": 2 * noise}},
        opt_state=opt_state,
    )
    return jax.device_put(state, make_workers(digits(), jax.devices()[:num_devices]).replicated)


def bits(state: TrainState) -> list[np.ndarray]:
    # Copies: buffers that are given away are overwritten.
    return [np.array(leaf).reshape(-1).view(np.uint32) for leaf in jax.tree.leaves(state)]


def assert_same(found: TrainState | None, expected: TrainState) -> None:
    assert found is not None
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
    for left, right in zip(bits(found), bits(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def save(folder: Path, *states: TrainState) -> None:
    checkpoints = Checkpoints(folder)
    for state in states:
        checkpoints.save(int(state.step), state)
    checkpoints.close()


def restore(folder: Path, like: TrainState) -> TrainState | None:
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path: Path):
    assert restore(tmp_path / "new", like=make(0)) is None


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (1, 8), (2, 4)])
def test_a_state_comes_back_bit_for_bit_on_any_devices(
    tmp_path: Path, saved_on: int, restored_on: int
):
    save(tmp_path, make(7, saved_on))
    like = make(0, restored_on)
    restored = restore(tmp_path, like)
    assert_same(restored, make(7))
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == wanted.sharding
        assert leaf.sharding.device_set == set(jax.devices()[:restored_on])


def test_the_newest_is_restored_and_three_are_kept(tmp_path: Path):
    save(tmp_path, *(make(step) for step in (2, 4, 10, 9 + 10, 100)))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [10, 19, 100]
    assert_same(restore(tmp_path, like=make(0)), make(100))


def test_what_is_on_disk_is_not_written_again(tmp_path: Path):
    first, second = make(5), make(6)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, first)
    checkpoints.save(5, second)  # while the first is perhaps still being written
    checkpoints.close()
    assert_same(restore(tmp_path, like=second), first)


def test_what_the_next_step_overwrites_is_saved_as_it_was(tmp_path: Path):
    """The state is given to the next step while it is still being written."""
    state = make(1)
    expected = bits(state)
    steps = jax.jit(lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    given_away: Any = state
    for _ in range(20):
        given_away = steps(given_away)
    jax.block_until_ready(given_away)
    checkpoints.close()
    restored = restore(tmp_path, like=given_away)
    assert restored is not None
    for left, right in zip(bits(restored), expected, strict=True):
        np.testing.assert_array_equal(left, right)


# Ends itself, without any cleaning up, as soon as there are traces of the second checkpoint.
KILLED_WHILE_SAVING = """
import os, pathlib, sys, threading, time
import jax.numpy as jnp
from train.checkpoint import Checkpoints
from train.state import TrainState

folder = pathlib.Path(sys.argv[1])

def make(step, size):
    params = {"w": jnp.full(size, step, jnp.float32)}
    return TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=())

checkpoints = Checkpoints(folder)
checkpoints.save(1, make(1, 20_000_000))
checkpoints.close()

def wait_for_traces():
    while not [path for path in folder.iterdir() if path.name.startswith("2")]:
        time.sleep(0.001)
    os._exit(9)

threading.Thread(target=wait_for_traces).start()
checkpoints = Checkpoints(folder)
checkpoints.save(2, make(2, 20_000_000))
checkpoints.close()  # an interpreter that ends sooner would not write it at all
"""


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_taken(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 9, run.stderr
    (unfinished,) = (path.name for path in tmp_path.iterdir() if path.name != "1")
    assert unfinished.startswith("2.")

    def like(step: int) -> TrainState:
        params = {"w": jnp.full(20_000_000, step, jnp.float32)}
        return TrainState(step=jnp.int32(step), params=params, batch_stats={}, opt_state=())

    assert_same(restore(tmp_path, like(0)), like(1))
    save(tmp_path, like(2))  # the remains are in nobody's way
    assert_same(restore(tmp_path, like(0)), like(2))
