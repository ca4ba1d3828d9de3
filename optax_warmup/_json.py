"""JSON files of recipes, with a version and checked fields."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

# Incremented when files of an older version could be misread.
VERSION = 1


def dump(recipe: Any) -> str:
    """A dataclass of plain values as a JSON object, without the fields that are None."""
    fields = dataclasses.asdict(recipe, dict_factory=_without_none)
    return json.dumps({"version": VERSION, **fields}, indent=2)


def load(text: str, cls: type[Any]) -> dict[str, Any]:
    """The fields of `cls` in a JSON object; those with a default may be omitted."""
    try:
        found: Any = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"text must be JSON, got {text!r:.80}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"text must hold a JSON object, got {found!r:.80}")
    fields = dict(cast("dict[str, Any]", found))
    version: Any = fields.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise ValueError(f"version must be {VERSION}, got {version!r}")
    return known(fields, cls)


def known(fields: dict[str, Any], cls: type[Any]) -> dict[str, Any]:
    """`fields`, if they are fields of `cls` and include all required ones."""
    names = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(fields) - set(names)):
        raise ValueError(f"unknown fields {unknown}, known are {sorted(names)}")
    needed = {name for name, field in names.items() if field.default is dataclasses.MISSING}
    if missing := sorted(needed - set(fields)):
        raise ValueError(f"missing fields {missing}")
    return fields


def _without_none(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if value is not None}
