"""The folder of a run: whose it is, whether it is finished, and files that are never half-written.

It holds config.json, metrics.jsonl, tensorboard/, checkpoints/, curves.png and, when the run is
finished, summary.json.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

from train.config import Config, RunError, UsageError, differing_fields, unusable


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text so that a kill or a crash leaves the old or the new, never a half."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or the name might reach the disk before the text does
    os.replace(unfinished, path)


@contextlib.contextmanager
def claim(config: Config) -> Iterator[None]:
    """Make the workdir this run's own, or find that it is, and hold it against others meanwhile.

    The kernel takes the lock back from a process that ends, however it ends, so that none is left
    behind. Other machines see it where their file system shares locks: NFS from version 4, Lustre
    mounted with `flock`. Of several processes of a run the first holds it for all.

    Raises:
        UsageError: if it is no folder, is held by another process, or holds a run of another
            configuration.
        RunError: if it cannot be written, or locked.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        config.workdir.mkdir(parents=True, exist_ok=True)
        lock = (config.workdir / "lock").open("a+")
    except OSError as error:
        raise unusable("--workdir", config.workdir, error) from None
    with lock:
        _hold(lock, config.workdir)
        _compare(config)
        yield


def _hold(lock: TextIO, workdir: Path) -> None:
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


def _compare(config: Config) -> None:
    path = config.workdir / "config.json"
    try:
        differences = differing_fields(config, path.read_text()) if path.exists() else []
        is_free = not (config.workdir / "metrics.jsonl").exists()  # nothing was trained in it yet
        if is_free:
            write_whole(path, config.to_json())
    except OSError as error:
        raise unusable("--workdir", config.workdir, error) from None
    except ValueError:  # somebody else's file, which must not be overwritten
        raise UsageError(
            f"--workdir {config.workdir} holds a config.json that is not a run's; choose another"
        ) from None
    if differences and not is_free:
        raise UsageError(
            f"--workdir {config.workdir} holds another run: {'; '.join(differences)}; choose "
            "another --workdir or the same configuration, of which only where and how it runs may "
            "change, such as --num-devices and --accumulation-steps, and the minibatch with "
            "--allow-batch-size-change"
        )


def keep_config(config: Config) -> None:
    """Write down the configuration with which a run goes on, where it may have changed."""
    if config.allow_batch_size_change and jax.process_index() == 0:
        write_whole(config.workdir / "config.json", config.to_json())


def finished(config: Config, last_step: int) -> dict[str, Any] | None:
    """Read the summary of a run that has already made all its steps; None if there is none."""
    if not (config.workdir / "summary.json").exists():
        return None
    summary = read_summary(config.workdir)
    return summary if summary["num_steps"] >= last_step else None


def forget_summary(config: Config) -> None:
    """Take away the summary of a shorter run, before the run goes on."""
    if jax.process_index() == 0:
        (config.workdir / "summary.json").unlink(missing_ok=True)


def read_summary(workdir: Path) -> dict[str, Any]:
    """Read the summary of a finished run."""
    return json.loads((workdir / "summary.json").read_text())
