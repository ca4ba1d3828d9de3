"""The manifest of a checkpoint: SHA-256 digests that tell an intact checkpoint from a corrupt one.

Orbax does not detect corruption that happens after a checkpoint is written, so `manifest.json`
holds the digest of each file. A checkpoint that differs from its manifest is never restored.
"""

import hashlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

from etils import epath

import optax_warmup
from train.config import JsonObject

MANIFEST = "manifest.json"
CORRUPT = "damaged"
"""Folder next to the checkpoints that corrupt ones are moved to."""

# Orbax writes these after the manifest. They record when a checkpoint was written, not its content.
UNSIGNED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "grain", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on, by name."""
    own = {"python": sys.version.split()[0], "optax-warmup": optax_warmup.__version__}
    return own | {name: importlib.metadata.version(name) for name in PACKAGES}


def write_manifest(checkpoint: epath.Path, config: JsonObject) -> None:
    """Write the manifest of a checkpoint whose files are complete.

    Args:
        checkpoint: folder of the checkpoint.
        config: configuration of the run and fingerprint of its data, as JSON has them.
    """
    manifest = {"config": config, "versions": versions(), "sha256": _digests(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(checkpoint: epath.Path) -> dict[str, JsonObject]:
    """The manifest of an intact checkpoint."""
    return json.loads((checkpoint / MANIFEST).read_text())


def version_change(checkpoint: epath.Path | Path) -> str:
    """How the versions here differ from those that wrote an intact checkpoint.

    Returns:
        One line with each package that differs; empty if there is none.
    """
    checkpoint, now = epath.Path(checkpoint), versions()
    written = read_manifest(checkpoint).get("versions", {})
    changes = [
        f"{name} {version} (now {now[name]})"
        for name, version in written.items()
        if name in now and version != now[name]
    ]
    if not changes:
        return ""
    return f"checkpoint {checkpoint.name} was written with other versions: {', '.join(changes)}"


def corruption(checkpoint: epath.Path) -> str:
    """How a checkpoint differs from its manifest; empty if it is intact."""
    try:
        written = read_manifest(checkpoint)["sha256"].items()
        differing = {name for name, _ in written ^ _digests(checkpoint).items()}
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not as it was written"
    return f"{min(differing)} is not as it was written" if differing else ""


def newest_first(folder: epath.Path) -> list[epath.Path]:
    """The checkpoints in a folder, intact or not."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if re.fullmatch("[1-9][0-9]*", path.name))
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def move_corrupt(folder: epath.Path) -> list[str]:
    """Move every checkpoint newer than the newest intact one to `damaged/`; a line for each."""
    lines = []
    for checkpoint in newest_first(folder):
        if not (reason := corruption(checkpoint)):
            break
        number, target = 1, folder / CORRUPT / checkpoint.name
        while target.exists():  # an earlier checkpoint of the same step was corrupt too
            number += 1
            target = folder / CORRUPT / f"{checkpoint.name}.{number}"
        target.parent.mkdir(exist_ok=True)
        checkpoint.rename(target)
        lines.append(f"checkpoint {checkpoint.name} is corrupt: {reason}; moved to {target}")
    return lines


def _digests(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of each file in a checkpoint, by its path in it."""
    digests = {}
    for path in sorted(root / name for root, _, names in folder.walk() for name in names):
        name = str(path.relative_to(folder))
        if name not in UNSIGNED:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
            digests[name] = digest.hexdigest()
    return digests
