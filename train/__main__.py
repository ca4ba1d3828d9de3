"""`python -m train [RECIPE] [--flags]`: train a ResNet by the paper's recipe."""

import inspect
import sys

import tyro

from train import command_line
from train.cluster.launchers import join_processes
from train.config import Config
from train.recipes import RECIPES
from train.run.compilation_cache import keep_compiled

PROG = "python -m train"


def parse(args: list[str], prog: str = PROG) -> Config:
    """Read the command line; a first word that is a flag, or none, means the digits.

    Args:
        args: words of the command line.
        prog: what the command is called.

    Raises:
        UsageError: in one line, whatever is wrong with it.
    """
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = ["digits", *args]
    recipes = {
        name: (inspect.cleandoc(make.__doc__ or ""), make()) for name, make in RECIPES.items()
    }
    about = "With no recipe named: digits."
    return command_line.parse(
        lambda: tyro.extras.overridable_config_cli(recipes, prog=prog, description=about, args=args)
    )


def main(args: list[str]) -> int:
    """Run the trainer; return its exit code."""

    def command() -> int:
        config = parse(args)
        command_line.simulate_devices(config.num_devices)
        join_processes(config)
        keep_compiled(config.compilation_cache_dir)
        # Imported when JAX knows its devices, and not for --help.
        from train.loop import run
        from train.seeds import run_seeds

        return run_seeds(config) if config.seeds else run(config)

    return command_line.run(PROG, command)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
