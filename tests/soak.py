"""Kills runs at random moments until they end, and compares that end with an undisturbed one.

    python -m tests.soak --kills 500

A run of 66 steps of the digits is started, killed with SIGKILL, started again by the same command,
and so on, at least 25 times: while it imports, compiles, trains, evaluates and writes checkpoints.
Its parameters, its summary and every number it logged must then be those of a run that nobody
killed. Runs follow each other until there have been as many kills as asked for.
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
SECONDS_OF_A_LIFE = 300.0  # after which it is taken to hang


@dataclasses.dataclass
class Life:
    """One start of the command, as it can be seen from outside while it goes on."""

    workdir: Path
    output: Path
    began: int
    """Nanoseconds of the clock; what was written before was left by the life before."""

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    @property
    def resumed_from(self) -> int:
        """The step from which it goes on, 0 if from none, or if that is not yet known."""
        found = re.search(r"resuming after step (\d+)", self.said)
        return int(found[1]) if found else 0

    @property
    def newest_record(self) -> int:
        """The last step on record, 0 before this life has begun its records."""
        return newest_record(self.workdir) if self._wrote(self.workdir / "metrics.jsonl") else 0

    @property
    def checkpoint_in_writing(self) -> int:
        """The step of the checkpoint that it is writing, 0 if it writes none.

        Not before it has begun its records: until then it clears away what it has found.
        """
        if not self._wrote(self.workdir / "metrics.jsonl"):
            return 0
        unfinished = (path for path in unfinished_in(self.workdir) if self._wrote(path))
        return max((int(path.name.split(".")[0]) for path in unfinished), default=0)

    def _wrote(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime_ns > self.began
        except FileNotFoundError:  # not yet, or taken away
            return False


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: after a random delay, from when something can be seen.

    Args:
        name: in the table.
        is_seen: whether it can be seen, in a life that should come as far as a step.
        seconds: the longest delay.
        compiles: whether the run must compile, with no cache to spare it.
    """

    name: str
    is_seen: Callable[[Life, int], bool]
    seconds: float
    compiles: bool = False


def trains(life: Life, step: int) -> bool:
    """Whether steps have been made in this life, and as many as should be."""
    return life.newest_record >= max(step, life.resumed_from + 1)


def writes(life: Life, step: int) -> bool:
    """Whether a checkpoint of such a step is being written."""
    return life.checkpoint_in_writing >= max(step, life.resumed_from + 1)


def evaluates(life: Life, step: int) -> bool:
    """Whether the step that ends an epoch is running, after which the evaluation comes."""
    before_end = max(step, life.resumed_from + 1)
    return life.newest_record >= before_end + (-before_end - 1) % EPOCH_STEPS


START = Moment("start", lambda life, step: True, 3.0)
COMPILATION = Moment("compilation", lambda life, step: "last step" in life.said, 1.5, compiles=True)
TRAINING = Moment("training", trains, 0.05)
CHECKPOINT = Moment("writing a checkpoint", writes, 0.03)
EVALUATION = Moment("evaluation", evaluates, 0.15)
MOMENTS = [START] * 3 + [COMPILATION] * 3 + [TRAINING] * 7 + [CHECKPOINT] * 8 + [EVALUATION] * 5


def environment(cache: Path, *, compiles: bool = False) -> dict[str, str]:
    """Of a run that finds what was compiled before in a folder, or compiles anew."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    if compiles:
        return clean | {"COLUMNS": "120", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return clean | {
        "COLUMNS": "120",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def records(workdir: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; half a line in it is an error."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        raise AssertionError(f"{path} ends with half a line: {text.splitlines()[-1]!r}")
    return [json.loads(line) for line in text.splitlines()]


def newest_record(workdir: Path) -> int:
    """The last step on record, 0 if there is none. Asked so often that it reads one line only."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def newest_checkpoint(workdir: Path) -> int:
    """The step of the last checkpoint that is there, 0 if there is none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def unfinished_in(workdir: Path) -> list[Path]:
    """Checkpoints that are being written, or that a kill has left half-written."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on kills: the summary, and each record but for the times in it."""
    timeless = [
        {k: v for k, v in record.items() if k not in ("train/images_per_second", "train/seconds")}
        for record in records(workdir)
    ]
    return {"summary": json.loads((workdir / "summary.json").read_text()), "records": timeless}


