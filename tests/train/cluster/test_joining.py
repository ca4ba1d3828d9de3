"""Joining other processes: everything that can go wrong ends with one line and in time."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.cluster.joining import check_platforms, join_processes
from train.errors import UsageError
from train.recipes import digits

ROOT = Path(__file__).parents[3]
STEP = {  # left behind by a step of SLURM
    "SLURM_JOB_ID": "5",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def start(
    workdir: Path, *flags: str, environ: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "train", "--workdir", str(workdir), "--num-steps", "1", *flags],
        cwd=ROOT,
        env=clean | (environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cluster(port: int, process_id: int, seconds: int = 60) -> list[str]:
    return [
        *("--coordinator-address", f"localhost:{port}", "--num-processes", "2"),
        *("--process-id", str(process_id), "--coordinator-timeout-seconds", str(seconds)),
    ]


@pytest.fixture
def taken() -> Iterator[int]:
    """The port of a server that is not a coordinator."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def test_a_taken_port_ends_both_processes_with_one_line(tmp_path: Path, taken: int):
    both = [start(tmp_path / "run", *cluster(taken, process_id)) for process_id in (0, 1)]
    expected = ("cannot be used: Address already in use", "another program uses")
    for process, line in zip(both, expected, strict=True):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, "")
        lines = [line for line in err.splitlines() if not line.startswith("waiting")]
        assert len(lines) == 1, err
        assert line in lines[0]
        assert str(taken) in lines[0]
        assert "choose another port" in lines[0]
    assert not (tmp_path / "run").exists()


def test_processes_that_never_come_end_the_others_in_time(tmp_path: Path, free: int):
    alone = {
        "some of them have not started": start(tmp_path / "0", *cluster(free, 0, 4)),
        "process 0 does not answer: Connection refused": start(
            tmp_path / "1", *cluster(free - 1, 1, 4)
        ),
        "waited 4 s for 2 processes of SLURM": start(
            tmp_path / "2", "--coordinator-timeout-seconds", "4", environ=STEP
        ),
    }
    for line, process in alone.items():
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        *waiting, last = err.splitlines()
        assert re.match("python -m train: waited 4 s for 2 processes", last), err
        assert line in last
        assert all(said.startswith("waiting at most 4 s (--coord") for said in waiting)
        if "0 does not" not in line:  # process 0 reports at once what it waits for
            assert len(waiting) == 1


def test_variables_left_behind_are_named_at_once_and_one_process_can_train(tmp_path: Path):
    waiting = start(tmp_path / "run", environ=STEP)
    assert waiting.stderr is not None
    line = waiting.stderr.readline()
    assert "waiting at most 300 s" in line
    assert "SLURM_STEP_NUM_TASKS=2; --num-processes 1 trains in this process alone" in line
    started = time.monotonic()
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert (waiting.returncode, out, err) == (1, "", "python -m train: interrupted\n")

    alone = start(tmp_path / "run", "--num-processes", "1", environ=STEP)
    out, err = alone.communicate(timeout=120)
    assert (alone.returncode, err) == (0, "")
    assert "finished: 1 steps" in out


def test_a_missing_platform_ends_with_the_existing_ones(tmp_path: Path):
    for platform in ("cuda", "abacus"):
        process = start(tmp_path / "run", environ={"JAX_PLATFORMS": platform})
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
        assert f"JAX_PLATFORMS is {platform}, but JAX finds only cpu on this machine" in err
    assert not (tmp_path / "run").exists()


def test_a_missing_platform_of_one_process_ends_the_other_within_a_minute(
    tmp_path: Path, free: int
):
    other = start(tmp_path / "run", *cluster(free, 0))
    process = start(tmp_path / "run", *cluster(free, 1), environ={"JAX_PLATFORMS": "abacus"})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "JAX_PLATFORMS is abacus" in err
    other.communicate(timeout=60)
    assert other.returncode != 0


def test_an_existing_platform_passes():
    check_platforms()


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:", ":1234", "localhost:0", "localhost:65536", "http://node1:1234",
     "node1:port", "a:b:1234", ""],
)  # fmt: skip
def test_an_address_without_host_or_port_is_rejected(address: str):
    with pytest.raises(UsageError, match=r"--coordinator-address is '.*must be host:port"):
        digits().replace(coordinator_address=address, num_processes=2, process_id=0)


@pytest.mark.parametrize("address", ["node1:1234", "10.0.0.1:65535", "[::1]:1", "a-b.c.d:8476"])
def test_an_address_with_host_and_port_is_accepted(address: str):
    digits().replace(coordinator_address=address, num_processes=2, process_id=0)


@pytest.mark.parametrize(
    ("environ", "package"),
    [
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "mpi4py"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "kubernetes",
        ),
    ],
)
def test_a_missing_package_is_reported(
    environ: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UsageError, match=f"package {package}: install it") as error:
        join_processes(digits().machine)
    assert "--coordinator-address" in str(error.value)
    assert "--num-processes 1" in str(error.value)
    assert "\n" not in str(error.value)
