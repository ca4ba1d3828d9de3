"""Complete runs that are killed repeatedly, stopped, corrupted or moved to other devices."""

import os
import re
import shutil
import signal
import socket
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.soak import (
    EPOCH_STEPS,
    FLAGS,
    LAST_STEP,
    MOMENTS,
    environment,
    kill_until_it_ends,
    newest_record,
    outcome,
    records,
    run_to_the_end,
    start,
)
from train.command_line import parse_run
from train.data.dataset import open_dataset
from train.data.minibatches import training_minibatches
from train.plan import make_plan
from train.step.workers import make_workers

COMPILED = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="module")
def folder(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder for runs on the digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(digits_dir))
        yield tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    run_to_the_end(folder / "undisturbed", COMPILED)
    return folder / "undisturbed"


def test_repeatedly_killed_run_matches_undisturbed_run(undisturbed: Path, folder: Path):
    """SIGKILL comes at random moments of start, compilation, training, saving and evaluation."""
    lives: list[dict[str, Any]] = []
    for number in range(3):  # on a busy machine a run may finish before its kill
        workdir = folder / f"killed-{number}"
        lives += kill_until_it_ends(workdir, COMPILED, seed=7 + number)
        assert_matches(workdir, undisturbed)
        if len(lives) >= len(MOMENTS):
            break
    assert len(lives) >= len(MOMENTS) >= 25
    assert any(life["in_writing"] for life in lives)
    assert max(life["resumed_from"] for life in lives) > LAST_STEP / 2


def assert_matches(workdir: Path, undisturbed: Path) -> None:
    """Compare the results of a run with those of the undisturbed run."""
    assert outcome(workdir) == outcome(undisturbed)
    assert [record["step"] for record in records(workdir)] == [*range(1, LAST_STEP + 1)]
    assert not (workdir / "checkpoints" / "damaged").exists()
    for names in ("train/num_examples_seen", "train/seconds"):
        values = [record[names] for record in records(workdir)]
        assert values == sorted(values)
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    for name, steps in (
        ("train/loss", [*range(1, LAST_STEP + 1)]),
        ("eval/top1_error", [*range(EPOCH_STEPS, LAST_STEP + 1, EPOCH_STEPS)]),
    ):
        assert [point.step for point in events.Scalars(name)] == steps


def stop_at(workdir: Path, flags: list[str], cache: Path, step: int) -> tuple[int, str]:
    """Start the command and send it SIGTERM when it has logged `step`.

    Returns:
        Exit code and output.
    """
    step = max(step, newest_record(workdir) + 1)  # ignore records of earlier processes
    output = workdir.with_suffix(".txt")
    process = start(workdir, flags, environment(cache), output)
    deadline = time.monotonic() + 300
    while process.poll() is None and newest_record(workdir) < step:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    return process.wait(), output.read_text()


def test_run_moved_between_devices_keeps_its_data_and_losses(
    undisturbed: Path, folder: Path, digits_dir: Path
):
    workdir, last_step = folder / "moved", 2 * EPOCH_STEPS
    flags = [*FLAGS, "--num-steps", str(last_step)]
    bounds = [0]
    lives = [["8"], ["2", "--accumulation-steps", "2"], ["1"]]
    for step, devices in zip([2, 6, 11], lives, strict=True):
        code, said = stop_at(workdir, [*flags, "--num-devices", *devices], COMPILED, step)
        assert code == 75, said
        stopped = re.search(r"stopped after step (\d+) .* the same command resumes\n$", said)
        assert stopped, said
        assert bounds[-1] == 0 or f"resuming after step {bounds[-1]}\n" in said
        bounds.append(int(stopped[1]))
    bounds.append(last_step)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    flags += ["--num-devices", "4", "--coordinator-address", address, "--num-processes", "2"]
    outputs = [folder / f"process-{number}.txt" for number in range(2)]
    processes = [
        start(
            workdir,
            [*flags, "--process-id", str(number)],
            environment(COMPILED),
            output,
        )
        for number, output in enumerate(outputs)
    ]
    for process, output in zip(processes, outputs, strict=True):
        assert process.wait(timeout=300) == 0, output.read_text()
    for record, expected in zip(records(workdir), records(undisturbed)[:last_step], strict=True):
        assert record["step"] == expected["step"]
        assert record["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-5)

    # Together, these processes read the same images as one process on one device.
    config = parse_run([*FLAGS, "--workdir", str(workdir), "--data-dir", str(digits_dir)])
    dataset = open_dataset(config)

    def merged(parts: jax.Array) -> np.ndarray:
        return np.asarray(parts).reshape(-1, *parts.shape[2:])

    def minibatches(first: int, last: int, num_devices: int) -> Any:
        workers = make_workers(config, jax.devices()[:num_devices])
        for rows in training_minibatches(make_plan(config, dataset, workers), first, last):
            yield jax.tree.map(lambda array: merged(workers.to_devices(array)), rows)

    moved = (
        minibatch
        for (first, last), num_devices in zip(pairwise(bounds), [8, 2, 1, 8], strict=True)
        for minibatch in minibatches(first, last, num_devices)
    )
    for minibatch, same in zip(moved, minibatches(0, last_step, 1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, minibatch, same)


def test_corrupt_checkpoint_is_moved_aside_and_the_previous_one_used(
    undisturbed: Path, folder: Path
):
    """The run was killed between its last checkpoint and its summary."""
    workdir = shutil.copytree(undisturbed, folder / "damaged")
    (workdir / "summary.json").unlink()
    newest, before = sorted(
        (int(path.name) for path in (workdir / "checkpoints").iterdir()), reverse=True
    )[:2]
    data = workdir / "checkpoints" / str(newest) / "default" / "ocdbt.process_0" / "d"
    largest = max(data.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    run_to_the_end(workdir, COMPILED)
    said = workdir.with_suffix(".txt").read_text()
    aside = workdir / "checkpoints" / "damaged" / str(newest)
    assert f"checkpoint {newest} is corrupt" in said
    assert f"moved to {aside}" in said
    assert f"resuming after step {before}" in said
    assert (aside / largest.relative_to(workdir / "checkpoints" / str(newest))).exists()
    assert outcome(workdir) == outcome(undisturbed)
