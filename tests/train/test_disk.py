"""Runs whose disk fills up or becomes read-only, on real file systems."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import pytest

from train.recipes import digits
from train.run.checkpoint import load_network
from train.step.workers import make_workers

ROOT = Path(__file__).parents[2]
SECONDS = 300  # timeout of a run, sufficient on a slow machine


def mount(*arguments: object) -> None:
    give_up = time.monotonic() + 10
    while True:
        done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
        # Busy: a run had a file open for writing at this moment.
        if "busy" not in done.stderr or time.monotonic() > give_up:
            break
        time.sleep(0.01)
    if done.returncode:
        pytest.skip(f"only root may mount: {done.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "none", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def start(digits_dir: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Function that starts a run on the digits; all its runs share a compilation cache."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = clean | {
        "TFDS_DATA_DIR": str(digits_dir),
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }

    def begin(workdir: Path, *flags: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "train", "--workdir", str(workdir), *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def end_of(run: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a run; return its exit code and its stderr."""
    try:
        said = run.communicate(timeout=SECONDS)[1]
        return run.returncode, said
    finally:
        run.kill()


def newest_checkpoint(workdir: Path) -> int:
    """Step of the newest finished checkpoint, which is loaded to check it."""
    folders = (workdir / "checkpoints").iterdir()
    newest = max(int(path.name) for path in folders if path.name.isdecimal())
    assert load_network(workdir, make_workers(digits(), jax.devices()[:1]))[0] == newest
    return newest


def test_disk_full_of_checkpoints_ends_the_run_with_one_line(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
):
    flags = ["--num-steps", "12", "--checkpoint-every-steps", "2", "--log-every-steps", "1"]
    with small_disk(tmp_path / "disk", "1500k") as disk:
        workdir = disk / "run"
        code, said = end_of(start(workdir, *flags))
        last = newest_checkpoint(workdir)
        assert 2 <= last < 12
        assert (code, said) == (
            1,
            f"python -m train: checkpoint {last + 2} cannot be written: No space left on device; "
            f"the last good checkpoint is {workdir}/checkpoints/{last}\n",
        )
        # When there is space again, the same command resumes.
        mount("-o", "remount,size=100m", disk)
        assert end_of(start(workdir, *flags)) == (0, "")
        assert newest_checkpoint(workdir) == 12
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [*range(1, 13)]


def test_disk_full_of_metrics_ends_the_run_with_one_line(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
):
    with small_disk(tmp_path / "disk", "64k") as disk:
        assert end_of(start(disk / "run", "--log-every-steps", "1")) == (
            1, "python -m train: No space left on device; no checkpoint yet\n"
        )  # fmt: skip


def test_read_only_workdir_ends_the_run_with_one_line(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
):
    workdir = tmp_path / "run"
    run = start(workdir, "--checkpoint-every-steps", "5", "--num-epochs", "900")
    try:
        while not (workdir / "checkpoints" / "5").is_dir():
            assert run.poll() is None
            time.sleep(0.01)
        # Bind-mounted over itself: a file system cannot become read-only while it is written to.
        mount("--bind", workdir, workdir)
        mount("-o", "remount,bind,ro", workdir)
        code, said = end_of(run)
        last = newest_checkpoint(workdir)
        reason = "Read-only file system"
        assert (code, said.count("\n"), said.count(reason)) == (1, 1, 1)
        assert said.startswith("python -m train: ")
        assert said.endswith(f"the last good checkpoint is {workdir}/checkpoints/{last}\n")
        code, said = end_of(start(workdir))
        assert (code, said) == (
            1, f"python -m train: --workdir {workdir} cannot be used: {reason}\n"
        )  # fmt: skip
    finally:
        run.kill()
        with run:  # closes its pipes, also if the test is skipped
            subprocess.run(["umount", "--lazy", workdir], capture_output=True)


def test_preparing_data_on_a_read_only_disk_fails_with_one_line(
    start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
):
    with small_disk(tmp_path / "disk", "1m") as disk:
        mount("-o", "remount,ro", disk)
        assert end_of(start(tmp_path / "run", "--data-dir", str(disk))) == (
            1, f"python -m train: --data-dir {disk} cannot be used: Read-only file system\n"
        )  # fmt: skip
