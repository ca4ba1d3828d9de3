"""Runs with several real processes, over gloo: failing, stopping, and with other flags or data."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main
from train.data.formats import digits
from train.data.formats.source import Options
from train.data.preparation import prepare

ROOT = Path(__file__).parents[3]
FLAGS = ["--log-every-steps", "1", "--checkpoint-every-steps", "1"]
SECONDS = 300  # longer than any run takes, even on a slow machine

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def environment(digits_dir: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return clean | {
        "TFDS_DATA_DIR": str(digits_dir),
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
        "COLUMNS": "120",
    }


@contextmanager
def started(
    environment: dict[str, str], *processes: Sequence[str], sources: Sequence[Path] = ()
) -> Iterator[list[Process]]:
    """Start the processes of one run, each with its own flags, and kill those left at the end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    cluster = ["--coordinator-address", address, "--num-processes", str(len(processes))]
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "train", *FLAGS, *flags),
                *([*cluster, "--process-id", str(index)] if len(processes) > 1 else []),
            ],
            cwd=sources[index] if sources else ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, flags in enumerate(processes)
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def ends(running: list[Process]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, standard outputs and standard errors of all processes."""
    texts = [process.communicate(timeout=SECONDS) for process in running]
    said, complaints = ([text[stream] for text in texts] for stream in range(2))
    return [process.returncode for process in running], said, complaints


def records(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for_step(workdir: Path, step: int, running: list[Process]) -> None:
    deadline = time.monotonic() + SECONDS
    while len(records(workdir)) < step:
        assert all(process.poll() is None for process in running), ends(running)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_killed_or_stopped_process_ends_all_and_the_run_resumes_on_other_devices(
    environment: dict[str, str], tmp_path: Path
):
    workdir = tmp_path / "run"
    two = [["--workdir", str(workdir), "--num-devices", "4"]] * 2
    with started(environment, *two) as running:
        wait_for_step(workdir, 3, running)
        running[1].kill()
        killed = time.monotonic()
        (code, _), _, (complaints, _) = ends(running)
    assert code != 0
    assert time.monotonic() - killed < 60  # 20 of them are the heartbeat timeout
    assert re.search(r"[Tt]ask 1 heartbeat timeout|stopped sending heartbeats\):\n1\n", complaints)

    with started(environment, *two) as running:
        wait_for_step(workdir, len(records(workdir)) + 3, running)
        running[1].terminate()  # JAX notices after a second or two
        codes, (said, _), complaints = ends(running)
    assert codes == [75, 75], complaints
    assert "resuming after step" in said
    stopped = re.search(r"stopped after step (\d+) of 990 and saved; the same command", said)
    assert stopped
    assert (workdir / "checkpoints" / stopped[1]).is_dir()

    on_one = ["--num-devices", "8", "--num-steps", str(int(stopped[1]) + 5)]
    one = [["--workdir", str(workdir), *on_one]]
    with started(environment, *one) as running:
        codes, (said,), complaints = ends(running)
    assert codes == [0], complaints
    assert f"resuming after step {stopped[1]}\n" in said
    undisturbed = ["--workdir", str(tmp_path / "undisturbed"), *on_one[2:]]  # on 8 devices too
    assert main([*FLAGS, *undisturbed, "--data-dir", environment["TFDS_DATA_DIR"]]) == 0
    expected = records(tmp_path / "undisturbed")
    for record, other_record in zip(records(workdir), expected, strict=True):
        assert record["step"] == other_record["step"]
        assert record["train/loss"] == pytest.approx(other_record["train/loss"], rel=1e-5)


def test_a_process_with_other_flags_or_source_is_detected_before_training(
    environment: dict[str, str], tmp_path: Path
):
    changed = tmp_path / "changed"
    for package in ("train", "optax_warmup"):
        shutil.copytree(ROOT / package, changed / package)
    with (changed / "train" / "model" / "resnet.py").open("a") as source:
        source.write("# a change\n")
    same = ["--workdir", str(tmp_path / "run"), "--num-devices", "2"]
    with started(
        environment, same, same, [*same, "--seed", "1"], sources=[ROOT, ROOT, changed]
    ) as running:
        codes, _, complaints = ends(running)
    assert codes == [2, 2, 2], complaints
    for text in complaints:
        (line,) = [line for line in text.splitlines() if line.startswith("python -m train: ")]
        assert re.fullmatch(
            "python -m train: process 2 differs from process 0: --seed is 1 instead of 0; the "
            r"source of train and optax_warmup is \w+ instead of \w+; start all processes alike",
            line,
        )
    assert not (tmp_path / "run").exists()


def test_an_error_in_one_process_ends_all(environment: dict[str, str]):
    """Only process 0 opens the workdir; unless it reports the error, process 1 would block."""
    flags = ["--workdir", "/proc/run", "--num-devices", "2"]
    with started(environment, flags, flags) as running:
        codes, _, complaints = ends(running)
    assert codes == [1, 1], complaints
    for text in complaints:
        assert "process 0: --workdir /proc/run cannot be used: No such file or directory" in text


def test_a_process_with_another_number_of_devices_is_detected(
    environment: dict[str, str], tmp_path: Path
):
    flags = ["--workdir", str(tmp_path / "run"), "--num-devices"]
    with started(environment, [*flags, "2"], [*flags, "1"]) as running:
        codes, _, complaints = ends(running)
    assert codes == [2, 2], complaints
    for text in complaints:
        assert "process 0 has 2, process 1 has 1 devices; start all processes alike" in text


def test_processes_with_different_data_are_detected_before_training(
    environment: dict[str, str], digits_dir: Path, tmp_path: Path
):
    """Each process reads from a folder of its own machine. One label differs."""
    source = digits.open_source()
    first, *others = source.examples
    source = dataclasses.replace(source, examples=[first._replace(label=9 - first.label), *others])
    options = Options(name="digits", data_dir=tmp_path / "data")
    prepare(source, options, lambda *_: lambda _: None)
    workdir = tmp_path / "run"
    flags = ["--workdir", str(workdir), "--num-devices", "2", "--data-dir"]
    start = time.monotonic()
    with started(
        environment, [*flags, str(digits_dir)], [*flags, str(options.data_dir)]
    ) as running:
        codes, said, complaints = ends(running)
    assert time.monotonic() - start < 60
    assert codes == [2, 2], complaints
    for text in complaints:
        (line,) = [line for line in text.splitlines() if line.startswith("python -m train: ")]
        assert line == (
            "python -m train: process 1 has other data than process 0: of digits, labels or images "
            "differ (same classes and sizes); give all processes the same data"
        )
        assert "Traceback" not in text
    assert "network" not in said[0]
    assert not workdir.exists()
