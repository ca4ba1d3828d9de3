"""Kill runs at random moments, and compare their results with those of an undisturbed run.

    python -m tests.soak --kills 500

A run of 66 steps of the digits is killed with SIGKILL and resumed by the same command, about 26
times: while it imports, compiles, trains, evaluates and writes checkpoints. In the end, its
parameters, its summary and every number that it logged must equal those of a run that was never
killed. This is repeated until the given number of kills is reached.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EPOCH_STEPS, LAST_STEP = 11, 66
FLAGS = [
    *("--num-epochs", "6", "--warmup-epochs", "2", "--milestones", "3", "5"),
    *("--log-every-steps", "1", "--checkpoint-every-steps", "2"),
]
LIFE_TIMEOUT = 300.0  # seconds


@dataclasses.dataclass
class Life:
    """One process of a run, observed from outside while it is running.

    Attributes:
        workdir: workdir of the run.
        output: file with the process's output.
        began: start in nanoseconds of the clock; older files were left by the previous process.
    """

    workdir: Path
    output: Path
    began: int

    @property
    def text(self) -> str:
        """Output so far."""
        return self.output.read_text()

    @property
    def resumed_from(self) -> int:
        """Step from which the process resumed; 0 if from none, or if it is not known yet."""
        found = re.search(r"resuming after step (\d+)", self.text)
        return int(found[1]) if found else 0

    @property
    def newest_record(self) -> int:
        """Last step in metrics.jsonl; 0 before this process has written to it."""
        return newest_record(self.workdir) if self._wrote(self.workdir / "metrics.jsonl") else 0

    @property
    def checkpoint_in_writing(self) -> int:
        """Step of the checkpoint that the process is writing; 0 if none.

        It is 0 before metrics.jsonl is written: until then the process removes old files.
        """
        if not self._wrote(self.workdir / "metrics.jsonl"):
            return 0
        unfinished = (path for path in unfinished_in(self.workdir) if self._wrote(path))
        return max((int(path.name.split(".")[0]) for path in unfinished), default=0)

    def _wrote(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime_ns > self.began
        except FileNotFoundError:  # not written yet, or removed
            return False


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment to kill at: a random delay after an event.

    Attributes:
        name: name in the table.
        has_come: function that returns True after the event; its arguments are the process and the
            step that the process must have reached.
        seconds: maximum delay.
        compiles: whether the process runs without a compilation cache.
    """

    name: str
    has_come: Callable[[Life, int], bool]
    seconds: float
    compiles: bool = False


def trains(life: Life, step: int) -> bool:
    """Return True if this process has trained at least one step, and up to `step`."""
    return life.newest_record >= max(step, life.resumed_from + 1)


def writes(life: Life, step: int) -> bool:
    """Return True while a checkpoint of such a step is being written."""
    return life.checkpoint_in_writing >= max(step, life.resumed_from + 1)


def evaluates(life: Life, step: int) -> bool:
    """Return True if the last step of an epoch is running; evaluation follows it."""
    before_end = max(step, life.resumed_from + 1)
    return life.newest_record >= before_end + (-before_end - 1) % EPOCH_STEPS


START = Moment("start", lambda life, step: True, 3.0)
COMPILATION = Moment("compilation", lambda life, step: "last step" in life.text, 1.5, compiles=True)
TRAINING = Moment("training", trains, 0.05)
CHECKPOINT = Moment("writing a checkpoint", writes, 0.03)
EVALUATION = Moment("evaluation", evaluates, 0.15)
MOMENTS = [START] * 3 + [COMPILATION] * 3 + [TRAINING] * 7 + [CHECKPOINT] * 8 + [EVALUATION] * 5


def environment(cache: Path, *, compiles: bool = False) -> dict[str, str]:
    """Environment variables of a run that uses this compilation cache, or none."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    if compiles:
        return clean | {"COLUMNS": "120", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return clean | {
        "COLUMNS": "120",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def records(workdir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; an incomplete line is an error."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        raise AssertionError(f"{path} ends with an incomplete line: {text.splitlines()[-1]!r}")
    return [json.loads(line) for line in text.splitlines()]


def newest_record(workdir: Path) -> int:
    """Last step in metrics.jsonl; 0 if there is none. It is read often, so it parses one line.

    While a line is written across two pages of the file, a reader may see only its beginning.
    """
    path = workdir / "metrics.jsonl"
    complete = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(complete[-1])["step"] if complete else 0


def newest_checkpoint(workdir: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def unfinished_in(workdir: Path) -> list[Path]:
    """Checkpoints that are being written, or that a kill has left unfinished."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


TIMES = {"train/images_per_second", "train/seconds", "images_per_second", "seconds"}


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """A record or a summary without its times."""
    return {name: value for name, value in values.items() if name not in TIMES}


