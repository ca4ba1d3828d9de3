"""The workdir of a run: its claim, its lock and its summary."""

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.config import Config
from train.errors import RunError, UsageError
from train.run.metrics import MetricsLog
from train.run.workdir import claim, finished, read_summary, write_atomically

MakeConfig = Callable[..., Config]
PROC = Path("/proc/self/task")
ROOT = Path(__file__).parents[3]


@contextmanager
def limited_file_size(num_bytes: int) -> Iterator[None]:
    """Limit files to a size: a longer write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def claim_and_release(config: Config) -> None:
    with claim(config):
        pass


def begin_training(config: Config) -> None:
    with claim(config):
        MetricsLog(config.output.workdir, 0).close()


def test_file_is_replaced_and_no_temporary_file_remains(tmp_path: Path):
    write_atomically(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_failed_write_keeps_the_old_text(tmp_path: Path):
    write_atomically(tmp_path / "file", "old")
    with limited_file_size(100), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "file", "new" * 100_000)
    assert (tmp_path / "file").read_text() == "old"
    write_atomically(tmp_path / "file", "new")  # leftovers of the failed write do no harm
    assert (tmp_path / "file").read_text() == "new"


def test_new_workdir_is_created_with_the_configuration(digits_config: MakeConfig, tmp_path: Path):
    config = digits_config(workdir=tmp_path / "runs" / "first")
    claim_and_release(config)
    assert Config.from_json((config.output.workdir / "config.json").read_text()) == config


def test_run_may_resume_on_another_machine(digits_config: MakeConfig, tmp_path: Path):
    begin_training(digits_config())
    claim_and_release(digits_config())
    claim_and_release(
        digits_config(accumulation_steps=4, num_devices=2, num_steps=5, data_dir=tmp_path)
    )


def test_another_run_is_refused_with_all_differing_fields(digits_config: MakeConfig):
    config = digits_config()
    begin_training(config)
    before = (config.output.workdir / "config.json").read_text()
    with pytest.raises(UsageError) as error:
        claim_and_release(digits_config(num_workers=16, seed=1))
    assert str(error.value) == (
        f"--workdir {config.output.workdir} holds another run: --num-workers was 8 and is now 16; "
        "--seed was 0 and is now 1; choose another --workdir or repeat the experiment's flags. "
        "Only flags of machine and output may change, such as --num-devices, and the batch size "
        "with --allow-batch-size-change"
    )
    assert (config.output.workdir / "config.json").read_text() == before


def test_workdir_without_training_can_be_reused(digits_config: MakeConfig):
    """A command that was stopped before its first step may be repeated with other flags."""
    claim_and_release(digits_config(seed=1))
    claim_and_release(digits_config(seed=2))
    written = (digits_config().output.workdir / "config.json").read_text()
    assert Config.from_json(written) == digits_config(seed=2)


HOLD = """
import dataclasses, sys, time
from pathlib import Path
from train.recipes import digits
from train.run.workdir import claim

with claim(digits().replace(workdir=Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_workdir_is_locked_only_while_its_run_is_alive(digits_config: MakeConfig):
    config = digits_config()
    command = [sys.executable, "-c", HOLD, str(config.output.workdir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            for _ in range(2):  # a refused claim does not release the lock
                with pytest.raises(UsageError) as error:
                    claim_and_release(config)
                assert str(error.value) == (
                    f"--workdir {config.output.workdir} is in use by process {holder.pid} on "
                    f"{socket.gethostname()}; wait for it, stop it, or choose another"
                )
            claim_and_release(digits_config(workdir=config.output.workdir / "seed-1"))
        finally:
            holder.kill()
    claim_and_release(config)
    claim_and_release(config)


def test_only_the_first_process_locks_the_workdir(
    digits_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    config = digits_config()
    with claim(config):
        monkeypatch.setattr("jax.process_index", lambda: 1)
        claim_and_release(config)


@pytest.mark.parametrize("text", ['{"architectures": ["BertModel"]}', "[1, 2]", "{ // broken"])
def test_config_json_of_other_programs_is_not_overwritten(digits_config: MakeConfig, text: str):
    config = digits_config()
    config.output.workdir.mkdir(parents=True)
    (config.output.workdir / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"has a config\.json that is not a run's"):
        claim_and_release(config)
    assert (config.output.workdir / "config.json").read_text() == text


def test_workdir_blocked_by_a_file_is_a_usage_error(digits_config: MakeConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    for workdir, reason in [
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
    ]:
        with pytest.raises(UsageError) as error:
            claim_and_release(digits_config(workdir=workdir))
        assert str(error.value) == f"--workdir {workdir} cannot be used: {reason}"


@pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc, where even root cannot write")
def test_unwritable_workdir_is_a_run_error(digits_config: MakeConfig):
    with pytest.raises(RunError, match=f"^--workdir {PROC} cannot be used: "):
        claim_and_release(digits_config(workdir=PROC))


def test_unreadable_config_json_is_a_usage_error(digits_config: MakeConfig):
    config = digits_config()
    (config.output.workdir / "config.json").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be used: Is a directory"):
        claim_and_release(config)


def test_run_is_finished_if_its_summary_has_enough_steps(digits_config: MakeConfig):
    config = digits_config()
    claim_and_release(config)
    assert finished(config, 990) is None
    summary = {"num_steps": 990, "params_digest": "abc"}
    write_atomically(config.output.workdir / "summary.json", json.dumps(summary))
    assert finished(config, 990) == read_summary(config.output.workdir) == summary
    assert finished(config, 5) == summary  # a shorter run is finished too


def test_run_with_too_few_steps_is_not_finished(digits_config: MakeConfig):
    config = digits_config()
    claim_and_release(config)
    write_atomically(config.output.workdir / "summary.json", json.dumps({"num_steps": 5}))
    assert finished(config, 6) is None