def start(workdir: Path, flags: list[str], env: dict[str, str], output: Path) -> Any:
    """Start the command, its output going to a file."""
    command = [sys.executable, "-m", "train", "--workdir", str(workdir), *flags]
    with output.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT)


def live(
    workdir: Path, flags: list[str], cache: Path, moment: Moment, step: int, delay: float
) -> dict[str, Any] | None:
    """Start the command and kill it at a moment; None if it ended before by itself.

    Args:
        workdir: of the run.
        flags: of the command.
        cache: of what was compiled.
        moment: when it is killed.
        step: to which it should have come by then.
        delay: seconds from when the moment can be seen.

    Returns:
        What there is to say of this life, in the table's words.
    """
    output = workdir.with_suffix(".txt")
    life = Life(workdir, output, began=time.time_ns())
    began = time.monotonic()
    process = start(workdir, flags, environment(cache, compiles=moment.compiles), output)
    try:
        while not moment.is_seen(life, step):
            if process.poll() is not None:
                break
            if time.monotonic() - began > SECONDS_OF_A_LIFE:
                raise AssertionError(f"hangs before {moment.name} of step {step}: {life.said}")
            time.sleep(0.001)
        else:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise AssertionError(f"exit code {process.returncode}: {life.said}")
    return {
        "moment": moment.name,
        "seconds": time.monotonic() - began,
        "resumed_from": life.resumed_from,
        "newest_record": newest_record(workdir),
        "newest_checkpoint": newest_checkpoint(workdir),
        "in_writing": life.checkpoint_in_writing,
    }


def kill_until_it_ends(workdir: Path, cache: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Run in a folder to the end through a kill for each of `MOMENTS`, in a random order.

    Where the machine is so busy that a moment is missed, the run ends with fewer kills.

    Yields:
        What there is to say of each life that was killed.
    """
    rng = random.Random(seed)
    moments = rng.sample(MOMENTS, len(MOMENTS))
    for number, moment in enumerate(moments):
        step = 1 + number * (LAST_STEP - EPOCH_STEPS) // len(moments)
        row = live(workdir, FLAGS, cache, moment, step, rng.uniform(0, moment.seconds))
        if row is None:
            return
        yield row
    # The last one is killed, or not, while it draws its curves and sums up.
    end = Moment("end", lambda life, step: life.newest_record == LAST_STEP, 1.0)
    row = live(workdir, FLAGS, cache, end, LAST_STEP, rng.uniform(0, end.seconds))
    if row is not None:
        yield row
        run_to_the_end(workdir, cache)


def run_to_the_end(workdir: Path, cache: Path) -> None:
    """Run in a folder without disturbance."""
    output = workdir.with_suffix(".txt")
    if start(workdir, FLAGS, environment(cache), output).wait() != 0:
        raise AssertionError(output.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each kind of moment."""
    lines = [
        f"{'killed at':<22}{'kills':>6}{'seconds, median':>17}{'steps lost, mean':>18}"
        f"{'most':>6}{'checkpoint half-written':>25}"
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
    """Kills, prints the table and writes it down."""
    parser = argparse.ArgumentParser(description="Kills runs and looks at what comes of them.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
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
            print(f"run {runs}: {'as the undisturbed one' if same else 'DIFFERS'}", flush=True)
    print(table(rows))
    print(f"{len(rows)} kills in {runs} runs; {differing} runs differ from the undisturbed one")
    report = {
        "kills": len(rows),
        "runs": runs,
        "runs_that_differ": differing,
        "seconds": round(time.monotonic() - began),
        "expected": expected["summary"],
        "lives": rows,
    }
    Path(options.out).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