def outcome(workdir: Path) -> dict[str, Any]:
    """The results that must not depend on kills: summary and records, without their times."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {"summary": timeless(summary), "records": [*map(timeless, records(workdir))]}


def start(workdir: Path, flags: list[str], env: dict[str, str], output: Path) -> Any:
    """Start the command, and redirect its output to a file."""
    command = [sys.executable, "-m", "train", "--workdir", str(workdir), *flags]
    with output.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def live(
    workdir: Path, flags: list[str], cache: Path, moment: Moment, step: int, delay: float
) -> dict[str, Any] | None:
    """Start the command, and kill it `delay` seconds after a moment has come at or after `step`.

    Returns:
        A row of the report, or None if the process finished before it could be killed.
    """
    output = workdir.with_suffix(".txt")
    life = Life(workdir, output, began=time.time_ns())
    began = time.monotonic()
    process = start(workdir, flags, environment(cache, compiles=moment.compiles), output)
    try:
        while not moment.has_come(life, step):
            if process.poll() is not None:
                break
            if time.monotonic() - began > LIFE_TIMEOUT:
                raise AssertionError(f"timeout before {moment.name} of step {step}: {life.text}")
            time.sleep(0.001)
        else:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise AssertionError(f"exit code {process.returncode}: {life.text}")
    return {
        "moment": moment.name,
        "seconds": time.monotonic() - began,
        "resumed_from": life.resumed_from,
        "newest_record": newest_record(workdir),
        "newest_checkpoint": newest_checkpoint(workdir),
        "in_writing": life.checkpoint_in_writing,
    }


def kill_until_it_ends(workdir: Path, cache: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Finish a run in a folder, killing it once at each of `MOMENTS`, in a random order.

    On a busy machine a moment can be missed. The run then finishes with fewer kills.

    Yields:
        A row of the report for each kill.
    """
    rng = random.Random(seed)
    moments = rng.sample(MOMENTS, len(MOMENTS))
    for number, moment in enumerate(moments):
        step = 1 + number * (LAST_STEP - EPOCH_STEPS) // len(moments)
        row = live(workdir, FLAGS, cache, moment, step, rng.uniform(0, moment.seconds))
        if row is None:
            return
        yield row
    # This kill falls into the plotting and the summary, or comes too late.
    end = Moment("end", lambda life, step: life.newest_record == LAST_STEP, 1.0)
    row = live(workdir, FLAGS, cache, end, LAST_STEP, rng.uniform(0, end.seconds))
    if row is not None:
        yield row
        run_to_the_end(workdir, cache)


def run_to_the_end(workdir: Path, cache: Path) -> None:
    """Finish the run in a folder without killing it."""
    output = workdir.with_suffix(".txt")
    if start(workdir, FLAGS, environment(cache), output).wait() != 0:
        raise AssertionError(output.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """Format one line per kind of moment."""
    lines = [
        f"{'killed at':<22}{'kills':>6}{'seconds, median':>17}{'steps lost, mean':>18}"
        f"{'most':>6}{'checkpoint unfinished':>25}"
    ]
    for name in sorted({row["moment"] for row in rows}):
        some = [row for row in rows if row["moment"] == name]
        lost = [row["newest_record"] - row["newest_checkpoint"] for row in some]
        lines.append(
            f"{name:<22}{len(some):>6}{statistics.median(row['seconds'] for row in some):>17.2f}"
            f"{statistics.mean(lost):>18.2f}{max(lost):>6}"
            f"{sum(row['in_writing'] > 0 for row in some):>25}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Kill runs, and check their results.")
    add, out = parser.add_argument, Path(__file__).with_suffix(".json")
    add("--kills", type=int, default=500, help="minimum number of kills; default: 500")
    add("--seed", type=int, default=0, help="random seed of the first run; default: 0")
    add("--out", default=out, help="JSON file to write; default: tests/soak.json")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    runs = differing = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "compiled"
        run_to_the_end(folder / "undisturbed", cache)
        expected = outcome(folder / "undisturbed")
        while len(rows) < options.kills:
            workdir = folder / str(runs)
            for row in kill_until_it_ends(workdir, cache, seed=options.seed + runs):
                rows.append(row)
                print(f"{len(rows):>4}  {row}", flush=True)
            runs += 1
            same = outcome(workdir) == expected and not (workdir / "checkpoints/damaged").exists()
            differing += not same
            print(f"run {runs}: {'equals the undisturbed one' if same else 'DIFFERS'}", flush=True)
    print(table(rows))
    print(f"{len(rows)} kills in {runs} runs; {differing} runs differ from the undisturbed one")
    seconds = round(time.monotonic() - began)
    report = {"kills": len(rows), "runs": runs, "runs_that_differ": differing, "seconds": seconds}
    report |= {"expected": expected["summary"], "lives": rows}
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
