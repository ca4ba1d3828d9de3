"""Command line, environment and file that all benchmarks share."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def make_parser(file: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a benchmark, with --out.

    Args:
        file: `__file__` of the benchmark.
        description: description of the command.
    """
    path = Path(file).with_suffix(".json")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{path.stem}", description=description
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=path,
        help=f"JSON file to write; default: benchmarks/{path.name}",
    )
    return parser


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Describe the machine, its load and the versions of packages; call it before measuring."""
    return {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "hardware": hardware(),
        "load_average_before": os.getloadavg()[0],
    }


def version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Describe JAX's device and the CPU."""
    # A process of its own: otherwise this one would keep the device's memory.
    code = "import jax; print(jax.devices()[0].platform, jax.devices()[0].device_kind, sep='|')"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )  # fmt: skip
    device, kind = process.stdout.split("\n")[0].split("|")
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "platform": device,
        "device": kind,
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def save(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON; a reader sees the old file or the complete new one."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
    print(f"wrote {path}", flush=True)  # before any error, in the log of a subprocess
