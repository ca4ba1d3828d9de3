"""Checkpoints across changes of devices, kills, corruption and donated buffers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_warmup
from train.config import Config
from train.data.fingerprint import Fingerprint, recorded_in
from train.errors import UsageError
from train.recipes import digits
from train.run.checkpoint import Checkpoints, CheckpointTimes, load_network
from train.run.manifest import version_change
from train.step.network import Network
from train.step.optimizer import make_optimizer
from train.step.state import TrainState
from train.step.workers import make_workers
from train.timeline import Phase, Timeline

REPOSITORY = Path(__file__).parents[3]

OPTIMIZER = make_optimizer(optax.constant_schedule(0.1))

# Bits that arithmetic or a conversion could change: two NaNs, -infinity, -0, the least subnormal.
AWKWARD = np.array([0x7FC00000, 0x7FC00001, 0xFF800000, 0x80000000, 1], np.uint32)

PHASES = (Phase(first_step=0, num_workers=8, batch_size_per_worker=16),)


def make(step: int, num_devices: int = 8) -> TrainState:
    """A small training state, filled with noise that depends on the step."""
    rng = np.random.default_rng(step)
    noise = rng.normal(size=(7, 5)).astype(np.float32)
    params = {"conv": {"kernel": noise}, "bn": {"scale": AWKWARD.view(np.float32)}}
    opt_state = jax.tree.map(
        lambda x: jnp.full(x.shape, rng.normal(), x.dtype) if x.shape else x + x.dtype.type(step),
        OPTIMIZER.init(params),
    )
    state = TrainState(
        step=jnp.int32(step),
        network=Network(params=params, batch_stats={"bn": {"mean": 2 * noise}}),
        opt_state=opt_state,
    )
    return jax.device_put(state, make_workers(digits(), jax.devices()[:num_devices]).replicated)


def bits(state: TrainState) -> list[np.ndarray]:
    # Copies, because donated buffers are overwritten.
    return [np.array(leaf).reshape(-1).view(np.uint32) for leaf in jax.tree.leaves(state)]


def assert_same(found: TrainState | None, expected: TrainState) -> None:
    assert found is not None
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
    for left, right in zip(bits(found), bits(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def opened(folder: Path, **changes: Any) -> Checkpoints:
    return Checkpoints(folder, digits().replace(**changes))


def save(folder: Path, *states: TrainState, errors: dict[int, float] | None = None) -> None:
    checkpoints = opened(folder)
    for state in states:
        checkpoints.save(int(state.step), state, PHASES, errors or {})
    checkpoints.close()


def restore(folder: Path, like: TrainState) -> TrainState | None:
    checkpoints = opened(folder)
    restored = checkpoints.restore(like)
    checkpoints.close()
    return restored


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name != "damaged")


def files_of(checkpoint: Path) -> list[str]:
    return sorted(
        str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()
    )


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path: Path):
    assert restore(tmp_path / "new", like=make(0)) is None


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 8), (8, 1), (1, 8), (2, 4)])
def test_state_is_restored_bit_for_bit_on_any_devices(
    tmp_path: Path, saved_on: int, restored_on: int
):
    save(tmp_path, make(7, saved_on))
    like = make(0, restored_on)
    restored = restore(tmp_path, like)
    assert_same(restored, make(7))
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding == wanted.sharding
        assert leaf.sharding.device_set == set(jax.devices()[:restored_on])


def test_newest_checkpoint_is_restored_and_three_are_kept(tmp_path: Path):
    save(tmp_path, *(make(step) for step in (2, 4, 10, 9 + 10, 100)))
    assert steps_in(tmp_path) == [10, 19, 100]
    assert_same(restore(tmp_path, like=make(0)), make(100))


def test_best_checkpoint_is_kept_across_resumes(tmp_path: Path):
    errors = {1: 0.5, 2: 0.1, 3: 0.1, 5: 0.2, 7: 0.05}  # step 7 is after all checkpoints
    for step in range(1, 7):
        checkpoints = opened(tmp_path, keep_checkpoints=2)
        known = {at: error for at, error in errors.items() if at <= step}
        checkpoints.save(step, make(step), PHASES, known)
        checkpoints.close()
    assert steps_in(tmp_path) == [3, 5, 6]  # 2 and 3 are equally good; the newer is kept


def test_manifest_has_the_configuration_and_the_versions(tmp_path: Path):
    save(tmp_path, make(5))
    manifest = json.loads((tmp_path / "5" / "manifest.json").read_text())
    assert Config.from_json(json.dumps(manifest["config"])) == digits()
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["orbax-checkpoint"] == ocp.__version__
    assert manifest["versions"]["optax-warmup"] == optax_warmup.__version__


def test_other_versions_are_reported_with_both_numbers(copy: Path):
    path = copy / "9" / "manifest.json"
    assert version_change(path.parent) == ""
    manifest = json.loads(path.read_text())
    manifest["versions"] |= {"jax": "0.1.2", "python": "2.7.18", "a package of the past": "1"}
    path.write_text(json.dumps(manifest))
    line = (
        f"checkpoint 9 was written with other versions: python 2.7.18 (now "
        f"{sys.version.split()[0]}), jax 0.1.2 (now {jax.__version__})"
    )
    assert version_change(path.parent) == line
    said: list[str] = []
    load_network(copy.parent, make_workers(digits(), jax.devices()[:2]), said.append)
    assert said == [line]
    del manifest["versions"]
    path.write_text(json.dumps(manifest))
    assert version_change(path.parent) == ""


def test_existing_checkpoint_is_not_overwritten(tmp_path: Path):
    first, second = make(5), make(6)
    checkpoints = opened(tmp_path)
    checkpoints.save(5, first, PHASES, {})
    checkpoints.save(5, second, PHASES, {})  # the first may not be on disk yet
    checkpoints.close()
    assert_same(restore(tmp_path, like=second), first)


def test_donated_state_is_saved_unchanged(tmp_path: Path):
    """The state is donated to the next step while it is still being written."""
    state = make(1)
    expected = bits(state)
    steps = jax.jit(lambda s: jax.tree.map(lambda x: x + x.dtype.type(1), s), donate_argnums=0)
    checkpoints = opened(tmp_path)
    checkpoints.save(1, state, PHASES, {})
    donated: Any = state
    for _ in range(20):
        donated = steps(donated)
    jax.block_until_ready(donated)
    checkpoints.close()
    restored = restore(tmp_path, like=donated)
    assert restored is not None
    for left, right in zip(bits(restored), expected, strict=True):
        np.testing.assert_array_equal(left, right)


# Exits without any cleanup as soon as it opens the manifest of the second checkpoint.
KILLED_WHILE_SAVING = """
import os, pathlib, sys
import jax.numpy as jnp
from train.run.checkpoint import Checkpoints
from train.timeline import Phase, Timeline
from train.recipes import digits
from train.step.network import Network
from train.step.state import TrainState
from tests.train.run.test_checkpoint import PHASES

