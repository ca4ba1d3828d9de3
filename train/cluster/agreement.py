"""Several processes of one run: that they were started alike, and that a mistake ends them all."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from train.config import Config, RunError, UsageError, flag, refused
from train.run.checkpoint import versions

T = TypeVar("T")

# What may differ between the processes of one run: which one it is, and what its host calls things.
OWN_FIELDS = frozenset({"process_id", "coordinator_address", "data_dir"})

PACKAGES = Path(__file__).parents[2]  # where `train` and `optax_warmup` are


def agree(config: Config) -> None:
    """Find processes that were started otherwise than the first one; to be called by all.

    Raises:
        UsageError: in every process, if one has other flags, other packages or another source.
    """
    facts = {
        flag(name): str(value)
        for name, value in dataclasses.asdict(config).items()
        if name not in OWN_FIELDS
    }
    facts |= versions() | {"the source of train and optax_warmup": _source_digest()}
    first, *others = [json.loads(text) for text in _gather(json.dumps(facts))]
    for process, other in enumerate(others, 1):
        differing = [
            f"{name} is {other.get(name)} and not {first.get(name)}"
            for name in sorted(first.keys() | other.keys())
            if first.get(name) != other.get(name)
        ]
        if differing:
            raise UsageError(
                f"process {process} was started otherwise than process 0: {'; '.join(differing)}; "
                "start all processes alike"
            )


def together(call: Callable[[], T]) -> T:
    """Call a function in every process; what one of them raises ends all.

    Without it the others would wait for that one in their next step.

    Args:
        call: a function that takes no step with the other processes by itself.

    Raises:
        UsageError | RunError: that of the first process that has one.
    """
    if jax.process_count() == 1:
        return call()
    value, mistake = None, ("", "")
    try:
        value = call()
    except (UsageError, RunError) as error:
        mistake = type(error).__name__, str(error)
    except OSError as error:
        mistake = RunError.__name__, str(refused(error))
    for process, text in enumerate(_gather(json.dumps(mistake))):
        kind, line = json.loads(text)
        if kind:
            error = UsageError if kind == UsageError.__name__ else RunError
            raise error(f"process {process}: {line}")
    return cast(T, value)


def _gather(text: str) -> list[str]:
    """One text of each process."""
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
        path for package in ("train", "optax_warmup") for path in (PACKAGES / package).rglob("*.py")
    ):
        digest.update(str(path.relative_to(PACKAGES)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]
