"""The workdir of a run: its claim, its lock and its summary."""

import dataclasses
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from train.config import Config
from train.data.fingerprint import Fingerprint, recorded_in
from train.errors import RunError, UsageError
from train.run.atomic import write_atomically
from train.run.metrics import MetricsLog
from train.run.workdir import (
    claim,
    delete_summary,
    differing_fields,
    finished,
    keep_config,
    read_summary,
)

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
        "Only flags of machine and output may change, such as --num-devices, the batch size with "
        "--allow-batch-size-change, and --num-epochs and --milestones with --extend"
    )
    assert (config.output.workdir / "config.json").read_text() == before


def test_workdir_without_training_can_be_reused(digits_config: MakeConfig):
    """A command that was stopped before its first step may be repeated with other flags."""
    claim_and_release(digits_config(seed=1))
    claim_and_release(digits_config(seed=2))
    written = (digits_config().output.workdir / "config.json").read_text()
    assert Config.from_json(written) == digits_config(seed=2)


DATA = Fingerprint(
    class_names=["a", "b"], split_sizes={"train": 8, "test": 2}, contents=None, files="abc"
)


def test_the_configuration_is_saved_with_the_fingerprint_of_the_data(digits_config: MakeConfig):
    config = digits_config()
    path = config.output.workdir / "config.json"
    with claim(config, DATA) as differences:
        assert differences == []
    saved = json.loads(path.read_text())
    assert recorded_in(saved) == DATA
    assert Config.from_json(path.read_text()) == config
    assert differing_fields(config, path.read_text()) == []
    with claim(config, dataclasses.replace(DATA, files="xyz")):
        pass  # it has not trained, so its data may still change
    with claim(config):
        keep_config(config, DATA)
        MetricsLog(config.output.workdir, 0).close()
    assert json.loads(path.read_text()) == saved


def of_size(num_train: int) -> Fingerprint:
    return dataclasses.replace(DATA, split_sizes={"train": num_train, "test": 2})


def test_the_data_may_change_only_if_it_is_allowed(digits_config: MakeConfig):
    config, allowing = digits_config(), digits_config(allow_data_change=True)
    path = config.output.workdir / "config.json"
    with claim(config, of_size(8)):
        MetricsLog(config.output.workdir, 0).close()
    changes: list[dict[str, Any]] = []
    for size in (9, 10):
        before, now, saved = of_size(size - 1), of_size(size), path.read_text()
        difference = f"the split 'train' has {size} images instead of {size - 1}"
        with pytest.raises(UsageError) as error, claim(config, now):
            pass
        assert str(error.value) == (
            f"--workdir {config.output.workdir} holds a run on other data: now {difference} "
            f"(digits, fingerprint {now.short} instead of {before.short}); restore the data, or "
            "accept the change with --allow-data-change"
        )
        with claim(allowing, now) as differences:
            assert differences == [difference]
            assert path.read_text() == saved  # the run may still be rejected
            keep_config(allowing, now, size, differences)
        changes.append({"step": size, "before": before.short, "differences": [difference]})
        with claim(config, now) as differences:
            assert differences == []
            keep_config(config, now, size, differences)
        fields = json.loads(path.read_text())
        assert recorded_in(fields) == now
        assert fields["data_changes"] == changes
    classes = dataclasses.replace(DATA, class_names=["a", "c"])
    with (
        pytest.raises(UsageError, match=r"now class 1 is c instead of b .* another --workdir$"),
        claim(allowing, classes),
    ):
        pass


def test_another_experiment_is_named_before_other_data(digits_config: MakeConfig):
    with claim(digits_config(), DATA):
        MetricsLog(digits_config().output.workdir, 0).close()
    with (
        pytest.raises(UsageError, match="holds another run: --seed was 0 and is now 1"),
        claim(digits_config(seed=1), dataclasses.replace(DATA, files="xyz")),
    ):
        pass


def test_a_deleted_config_is_written_again(digits_config: MakeConfig):
    config = digits_config()
    begin_training(config)
    (config.output.workdir / "config.json").unlink()
    with claim(config, DATA) as differences:
        assert differences == []
        keep_config(config, DATA, 3)
    saved = json.loads((config.output.workdir / "config.json").read_text())
    assert recorded_in(saved) == DATA


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


@pytest.mark.parametrize("fingerprint", ['{"short": "abc"}', '"abc"'])
def test_damaged_fingerprint_is_a_usage_error(digits_config: MakeConfig, fingerprint: str):
    config = digits_config()
    with claim(config, DATA):
        MetricsLog(config.output.workdir, 0).close()
    path = config.output.workdir / "config.json"
    path.write_text(f'{config.to_json()[:-2]}, "data_fingerprint": {fingerprint}}}')
    with (
        pytest.raises(UsageError, match=r"has a config\.json that is not a run's"),
        claim(config, DATA),
    ):
        pass


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


def test_the_score_of_the_seeds_goes_with_the_summary(digits_config: MakeConfig, tmp_path: Path):
    for name, remains in (("run", True), ("seed-1", True), ("seed-0", False)):
        config = digits_config(workdir=tmp_path / name)
        claim_and_release(config)
        for path in (config.output.workdir / "summary.json", tmp_path / "seeds.json"):
            write_atomically(path, "{}")
        delete_summary(config)
        assert not (config.output.workdir / "summary.json").exists()
        assert (tmp_path / "seeds.json").exists() == remains


def test_run_with_too_few_steps_is_not_finished(digits_config: MakeConfig):
    config = digits_config()
    claim_and_release(config)
    write_atomically(config.output.workdir / "summary.json", json.dumps({"num_steps": 5}))
    assert finished(config, 6) is None
