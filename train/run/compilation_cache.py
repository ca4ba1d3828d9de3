"""Compiled programs on disk, so that a second start compiles nothing.

JAX keys its cache by the program, its own version, XLA's flags, and the CPU's features or the kind
of accelerator. Machines of different kinds may share a folder, and no number depends on it.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import jax

from train.errors import unusable_folder

MAX_BYTES = 2**30
"""Size of the folder beyond which the least recently used programs are deleted."""


def keep_compiled(folder: Path | None) -> None:
    """Tell JAX where to keep compiled programs. Call before anything is compiled.

    Without a folder JAX uses `JAX_COMPILATION_CACHE_DIR`, or optax-warmup/ in the user's cache
    folder. Nothing is kept if that is not writable, or in runs of several processes.
    `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache.

    Args:
        folder: the folder; for several processes one that all hosts share. On GPUs the hosts tune
            their programs together, so no host may find its program on disk while others wait.

    Raises:
        UsageError: if the path is not a folder.
        RunError: if the folder, or that of `JAX_COMPILATION_CACHE_DIR`, is not writable.
    """
    if not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    if folder is None:
        if variable := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            if "://" not in variable:  # JAX can use a bucket; it warns of any other failure
                _check_writable("JAX_COMPILATION_CACHE_DIR", Path(variable))
            return
        if jax.distributed.is_initialized():
            return
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            _use(caches / "optax-warmup")
        return
    _check_writable("--compilation-cache-dir", folder)
    _use(folder)


def _check_writable(name: str, folder: Path) -> None:
    try:
        _make_writable(folder)
    except OSError as error:
        raise unusable_folder(name, folder, error) from None


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # raises unless the folder is writable


def _use(folder: Path) -> None:
    _make_writable(folder)
    if not jax.distributed.is_initialized():  # another process may be reading
        _shrink(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # XLA's own cache for GPUs would end the run if it cannot be written.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _shrink(folder: Path) -> None:
    """Delete the least recently used programs.

    JAX's own limit needs file locks, which some home folders lack.
    """
    num_bytes = 0
    programs: list[tuple[os.stat_result, Path]] = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another run has just deleted it
            programs.append((path.stat(), path))
    for status, path in sorted(programs, key=lambda program: -program[0].st_atime):
        num_bytes += status.st_size
        if num_bytes > MAX_BYTES:
            path.unlink(missing_ok=True)
