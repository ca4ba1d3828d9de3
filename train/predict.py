"""`python -m train.predict --model FOLDER PATHS...`: classify images with a trained network."""

import csv
import dataclasses
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import joblib
import numpy as np
from rich.console import Console
from rich.progress import track

from train import command_line
from train.cluster.joining import check_platforms
from train.data.formats.image_files import open_folder, walk
from train.data.images import decode
from train.errors import (
    UsageError,
    check_is_local,
    check_number,
    check_writable,
    unusable_folder,
)
from train.run.classifier import Classifier
from train.run.compilation_cache import keep_compiled
from train.run.trained import NEWEST, check_checkpoint, load_trained

PROG = "python -m train.predict"
SOME_FAILED = 1
"""Exit code if a file could not be read; the others are classified."""
MAX_ON_SHEET = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Classify images with a trained network.

    Each file gets one line with its likeliest classes and their probabilities. A file that is not
    an image gets a line with the reason, and the exit code is then 1.
    """

    paths: tuple[Path, ...] = dataclasses.field(default=(), metadata={"positional": "PATHS"})
    """Image files, and folders with image files at any depth. Without any, the paths are read from
    standard input, one on each line."""

    model: Path = dataclasses.field(metadata={"metavar": "FOLDER"})
    """Folder that train.export has written, workdir of a run, or .safetensors or .pth file of
    torchvision, timm or Hugging Face."""

    checkpoint: str = dataclasses.field(default=NEWEST, metadata={"metavar": "STEP"})
    """The checkpoint of a run: a step, newest, or best for the one with the lowest test error."""

    top: int = 5
    """Number of classes for each image, likeliest first."""

    format: Literal["text", "csv", "jsonl"] = "text"
    """Format of the output: lines of text, CSV with a header, or a JSON object for each line."""

    out: Path | None = dataclasses.field(default=None, metadata={"metavar": "FILE"})
    """File to write to. Default: standard output."""

    sheet: Path | None = dataclasses.field(default=None, metadata={"metavar": "PNG"})
    """PNG picture of the first 60 images with their likeliest classes."""

    compilation_cache_dir: Path | None = None
    """Folder that keeps compiled programs. Default: as for `python -m train`."""

    def __post_init__(self) -> None:
        """Check everything that needs no model."""
        check_checkpoint(self.checkpoint)
        check_number("top", self.top, minimum=1)


class Prediction(NamedTuple):
    """Prediction for one file."""

    file: str
    classes: Sequence[str] = ()
    """Likeliest classes, likeliest first."""
    probabilities: Sequence[float] = ()
    """Their probabilities."""
    error: str = ""
    """Why the file has no prediction."""
    image: np.ndarray | None = None
    """The network's input, uint8 (S, S, C)."""


def main(args: list[str]) -> int:
    """Run the command; return its exit code."""

    def command() -> int:
        options = command_line.parse_options(Options, args, PROG)
        check_platforms()
        keep_compiled(options.compilation_cache_dir)
        return _predict(options)

    return command_line.run(PROG, command)


def _predict(options: Options) -> int:
    for name, path in (("out", options.out), ("sheet", options.sheet)):
        if path is not None:
            check_writable(name, path)
    if options.sheet is not None and options.sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet is {options.sheet}; its name must end in .png")
    files = find_images(options.paths or _paths_on_standard_input())
    to_stderr = Console(stderr=True)
    classifier = Classifier(
        load_trained(options.model, options.checkpoint, lambda text: print(text, file=sys.stderr))
    )
    # A bar would break the lines of results if both are on the terminal.
    shows_bar = to_stderr.is_terminal and not (options.out is None and sys.stdout.isatty())
    num_classes = min(options.top, len(classifier.class_names))
    progress = track(
        predictions(classifier, files, num_classes),
        description="",
        total=len(files),
        console=to_stderr,
        disable=not shows_bar,
        transient=True,
    )
    if options.out is None:
        failed, first = _write(progress, sys.stdout, options.format, num_classes)
    else:
        try:
            file = options.out.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise unusable_folder("--out", options.out, error) from None
        with file:
            failed, first = _write(progress, file, options.format, num_classes)
    if options.sheet is not None:
        # Imported late: Matplotlib takes half a second.
        from train.run.sheet import save_sheet

        save_sheet(
            [one.image for one in first if one.image is not None],
            [f"{one.classes[0]} {one.probabilities[0]:.0%}" for one in first if one.classes],
            options.sheet,
        )
    if failed:
        print(f"{failed} of {len(files)} files have no prediction", file=sys.stderr)
    return SOME_FAILED if failed else 0


