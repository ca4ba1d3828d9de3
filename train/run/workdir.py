"""The workdir of a run: who holds it, what it was trained on and whether the run is finished.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, curves.png and, once the run is
finished, summary.json.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from train.config import Config, Experiment, JsonObject, Machine, Output, read_fields
from train.data.fingerprint import FINGERPRINT, Fingerprint, recorded_in, recorded_with
from train.errors import RunError, UsageError, check_folder, flag, unusable_folder
from train.run.atomic import write_atomically

SEEDS = "seeds.json"
"""Name of the score of several seeds, next to their workdirs."""

CHANGES = "data_changes"
"""Key in config.json of the changes of the data that the run continued after."""


def check_folders(config: Config) -> None:
    """Reject the folders of a run that cannot be used, before anything is read.

    Raises:
        UsageError: in one line, with the flag.
    """
    check_folder("workdir", config.output.workdir)
    for name in ("data_dir", "compilation_cache_dir"):
        if (folder := getattr(config.machine, name)) is not None:
            check_folder(name, folder)


@contextlib.contextmanager
def claim(config: Config, fingerprint: Fingerprint | None = None) -> Iterator[list[str]]:
    """Lock the workdir and check that it is empty or belongs to this run.

    The kernel releases the lock of a process that ends for any reason, so no stale lock remains.
    Other machines see the lock if their file system shares locks: NFS from version 4, Lustre
    mounted with `flock`. Process 0 holds the lock for all processes of a run.

    Args:
        config: configuration of the run.
        fingerprint: fingerprint of its data; None for synthetic data.

    Yields:
        How the data differs from that of the run so far, which `--allow-data-change` permits; empty
        if it is the same, and in other processes than 0.

    Raises:
        UsageError: if the workdir is not a folder, is locked by another process, or holds a run of
            another experiment or on other data.
        RunError: if the workdir cannot be written or locked.
    """
    if jax.process_index() != 0:
        yield []
        return
    workdir = config.output.workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise unusable_folder("--workdir", workdir, error) from None
    with lock:
        _lock(lock, workdir)
        yield _check_experiment(config, fingerprint)


def _lock(lock: TextIO, workdir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise UsageError(
            f"--workdir {workdir} is in use by {holder}; wait for it, stop it, or choose another"
        ) from None
    except OSError as error:
        raise RunError(f"--workdir {workdir} cannot be locked: {error.strerror}") from None


def _check_experiment(config: Config, fingerprint: Fingerprint | None) -> list[str]:
    workdir = config.output.workdir
    path = workdir / "config.json"
    try:
        saved = path.read_text() if path.exists() else None
        differences = [] if saved is None else differing_fields(config, saved)
        if not (workdir / "metrics.jsonl").exists():  # it has not trained yet
            _write(config, fingerprint, [])
            return []
        if differences:
            raise UsageError(
                f"--workdir {workdir} holds another run: {'; '.join(differences)}; choose another "
                "--workdir or repeat the experiment's flags. Only flags of machine and output may "
                "change, such as --num-devices, the batch size with --allow-batch-size-change, and "
                "--num-epochs and --milestones with --extend"
            )
        return [] if saved is None else differing_data(config, fingerprint, saved)
    except OSError as error:
        raise unusable_folder("--workdir", workdir, error) from None
    except ValueError:  # not our file, so it must not be overwritten
        raise UsageError(
            f"--workdir {workdir} has a config.json that is not a run's; choose another"
        ) from None


def differing_fields(config: Config, saved: str) -> list[str]:
    """The fields in which an experiment differs from the saved one that it should continue.

    Args:
        config: configuration of the run that is about to start.
        saved: what `Config.to_json` wrote in an earlier run.

    Returns:
        One phrase for each field that differs and must not.

    Raises:
        ValueError: if `saved` is not the configuration of a run.
    """
    before, now = read_fields(saved), json.loads(config.to_json())
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Experiment)
        if field.default is not dataclasses.MISSING
    }
    before = json.loads(json.dumps(defaults)) | before
    may_differ = {field.name for part in (Machine, Output) for field in dataclasses.fields(part)}
    may_differ |= {FINGERPRINT, CHANGES}
    if config.machine.allow_batch_size_change:
        may_differ |= {"num_workers", "batch_size_per_worker"}
    if config.machine.extend:
        may_differ |= {"num_epochs", "milestones"}
    return [
        f"{flag(name)} was {_typed(before.get(name))} and is now {_typed(now.get(name))}"
        for name in sorted((before.keys() | now.keys()) - may_differ)
        if before.get(name) != now.get(name)
    ]


def _typed(value: Any) -> str:
    """A value of config.json as one would type it: 30 60, not [30.0, 60.0]."""
    if isinstance(value, list):
        return " ".join(map(_typed, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def differing_data(config: Config, fingerprint: Fingerprint | None, saved: str) -> list[str]:
    """How the data differs from that of a run that should continue or be evaluated.

    Args:
        config: configuration of the command that is about to start.
        fingerprint: fingerprint of its data; None for synthetic data.
        saved: config.json of the run. Versions before fingerprints have recorded none.

    Returns:
        One phrase for each difference that `--allow-data-change` permits.

    Raises:
        UsageError: if the data differs and must not.
        ValueError: if `saved` is not the configuration of a run.
    """
    before = recorded_in(read_fields(saved))
    if before is None or fingerprint is None:
        return []
    differences = fingerprint.differences(before)
    has_same_classes = fingerprint.has_classes_of(before)
    if differences and not (has_same_classes and config.machine.allow_data_change):
        advice = (
            "restore the data, or accept the change with --allow-data-change"
            if has_same_classes
            else "restore the data or choose another --workdir"
        )
        raise UsageError(
            f"--workdir {config.output.workdir} holds a run on other data: now "
            f"{'; '.join(differences)} ({config.experiment.dataset}, fingerprint "
            f"{fingerprint.short} instead of {before.short}); {advice}"
        )
    return differences


def keep_config(
    config: Config,
    fingerprint: Fingerprint | None = None,
    step: int = 0,
    differences: Sequence[str] = (),
) -> None:
    """Record the configuration with which a run starts or resumes.

    Args:
        config: configuration of the run.
        fingerprint: fingerprint of its data; None for synthetic data.
        step: completed updates.
        differences: how the data differs from that of these updates.
    """
    if jax.process_index() != 0:
        return
    path = config.output.workdir / "config.json"
    saved = read_fields(path.read_text()) if path.exists() else {}
    changes: list[JsonObject] = saved.get(CHANGES, [])
    if differences:
        before = recorded_in(saved)
        short = before.short if before else None
        changes = [*changes, {"step": step, "before": short, "differences": list(differences)}]
    _write(config, fingerprint, changes)


def recorded_config(workdir: Path) -> Config | None:
    """The configuration with which the run last started or resumed; None for a new workdir.

    Raises:
        ValueError: if config.json is not the configuration of a run.
    """
    path = workdir / "config.json"
    return Config.from_json(path.read_text()) if path.exists() else None


def _write(config: Config, fingerprint: Fingerprint | None, changes: list[JsonObject]) -> None:
    fields = recorded_with(json.loads(config.to_json()), fingerprint)
    if changes:
        fields[CHANGES] = changes
    write_atomically(config.output.workdir / "config.json", json.dumps(fields, indent=2))


def finished(config: Config, last_step: int) -> JsonObject | None:
    """The summary of a run that has completed all its steps; None if it has not."""
    if not (config.output.workdir / "summary.json").exists():
        return None
    summary = read_summary(config.output.workdir)
    return summary if summary["num_steps"] >= last_step else None


def delete_summary(config: Config) -> None:
    """Delete the summary of a shorter run before it continues, and the score of its seeds."""
    workdir = config.output.workdir
    if jax.process_index() == 0:
        (workdir / "summary.json").unlink(missing_ok=True)
        if workdir.name == seed_folder(config.experiment.seed):
            (workdir.parent / SEEDS).unlink(missing_ok=True)


def seed_folder(seed: int) -> str:
    """Name of the workdir of one of several seeds, in the folder of `--workdir`."""
    return f"seed-{seed}"


def write_summary(workdir: Path, summary: JsonObject) -> None:
    """Write the summary of a run that has completed all its steps."""
    if jax.process_index() == 0:
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")


def read_summary(workdir: Path) -> JsonObject:
    """The summary of a finished run. Earlier versions recorded fewer entries."""
    return json.loads((workdir / "summary.json").read_text())
