"""Train one trial with one seed: `python -m experiments.trial kn-512-none --seed 0`."""

import dataclasses
import sys
from pathlib import Path

from experiments.plan import TRIALS
from train import command_line
from train.errors import UsageError
from train.run.compilation_cache import keep_compiled

PROG = "python -m experiments.trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train one trial of experiments/plan.py with one seed."""

    name: str = dataclasses.field(metadata={"positional": "NAME"})
    """Name of the trial, such as kn-1024."""

    seed: int = 0
    """Random seed of the run."""

    workdir: Path = Path("runs/experiments")
    """Parent folder of all runs; this one is written to WORKDIR/NAME/seed-SEED."""

    data_dir: Path | None = None
    """Folder with the prepared data; the default folder of tensorflow-datasets if omitted."""


def workdir_of(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of the run of a trial with a seed."""
    return folder / name / f"seed-{seed}"


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        if options.name not in TRIALS:
            raise UsageError(f"unknown trial {options.name}; the trials are {', '.join(TRIALS)}")
        trial = TRIALS[options.name]
        config = trial.config.replace(
            workdir=workdir_of(options.workdir, trial.name, options.seed),
            seed=options.seed,
            data_dir=options.data_dir,
        )
        keep_compiled(config.machine.compilation_cache_dir)
        from train.loop import run  # imported after JAX is configured

        return run(config, optimizer=trial.optimizer, start=trial.start)

    return command_line.run(PROG, command)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
