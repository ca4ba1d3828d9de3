"""The persistent compilation cache: later processes reuse it, and its failures end no run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from train.errors import RunError, UsageError
from train.run.compilation_cache import MAX_BYTES, keep_compiled

ROOT = Path(__file__).parents[3]
RUN = ("-m", "train", "--num-steps", "1", "--num-workers", "1", "--batch-size-per-worker", "8")
SECONDS = 300  # timeout of a run, sufficient on a slow machine

# Compiles a program and prints the numbers of cache hits and misses.
COMPILE = """
import os
from collections import Counter
from pathlib import Path
import jax
from train.run.compilation_cache import keep_compiled

events = Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
keep_compiled(Path(os.environ["NAMED"]) if "NAMED" in os.environ else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: 3 * x)(2.0).block_until_ready()
print(events["cache_hits"], events["cache_misses"], end="")
"""


def python(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with these environment variables and none of JAX's or XLA's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=clean | variables, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def compile_one(**variables: str) -> tuple[int, int]:
    """Compile a program in a new process; return its numbers of cache hits and misses."""
    done = python("-c", COMPILE, **variables)
    assert done.stderr == ""
    found, written = done.stdout.split()
    return int(found), int(written)


def programs(folder: Path, name: str = "") -> list[Path]:
    return sorted(folder.glob(f"jit_{name}*-cache"))


def test_default_cache_is_in_the_users_cache_folder(tmp_path: Path):
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": ""}
    assert compile_one(**home) == (0, 1)
    assert compile_one(**home) == (1, 0)
    assert len(programs(tmp_path / ".cache" / "optax-warmup")) == 1
    elsewhere = {"XDG_CACHE_HOME": str(tmp_path / "caches")}
    assert compile_one(**elsewhere) == (0, 1)
    assert len(programs(tmp_path / "caches" / "optax-warmup")) == 1


def test_the_cache_can_be_disabled(tmp_path: Path):
    off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert compile_one(HOME=str(tmp_path), XDG_CACHE_HOME="", **off) == (0, 0)
    assert compile_one(NAMED=str(tmp_path / "named"), **off) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_given_folder_replaces_the_default(tmp_path: Path):
    home, named, of_jax = tmp_path / "home", tmp_path / "named", tmp_path / "of-jax"
    variables = {"HOME": str(home), "JAX_COMPILATION_CACHE_DIR": str(of_jax)}
    assert compile_one(**variables) == (0, 1)
    assert compile_one(**variables, NAMED=str(named)) == (0, 1)
    assert [len(programs(folder)) for folder in (of_jax, named)] == [1, 1]
    assert not home.exists()


def test_multi_process_runs_have_no_default_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    keep_compiled(None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", ["/proc", "/dev/null"])
def test_unwritable_home_is_not_an_error(home: str):
    assert compile_one(HOME=home, XDG_CACHE_HOME="") == (0, 0)


def test_a_corrupt_program_is_compiled_again(tmp_path: Path):
    assert compile_one(NAMED=str(tmp_path)) == (0, 1)
    [program] = programs(tmp_path)
    program.write_bytes(program.read_bytes()[:100])
    done = python("-c", COMPILE, NAMED=str(tmp_path))
    assert done.stdout.startswith("0 ")
    assert "Error reading persistent compilation cache entry" in done.stderr


def test_least_recently_used_programs_are_deleted_first(tmp_path: Path):
    """A sparse file fills the cache."""
    for name, used in (("old", 1), ("large", 2), ("new", 3)):
        path = tmp_path / f"jit_{name}-cache"
        path.touch()
        os.truncate(path, MAX_BYTES if name == "large" else 1)
        os.utime(path, (used, used))
    compile_one(NAMED=str(tmp_path))
    assert (tmp_path / "jit_new-cache").exists()
    assert not (tmp_path / "jit_large-cache").exists()
    assert not (tmp_path / "jit_old-cache").exists()


def test_cache_folder_that_is_a_file_is_a_usage_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--compilation-cache-dir .*/file cannot be used"):
        keep_compiled(tmp_path / "file")


def test_second_run_compiles_nothing_and_ends_with_equal_parameters(
    digits_dir: Path, tmp_path: Path
):
    digests, kept = [], []
    for name in ("first", "second"):
        workdir = tmp_path / name
        done = python(
            *RUN, *("--workdir", str(workdir), "--data-dir", str(digits_dir)),
            *("--compilation-cache-dir", str(tmp_path / "compiled")),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",  # on fast machines too
            JAX_DISABLE_MOST_OPTIMIZATIONS="true",
        )  # fmt: skip
        assert done.stderr == ""
        digests.append(json.loads((workdir / "summary.json").read_text())["params_digest"])
        kept.append([(p.name, p.stat().st_mtime_ns) for p in programs(tmp_path / "compiled")])
    assert digests[0] == digests[1]
    assert kept[0] == kept[1]
    assert {"jit_train_step", "jit_create"} <= {name.partition("-")[0] for name, _ in kept[0]}


def test_a_folder_from_the_environment_variable_must_be_writable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/proc/compiled")
    with pytest.raises(RunError, match=r"^JAX_COMPILATION_CACHE_DIR /proc/compiled cannot be used"):
        keep_compiled(None)
