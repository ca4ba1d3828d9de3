"""What JAX compiles is kept on disk, so that a second start need not compile it again.

JAX knows a program again by what it computes, its own version, XLA's flags, and the features of the
CPU or the kind of accelerator: machines of different kinds may share a folder, and no number
depends on it.
"""

import contextlib
import os
import re
import tempfile
import warnings
from pathlib import Path

import jax

from train.config import unusable

MAX_BYTES = 2**30
"""Of a folder; beyond it, what was used longest ago is deleted."""


def keep_compiled(folder: Path | None) -> None:
    """Tell JAX where to keep what it compiles; before it compiles anything.

    With no folder named it is that of `JAX_COMPILATION_CACHE_DIR`, which is left to JAX, or
    optax-warmup/ in the user's folder for caches; where that cannot be written, and in runs of
    several processes, nothing is kept. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Args:
        folder: for a run of several processes one that all hosts share. On GPUs the hosts tune
            their programs together, so none may wait for another that has found its own on disk.

    Raises:
        UsageError: if the folder that is named is no folder.
        RunError: if it cannot be written.
    """
    if not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    if folder is None:
        if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.distributed.is_initialized():
            return
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            _use(caches / "optax-warmup")
        return
    try:
        _use(folder)
    except OSError as error:
        raise unusable("--compilation-cache-dir", folder, error) from None


def _use(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # may it be written?
    if not jax.distributed.is_initialized():  # or one process would take what another has found
        _shrink(folder)
    _heal(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # XLA would keep a folder of its own there for GPUs, and end the run if it cannot write it.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _shrink(folder: Path) -> None:
    """Delete what was used longest ago; JAX's own bound wants locks, which some homes lack."""
    num_bytes = 0
    programs: list[tuple[os.stat_result, Path]] = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
            programs.append((path.stat(), path))
    for status, path in sorted(programs, key=lambda program: -program[0].st_atime):
        num_bytes += status.st_size
        if num_bytes > MAX_BYTES:
            path.unlink(missing_ok=True)


def _heal(folder: Path) -> None:
    """Delete a program that cannot be read, or that a full disk has cut off.

    JAX warns, compiles it again, and would leave what is there for ever.
    """
    show = warnings.showwarning

    def delete(message: Warning | str, *arguments: object, **options: object) -> None:
        found = re.match(
            r"Error (?:reading|writing) persistent compilation cache entry for '(.+?)'",
            str(message),
        )
        if found is None:
            show(message, *arguments, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
            return
        for path in folder.glob(f"{found[1]}-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = delete
