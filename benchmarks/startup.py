"""How long it is from the command to the first step of the digits, and where the time goes.

    python benchmarks/startup.py [--rounds 5] [--out benchmarks/startup.json]

Each round starts `python -m train` twice with a folder for compiled programs: cold, where it is
empty, and warm, where it holds what the first start has compiled. Looked at from the outside: the
time until the first record of metrics.jsonl is there, which is written while the second step runs.
On the way there are two marks: when `import train.loop` has ended in a process of its own, and when
the run prints its plan, with the data open and the devices known. The data are prepared before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from step import hardware, version

ROOT = Path(__file__).parents[1]
PACKAGES = ["jax", "flax", "optax", "grain", "orbax-checkpoint", "tensorflow-datasets"]


def imports(environment: dict[str, str]) -> float:
    """Seconds that Python takes to start and to import what a run needs."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import train.loop"], cwd=ROOT, env=environment, check=True
    )
    return time.perf_counter() - began


def start(folder: Path, compiled: Path, environment: dict[str, str]) -> dict[str, float]:
    """Start a run and say when it printed its plan and when its first step was over."""
    command = [sys.executable, "-m", "train", "digits", "--workdir", str(folder)]
    command += ["--compilation-cache-dir", str(compiled)]
    command += ["--num-steps", "2", "--log-every-steps", "1"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        run.stdout.readline()
        plan = time.perf_counter() - began
        records = folder / "metrics.jsonl"
        while not (records.exists() and "\n" in records.read_text(encoding="utf-8")):
            if run.poll():
                raise RuntimeError(f"the run ended with {run.returncode}")
            time.sleep(0.01)
        first_step = time.perf_counter() - began
        run.stdout.read()
    return {"plan": plan, "first_step": first_step}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures the start of a run of the digits.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # JAX's own bound of a second is kept, so that the folder is what users get.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        environment = clean | {"TFDS_DATA_DIR": str(folder / "data"), "PYTHONUNBUFFERED": "1"}
        start(folder / "preparing", folder / "unused", environment)
        for turn in range(options.rounds):
            row = {"load_average_before": os.getloadavg()[0], "imports": imports(environment)}
            for which in ("cold", "warm"):
                marks = start(folder / f"{turn}-{which}", folder / f"compiled-{turn}", environment)
                row |= {f"{which}_{mark}": seconds for mark, seconds in marks.items()}
            rows.append(row)
            print(
                json.dumps({mark: round(seconds, 2) for mark, seconds in row.items()}), flush=True
            )
    report: dict[str, Any] = {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": hardware(),
        "rounds": options.rounds,
        "load_average_before": [row.pop("load_average_before") for row in rows],
        "seconds": {mark: statistics.median(row[mark] for row in rows) for mark in rows[0]},
    }
    for mark, seconds in report["seconds"].items():
        print(f"{mark:<20}{seconds:>8.2f} s")
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
