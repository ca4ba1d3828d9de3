"""The workdir of a run: who holds it, whether the run is finished, and atomic writes.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, curves.png and, once the run is
finished, summary.json.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax

from train.config import Config, Experiment, JsonObject, Machine, Output, read_fields
from train.errors import RunError, UsageError, flag, unusable_folder


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a kill or a crash leaves the old text or the new, never a part."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # otherwise the rename may reach the disk before the text
    os.replace(unfinished, path)


@contextlib.contextmanager
def claim(config: Config) -> Iterator[None]:
    """Lock the workdir and check that it is empty or belongs to this run.

    The kernel releases the lock of a process that ends for any reason, so no stale lock remains.
    Other machines see the lock if their file system shares locks: NFS from version 4, Lustre
    mounted with `flock`. Process 0 holds the lock for all processes of a run.

    Raises:
        UsageError: if the workdir is not a folder, is locked by another process, or holds a run of
            another experiment.
        RunError: if the workdir cannot be written or locked.
    """
    if jax.process_index() != 0:
        yield
        return
    workdir = config.output.workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("a+")
    except OSError as error:
        raise unusable_folder("--workdir", workdir, error) from None
    with lock:
        _lock(lock, workdir)
        _check_experiment(config)
        yield


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


def _check_experiment(config: Config) -> None:
    workdir = config.output.workdir
    path = workdir / "config.json"
    try:
        differences = differing_fields(config, path.read_text()) if path.exists() else []
        has_trained = (workdir / "metrics.jsonl").exists()
        if not has_trained:
            write_atomically(path, config.to_json())
    except OSError as error:
        raise unusable_folder("--workdir", workdir, error) from None
    except ValueError:  # not our file, so it must not be overwritten
        raise UsageError(
            f"--workdir {workdir} has a config.json that is not a run's; choose another"
        ) from None
    if differences and has_trained:
        raise UsageError(
            f"--workdir {workdir} holds another run: {'; '.join(differences)}; choose another "
            "--workdir or repeat the experiment's flags. Only flags of machine and output may "
            "change, such as --num-devices, and the batch size with --allow-batch-size-change"
        )


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
    if config.machine.allow_batch_size_change:
        may_differ |= {"num_workers", "batch_size_per_worker"}
    return [
        f"{flag(name)} was {before.get(name)} and is now {now.get(name)}"
        for name in sorted((before.keys() | now.keys()) - may_differ)
        if before.get(name) != now.get(name)
    ]


def keep_config(config: Config) -> None:
    """Record the configuration of a resumed run whose batch size may have changed."""
    if config.machine.allow_batch_size_change and jax.process_index() == 0:
        write_atomically(config.output.workdir / "config.json", config.to_json())


def finished(config: Config, last_step: int) -> JsonObject | None:
    """The summary of a run that has completed all its steps; None if it has not."""
    if not (config.output.workdir / "summary.json").exists():
        return None
    summary = read_summary(config.output.workdir)
    return summary if summary["num_steps"] >= last_step else None


def delete_summary(config: Config) -> None:
    """Delete the summary of a shorter run before it continues."""
    if jax.process_index() == 0:
        (config.output.workdir / "summary.json").unlink(missing_ok=True)


def read_summary(workdir: Path) -> JsonObject:
    """The summary of a finished run."""
    return json.loads((workdir / "summary.json").read_text())