def find_images(paths: Iterable[Path]) -> list[str]:
    """The files among some paths, and the image files below the folders among them.

    Args:
        paths: files and folders.

    Raises:
        UsageError: if there is none.
    """
    found: list[str] = []
    for path in paths:
        check_is_local("the file", path)
        if os.path.isdir(path):
            skipped = Counter[str]()
            inside = sorted(walk(open_folder(path), skipped))
            if not inside:
                others = f" ({', '.join(sorted(skipped))})" if skipped else ""
                raise UsageError(
                    f"{path} has no images: no file below it has the ending of one{others}"
                )
            found += [str(path / name) for name in inside]
        else:
            found.append(str(path))
    if not found:
        raise UsageError("there are no images to classify: name files or folders")
    return found


def _paths_on_standard_input() -> list[Path]:
    """Paths that are piped to this command, one on each line."""
    if sys.stdin.isatty():
        raise UsageError(
            "there are no images to classify: name files or folders, or pipe a list of paths"
        )
    # Bytes, because file names need not be text; they have no other line breaks than these.
    return [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().splitlines() if line]


def predictions(
    classifier: Classifier, files: Sequence[str], num_classes: int
) -> Iterator[Prediction]:
    """Classify files, in their order. Threads decode ahead of the network.

    Args:
        classifier: the network.
        files: paths.
        num_classes: number of likeliest classes to return.
    """

    def read(file: str) -> np.ndarray | str:
        try:
            return classifier.prepared(decode(Path(file).read_bytes(), classifier.num_channels))
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)

    names = np.array(classifier.class_names)
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        waiting = iter(files)
        ahead = [
            (file, pool.submit(read, file))
            for file in itertools.islice(waiting, 2 * classifier.batch_size)
        ]
        while ahead:
            some, ahead = ahead[: classifier.batch_size], ahead[classifier.batch_size :]
            read_now = [(file, future.result()) for file, future in some]
            ahead += [
                (file, pool.submit(read, file))
                for file in itertools.islice(waiting, classifier.batch_size)
            ]
            images = [image for _, image in read_now if not isinstance(image, str)]
            found = iter(classifier.probabilities(images))
            for file, image in read_now:
                if isinstance(image, str):
                    yield Prediction(file, error=image)
                    continue
                probabilities = next(found)
                if np.isnan(probabilities).any():
                    yield Prediction(file, error="the network's output is not finite")
                    continue
                # A stable order of equal probabilities: the smaller class first.
                likeliest = np.argsort(-probabilities, kind="stable")[:num_classes]
                # The shortest decimals that give the same float32, as in predictions.csv.
                shares = [float(str(share)) for share in probabilities[likeliest]]
                yield Prediction(file, names[likeliest].tolist(), shares, image=image)


def _write(
    found: Iterable[Prediction], file: TextIO, form: str, num_classes: int
) -> tuple[int, list[Prediction]]:
    """Write predictions as they come; return the number of failures and the first successes."""
    failed, first = 0, list[Prediction]()
    table = csv.writer(file, lineterminator="\n")
    if form == "csv":
        places = range(1, num_classes + 1)
        columns = [name for place in places for name in (f"class_{place}", f"probability_{place}")]
        table.writerow(["file", *columns, "error"])
    for one in found:
        failed += bool(one.error)
        if len(first) < MAX_ON_SHEET and not one.error:
            first.append(one)
        pairs = [*zip(one.classes, one.probabilities, strict=True)]
        if form == "csv":
            empty = [""] * (2 * (num_classes - len(pairs)))
            table.writerow([one.file, *itertools.chain(*pairs), *empty, one.error])
        elif form == "jsonl":
            fields = {"file": one.file} | (
                {"error": one.error}
                if one.error
                else {"classes": one.classes, "probabilities": one.probabilities}
            )
            print(json.dumps(fields, ensure_ascii=False), file=file)
        else:
            words = ", ".join(f"{name} {100 * share:.1f} %" for name, share in pairs)
            print(f"{one.file}: {one.error or words}", file=file)
        file.flush()
    return failed, first


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
