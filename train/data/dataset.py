"""The data set of a run, opened by name."""

import contextlib
import errno
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from tensorflow_datasets.core import constants

from train.config import Config
from train.data import verification
from train.data.formats import digits
from train.data.formats.source import Options
from train.data.preparation import TakenError, prepare
from train.data.records import Dataset, WithoutOmitted
from train.data.stored import (
    check_features,
    evaluation_split,
    files_digest,
    find,
    fingerprint,
    open_builder,
    open_records,
)
from train.data.synthetic import CLASSES_AND_IMAGES, Noise
from train.errors import RunError, UsageError, check_is_local, unusable_folder

OTHER_FILES = 256  # that a training process opens: libraries, logs, checkpoints, sockets


def open_dataset(config: Config) -> Dataset:
    """Open a run's data set. Only the embedded digits need not be prepared first.

    Args:
        config: configuration of the run.

    Raises:
        UsageError: if the data set is not prepared, does not consist of labeled images with random
            access, does not belong to the recipe, or has changed since it was verified.
        RunError: if this process may not open as many files as the data set has.
    """
    experiment, data_dir = config.experiment, config.machine.data_dir
    name = experiment.dataset
    if experiment.data == "synthetic":
        return _synthetic(name, experiment.batch_size)
    if name == "":
        raise UsageError("--dataset is missing; name a data set, such as --dataset cifar10")
    if name == digits.NAME:
        data_dir = prepare_digits(data_dir)
    data_dir = data_dir or _default_folder()
    builder = open_builder(name, data_dir)
    class_names = check_features(builder)
    held_out = evaluation_split(builder)
    splits = ("train", held_out)
    _raise_limit_of_open_files(name, sum(builder.info.splits[s].num_shards for s in splits))
    folder = Path(builder.data_dir)
    verified = verification.load(folder)
    files = files_digest(builder, splits)
    if verified is not None and verified.files != files:
        raise UsageError(
            f"--dataset {name} has changed on disk since it was verified on {verified.date}; "
            f"verify it again: python -m train.prepare verify {name} --data-dir {data_dir}"
        )
    records = {split: open_records(builder, split) for split in splits}
    for split in splits:
        if omitted := verification.load_corrupt(folder, split):
            records[split] = WithoutOmitted(records[split], omitted)
        if len(records[split]) and records[split].__getitems__([0])[0]["label"] < 0:
            raise UsageError(
                f"--dataset {name} has no labels in its split '{split}' (the first label is "
                "negative); it must have labels in 'train' and in 'validation' or 'test'"
            )
    features: Any = builder.info.features
    is_color = not verified.is_gray if verified else features["image"].shape[-1] != 1
    if is_color and experiment.num_channels == 1:
        raise UsageError(
            f"--dataset {name} has color images, and the recipe {experiment.recipe} trains on gray "
            f"ones of {experiment.image_size} x {experiment.image_size} pixels; use the recipe "
            f"tfds: python -m train tfds --dataset {name}"
        )
    sizes = {split: len(records[split]) for split in splits}
    return Dataset(
        name=name,
        class_names=class_names,
        train=records["train"],
        evaluation=records[held_out],
        evaluation_split=held_out,
        version=str(builder.version),
        fingerprint=fingerprint(class_names, sizes, verified, files),
        folder=folder,
    )


def size_of(name: str, data_dir: Path | None) -> tuple[int, int]:
    """Numbers of classes and of training images of a data set; no image is read.

    Args:
        name: name of the data set. `CLASSES_AND_IMAGES` holds those that need not be prepared.
        data_dir: folder of prepared data sets; None for that of tensorflow-datasets.

    Raises:
        UsageError: if it is neither known nor prepared.
    """
    if name in CLASSES_AND_IMAGES:
        return CLASSES_AND_IMAGES[name]
    builder = open_builder(name, data_dir or Path(constants.DATA_DIR))
    omitted = verification.load_corrupt(Path(builder.data_dir), "train")
    num_images = builder.info.splits["train"].num_examples - len(omitted)
    return len(check_features(builder)), num_images


def _raise_limit_of_open_files(name: str, num_files: int) -> None:
    """Raise the soft limit of open files if the data set needs it.

    ArrayRecord opens a file when it first reads from it, and keeps it open. Reader processes
    inherit the limit, and each opens the files for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_files + OTHER_FILES
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RunError(
            f"--dataset {name} consists of {num_files} files, which stay open, but this process "
            f"may open only {hard}; raise the hard limit to {needed} or more (ulimit -Hn)"
        )
    # macOS has no hard limit, but rejects an infinite soft one.
    soft = needed if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _synthetic(name: str, num_test_images: int) -> Dataset:
    """Noise instead of a data set."""
    if name not in CLASSES_AND_IMAGES:
        raise UsageError(
            f"--data synthetic can replace {', '.join(CLASSES_AND_IMAGES)}; --dataset is "
            f"{name or 'missing'}"
        )
    num_classes, num_images = CLASSES_AND_IMAGES[name]
    return Dataset(
        name=f"synthetic {name}",
        class_names=[str(label) for label in range(num_classes)],
        train=Noise(num_images, num_classes),
        evaluation=Noise(num_test_images, num_classes),
    )


def prepare_digits(data_dir: Path | None) -> Path:
    """Prepare the embedded digits unless they are prepared already.

    Args:
        data_dir: folder of prepared data sets. Without one it is that of tensorflow-datasets, or a
            temporary folder if that is not writable.

    Returns:
        The folder that contains them.

    Raises:
        UsageError: if the path is not a folder.
        RunError: if the folder is not writable.
    """
    folder = data_dir or _default_folder()
    try:
        _prepare_digits(folder)
    except OSError as error:
        if data_dir is not None:
            raise unusable_folder("--data-dir", folder, error) from None
        temporary = Path(tempfile.gettempdir()) / f"optax-warmup-{os.getuid()}"
        try:
            temporary.mkdir(mode=0o700, exist_ok=True)
            if temporary.stat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "it belongs to another user")
            _prepare_digits(temporary)
        except OSError:
            raise unusable_folder("--data-dir", folder, error) from None
        if jax.process_index() == 0:
            print(
                f"{folder} cannot be used: {error.strerror}; the digits are in {temporary} "
                "(--data-dir chooses another folder)",
                file=sys.stderr,
            )
        return temporary
    return folder


def _prepare_digits(folder: Path) -> None:
    if folder.parts[0] == "~":
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder")
    if find(digits.NAME, folder) is None:
        options = Options(name=digits.NAME, data_dir=folder)
        with contextlib.suppress(TakenError):  # by another process of the same run
            prepare(digits.open_source(), options, lambda *_: lambda _: None, wait=True)


def _default_folder() -> Path:
    """The folder of tensorflow-datasets: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    check_is_local("TFDS_DATA_DIR", constants.DATA_DIR)
    return Path(constants.DATA_DIR)
