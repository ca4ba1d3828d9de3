"""Train one of the compared trials, as the trainer's own command would.

python -m experiments.trial kn-512-none --seed 0
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from experiments.plan import TRIALS
from train import command_line
from train.errors import UsageError
from train.run.compilation_cache import keep_compiled

PROG = "python -m experiments.trial"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train one of the compared trials."""

    name: tyro.conf.Positional[str]
    """Of the trial, such as kn-1024."""

    seed: int = 0
    """Of its run."""

    workdir: Path = Path("runs/experiments")
    """Folder in which the run has a folder of its own."""

    data_dir: Path | None = None
    """Where tensorflow-datasets keeps prepared data; its own default if left out."""


def workdir_of(folder: Path, name: str, seed: int) -> Path:
    """Say in which folder a trial's run with a seed lies."""
    return folder / name / f"seed-{seed}"


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        if options.name not in TRIALS:
            raise UsageError(f"there is no trial {options.name}; there are {', '.join(TRIALS)}")
        trial = TRIALS[options.name]
        config = trial.config.replace(
            workdir=workdir_of(options.workdir, trial.name, options.seed),
            seed=options.seed,
            data_dir=options.data_dir,
        )
        keep_compiled(config.machine.compilation_cache_dir)
        from train.loop import run  # with JAX set up

        return run(config, optimizer=trial.optimizer, start=trial.start)

    return command_line.run(PROG, command)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
