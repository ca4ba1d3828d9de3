"""The README's command from start to end, and where its time goes.

    python -m benchmarks.main_job
    git worktree add /tmp/before COMMIT && python -m benchmarks.main_job --against /tmp/before

Each round runs `python -m train` twice as a whole process: cold, with the digits not prepared and
no compiled program on disk, and warm, with what the cold run has left. With `--against`, another
checkout runs the same in turns, with the same Python and packages.

Two more runs per round measure the parts, with timers around the functions that `train.loop` calls.
A part is time of the main thread, which nested parts do not count twice:

- `imports`: from the start of the process until `train.loop` is imported.
- `data`: opening the data, which prepares them in a cold run, and waiting for minibatches.
- `compilation`: tracing, lowering and compiling, or loading compiled programs, by JAX's own events.
- `evaluation`, `checkpoints`, `plots`: until the main thread continues. Checkpoints are written in
  the background, which slows down the steps.
- `steps`: the rest of the training loop.
- `everything else`: the plan, the initial state, the summary, and the end of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import environment, make_parser, save
from benchmarks.subject import ROOT, median_ratio
from benchmarks.tables import main_job as table_of

PACKAGES = ["jax", "flax", "optax", "grain", "orbax-checkpoint", "tensorflow-datasets"]
OTHER = "everything else"
PARTS = [
    "imports", "data", "compilation", "steps", "evaluation", "checkpoints", "plots", OTHER,
]  # fmt: skip
COMPILATION = "/jax/core/compile/"
"""Prefix of JAX's events for tracing, lowering and compiling."""


class Parts:
    """Seconds that the main thread spends in each part, without those of nested parts."""

    def __init__(self) -> None:
        self.seconds = defaultdict[str, float](float)
        self._running = [OTHER]
        self._since = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside as a part."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def add(self, name: str, seconds: float) -> None:
        """Count the last seconds as another part than the running one."""
        self.seconds[name] += seconds
        self.seconds[self._running[-1]] -= seconds

    def stop(self) -> None:
        """Count the time up to now."""
        self._count()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count each call of a function as a part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        setattr(owner, name, timed)

    def wrap_loop(self, owner: Any, name: str) -> None:
        """Count the body of a loop over what a function returns as steps, and waiting as data."""
        iterate = getattr(owner, name)

        def timed(*args: Any) -> Iterator[Any]:
            minibatches = iter(iterate(*args))
            while True:
                with self.part("data"):
                    minibatch = next(minibatches, None)
                if minibatch is None:
                    return
                with self.part("steps"):
                    yield minibatch

        setattr(owner, name, timed)


def measure_parts(args: list[str]) -> dict[str, float]:
    """Train in this process and measure the parts, without imports and the end of the process."""
    import jax

    from train import command_line, loop

    parts = Parts()

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILATION) and threading.current_thread() is threading.main_thread():
            parts.add("compilation", duration_secs)

    jax.monitoring.register_event_duration_secs_listener(compiled)
    parts.wrap(loop, "open_dataset", "data")
    parts.wrap_loop(loop, "on_devices")
    for function in ("predict", "scores"):
        parts.wrap(loop, function, "evaluation")
    for method in ("__init__", "restore", "save", "close"):
        parts.wrap(loop.Checkpoints, method, "checkpoints")
    parts.wrap(loop.MetricsLog, "sync", "checkpoints")
    together = loop.together

    def call(action: Callable[[], Any]) -> Any:
        with parts.part("plots") if action.__name__ == "plot" else contextlib.nullcontext():
            return together(action)

    loop.together = call

    from train.__main__ import main as train

    code = train(args)
    parts.stop()
    if code:
        command_line.end(code)
    return dict(parts.seconds)


def run(command: list[str], checkout: Path, variables: dict[str, str]) -> float:
    """Run a command from a checkout; return its seconds."""
    began = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed in {checkout}:\n{process.stderr}")
    return time.perf_counter() - began


def run_parts(
    folder: Path, variables: dict[str, str], flags: Sequence[str] = ()
) -> dict[str, float]:
    """Run the command with timers, in a process of its own; return the seconds of all parts.

    Args:
        folder: the workdir.
        variables: environment variables.
        flags: more flags of the command, for a shorter run.
    """
    out = folder.with_suffix(".json")
    command = ["-m", "benchmarks.main_job", "--out", str(out), "--parts-of", str(folder)]
    command += ["--began", str(time.time()), "--", *flags]
    seconds = run(command, ROOT, variables)
    parts = json.loads(out.read_text(encoding="utf-8"))
    found = {part: parts.get(part, 0.0) for part in PARTS}
    return found | {OTHER: found[OTHER] + seconds - sum(found.values())}


def variables_of(folder: Path) -> dict[str, str]:
    """Environment variables that put prepared data and compiled programs into a folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return clean | {
        "TFDS_DATA_DIR": str(folder / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }


def measure(rounds: int, against: Path | None) -> dict[str, Any]:
    """Measure whole runs and their parts in turns."""
    checkouts = {"ours": ROOT} | ({"theirs": against} if against else {})
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"cold": [], "warm": []} for name in checkouts
    }
    parts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            for which in ("cold", "warm"):
                for label, checkout in checkouts.items():
                    folder = Path(name) / label
                    command = ["-m", "train", "--workdir", str(folder / which)]
                    spent = run(command, checkout, variables_of(folder))
                    seconds[label][which].append(spent)
                folder = Path(name) / "parts"
                parts[which].append(run_parts(folder / which, variables_of(folder)))
        last = {label: {w: round(s[-1], 1) for w, s in of.items()} for label, of in seconds.items()}
        print(f"round {turn + 1} of {rounds}: {json.dumps(last)}", flush=True)
    result: dict[str, Any] = {
        which: {
            "seconds": statistics.median(seconds["ours"][which]),
            "parts": {
                part: statistics.median(each[part] for each in parts[which]) for part in PARTS
            },
        }
        for which in ("cold", "warm")
    }
    if against:
        for which in ("cold", "warm"):
            ours, theirs = seconds["ours"][which], seconds["theirs"][which]
            result[which]["seconds_against"] = statistics.median(theirs)
            result[which]["ratio"] = median_ratio(ours, theirs)
    return result


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure the README's command, and where its time goes.")
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="cold and warm runs of each kind; default: 3")
    add("--against", type=Path, metavar="PATH", help="another checkout, to run in turns")
    add("--parts-of", help=argparse.SUPPRESS)
    add("flags", nargs="*", help=argparse.SUPPRESS)
    add("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.parts_of:
        importlib.import_module("train.loop")
        imports = time.time() - options.began
        args = ["--workdir", options.parts_of, *options.flags]
        save(options.out, measure_parts(args) | {"imports": imports})
        return
    against = options.against.resolve() if options.against else None
    report = environment(PACKAGES) | {"rounds": options.rounds}
    if against:
        commit = ["git", "-C", str(against), "rev-parse", "--short", "HEAD"]
        report["against"] = subprocess.check_output(commit, text=True).strip()
    report |= measure(options.rounds, against)
    print(table_of(report))
    save(options.out, report)


if __name__ == "__main__":
    main()
