"""Prepares a data set for the trainer: `python -m train.prepare NAME | image-folder PATH`.

Data sets are written as ArrayRecord files of tensorflow-datasets, which have random access. A data
set appears under its name only when it is complete; until then its folder is `incomplete.*`.
"""

import dataclasses
import importlib.util
import re
import shutil
import sys
import traceback
from pathlib import Path

import tensorflow_datasets as tfds
import tyro
from tensorflow_datasets.core import constants, read_only_builder
from tensorflow_datasets.core.download.download_manager import (
    DownloadConfig,
    NonMatchingChecksumError,
)
from tensorflow_datasets.core.file_adapters import FileFormat

from train import command_line
from train.data.builders import fashion_mnist, imagenet2012
from train.data.builders.digits import Digits
from train.data.builders.image_folder import ENDINGS, ImageFolder, find_images, hold_out
from train.errors import UsageError

PROG = "python -m train.prepare"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """Prepare your own images: PATH/train/CLASS/*.jpg and PATH/validation/CLASS/*.jpg."""

    path: tyro.conf.Positional[Path]
    """Folder that contains train/ and validation/, or one folder per class."""

    name: str
    """Name of the data set, for python -m train tfds --dataset NAME."""

    held_out: float = 0.1
    """Fraction of each class to hold out for testing if there is no folder validation/."""

    data_dir: Path = Path(constants.DATA_DIR)
    """Folder to write the prepared data set to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """Prepare a data set of tensorflow-datasets, such as imagenet2012 or fashion_mnist.

    For your own images: `python -m train.prepare image-folder PATH --name NAME`.
    """

    name: tyro.conf.Positional[str]
    """Name of the data set."""

    archives: Path | None = None
    """Folder with the published files, for data sets that cannot be downloaded freely."""

    data_dir: Path = Path(constants.DATA_DIR)
    """Folder to write the prepared data set to."""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        try:
            if args[:1] == ["image-folder"]:
                prog = f"{PROG} image-folder"
                return prepare_folder(command_line.parse_options(Folder, args[1:], prog))
            return prepare_built_in(command_line.parse_options(BuiltIn, args, PROG))
        except OSError as error:  # such as a folder without access, or no network
            raise UsageError(" ".join(str(error).split())) from None

    return command_line.run(PROG, command)


def prepare_folder(options: Folder) -> int:
    """Prepare a user's own images, without TensorFlow."""
    if not re.fullmatch("[a-z][a-z0-9_]*", options.name):
        raise UsageError(
            f"--name is {options.name}; it must start with a lowercase letter and consist of "
            "lowercase letters, digits and _, such as my_images"
        )
    if not 0 < options.held_out < 1:
        raise UsageError(f"--held-out is {options.held_out}; it must be between 0 and 1")
    if _is_there(options.name, options.data_dir):
        return 0
    root = options.path / "train" if (options.path / "train").is_dir() else options.path
    if not root.is_dir():
        raise UsageError(f"{options.path} is not a folder")
    train = find_images(root)
    empty = [name for name, paths in train.items() if not paths]
    if not train or empty:
        raise UsageError(
            f"{root} must contain a folder for each class with images "
            f"({', '.join(sorted(ENDINGS))}); "
            + (f"there are none in {', '.join(empty[:5])}" if empty else "it contains no folder")
        )
    if (options.path / "validation").is_dir():
        test = find_images(options.path / "validation")
        if test.keys() != train.keys():
            raise UsageError(
                f"{options.path} has the class(es) {', '.join(sorted(test.keys() ^ train.keys()))} "
                "in only one of train and validation"
            )
    else:
        single = [name for name, paths in train.items() if len(paths) < 2]
        if single:
            raise UsageError(
                f"class(es) {', '.join(single[:5])} of {root} have only one image; each needs two, "
                "to train and to test on, unless there is a folder validation/"
            )
        train, test = hold_out(train, options.held_out)
    make = ImageFolder.named(options.name)
    _write(make(data_dir=options.data_dir, train=train, test=test))
    return 0


def prepare_built_in(options: BuiltIn) -> int:
    """Prepare a data set with tensorflow-datasets' builder, or with ours if it is simpler."""
    name, archives = options.name, options.archives
    if name == Digits.name:
        print(f"{name} need no preparation; nothing was done")
        return 0
    if archives is not None and not archives.is_dir():
        raise UsageError(f"--archives {archives} is not a folder")
    if _is_there(name, options.data_dir):
        return 0
    ours = name == fashion_mnist.FashionMnist.name
    if not (ours and archives) and importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            f"preparing {name} needs TensorFlow, which is not installed: "
            "pip install -e '.[prepare]' (training does not need it)"
            + (", or name the folder with its four files with --archives" if ours else "")
        )
    try:
        if ours and archives:
            fashion_mnist.check_archives(archives)
            _write(fashion_mnist.FashionMnist(data_dir=options.data_dir, archives=archives))
            return 0
        if name == "imagenet2012":
            imagenet2012.check_archives(archives)
        builder = tfds.builder(name, data_dir=options.data_dir, file_format="array_record")
        _write(builder, DownloadConfig(manual_dir=archives, try_download_gcs=False))
    except tfds.core.DatasetNotFoundError:
        raise UsageError(
            f"tensorflow-datasets has no data set {name}; for your own images, use "
            f"{PROG} image-folder PATH --name NAME"
        ) from None
    # Raised by TFDS and our checks if archives are missing, truncated or not the expected ones.
    except (AssertionError, ValueError, NonMatchingChecksumError) as error:
        raise UsageError(f"{name}: {' '.join(str(error).split())}") from None
    return 0


def _is_there(name: str, data_dir: Path) -> bool:
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return False
    except ValueError as error:
        raise UsageError(
            f"{name} cannot be prepared; a name is NAME, NAME/CONFIG or NAME/CONFIG:VERSION "
            f"({str(error).splitlines()[0]})"
        ) from None
    if builder.info.file_format not in FileFormat.with_random_access():
        raise UsageError(
            f"{name} is prepared in {builder.data_dir} in a format without random access; prepare "
            "it again in another --data-dir"
        )
    print(f"{name} is already prepared in {builder.data_dir}; nothing was done")
    return True


def _write(builder: tfds.core.DatasetBuilder, download: DownloadConfig | None = None) -> None:
    folder = Path(builder.data_dir).parent
    # TFDS does not resume a killed preparation but starts over.
    for unfinished in folder.glob("incomplete.*"):
        shutil.rmtree(unfinished)
    try:
        builder.download_and_prepare(download_config=download)
    except BaseException as error:
        # Ends the progress bars, which would otherwise overwrite the error message.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, RuntimeError) and "write() failed" in str(error):  # e.g. a full disk
            raise UsageError(" ".join(str(error).split())) from None
        raise
    sizes = ", ".join(f"{split.num_examples} {name}" for name, split in builder.info.splits.items())
    print(f"prepared {builder.name} in {builder.data_dir}: {sizes} images")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
