"""Settings for every test: 8 simulated devices, and no implicit type promotion.

Whatever a test, or a run that it starts, has compiled is reused by the others. The shared
compilation cache is deleted after the last test.
"""

import os
import shutil
import tempfile

import jax
import pytest

IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ

# Compiling costs more than running here. These flags halve its time, and a step of the digits takes
# 15 % longer; with `jax_disable_most_optimizations` it takes eight times as long.
FLAGS = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
if IS_FIRST:  # pytest-xdist's workers inherit its environment
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Each file's tests stay on one core, so the longest files must not come last.
LONGEST_FIRST = [
    "test_faults.py", "test_train_step.py", "test_loop.py", "test_agreement.py", "test_timeline.py",
    "test_first_hour.py", "test_changed_data.py", "test_main.py", "test_processes.py",
    "test_joining.py", "test_startup.py", "test_disk.py", "test_fine_tuning.py",
    "test_extension.py", "test_memory.py", "test_benchmarks.py", "test_nonfinite.py",
    "test_compilation_cache.py",
]  # fmt: skip


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
