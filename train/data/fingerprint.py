"""The fingerprint of a data set: enough to notice that a resumed run would read other data."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

FINGERPRINT = "data_fingerprint"
"""Key of the fingerprint next to the fields of a saved configuration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What identifies the data of a run.

    Attributes:
        class_names: names of the classes, in the order of their labels.
        split_sizes: number of images in the training and the evaluation split, without omitted
            images.
        contents: SHA-256 of all labels and images in these splits; None unless verified.
        files: SHA-256 of the metadata files, of the sizes of the data files, and of the beginning
            and the end of each.
    """

    class_names: Sequence[str]
    split_sizes: Mapping[str, int]
    contents: str | None
    files: str

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits for people."""
        sizes = sorted(self.split_sizes.items())
        identity = (list(self.class_names), sizes, self.contents or self.files)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:12]

    def has_classes_of(self, other: Self) -> bool:
        """Whether both have the same classes in the same order."""
        return list(self.class_names) == list(other.class_names)

    def differences(self, other: Self) -> list[str]:
        """How this data differs from other data, one phrase each; empty if it is the same.

        Contents decide if both are verified, so the same images in other files are the same data.
        """
        if not self.has_classes_of(other):
            return [_difference_of_classes(self.class_names, other.class_names)]
        sizes, others = dict(self.split_sizes), dict(other.split_sizes)
        if sizes != others:
            return [
                f"the split '{split}' has {sizes.get(split, 0)} images instead of "
                f"{others.get(split, 0)}"
                for split in sorted(sizes.keys() | others.keys())
                if sizes.get(split) != others.get(split)
            ]
        if self.contents and other.contents:
            same = self.contents == other.contents
            return [] if same else ["labels or images differ (same classes and sizes)"]
        same = self.files == other.files
        return [] if same else ["its files differ (same classes and sizes)"]

    def to_json(self) -> dict[str, Any]:
        """The fingerprint as JSON has it."""
        return {"short": self.short} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError: if it is not a fingerprint.
        """
        try:
            return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError):
            raise ValueError("not a fingerprint") from None


def recorded_with(fields: dict[str, Any], fingerprint: Fingerprint | None) -> dict[str, Any]:
    """The fields of a saved configuration, and the fingerprint of the run's data if it has one."""
    return fields if fingerprint is None else fields | {FINGERPRINT: fingerprint.to_json()}


def recorded_in(fields: dict[str, Any]) -> Fingerprint | None:
    """The fingerprint that was saved next to a configuration; None if there is none.

    Raises:
        ValueError: if it is not a fingerprint.
    """
    saved = fields.get(FINGERPRINT)
    return None if saved is None else Fingerprint.from_json(saved)


def _difference_of_classes(names: Sequence[str], others: Sequence[str]) -> str:
    if len(names) != len(others):
        return f"it has {len(names)} classes instead of {len(others)}"
    label = next(label for label, name in enumerate(names) if name != others[label])
    return f"class {label} is {names[label]} instead of {others[label]}"
