"""`python -m train.export --workdir DIR --out FOLDER`: write a network for other programs."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from train import command_line
from train.cluster.joining import check_platforms
from train.errors import UsageError, check_folder, unusable_folder
from train.model.conversion import to_torchvision
from train.model.model_file import DESCRIPTION, TENSORS, write_model
from train.run.stablehlo import STABLEHLO, write_stablehlo
from train.run.terminal import terminal_width, wrapped
from train.run.trained import NEWEST, check_checkpoint, check_run, load_trained

PROG = "python -m train.export"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Write a trained network as files that other programs read.

    model.safetensors holds the parameters under the names of torchvision and timm. model.json holds
    everything else: class names, input size, colors, crop, training data and recipe.
    """

    workdir: Path
    """The run whose network is exported."""

    out: Path = dataclasses.field(metadata={"metavar": "FOLDER"})
    """Folder to write to. It is created if missing; a model in it is replaced."""

    checkpoint: str = dataclasses.field(default=NEWEST, metadata={"metavar": "STEP"})
    """The checkpoint: a step, newest, or best for the one with the lowest test error."""

    format: Literal["safetensors", "stablehlo"] = "safetensors"
    """stablehlo: also write the network as a program for jax.export, from uint8 images to
    probabilities, on CPUs, CUDA and TPUs."""

    def __post_init__(self) -> None:
        """Check everything that needs no network."""
        check_checkpoint(self.checkpoint)


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        check_platforms()
        return _export(options)

    return command_line.run(PROG, command)


def _export(options: Options) -> int:
    check_folder("out", options.out)
    if (options.out / "config.json").exists():
        raise UsageError(f"--out {options.out} holds a run; name another folder")
    check_run(options.workdir)
    trained = load_trained(options.workdir, options.checkpoint)
    description, network = trained.description, trained.network
    tensors = to_torchvision(
        network.params, network.batch_stats, description.model, description.step
    )
    names = [TENSORS, DESCRIPTION]
    try:
        write_model(options.out, description, tensors)
        (options.out / STABLEHLO).unlink(missing_ok=True)  # of an earlier model
        if options.format == "stablehlo":
            write_stablehlo(options.out, trained)
            names.append(STABLEHLO)
    except OSError as error:
        raise unusable_folder("--out", options.out, error) from None
    error = description.top1_error
    score = "" if error is None else f", test error {100 * error:.2f} %"
    line = (
        f"{description.model} after step {description.step}{score}, "
        f"{len(description.class_names)} classes: {', '.join(names)} in {options.out}"
    )
    print(wrapped(line, terminal_width()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
