"""Time from the command to the first step of the digits, and its parts.

    python -m benchmarks.startup

Each round starts `python -m train` twice with the same compilation cache: cold, while it is empty,
and warm, after the first start has filled it. The times are measured from outside the process:

- `imports`: `import train.loop`, in a process of its own.
- `plan`: until the run prints its plan, with the data open and the devices known.
- `first_step`: until metrics.jsonl has its first record, written while the second step runs.

The data are prepared beforehand.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import environment, make_parser, save
from benchmarks.tables import startup as table_of

ROOT = Path(__file__).parents[1]
PACKAGES = ["jax", "flax", "optax", "grain", "orbax-checkpoint", "tensorflow-datasets"]


def imports(variables: dict[str, str]) -> float:
    """Measure how long Python takes to start and to import what a run needs, in seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import train.loop"], cwd=ROOT, env=variables, check=True)
    return time.perf_counter() - began


def start(folder: Path, compiled: Path, variables: dict[str, str]) -> dict[str, float]:
    """Start a run, and measure the seconds until its plan and until the end of its first step."""
    command = [sys.executable, "-m", "train", "digits", "--workdir", str(folder)]
    command += ["--compilation-cache-dir", str(compiled)]
    command += ["--num-steps", "2", "--log-every-steps", "1"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        run.stdout.readline()
        plan = time.perf_counter() - began
        records = folder / "metrics.jsonl"
        while not (records.exists() and "\n" in records.read_text(encoding="utf-8")):
            if run.poll():
                raise RuntimeError(f"the run ended with exit code {run.returncode}")
            time.sleep(0.01)
        first_step = time.perf_counter() - began
        run.stdout.read()
    return {"plan": plan, "first_step": first_step}


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure the start of a run of the digits.")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of starts; default: 5")
    options = parser.parse_args()
    report = environment(PACKAGES) | {"rounds": options.rounds}
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # JAX's cache threshold of one second stays at its default, which users have.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        variables = clean | {"TFDS_DATA_DIR": str(folder / "data"), "PYTHONUNBUFFERED": "1"}
        start(folder / "preparing", folder / "unused", variables)
        for turn in range(options.rounds):
            row = {"imports": imports(variables)}
            for which in ("cold", "warm"):
                marks = start(folder / f"{turn}-{which}", folder / f"compiled-{turn}", variables)
                row |= {f"{which}_{mark}": seconds for mark, seconds in marks.items()}
            rows.append(row)
            print(json.dumps({mark: round(s, 2) for mark, s in row.items()}), flush=True)
    report["seconds"] = {mark: statistics.median(row[mark] for row in rows) for mark in rows[0]}
    print(table_of(report["seconds"]))
    save(options.out, report)


if __name__ == "__main__":
    main()
