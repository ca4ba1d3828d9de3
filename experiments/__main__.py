"""Run experiments and tabulate their results: `python -m experiments warmup`.

Each run is a process pinned to its own cores. The same command resumes runs that were stopped.
Results that another experiment has already saved are reused.
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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from experiments import results, tables
from experiments.plan import EXPERIMENTS, TRIALS, Trial
from experiments.trial import workdir_of
from train import command_line
from train.errors import RunError, UsageError
from train.run.metrics import read_records

PROG = "python -m experiments"
DONE, FAILED, BAD_USAGE, STOPPED = 0, 1, 2, 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).parents[1]
CAN_PIN = hasattr(os, "sched_setaffinity")  # on Linux

Name = Literal[
    "reference", "warmup", "minibatch", "rate", "initialization", "pitfalls", "noise-scale"
]

ENVIRONMENT = {
    # A GPU would have to hold all concurrent runs.
    "JAX_PLATFORMS": "cpu",
    # Keep freed memory in the process: otherwise glibc returns it to the kernel, which clears each
    # page again for the next step. That takes a fifth of the time.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Reproduce the paper's findings on Fashion-MNIST.

    Prepare the data first: `python -m train.prepare fashion_mnist --archives DIR`.
    """

    experiments: tuple[Name, ...] = dataclasses.field(
        default=(), metadata={"positional": "EXPERIMENT"}
    )
    """Experiments to run; all of them if omitted."""

    seeds: tuple[int, ...] = ()
    """Random seeds of each trial; if omitted, 0 to 4 for warmup and 0 for the others."""

    jobs: int | None = None
    """Number of concurrent runs; if omitted, one per core on Linux, else 1."""

    workdir: Path = Path("runs/experiments")
    """Folder for the runs."""

    results: Path | None = None
    """Folder for results/*.json, the tables and the pictures; the workdir if omitted."""

    data_dir: Path | None = None
    """Folder with the prepared data; the default folder of tensorflow-datasets if omitted."""


@dataclasses.dataclass
class Job:
    """A run in progress.

    Attributes:
        task: row of the progress display.
    """

    trial: Trial
    seed: int
    workdir: Path
    cores: list[int]
    process: subprocess.Popen[bytes]
    task: TaskID

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.trial.name}, seed {self.seed}"

    @property
    def last_line(self) -> str:
        """Last line of the run's output."""
        lines = (self.workdir / "output.txt").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"


def runs_for(options: Options) -> list[tuple[str, int]]:
    """List the runs that the experiments need, as pairs of trial and seed without duplicates."""
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
        return Runner(options).run()

    return command_line.run(PROG, command)


class Runner:
    """Runs all trials of the chosen experiments, several at a time."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._folder = options.results or options.workdir
        runs = runs_for(options)
        for name in {name for name, _ in runs}:
            results.check(self._folder, TRIALS[name])
        self._to_do = [
            (TRIALS[name], seed)
            for name, seed in runs
            if seed not in results.load_runs(self._folder, name)
        ]
        self._cores = _available_cores()
        jobs = options.jobs or (len(self._cores) if CAN_PIN else 1)
        jobs = min(jobs, len(self._cores), max(1, len(self._to_do)))
        self._free = [self._cores[index::jobs] for index in range(jobs)]
        self._jobs: list[Job] = []
        self._stops = False
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._total = self._progress.add_task("runs", total=len(runs))
        self._progress.advance(self._total, len(runs) - len(self._to_do))
        self._print(f"{len(self._to_do)} of {len(runs)} runs to do, {jobs} at a time")

    def run(self) -> int:
        """Run what is missing, then save tables and pictures; return the exit code."""
        handlers = {number: signal.signal(number, self._stop) for number in SIGNALS}
        try:
            with self._progress:
                self._run_all()
        finally:
            # Jobs are left only if one of them failed or this process is about to end.
            for job in self._jobs:
                job.process.terminate()
            for job in self._jobs:
                job.process.wait()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._stops:
            self._print("stopped and saved; rerun the command to resume")
            return STOPPED
        self._print(f"results: {tables.save_page(self._folder)}")
        return DONE

    def _run_all(self) -> None:
        while self._jobs or (self._to_do and not self._stops):
            while self._free and self._to_do and not self._stops:
                self._start(*self._to_do.pop(0))
            for job in list(self._jobs):
                if job.process.poll() is None:
                    self._show(job)
                else:
                    self._finish(job)
            time.sleep(1)

    def _start(self, trial: Trial, seed: int) -> None:
        options, cores = self._options, self._free.pop()
        workdir = workdir_of(options.workdir, trial.name, seed)
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments.trial", trial.name, "--seed", str(seed)]
        command += ["--workdir", str(options.workdir.absolute())]
        if options.data_dir is not None:
            command += ["--data-dir", str(options.data_dir.absolute())]
        _pin(cores)  # the new process inherits the affinity
        with (workdir / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT | os.environ,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # this process alone gets Ctrl-C, and forwards it
            )  # fmt: skip
        _pin(self._cores)
        task = self._progress.add_task(
            f"{trial.name}, seed {seed}", total=round(trial.config.experiment.num_epochs)
        )
        self._jobs.append(Job(trial, seed, workdir, cores, process, task))
        if self._stops:  # the signal came before the job was in the list
            process.terminate()

    def _show(self, job: Job) -> None:
        records = read_records(job.workdir / "metrics.jsonl") if self._console.is_terminal else []
        if records:
            self._progress.update(job.task, completed=int(records[-1]["epoch"]))

    def _finish(self, job: Job) -> None:
        code = job.process.returncode
        if code == DONE:
            run = results.collect(job.workdir)
            outcome = f"{100 * run['top1_error']:.2f} %"
        elif code == FAILED and "not finite" in job.last_line:
            message = job.last_line.removeprefix("python -m experiments.trial: ")
            run = {"diverged": message, "versions": results.versions()}
            outcome = "diverged"
        elif self._stops:
            self._release(job)
            return
        else:
            kind = UsageError if code == BAD_USAGE else RunError
            raise kind(f"{job.name} ended with exit code {code}: {job.last_line}")
        results.save_run(self._folder, job.trial, job.seed, run)
        self._release(job)
        self._progress.advance(self._total)
        self._print(f"{job.name}: {outcome}")

    def _release(self, job: Job) -> None:
        self._jobs.remove(job)
        self._free.append(job.cores)
        self._progress.remove_task(job.task)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stops = True
        # The signal may have interrupted a write of Python's, whose buffers must not be used here.
        os.write(2, b"\nstopping; the runs are saving ...\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C does not wait for them
        for job in self._jobs:
            job.process.terminate()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _available_cores() -> list[int]:
    if not CAN_PIN:
        return list(range(joblib.cpu_count()))
    return sorted(os.sched_getaffinity(0))[: joblib.cpu_count()]


def _pin(cores: list[int]) -> None:
    """Restrict this thread, and the processes that it starts, to these cores."""
    if CAN_PIN:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
