"""Parquet files with a column of encoded images and one of labels, as Hugging Face exports them."""

import bisect
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from train.data.formats import splits
from train.data.formats.columns import IMAGE, LABEL, are_words, choose
from train.data.formats.labels import Found, number, without_unlabeled_test
from train.data.formats.source import Example, Source
from train.errors import UsageError

KIND = "Parquet file"
EMBED = "; export the data set again with its images embedded in the files"
ROWS_AT_ONCE = 32
MOST_WAITING = 4096  # more than the threads that prepare a data set read ahead
BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(splits.Options):
    """Prepare Parquet files with embedded images, such as a data set of Hugging Face."""

    image_column: str | None = None
    """Column of encoded images. Default: found by its type and its name."""

    label_column: str | None = None
    """Column of labels. Default: found by its type and its name."""


def open_source(options: Options) -> Source:
    """Read the labels of Parquet files; their images are read later.

    Raises:
        UsageError: if the files lack images or labels, differ from each other, or are damaged.
    """
    files = splits.find_files(options, ".parquet")
    footers = {file.path: _footer(file.path) for file in files}
    first, first_schema = files[0].path, footers[files[0].path].schema.to_arrow_schema()
    image = choose(first_schema, IMAGE, options.image_column, first)
    label = choose(first_schema, LABEL, options.label_column, first)
    found: list[Found] = []
    for file in files:
        schema = footers[file.path].schema.to_arrow_schema()
        for column, role in ((image, IMAGE), (label, LABEL)):
            if column.name not in schema.names:
                raise UsageError(
                    f"{file.path} has no column {column.name}, but {first} has one; all files must "
                    "have the same columns"
                )
            this = choose(schema, role, column.name, file.path)
            types = [some.field(column.name).type for some in (first_schema, schema)]
            if this.leaf != column.leaf or len({are_words(type_) for type_ in types}) > 1:
                raise UsageError(
                    f"the column {column.name} has the type {types[1]} in {file.path}, but "
                    f"{types[0]} in {first}; all files must have the same columns"
                )
            if this.class_names != column.class_names:
                raise UsageError(
                    f"{file.path} and {first} name the classes of {column.name} differently; all "
                    "files must belong to the same data set"
                )
        _reject_missing_images(file.path, footers[file.path], image.leaf)
        for row, value in enumerate(_labels(file.path, label.name)):
            found.append(Found(file.split, f"{file.name}:{row}", value, (file.path, row)))
    found, skipped = without_unlabeled_test(found)
    examples, class_names = number(
        found, label.class_names, lambda example: "row {1} of {0}".format(*example.location)
    )
    used = {example.split for example in examples}
    num_rows = {file.path: footers[file.path].num_rows for file in files if file.split in used}
    return Source(
        origin=splits.origin(files, KIND),
        class_names=class_names,
        examples=examples,
        read=_Images(num_rows, image.leaf).read,
        skipped=skipped,
        warnings=[
            f"the {role.name}s are those of the column {column.name}; --{role.name}-column "
            f"{column.others[0]} takes others"
            for column, role in ((image, IMAGE), (label, LABEL))
            if column.others
        ],
    )


class _Images:
    """Images of Parquet files, which are streamed in the order of their rows.

    A row group may hold gigabytes and has no random access, so a stream reads a few rows at a
    time. Threads ask for rows slightly out of order: a row that was read waits until it is asked
    for. What it keeps is a batch, one page of the file and the rows that waiting threads want.

    Args:
        num_rows: number of rows of each file.
        leaf: path of the images in each file.
    """

    def __init__(self, num_rows: Mapping[Path, int], leaf: str) -> None:
        self._paths = list(num_rows)
        self._starts = [0, *itertools.accumulate(num_rows.values())]
        self._start_of = dict(zip(self._paths, self._starts, strict=False))
        self._leaf = leaf
        self._lock = threading.Lock()
        self._waiting: dict[int, bytes | None] = {}
        self._next = 0
        self._stream: Iterator[list[bytes | None]] | None = None

    def read(self, example: Example) -> bytes:
        """The encoded image of an example."""
        path, row = example.location
        index = self._start_of[path] + row
        with self._lock:
            if index not in self._waiting:
                self._advance(index)
            image = self._waiting.pop(index)
        if image is None:
            raise UsageError(f"row {row} of {path} has no image bytes{EMBED}")
        return image

    def _advance(self, index: int) -> None:
        if self._stream is None or not self._next <= index < self._next + MOST_WAITING:
            self._waiting.clear()
            self._next, self._stream = self._stream_from(index)
        while index not in self._waiting:
            try:
                images = next(self._stream)
            except BaseException:
                self._stream = None  # an error has ended it
                raise
            self._waiting |= enumerate(images, self._next)
            self._next += len(images)
            while len(self._waiting) > MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]

    def _stream_from(self, index: int) -> tuple[int, Iterator[list[bytes | None]]]:
        """Images from the start of the row group that contains an index, and the index there."""
        place = bisect.bisect_right(self._starts, index) - 1
        start, group = self._starts[place], 0
        footer = _footer(self._paths[place])
        while group < footer.num_row_groups:
            if (end := start + footer.row_group(group).num_rows) > index:
                break
            start, group = end, group + 1

        def stream() -> Iterator[list[bytes | None]]:
            yield from self._images(place, start, group)
            for later in range(place + 1, len(self._paths)):
                yield from self._images(later, self._starts[later], 0)

        return start, stream()

    def _images(self, place: int, start: int, group: int) -> Iterator[list[bytes | None]]:
        """Images of a file from one of its row groups on, whose index is `start`."""
        path = self._paths[place]
        try:
            # Without these arguments, pyarrow holds entire row groups in memory.
            with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                for batch in file.iter_batches(
                    batch_size=ROWS_AT_ONCE,
                    row_groups=range(group, file.num_row_groups),
                    columns=[self._leaf],
                    use_threads=False,
                ):
                    rows = batch.column(0).to_pylist()
                    yield [row["bytes"] if isinstance(row, dict) else row for row in rows]
                    start += len(rows)
        except (pa.ArrowException, OSError) as error:
            raise splits.unreadable(path, KIND, error) from None
        if start != self._starts[place + 1]:
            raise splits.unreadable(path, KIND, "it changed while it was read")


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise splits.unreadable(path, KIND, error) from None


def _reject_missing_images(path: Path, footer: pq.FileMetaData, leaf: str) -> None:
    """Reject a file whose footer says that images are missing."""
    num_missing = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema == leaf and column.statistics is not None:
                num_missing += column.statistics.null_count or 0
    if num_missing:
        raise UsageError(f"{num_missing} row(s) of {path} have no image bytes{EMBED}")


def _labels(path: Path, column: str) -> list[int | str | None]:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=[column]).column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise splits.unreadable(path, KIND, error) from None
