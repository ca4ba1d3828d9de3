"""`python -m train [RECIPE] [--flags]`: train a ResNet by the paper's recipe."""

import contextlib
import inspect
import io
import re
import sys

import jax
import tyro

from train.config import Config, UsageError
from train.recipes import RECIPES

PROG = "python -m train"
BAD_USAGE = 2


def parse(args: list[str]) -> Config:
    """Read the command line; a first word that is a flag, or none, means the digits.

    Raises:
        UsageError: in one line, whatever is wrong with it.
    """
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = ["digits", *args]
    recipes = {
        name: (inspect.cleandoc(make.__doc__ or ""), make()) for name, make in RECIPES.items()
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.overridable_config_cli(
                recipes, prog=PROG, description="With no recipe named: digits.", args=args
            )
    except SystemExit as ending:
        if not ending.code:  # --help
            raise
        raise UsageError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """Take the words out of tyro's framed message, without its title and its help texts."""
    lines = [re.sub(r"[╭╮╰╯│─]+", " ", line).strip() for line in box.splitlines()]
    words = " ".join(line for line in lines[1:] if line)
    words = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    return re.sub(r" Perhaps you meant: (\S+).*", r"; perhaps you meant \1", words)


def main(args: list[str]) -> int:
    """Run the trainer; return its exit code."""
    try:
        config = parse(args)
        start_jax(config)
        from train.loop import run  # after JAX knows its devices

        return run(config)
    except UsageError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return BAD_USAGE


def start_jax(config: Config) -> None:
    """Set up the devices and the cluster, before JAX is used."""
    if config.num_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", config.num_devices)
    if config.coordinator_address is not None:
        jax.distributed.initialize(
            config.coordinator_address, config.num_processes, config.process_id
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
