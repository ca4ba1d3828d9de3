"""Tests of the committed scripts on a real SLURM of two nodes and under a real mpirun.

    python -m pytest -n0 tests/deploy/clusters.py

They need Debian's slurm-wlm, munge and openmpi-bin, which `.ci/clusters` installs. SLURM's daemons
run on this machine in a temporary folder, on their own ports, and end with the tests.
"""

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 300  # timeout of every wait, generous for slow machines
# Flags of a run that is long enough to be stopped midway.
FLAGS = [
    *("--num-workers", "2", "--num-epochs", "6", "--warmup-epochs", "1"),
    *("--milestones", "3", "5", "--log-every-steps", "5", "--checkpoint-every-steps", "5"),
]


def wait_for(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def wait_to_start(condition: Callable[[], Any], logs: Callable[[], str]) -> None:
    """Wait for third-party daemons, and skip the tests if they do not start."""
    try:
        wait_for(condition, logs)
    except AssertionError as error:
        pytest.skip(f"SLURM does not start on this machine: {error}")


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def digest(workdir: Path) -> str:
    return json.loads((workdir / "summary.json").read_text())["params_digest"]


def steps_made(workdir: Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON", sys.executable)
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        patch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        for name in os.environ:
            if name.startswith(("JAX_", "XLA_", "SLURM_")):
                patch.delenv(name)
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def slurm() -> Iterator[Path]:
    """A running SLURM of two nodes; its folder."""
    # Not in pytest's folder, whose path may be too long for a socket.
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    user, host = getpass.getuser(), socket.gethostname()
    controller, *nodes = free_ports(3)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    # Nodes are named by their addresses, so they need no hosts file. JAX parses 127.0.0.[1-2].
    node = f"NodeHostname={host} CPUs=2"
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmdParameters=config_overrides
SlurmdTimeout=3600
NodeName=127.0.0.1 {node} Port={nodes[0]}
NodeName=127.0.0.2 {node} Port={nodes[1]}
PartitionName=all Nodes=127.0.0.[1-2] Default=YES State=UP MaxTime=INFINITE
""")
    for name in ("state", "spool-127.0.0.1", "spool-127.0.0.2"):
        (folder / name).mkdir()
    munged = [
        *("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"),
        *(f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed"),
        f"--log-file={folder}/munged.log",
    ]
    # In the foreground, so that the processes can be terminated.
    commands = [
        [*munged, "--foreground"],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "127.0.0.1"],
        ["slurmd", "-D", "-N", "127.0.0.2"],
    ]
    daemons: list[subprocess.Popen[bytes]] = []

    def logs() -> str:
        return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            for command in commands:
                nowhere = subprocess.DEVNULL
                daemons.append(subprocess.Popen(command, stdout=nowhere, stderr=nowhere))
                if command[0] == "munged":
                    wait_to_start((folder / "munge.socket").exists, logs)
            idle = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
            wait_to_start(lambda: said(idle) == "2", logs)
            yield folder
        finally:
            said(["scancel", "--user", user])
            if len(daemons) == len(commands):
                wait_for(lambda: said(["squeue", "--noheader"]) == "", logs)
            for daemon in reversed(daemons):
                daemon.terminate()
                try:
                    daemon.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(folder, ignore_errors=True)


def said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def sbatch(folder: Path, workdir: Path, *options: str) -> str:
    """Submit the committed script; return the job ID."""
    return subprocess.check_output(
        [
            *("sbatch", "--parsable", f"--output={folder}/%j.out", *options),
            *("deploy/slurm.sbatch", "--workdir", str(workdir), *FLAGS),
        ],
        text=True,
    ).strip()


def ending(folder: Path, job: str) -> tuple[str, str, str]:
    """Wait for a job; return its state, its exit code and the end of its output."""

    def fields() -> dict[str, str]:
        job_is = said(["scontrol", "show", "job", job, "--oneliner"])
        return dict(pair.split("=", 1) for pair in job_is.split() if "=" in pair)

    def written() -> str:
        path = folder / f"{job}.out"
        return path.read_text()[-5000:] if path.exists() else "nothing"

    active = ("PENDING", "RUNNING", "COMPLETING", "")
    wait_for(lambda: fields().get("JobState", "") not in active, written)
    return fields()["JobState"], fields()["ExitCode"], written()


@pytest.fixture(scope="module")
def undisturbed(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run with two tasks on two nodes."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    state, code, text = ending(slurm, sbatch(slurm, workdir))
    assert (state, code) == ("COMPLETED", "0:0"), text
    assert "2 x cpu, 2 process(es)" in text
    return workdir


def test_sbatch_trains_to_the_end(undisturbed: Path):
    assert steps_made(undisturbed)[-1] == 264


def test_a_run_stopped_by_scancel_resumes_when_resubmitted(
    slurm: Path, undisturbed: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    job = sbatch(slurm, workdir)
    wait_for(lambda: steps_made(workdir), lambda: ending(slurm, job)[2])
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    state, code, text = ending(slurm, job)
    assert (state, code) == ("FAILED", "75:0"), text
    assert "stopped after step" in text
    assert 0 < steps_made(workdir)[-1] < 264
    assert not (workdir / "summary.json").exists()

    state, code, text = ending(slurm, sbatch(slurm, workdir))
    assert (state, code) == ("COMPLETED", "0:0"), text
    assert "resuming after step" in text
    assert digest(workdir) == digest(undisturbed)


def test_one_process_in_an_allocation_for_two_does_not_wait(slurm: Path, tmp_path: Path):
    """The shell that `salloc` opens is a step of its own on some clusters."""
    shell = ["srun", "--interactive", "--preserve-env", "--ntasks=1", "--nodes=1"]
    run = subprocess.run(
        [
            *("salloc", "--nodes=2", "--ntasks=2", *shell, sys.executable, "-m", "train"),
            *("--workdir", str(tmp_path / "run"), "--num-steps", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert "1 process(es)" in run.stdout


def test_mpirun_resumes_after_a_signal_with_the_same_result_as_slurm(
    undisturbed: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    command = ["deploy/mpirun.sh", "--workdir", str(workdir), *FLAGS]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
        text = (tmp_path / "log").read_text
        try:
            wait_for(lambda: steps_made(workdir) or run.poll() is not None, text)
            run.send_signal(signal.SIGTERM)
            assert run.wait(timeout=SECONDS) == 75, text()
        finally:
            run.kill()
    assert "2 x cpu, 2 process(es)" in text()
    assert not (workdir / "summary.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert digest(workdir) == digest(undisturbed)
