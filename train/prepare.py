"""Prepares a data set for the trainer: `python -m train.prepare FORMAT ... --name NAME`.

Data sets are written as ArrayRecord files of tensorflow-datasets, which have random access. Every
image is decoded once. A data set appears under its name only when it is complete and verified.
"""

import contextlib
import dataclasses
import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorflow_datasets.core import constants

from train import command_line
from train.data import published, table, verification
from train.data.formats import arrays, csv_file, image_folder, parquet, tfrecord, webdataset
from train.data.formats.digits import NAME as DIGITS
from train.data.preparation import (
    CorruptImagesError,
    Prepared,
    Stage,
    origin_in,
    origin_of,
    prepare,
    prepared_from,
    verify,
)
from train.data.stored import find, open_builder
from train.errors import DataError, UsageError, check_folder, from_os_error
from train.run.startup import raise_keyboard_interrupt
from train.run.terminal import terminal_width, wrapped

PROG = "python -m train.prepare"
SECONDS_BETWEEN_LINES = 10.0  # without a terminal to draw a bar on

# Modules with a dataclass `Options` and a function `open_source` from it to a `Source`.
FORMATS: dict[str, ModuleType] = {
    "image-folder": image_folder,
    "parquet": parquet,
    "webdataset": webdataset,
    "csv": csv_file,
    "arrays": arrays,
    "tfrecord": tfrecord,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Verify a data set that was prepared elsewhere: decode every image and check every label.

    The result is kept next to the data. A data set that fails no longer counts as verified.
    """

    name: str = dataclasses.field(metadata={"positional": "NAME"})
    """Name of the data set."""

    skip_corrupt: bool = False
    """List corrupt images and leave them out of training instead of failing."""

    data_dir: Path = Path(constants.DATA_DIR)
    """Folder of prepared data sets."""

    def __post_init__(self) -> None:
        """Check everything that needs no data."""
        check_folder("data_dir", self.data_dir)


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""
    raise_keyboard_interrupt()  # an unfinished data set is deleted
    # With this file, the progress bar stays while the output of libraries is hidden.
    console = Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=terminal_width() is None,  # else lines are broken between words
    )

    def command() -> int:
        word, *others = args or [""]
        if word in ("-h", "--help"):
            print(wrapped(_overview(), terminal_width()))
            return 0
        if word == "":
            print(_overview(), file=sys.stderr)
            raise UsageError("name a format of your own images, or a published data set")
        try:
            if word == "verify":
                options = command_line.parse_options(Verify, others, f"{PROG} verify")
                return _verify(options, console)
            if word in FORMATS:
                format_ = FORMATS[word]
                options = command_line.parse_options(format_.Options, others, f"{PROG} {word}")
                return _prepare(format_, options, console)
            if not word.startswith("-"):
                published.check_name(word, FORMATS)
            options = command_line.parse_options(published.Options, args, PROG)
            return _prepare_published(options, console)
        except CorruptImagesError as error:
            for image in error.images:
                print(table.line_of(image), file=sys.stderr)
            raise
        except OSError as error:  # such as a folder without access, or no network
            raise UsageError(" ".join(str(from_os_error(error)).split())) from None

    return command_line.run(PROG, command)


def _overview() -> str:
    """Help of the command without a format."""
    width = max(map(len, [*FORMATS, "verify NAME"])) + 2
    formats = "\n".join(
        f"  {name:{width}}{inspect.cleandoc(format_.Options.__doc__).splitlines()[0]}"
        for name, format_ in FORMATS.items()
    )
    return f"""\
usage: {PROG} FORMAT ... --name NAME
       {PROG} PUBLISHED [--archives FOLDER]
       {PROG} verify NAME

Prepare a data set for 'python -m train tfds --dataset NAME': write it, decode every image once,
and give it its name only if all are intact.

Formats of your own images:
{formats}

Other words:
  {"PUBLISHED":{width}}Name of a data set of tensorflow-datasets, such as imagenet2012 or cifar10.
  {"verify NAME":{width}}Verify a data set that was prepared elsewhere.

More help: '{PROG} {next(iter(FORMATS))} --help', and the same for each word above."""


def _prepare(format_: ModuleType, options: Any, console: Console) -> int:
    """Prepare a user's own images, without TensorFlow."""
    if not re.fullmatch("[a-z][a-z0-9_]*", options.name):
        raise UsageError(
            f"--name is {options.name}; it must start with a lowercase letter and consist of "
            "lowercase letters, digits and _, such as my_images"
        )
    if options.name in published.names() - {options.published_name}:
        raise UsageError(
            f"--name {options.name} belongs to a published data set of tensorflow-datasets; choose "
            f"another, such as my_{options.name}"
        )
    source = format_.open_source(options)
    if (builder := find(options.name, options.data_dir)) is not None and not options.overwrite:
        if origin_of(source, options) != origin_in(builder):
            raise UsageError(
                f"--name {options.name} is taken: {builder.data_dir} was "
                f"{prepared_from(builder)}; choose another name, or replace it with --overwrite"
            )
        console.print(
            f"{options.name} is already prepared in {builder.data_dir}, {prepared_from(builder)}; "
            "nothing was done (--overwrite prepares it again)"
        )
        return 0
    with _progress(console) as stage:
        prepared = prepare(source, options, stage)
    _show(options.name, prepared, console)
    return 0


def _prepare_published(options: published.Options, console: Console) -> int:
    """Prepare a data set that has a name in tensorflow-datasets."""
    if options.name == DIGITS:
        console.print(f"{DIGITS} need no preparation; nothing was done")
        return 0
    published.check(options, FORMATS)
    if find(options.name, options.data_dir) is not None:
        builder = open_builder(options.name, options.data_dir)  # rejects other formats
        console.print(
            f"{options.name} is already prepared in {builder.data_dir}, {prepared_from(builder)}; "
            "nothing was done"
        )
        return 0
    source = f"from {options.archives}" if options.archives else "from a download"
    console.print(f"preparing {options.name} {source}")  # nothing else is printed for minutes
    with _progress(console) as stage:
        prepared = published.prepare(options, stage)
    _show(options.name, prepared, console)
    return 0


def _verify(options: Verify, console: Console) -> int:
    try:
        builder = open_builder(options.name, options.data_dir)
    except UsageError as error:  # this command names the data set without a flag
        raise UsageError(str(error).replace("--dataset ", "", 1)) from None
    folder, known = Path(builder.data_dir), None
    with contextlib.suppress(DataError):  # a damaged result is replaced
        known = verification.load(folder)
    with _progress(console) as stage:
        prepared = verify(
            builder,
            stage,
            origin=origin_in(builder),
            skipped=known.skipped if known else {},
            skip_corrupt=options.skip_corrupt,
        )
    _show(options.name, prepared, console)
    return 0


def _show(name: str, prepared: Prepared, console: Console) -> None:
    """Print the table, the warnings and the outcome."""
    tables = Console(highlight=False, markup=False, emoji=False)
    tables.print(table.describe(prepared.class_names, prepared.verified, len(prepared.corrupt)))
    for warning in prepared.warnings:
        console.print(f"warning: {table.printable(warning)}")
    if prepared.corrupt:
        console.print(
            f"{len(prepared.corrupt)} corrupt image(s) will be omitted; "
            f"{prepared.folder / verification.CORRUPT} lists them"
        )
    sizes = ", ".join(
        f"{split.num_images} {split_name}" for split_name, split in prepared.verified.splits.items()
    )
    console.print(f"verified {name} in {prepared.folder}: {sizes} images")


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Stage]:
    """One progress bar on a terminal, a line every few seconds elsewhere."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=None)

    def stage(description: str, total: int) -> Callable[[int], None]:
        bar.reset(task, description=description, total=total or None)
        done, last_line = 0, time.monotonic()

        def advance(number: int) -> None:
            nonlocal done, last_line
            done += number
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - last_line > SECONDS_BETWEEN_LINES:
                last_line = now
                console.print(f"{description}: {done} of {total} images")

        return advance

    with bar:
        yield stage


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
