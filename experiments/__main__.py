"""Compare trials: `python -m experiments warmup`.

Each run is a process of its own, on cores of its own. The same command goes on where it was
stopped, runs that another experiment has made are not made again, and at the end comes the page.
"""

import dataclasses
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Literal

import joblib
import tyro
from experiments.page import make_page
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import results
from experiments.plan import EXPERIMENTS, TRIALS, Trial
from train import command_line
from train.config import RunError, UsageError
from train.metrics import read_records

PROG = "python -m experiments"
DONE, STOPPED = 0, 75
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Find the paper's findings again on Fashion-MNIST, prepared by `python -m train.prepare`."""

    experiment: tyro.conf.Positional[
        Literal[
            "reference", "warmup", "minibatch", "rate", "initialisation", "pitfalls", "noise-scale"
        ]
    ]
    """Which question."""

    seeds: tuple[int, ...] = ()
    """Of the runs of each trial; as many as for the committed page if left out."""

    jobs: int | None = None
    """Runs side by side, each with its share of the cores; left out, one for each core."""

    workdir: Path = Path("runs/experiments")
    """Folder for the runs."""

    results: Path | None = None
    """Folder for results/*.json, the page and its pictures; the workdir if left out."""

    data_dir: Path | None = None
    """Where tensorflow-datasets keeps prepared data; its own default if left out."""


@dataclasses.dataclass
class Job:
    """A run that goes on."""

    trial: Trial
    seed: int
    workdir: Path
    cores: list[int]
    process: subprocess.Popen[bytes]
    line: int
    """Of the progress bar."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.trial.name}, seed {self.seed}"

    @property
    def said(self) -> str:
        """The last line that the run has printed."""
        lines = (self.workdir / "output.txt").read_text().strip().splitlines()
        return lines[-1] if lines else ""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse(lambda: tyro.cli(Options, prog=PROG, args=args))
        if options.jobs is not None and options.jobs < 1:
            raise UsageError(f"--jobs is {options.jobs}; it must be at least 1")
        return Comparison(options).run()

    return command_line.run(PROG, command)


class Comparison:
    """All runs of an experiment, as many side by side as there is room for."""

    def __init__(self, options: Options) -> None:
        experiment = EXPERIMENTS[options.experiment]
        self._options = options
        self._folder = options.results or options.workdir
        trials = [TRIALS[name] for name in experiment.trials]
        for trial in trials:
            results.check(self._folder, trial)
        seeds = options.seeds or tuple(range(experiment.num_seeds))
        runs = [(trial, seed) for seed in seeds for trial in trials]
        self._to_do = [
            (trial, seed)
            for trial, seed in runs
            if seed not in results.runs_of(self._folder, trial.name)
        ]
        cores = _cores()
        jobs = min(options.jobs or len(cores), len(cores), max(1, len(self._to_do)))
        self._free = [cores[index::jobs] for index in range(jobs)]
        self._jobs: list[Job] = []
        self._stops = False
        console = Console(highlight=False)
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._whole = self._bar.add_task("runs", total=len(runs))
        self._bar.advance(self._whole, len(runs) - len(self._to_do))
        self._say(
            f"{experiment.title}: {len(trials)} trials with {len(seeds)} seed(s), of whose "
            f"{len(runs)} runs {len(self._to_do)} are to be made, {jobs} side by side"
        )

    def run(self) -> int:
        """Make all runs that are not there yet, then the page."""
        handlers = {
            number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            with self._bar:
                self._run_all()
        finally:
            for job in self._jobs:  # where one has failed, or this process is about to
                job.process.terminate()
            for job in self._jobs:
                job.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._stops:
            self._say("stopped and saved; the same command goes on")
            return STOPPED
        self._say(f"results: {make_page(self._folder)}")
        return DONE

    def _run_all(self) -> None:
        while self._jobs or (self._to_do and not self._stops):
            while self._free and self._to_do and not self._stops:
                self._start(*self._to_do.pop(0))
            for job in list(self._jobs):
                if job.process.poll() is None:
                    self._show(job)
                else:
                    self._end(job)
            time.sleep(0.2)

    def _start(self, trial: Trial, seed: int) -> None:
        options, cores = self._options, self._free.pop()
        workdir = options.workdir / trial.name / f"seed-{seed}"
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.trial", trial.name, "--seed", str(seed)]
        command += ["--workdir", str(options.workdir.absolute())]
        if options.data_dir is not None:
            command += ["--data-dir", str(options.data_dir.absolute())]

        def keep_to_cores() -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)

        with (workdir / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=keep_to_cores,
                start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
            )  # fmt: skip
        line = self._bar.add_task(
            f"{trial.name}, seed {seed}", total=round(trial.config.num_epochs)
        )
        self._jobs.append(Job(trial, seed, workdir, cores, process, line))

    def _show(self, job: Job) -> None:
        records = read_records(job.workdir / "metrics.jsonl") if self._console.is_terminal else []
        if records:
            self._bar.update(job.line, completed=int(records[-1]["epoch"]))

    def _end(self, job: Job) -> None:
        code = job.process.returncode
        if code == DONE:
            run = results.collect(job.workdir, _versions())
            outcome = f"{100 * run['top1_error']:.2f} %"
        elif code == 1 and "not finite" in job.said:
            run = {"diverged": job.said.removeprefix("python -m experiments.trial: ")}
            outcome = "diverged"
        elif self._stops:
            self._leave(job)
            return
        else:
            raise RunError(f"{job.name} ended with exit code {code}: {job.said}")
        results.keep(self._folder, job.trial, job.seed, run)
        self._leave(job)
        self._bar.advance(self._whole)
        self._say(f"{job.name}: {outcome}")

    def _leave(self, job: Job) -> None:
        self._jobs.remove(job)
        self._free.append(job.cores)
        self._bar.remove_task(job.line)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stops = True
        for job in self._jobs:
            job.process.terminate()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _cores() -> list[int]:
    """Which cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))[: joblib.cpu_count()]
    return list(range(joblib.cpu_count()))


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")}
    return {"python": platform.python_version(), **packages}


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
