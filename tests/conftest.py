"""Settings for every test: 8 simulated devices, and no implicit type promotion.

Runs of the trainer in subprocesses are compiled as for users. They share a compilation cache, which
is deleted after the last test.
"""

import os
import shutil
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # compiling costs more than running here
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

jax.config.update("jax_compilation_cache_dir", None)  # the test process itself uses no cache
IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if IS_FIRST:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")

# Each file's tests stay on one core, so the longest files must not come last.
LONGEST_FIRST = [
    "test_loop.py",
    "test_train_step.py",
    "test_processes.py",
    "test_main.py",
    "test_fine_tuning.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first."""

    def rank(item: pytest.Item) -> int:
        names = [*LONGEST_FIRST, item.path.name]
        return names.index(item.path.name)

    items.sort(key=rank)


def pytest_unconfigure() -> None:
    """Delete the compilation cache after the last test."""
    if IS_FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
