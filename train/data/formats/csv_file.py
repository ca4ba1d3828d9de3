"""A CSV file that lists the paths of images, their labels and, optionally, their splits."""

import csv
import dataclasses
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from train.data.formats.image_files import portable
from train.data.formats.source import SPLITS, TRAIN, Example, Source, normalized, shortened
from train.data.formats.source import Options as SourceOptions
from train.errors import UsageError

SEPARATORS = (",", ";", "\t")

# Names of the columns, in lowercase; the first of each is preferred.
COLUMNS = {
    "path": (
        "path", "paths", "file", "files", "filename", "filenames", "file_name", "file_names",
        "filepath", "filepaths", "file_path", "image", "images", "image_path", "image_file",
        "image_name", "img", "img_path",
    ),
    "label": (
        "label", "labels", "class", "classes", "class_name", "target", "category", "label_name",
    ),
    "split": ("split", "splits", "subset", "partition", "data_set"),
}  # fmt: skip

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Prepare the images that a CSV file lists, with the columns path, label and maybe split.

    Paths are relative to the folder of the file. Separators are commas, semicolons or tabs.
    """

    path: Path = dataclasses.field(metadata={"positional": "FILE"})
    """CSV file with a header and one row per image."""


class Row(NamedTuple):
    """One row of the file."""

    number: int
    """Row of a spreadsheet, whose row 1 is the header."""
    path: str
    label: str
    split: str


def open_source(options: Options) -> Source:
    """Read a CSV file and find the images that it lists.

    Raises:
        UsageError: if it is not such a file, or images do not exist.
    """
    path = options.path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8; save it as CSV in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        rows, warnings = _parse(text, path)
    except csv.Error as error:
        raise UsageError(f"{path} is not a correct CSV file: {error}") from None
    class_names = _sort({row.label for row in rows}, path)
    labels = {name: label for label, name in enumerate(class_names)}
    folder = os.path.dirname(os.path.abspath(path))
    examples: list[Example] = []
    missing: list[Row] = []
    numbers: dict[str, int] = {}
    for row in rows:
        if (location := _locate(folder, row.path)) is None:
            missing.append(row)
            continue
        name = _name(folder, location)
        if (other := numbers.setdefault(name, row.number)) != row.number:
            raise UsageError(
                f"row {row.number} of {path} repeats the path {name} of row {other}; remove one"
            )
        location = name if name == location else location  # one string instead of two equal ones
        examples.append(Example(row.split, name, labels[row.label], location))
    if missing:
        raise UsageError(
            f"{len(missing)} of the {len(rows)} files in {path} do not exist, such as "
            f"{missing[0].path} in row {missing[0].number}; paths must be relative to {folder}, or "
            "absolute"
        )

    def read(example: Example) -> bytes:
        with open(os.path.join(folder, example.location), "rb") as file:
            return file.read()

    return Source(
        origin=f"the file {portable(os.path.abspath(path))}",
        class_names=class_names,
        examples=examples,
        read=read,
        warnings=warnings,
    )


def _parse(text: str, path: Path) -> tuple[list[Row], list[str]]:
    """Rows of the file, and one line for each oddity."""
    if "\0" in text:
        raise UsageError(f"{path} is not a text file; save it as CSV in UTF-8")
    if not text.strip():
        raise UsageError(f"{path} is empty; it must have the columns path and label")
    cells, header, columns = _read_header(text, path)
    rows: list[Row] = []
    for number, row in enumerate(cells, start=2):
        if any(cell.strip() for cell in row):
            rows.append(_read_row(number, row, len(header), columns, path))
    if not rows:
        raise UsageError(f"{path} has only a header; add a row for each image")
    others = [name for index, name in enumerate(header) if index not in columns.values()]
    unused = [name for name in others if name]  # pandas leaves the name of its index blank
    return rows, [f"the column(s) {shortened(unused)} were not used"] if unused else []


def _read_header(
    text: str, path: Path
) -> tuple[Iterator[list[str]], Sequence[str], Mapping[str, int]]:
    """Find the separator: the rows after the header, the header, and the columns by meaning."""
    headers: list[list[str]] = [[]]
    for separator in SEPARATORS:
        cells = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
        )
        try:
            header = [name.strip() for name in next(cells)]
        except csv.Error:  # such as quotes next to another separator
            continue
        columns = _find_columns(header, path)
        if "path" in columns and "label" in columns:
            return cells, header, columns
        headers.append(header)
    found = max(headers, key=len)
    raise UsageError(
        f"{path} has the columns {shortened([ascii(name)[1:-1] for name in found])}; its first row "
        "must name the columns path and label"
    )


def _find_columns(header: Sequence[str], path: Path) -> dict[str, int]:
    names = [name.lower().replace(" ", "_").replace("-", "_") for name in header]
    columns: dict[str, int] = {}
    for meaning, synonyms in COLUMNS.items():
        places = [index for index, name in enumerate(names) if name in synonyms]
        preferred = [index for index in places if names[index] == meaning]
        if len(chosen := preferred or places) > 1:
            raise UsageError(
                f"{path} has the columns {shortened([header[index] for index in chosen])}, any of "
                f"which may be the {meaning}; rename the right one to {meaning}"
            )
        if chosen:
            columns[meaning] = chosen[0]
    return columns


def _read_row(
    number: int, cells: Sequence[str], num_columns: int, columns: Mapping[str, int], path: Path
) -> Row:
    if len(cells) < num_columns or any(cell.strip() for cell in cells[num_columns:]):
        raise UsageError(
            f"row {number} of {path} has {len(cells)} cells, but the header has {num_columns}; "
            "enclose cells that contain a separator in quotes"
        )
    values = {meaning: cells[index].strip() for meaning, index in columns.items()}
    for meaning, value in values.items():
        if not value:
            raise UsageError(f"row {number} of {path} has no {meaning}; add it or remove the row")
    split = values.get("split", TRAIN)
    if split.lower() not in SPLITS:
        raise UsageError(
            f"row {number} of {path} has the split {split}; it must be train, validation or test"
        )
    return Row(number, values["path"], normalized(values["label"]), SPLITS[split.lower()])


def _sort(labels: set[str], path: Path) -> list[str]:
    """Sort labels, as numbers if all of them are numbers."""
    if not all(map(NUMBER.fullmatch, labels)):
        return sorted(labels)
    numbers: dict[Decimal, str] = {}
    for label in sorted(labels):
        if (other := numbers.setdefault(Decimal(label), label)) != label:
            raise UsageError(
                f"{path} has the labels {other} and {label}, which are the same number; write them "
                "alike"
            )
    return [numbers[number] for number in sorted(numbers)]


def _locate(folder: str, path: str) -> str | None:
    """The path of a file as it exists: systems differ in slashes and in accented letters."""
    for form in (path, path.replace("\\", "/")):
        for candidate in (form, *(unicodedata.normalize(kind, form) for kind in ("NFC", "NFD"))):
            if os.path.isfile(os.path.join(folder, candidate)):
                return candidate
    return None


def _name(folder: str, location: str) -> str:
    """Name of an example: its path in the simplest form, relative to the file if it is below."""
    name = posixpath.normpath(location)
    if os.path.isabs(name) and name.startswith(os.path.join(folder, "")):
        name = os.path.relpath(name, folder)
    return portable(name)