folder = pathlib.Path(sys.argv[1])

def make(step, size):
    params = {"w": jnp.full(size, step, jnp.float32)}
    network = Network(params=params, batch_stats={})
    return TrainState(step=jnp.int32(step), network=network, opt_state=())

checkpoints = Checkpoints(folder, digits())
checkpoints.save(1, make(1, 1000), PHASES, {})
checkpoints.close()

def die(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/manifest.json"):
        os._exit(9)

checkpoints = Checkpoints(folder, digits())
sys.addaudithook(die)
checkpoints.save(2, make(2, 1000), PHASES, {})
checkpoints.close()
"""


def test_unfinished_checkpoint_of_a_killed_run_is_ignored(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 9, run.stderr
    (unfinished,) = (path.name for path in tmp_path.iterdir() if path.name != "1")
    assert unfinished.startswith("2.")

    def like(step: int) -> TrainState:
        params = {"w": jnp.full(1000, step, jnp.float32)}
        return TrainState(
            step=jnp.int32(step), network=Network(params=params, batch_stats={}), opt_state=()
        )

    checkpoints = opened(tmp_path)
    assert_same(checkpoints.restore(like(0)), like(1))
    checkpoints.save(3, like(3), PHASES, {})
    checkpoints.close()
    assert_same(restore(tmp_path, like(0)), like(3))
    assert steps_in(tmp_path) == [1, 3]  # the unfinished checkpoint is deleted


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of steps 3, 6 and 9."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    save(folder, make(3), make(6), make(9))
    return folder


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three, tmp_path / "checkpoints")


@pytest.mark.parametrize("damage", [half, empty, remove, flip])
def test_no_wrong_value_is_restored_from_a_corrupt_file(
    three: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    names = files_of(three / "9")
    assert len(names) > 10
    for number, name in enumerate(names):
        folder = shutil.copytree(three, tmp_path / str(number))
        damage(folder / "9" / name)
        checkpoints = opened(folder)
        restored = checkpoints.restore(make(0))
        checkpoints.close()
        if name in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # they have no values
            assert checkpoints.moved == []
            assert_same(restored, make(9))
            continue
        if name == "manifest.json" and damage is flip and not checkpoints.moved:
            assert_same(restored, make(9))  # the byte is in the configuration or a version
            continue
        (line,) = checkpoints.moved
        assert line.startswith("checkpoint 9 is corrupt: ")
        assert name in line or (name == "manifest.json" and damage is flip)
        assert str(folder / "damaged" / "9") in line
        assert_same(restored, make(6))
        left = [other for other in names if (folder / "damaged" / "9" / other).exists()]
        assert left == [other for other in names if damage is not remove or other != name]


def test_several_corrupt_checkpoints_are_moved_aside(copy: Path):
    flip(next((copy / "9" / "default" / "ocdbt.process_0" / "d").iterdir()))
    empty(copy / "6" / "manifest.json")
    checkpoints = opened(copy)
    assert_same(checkpoints.restore(make(0)), make(3))
    checkpoints.close()
    assert [line.split(":")[0] for line in checkpoints.moved] == [
        "checkpoint 9 is corrupt", "checkpoint 6 is corrupt"
    ]  # fmt: skip
    # Moved checkpoints stay there, even if the same step is saved and corrupted again.
    save(copy, make(9))
    remove(copy / "9" / "manifest.json")
    assert_same(restore(copy, make(0)), make(3))
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["6", "9", "9.2"]


def test_phases_are_those_of_the_restored_checkpoint(tmp_path: Path):
    first = Phase(first_step=0, num_workers=4, batch_size_per_worker=16)
    second = Phase(first_step=3, num_workers=8, batch_size_per_worker=16)
    checkpoints = opened(tmp_path)
    assert (checkpoints.newest_step, checkpoints.phases) == (0, ())
    for step, phases in [(3, (first,)), (6, (first, second))]:
        checkpoints.save(step, make(step), phases, {})
        checkpoints.close()
        checkpoints = opened(tmp_path)
        assert (checkpoints.newest_step, checkpoints.phases) == (step, phases)
    checkpoints.close()
    empty(tmp_path / "6" / "phases.json")
    checkpoints = opened(tmp_path)
    assert (checkpoints.newest_step, checkpoints.phases) == (3, (first,))
    checkpoints.close()


def test_checkpoint_without_a_phases_file_has_one_phase(tmp_path: Path):
    save(tmp_path, make(3))
    remove(tmp_path / "3" / "phases.json")
    manifest = json.loads((tmp_path / "3" / "manifest.json").read_text())
    del manifest["sha256"]["phases.json"]
    (tmp_path / "3" / "manifest.json").write_text(json.dumps(manifest))
    checkpoints = opened(tmp_path)
    checkpoints.close()
    assert checkpoints.phases == (Phase(first_step=0, num_workers=8, batch_size_per_worker=16),)


def test_empty_folder_and_plain_file_are_not_checkpoints(copy: Path):
    (copy / "12").mkdir()
    (copy / "15").write_text("not a folder")
    (copy / "0020").mkdir()
    (copy / "notes").mkdir()
    assert_same(restore(copy, make(0)), make(9))
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["12", "15"]


def test_checkpoint_with_an_extra_file_is_corrupt(copy: Path):
    (copy / "9" / "default" / "d" / "stray").touch()
    assert_same(restore(copy, make(0)), make(6))


def test_run_with_only_corrupt_checkpoints_starts_over(copy: Path):
    for step in (3, 6, 9):
        remove(copy / str(step) / "manifest.json")
    assert restore(copy, make(0)) is None
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["3", "6", "9"]


def test_network_is_loaded_from_the_newest_intact_checkpoint(copy: Path):
    workers = make_workers(digits(), jax.devices()[:2])
    said: list[str] = []
    assert load_network(copy.parent, workers, said.append)[0] == 9
    assert said == []
    flip(copy / "9" / "default" / "_METADATA")
    step, network = load_network(copy.parent, workers, said.append)
    assert step == 6
    expected = make(6)
    for got, wanted in (
        (network.params, expected.network.params),
        (network.batch_stats, expected.network.batch_stats),
    ):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(np.array(a).view(np.uint32), np.array(b).view(np.uint32))
    assert said == [f"{copy / '9'} is corrupt: default/_METADATA is not as it was written"]
    assert (copy / "9").exists()  # loading moves nothing
    with pytest.raises(UsageError, match="9 has no intact checkpoint"):
        load_network(copy / "9", workers, said.append)


def test_checkpoints_of_other_programs_are_refused(tmp_path: Path):
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(1, args=ocp.args.StandardSave({"weights": np.ones(3)}))
    said: list[str] = []
    with pytest.raises(UsageError, match="has no intact checkpoint"):
        load_network(tmp_path, make_workers(digits(), jax.devices()[:2]), said.append)
    assert "manifest.json" in said[0]


EVENTS: list[tuple[str, Any]] | None = None


def listen(event: str, arguments: Any) -> None:
    if EVENTS is not None and event in ("open", "pickle.find_class", "exec", "compile"):
        EVENTS.append((event, arguments))


sys.addaudithook(listen)  # audit hooks cannot be removed


def test_restoring_runs_no_code_and_opens_no_file_outside(copy: Path):
    global EVENTS
    workers = make_workers(digits(), jax.devices()[:2])
    restore(copy, make(0))  # triggers lazy imports
    load_network(copy / "6", workers)
    secret = copy.parent / "secret"
    secret.write_text("secret")
    path = copy / "9" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] |= {"../../secret": hashlib.sha256(b"secret").hexdigest()}
    path.write_text(json.dumps(manifest))
    EVENTS = []
    try:
        assert_same(restore(copy, make(0)), make(6))
        assert load_network(copy / "6", workers)[0] == 6
    finally:
        events, EVENTS = EVENTS, None
    opened_files = [str(arguments[0]) for event, arguments in events if event == "open"]
    assert any(name.endswith("manifest.json") for name in opened_files)
    assert str(secret) not in {os.path.normpath(name) for name in opened_files}
    assert [event for event, _ in events if event != "open"] == []


def test_checkpoints_are_due_by_epochs_steps_and_minutes():
    def due(**changes: Any) -> list[int]:
        config = digits().replace(**changes)
        times = CheckpointTimes(
            config, Timeline(config.experiment, 10 * config.experiment.batch_size)
        )
        return [step for step in range(1, 61) if times.is_due(step)]

    assert due(checkpoint_every_epochs=2) == [20, 40, 60]
    assert due(checkpoint_every_epochs=3, checkpoint_every_steps=25) == [25, 30, 50, 60]
    assert due(checkpoint_every_epochs=9, checkpoint_every_minutes=1e-9) == [*range(1, 61)]
    assert due(checkpoint_every_epochs=9, checkpoint_every_minutes=60) == []


def test_the_manifest_records_the_configuration_and_the_fingerprint_of_the_data(tmp_path: Path):
    data = Fingerprint(class_names=["a"], split_sizes={"train": 3}, contents="abc", files="def")
    with Checkpoints(tmp_path, digits(), data) as checkpoints:
        checkpoints.save(1, make(1), PHASES, {})
        checkpoints.close()
    config = json.loads((tmp_path / "1" / "manifest.json").read_text())["config"]
    assert recorded_in(config) == data
    assert config == json.loads(digits().to_json()) | {"data_fingerprint": data.to_json()}
    with Checkpoints(tmp_path, digits()) as checkpoints:
        assert checkpoints.newest_step == 1
        checkpoints.close()
