"""Compare trials: `python -m experiments warmup`.

Each run is a process of its own, on cores of its own. The same command goes on where it was
stopped, runs that another experiment has made are not made again, and at the end comes the page.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Literal

import joblib
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from experiments import page, results
from experiments.plan import EXPERIMENTS, TRIALS, Trial
from experiments.trial import workdir_of
from train import command_line
from train.errors import RunError, UsageError
from train.run.metrics import read_records

PROG = "python -m experiments"
DONE, FAILED, BAD_USAGE, STOPPED = 0, 1, 2, 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).parents[1]
KEEPS_TO_CORES = hasattr(os, "sched_setaffinity")  # on Linux

# A run is a matter of one core; on a GPU they would take each other's memory.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Of glibc: what a step frees is kept for the next one. Given back, as it would be, it is
    # cleared page by page at each step, which takes a fifth of the time.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Find the paper's findings again on Fashion-MNIST, prepared by `python -m train.prepare`."""

    experiments: tyro.conf.Positional[
        tuple[
            Literal[
                "reference",
                "warmup",
                "minibatch",
                "rate",
                "initialisation",
                "pitfalls",
                "noise-scale",
            ],
            ...,
        ]
    ] = ()
    """Which questions; all of them if left out."""

    seeds: tuple[int, ...] = ()
    """Of the runs of each trial; as many as for the committed page if left out."""

    jobs: int | None = None
    """Runs side by side, each on its share of the cores; left out, one for each core on Linux, else
    one."""

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
    line: TaskID
    """Of the progress bar."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.trial.name}, seed {self.seed}"

    @property
    def said(self) -> str:
        """The last line that the run has printed."""
        lines = (self.workdir / "output.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing was said"


def runs_for(options: Options) -> list[tuple[str, int]]:
    """List the runs that answer the questions, as names of trials with seeds, each once."""
    runs: dict[tuple[str, int], None] = {}
    for name in options.experiments or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        for seed in options.seeds or range(experiment.num_seeds):
            runs |= {(trial, seed): None for trial in experiment.trials}
    return list(runs)


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        if options.jobs is not None and options.jobs < 1:
            raise UsageError(f"--jobs is {options.jobs}; it must be at least 1")
        return Comparison(options).run()

    return command_line.run(PROG, command)


class Comparison:
    """All runs that answer some questions, as many side by side as there is room for."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._folder = options.results or options.workdir
        page.check(self._folder)
        runs = runs_for(options)
        for name in {name for name, _ in runs}:
            results.check(self._folder, TRIALS[name])
        self._to_do = [
            (TRIALS[name], seed)
            for name, seed in runs
            if seed not in results.runs_of(self._folder, name)
        ]
        self._cores = _cores()
        jobs = options.jobs or (len(self._cores) if KEEPS_TO_CORES else 1)
        jobs = min(jobs, len(self._cores), max(1, len(self._to_do)))
        self._free = [self._cores[index::jobs] for index in range(jobs)]
        self._jobs: list[Job] = []
        self._stops = False
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._whole = self._bar.add_task("runs", total=len(runs))
        self._bar.advance(self._whole, len(runs) - len(self._to_do))
        side_by_side = f", {jobs} side by side" if self._to_do else ""
        self._say(f"{len(self._to_do)} of {len(runs)} runs are to be made{side_by_side}")

    def run(self) -> int:
        """Make all runs that are not there yet, then the page."""
        handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
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
        self._say(f"results: {page.make_page(self._folder)}")
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
            time.sleep(1)

    def _start(self, trial: Trial, seed: int) -> None:
        options, cores = self._options, self._free.pop()
        workdir = workdir_of(options.workdir, trial.name, seed)
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.trial", trial.name, "--seed", str(seed)]
        command += ["--workdir", str(options.workdir.absolute())]
        if options.data_dir is not None:
            command += ["--data-dir", str(options.data_dir.absolute())]
        _keep_to(cores)  # which a process inherits
        with (workdir / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT | os.environ,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
            )  # fmt: skip
        _keep_to(self._cores)
        line = self._bar.add_task(
            f"{trial.name}, seed {seed}", total=round(trial.config.experiment.num_epochs)
        )
        self._jobs.append(Job(trial, seed, workdir, cores, process, line))
        if self._stops:  # the signal came before there was this job
            process.terminate()

    def _show(self, job: Job) -> None:
        records = read_records(job.workdir / "metrics.jsonl") if self._console.is_terminal else []
        if records:
            self._bar.update(job.line, completed=int(records[-1]["epoch"]))

    def _end(self, job: Job) -> None:
        code = job.process.returncode
        if code == DONE:
            run = results.collect(job.workdir)
            outcome = f"{100 * run['top1_error']:.2f} %"
        elif code == FAILED and "not finite" in job.said:
            said = job.said.removeprefix("python -m experiments.trial: ")
            run = {"diverged": said, "versions": results.versions()}
            outcome = "diverged"
        elif self._stops:
            self._leave(job)
            return
        else:
            kind = UsageError if code == BAD_USAGE else RunError
            raise kind(f"{job.name} ended with exit code {code}: {job.said}")
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
        # Written past Python's buffers, which the signal may have found in the middle of a write.
        os.write(2, b"\nstopping; the runs are saving ...\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for them
        for job in self._jobs:
            job.process.terminate()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _cores() -> list[int]:
    """Which cores this process may use."""
    if not KEEPS_TO_CORES:
        return list(range(joblib.cpu_count()))
    return sorted(os.sched_getaffinity(0))[: joblib.cpu_count()]


def _keep_to(cores: list[int]) -> None:
    """Let this thread, and the processes that it starts, run on these cores alone."""
    if KEEPS_TO_CORES:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
