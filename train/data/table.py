"""What is known about a verified data set, as a table for people."""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from train.data.verification import CorruptImage, Verified, VerifiedSplit

NUM_LISTED = 10  # of the largest and of the smallest classes

JOINERS = "\u200c\u200d"  # belong to Indic and Persian words and to emoji


def describe(class_names: Sequence[str], verified: Verified, num_corrupt: int) -> RenderableType:
    """Tables of splits, classes and sizes, and of what was left out.

    Args:
        class_names: names of the classes, in the order of their labels.
        verified: facts about the data set.
        num_corrupt: images that training omits.
    """
    counts = {name: split.class_counts for name, split in verified.splits.items()}
    parts: list[RenderableType] = [_splits(verified), classes(class_names, counts)]
    if verified.skipped or num_corrupt:
        skipped = dict(verified.skipped)
        if num_corrupt:
            skipped["corrupt image(s)"] = num_corrupt
        table = _table("skipped", "files")
        for reason, count in sorted(skipped.items(), key=lambda item: -item[1]):
            table.add_row(Text(printable(reason)), str(count))
        parts.append(table)
    return Group(*parts)


def line_of(image: CorruptImage) -> str:
    """One line about a corrupt image."""
    name = f" ({image.file_name})" if image.file_name else ""
    return printable(f"split '{image.split}', image {image.index}{name}: {image.reason}")


def printable(text: str) -> str:
    """Escape what would disturb a terminal: line breaks, control and directional characters."""
    return "".join(
        ascii(character)[1:-1]
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and character not in JOINERS
        else character
        for character in text
    )


def _splits(verified: Verified) -> Table:
    table = _table("split", *verified.splits)  # transposed, so that it fits a narrow terminal
    splits = verified.splits.values()
    table.add_row("images", *(str(split.num_images) for split in splits))
    table.add_row("shorter side", *map(_sides, splits))
    table.add_row("most frequent size", *map(_size, splits))
    table.add_row("formats", *map(_formats, splits))
    return table


def _sides(split: VerifiedSplit) -> str:
    least, median, most = split.shorter_sides or (0, 0, 0)
    return f"{least}" if least == most else f"{least} to {most}, median {median}"


def _size(split: VerifiedSplit) -> str:
    size = next(iter(split.sizes), "")
    is_common = not size or split.sizes[size] == split.num_images
    return size if is_common else f"{size} ({split.sizes[size]} images)"


def _formats(split: VerifiedSplit) -> str:
    formats = ", ".join(split.formats)
    if not split.num_gray:
        return formats
    which = "gray" if split.num_gray == split.num_images else f"{split.num_gray} gray"
    return f"{formats} ({which})"


def classes(class_names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Table:
    """Table of the images of each class: the ten largest and the ten smallest classes.

    Args:
        class_names: names of the classes, in the order of their labels.
        counts: number of images of each class, by split.
    """
    total = sum((np.asarray(some) for some in counts.values()), np.zeros(len(class_names), int))
    order = np.argsort(-total, kind="stable").tolist()
    table = _table(f"{len(class_names)} classes", *counts)
    shown: list[int | None] = [*order]
    if len(order) > 2 * NUM_LISTED:
        shown = [*order[:NUM_LISTED], None, *order[-NUM_LISTED:]]
    for label in shown:
        if label is None:
            hidden = f"... {len(order) - 2 * NUM_LISTED} more ..."
            table.add_row(hidden, *("" for _ in counts))
        else:
            name = Text(printable(class_names[label]))
            table.add_row(name, *(str(some[label]) for some in counts.values()))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
