"""Labels as files have them, numbers or words, and the classes that they belong to."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from train.data.formats.source import TEST, Example
from train.errors import UsageError

UNLABELED = (None, -1)  # Hugging Face writes -1 if the labels of a test split are secret


class Found(NamedTuple):
    """An `Example` with the label that its file has."""

    split: str
    name: str
    label: int | str | None
    location: Any


def without_unlabeled_test(found: Sequence[Found]) -> tuple[list[Found], dict[str, int]]:
    """Leave out a test split without any labels.

    Args:
        found: examples with their labels.

    Returns:
        The other examples, and the number of those left out by reason.
    """
    test = [example for example in found if example.split == TEST]
    if not test or any(example.label not in UNLABELED for example in test):
        return list(found), {}
    others = [example for example in found if example.split != TEST]
    return others, {"unlabeled test image(s)": len(test)}


def number(
    found: Sequence[Found], class_names: Sequence[str] | None, describe: Callable[[Found], str]
) -> tuple[list[Example], list[str]]:
    """Number the classes.

    Args:
        found: examples with their labels. If any is a word, all are taken as words.
        class_names: names of the classes if the labels are numbers; None if the files have none.
        describe: an example in words, for errors.

    Returns:
        The examples, and the names of the classes. Words are numbered in sorted order; numbers
        without `class_names` name their classes.

    Raises:
        UsageError: if a label is missing or is not the number of a class.
    """
    for example in found:
        if example.label is None:
            raise UsageError(f"{describe(example)} has no label; label it or remove it")
    if any(isinstance(example.label, str) for example in found):
        words = [str(example.label) for example in found]
        names = sorted(set(words))
        numbers = {name: label for label, name in enumerate(names)}
        return _labeled(found, [numbers[word] for word in words]), names
    labels = [int(example.label or 0) for example in found]
    # Every class needs an image, so that labels beyond their number are wrong.
    limit = len(class_names) if class_names is not None else len(found)
    what = "named classes" if class_names is not None else "images"
    for example, label in zip(found, labels, strict=True):
        if not 0 <= label < limit:
            raise UsageError(
                f"{describe(example)} has the label {label}; labels must number the classes from "
                f"0, and there are {limit} {what}"
            )
    return _labeled(found, labels), list(
        class_names or map(str, range(max(labels, default=-1) + 1))
    )


def _labeled(found: Sequence[Found], labels: Sequence[int]) -> list[Example]:
    return [
        Example(example.split, example.name, label, example.location)
        for example, label in zip(found, labels, strict=True)
    ]
