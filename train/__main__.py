"""`python -m train [RECIPE] [--flags]`: train a ResNet by the paper's recipe."""

import sys

from train import command_line
from train.cluster.joining import join_processes
from train.run.compilation_cache import keep_compiled

PROG = "python -m train"


def main(args: list[str]) -> int:
    """Run the trainer; return its exit code."""

    def command() -> int:
        config = command_line.parse_run(args, PROG)
        command_line.simulate_devices(config.machine.num_devices)
        join_processes(config.machine)
        keep_compiled(config.machine.compilation_cache_dir)
        # Imported late: JAX knows its devices by now, and --help stays fast.
        from train.loop import run, run_seeds

        return run_seeds(config) if config.output.seeds else run(config)

    return command_line.run(PROG, command)


if __name__ == "__main__":
    command_line.end(main(sys.argv[1:]))
