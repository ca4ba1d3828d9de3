"""Agreement among the processes of a run: same flags, code and data, and one error stops all."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.config import Config
from train.data.fingerprint import Fingerprint
from train.errors import RunError, UsageError, flag, from_os_error
from train.run.manifest import versions

T = TypeVar("T")

# Fields that may differ between processes: which process it is, and the paths on its host.
OWN_FIELDS = frozenset({"process_id", "coordinator_address", "data_dir"})

ROOT = Path(__file__).parents[2]  # the folder of the packages `train` and `optax_warmup`


def agree(config: Config) -> None:
    """Check that all processes were started like process 0. All processes must call it.

    Raises:
        UsageError: in every process, if one has other flags, package versions or source files.
    """
    facts = {
        flag(name): str(value) for name, value in config.to_dict().items() if name not in OWN_FIELDS
    }
    facts |= versions() | {"the source of train and optax_warmup": _source_digest()}
    first, *others = [json.loads(text) for text in _gather(json.dumps(facts))]
    for process, other in enumerate(others, 1):
        differing = [
            f"{name} is {other.get(name)} instead of {first.get(name)}"
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if differing:
            raise UsageError(
                f"process {process} differs from process 0: {'; '.join(differing)}; start all "
                "processes alike"
            )


def agree_on_data(name: str, fingerprint: Fingerprint | None) -> None:
    """Check that all processes have the data of process 0. All processes must call it.

    Args:
        name: name of the data set.
        fingerprint: fingerprint of this process's data; None, in all processes, for synthetic data.

    Raises:
        UsageError: in every process, if one has other data.
    """
    if fingerprint is None:
        return
    texts = _gather(json.dumps(fingerprint.to_json()))
    first, *others = [Fingerprint.from_json(json.loads(text)) for text in texts]
    for process, other in enumerate(others, 1):
        if differences := other.differences(first):
            raise UsageError(
                f"process {process} has other data than process 0: of {name}, "
                f"{'; '.join(differences)}; give all processes the same data"
            )


def together(call: Callable[[], T]) -> T:
    """Call a function in every process; an error in one of them is raised in all.

    Otherwise the other processes would wait for the failed one in their next step.

    Args:
        call: a function that runs no collectives.

    Raises:
        UsageError | RunError: the error of the first process that has one.
    """
    if jax.process_count() == 1:
        return call()
    value, failure = None, ("", "")
    try:
        value = call()
    except (UsageError, RunError) as error:
        failure = type(error).__name__, str(error)
    except OSError as error:
        failure = RunError.__name__, str(from_os_error(error))
    for process, text in enumerate(_gather(json.dumps(failure))):
        kind, line = json.loads(text)
        if kind:
            error = UsageError if kind == UsageError.__name__ else RunError
            raise error(f"process {process}: {line}")
    return cast(T, value)


def _gather(text: str) -> list[str]:
    """The texts of all processes."""
    if jax.process_count() == 1:
        return [text]
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        numbers = ", ".join(f"process {process} has {n}" for process, n in sorted(devices.items()))
        raise UsageError(f"{numbers} devices; start all processes alike")
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    rows = multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine))))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(
        path for package in ("train", "optax_warmup") for path in (ROOT / package).rglob("*.py")
    ):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
