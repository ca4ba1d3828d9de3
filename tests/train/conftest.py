"""Shared fixtures of the trainer's tests: prepared digits, and configurations of runs on them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from train.config import Config
from train.data.dataset import open_dataset
from train.recipes import digits


@pytest.fixture(autouse=True)
def keep_the_compilation_cache() -> Iterator[None]:
    """Enable the cache again after a test of `train.memory`, which disables it in its process."""
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir in which tensorflow-datasets has prepared the digits."""
    data_dir = tmp_path_factory.mktemp("data")
    open_dataset(digits().replace(data_dir=data_dir))
    return data_dir


@pytest.fixture
def digits_config(tmp_path: Path, digits_dir: Path) -> Callable[..., Config]:
    """Factory of digits configurations with changed fields; their workdir does not exist yet."""

    def make(**changes: object) -> Config:
        defaults = {"workdir": tmp_path / "run", "data_dir": digits_dir}
        return digits().replace(**(defaults | changes))

    return make
