"""Columns of Parquet files that hold the images and the labels, as Hugging Face names them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from train.config import JsonObject
from train.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Role:
    """What a column is needed for.

    Attributes:
        name: "image" or "label".
        feature: type of such a column in Hugging Face's metadata.
        usual_names: names that such columns have without metadata.
        types: types that such a column can have, in words.
        fits: whether a type is one of them.
    """

    name: str
    feature: str
    usual_names: Sequence[str]
    types: str
    fits: Callable[[pa.DataType], bool]


@dataclasses.dataclass(frozen=True)
class Column:
    """The column that was chosen for a role.

    Attributes:
        name: its name.
        leaf: path in the file of the values to read.
        others: columns that might have been meant instead.
        class_names: names of the classes that the metadata gives for it.
    """

    name: str
    leaf: str
    others: Sequence[str]
    class_names: Sequence[str] | None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def are_words(kind: pa.DataType) -> bool:
    """Whether labels of this type are strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_null(kind) or are_words(kind)


IMAGE = Role(
    "image",
    "Image",
    ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    "binary or a struct with binary 'bytes'",
    _is_image,
)
LABEL = Role(
    "label",
    "ClassLabel",
    ("label", "labels", "class", "cls", "target", "fine_label", "category", "class_id"),
    "integers or strings",
    _is_label,
)


def choose(schema: pa.Schema, role: Role, chosen: str | None, path: Path) -> Column:
    """Choose the column for a role: by Hugging Face's metadata, by its name, or by its type.

    Args:
        schema: columns of a file.
        role: `IMAGE` or `LABEL`.
        chosen: name of the column that the user chose, if any.
        path: the file.

    Raises:
        UsageError: if no column fits, or several do.
    """
    features = _features(schema)
    fitting = [field.name for field in schema if role.fits(field.type)]
    others: Sequence[str] = ()
    column = chosen or ""
    if chosen is None:
        candidates = [name for name in fitting if _type_of(features, name) == role.feature]
        if not candidates and role is IMAGE:
            candidates = fitting
        usual = [name for name in candidates or fitting if name.lower() in role.usual_names]
        best = candidates if len(candidates) == 1 else usual
        if len(best) != 1:
            what = f"several columns of {role.name}s" if candidates or usual else "no such column"
            raise UsageError(
                f"{path} needs a column of {role.name}s, but has {what}; choose one of "
                f"{role.types} with --{role.name}-column; its columns are {_listed(schema)}"
            )
        (column,) = best
        others = [name for name in candidates if name != column]
    elif chosen not in fitting:
        raise UsageError(
            f"--{role.name}-column is {chosen}, but {path} has no such column of {role.types}; its "
            f"columns are {_listed(schema)}"
        )
    leaf = f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column
    names = features.get(column, {}).get("names")
    return Column(column, leaf, others, names if isinstance(names, list) else None)


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _type_of(features: JsonObject, column: str) -> str | None:
    return features.get(column, {}).get("_type")


def _features(schema: pa.Schema) -> JsonObject:
    """What Hugging Face's metadata says about each column; empty without metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
