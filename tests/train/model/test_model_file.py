"""Model files: what is written is read again, and malformed files are rejected in one line."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.train.networks import random_network, tensors_of
from train.errors import UsageError
from train.model.model_file import Description, read_model, read_tensors, write_model

HEADER_SIZE = struct.Struct("<Q")


def description(**changes: Any) -> Description:
    fields: dict[str, Any] = {
        "model": "resnet8",
        "class_names": ("roses", "tulips"),
        "image_size": 8,
        "mean": (0.5,),
        "std": (0.25,),
        "crop": None,
    }
    return Description(**fields | changes)


def test_a_description_survives_json():
    before = description(
        class_names=("Rosé", "日本", 'a "quote"\n'),
        crop=0.875,
        dataset={"name": "flowers", "fingerprint": "0123456789ab"},
        recipe={"milestones": [1, 2]},
        step=12,
        top1_error=0.25,
        versions={"jax": "0.10.2"},
    )
    assert Description.from_json(before.to_json()) == before


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "class_names": 3}'],
)
def test_text_that_describes_no_model_is_a_value_error(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  messages of the json module vary
        Description.from_json(text)


@pytest.mark.parametrize("field", ["model", "mean", "image_size"])
def test_a_description_without_a_field_is_a_value_error(field: str):
    fields = json.loads(description().to_json())
    del fields[field]
    with pytest.raises(ValueError, match=field):
        Description.from_json(json.dumps(fields))


WRONG = [None, 3, -1, 2.5, "x", [], [1], {}, {"a": 1}, True, float("inf"), [None], ["a", "b"]]
ACCEPTED: dict[str, list[Any]] = {
    "model": [],
    "class_names": ["x", {"a": 1}, ["a", "b"]],
    "image_size": [],
    "mean": [[], [1], {}],
    "std": [[], [1], {}],
    "crop": [None],
    "has_names": [True],
    "dataset": [{}, {"a": 1}],
    "recipe": [{}, {"a": 1}],
    "step": [3, -1],
    "top1_error": [None, 3, -1, 2.5, float("inf")],
    "versions": [{}, {"a": 1}],
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Description)])
def test_a_field_of_another_type_is_a_value_error(field: str):
    fields = json.loads(description().to_json())
    for value in WRONG:
        text = json.dumps(fields | {field: value})
        if value in ACCEPTED[field]:
            Description.from_json(text)
        else:
            with pytest.raises(ValueError, match=rf"{field}|of another type"):
                Description.from_json(text)


@pytest.mark.parametrize("name", ["recipe", "dataset", "dtype", "batch_size_per_worker"])
def test_a_recipe_of_another_type_is_a_value_error(name: str):
    fields = json.loads(description(recipe={name: [1]}).to_json())
    with pytest.raises(ValueError, match=f"recipe.{name}"):
        Description.from_json(json.dumps(fields))


def test_a_model_with_other_colors_than_its_arrays_is_a_usage_error(tmp_path: Path):
    tensors = tensors_of(random_network("resnet8", num_classes=2, num_channels=1), "resnet8")
    write_model(tmp_path, description(), tensors)
    assert read_model(tmp_path)[0] == description()
    for changes, words in (
        ({"mean": (0.5,) * 3}, "2 classes and 3 colors, and"),
        ({"class_names": ("one",)}, "1 classes and 1 colors, and"),
        ({"model": "resnet18"}, "describes a resnet18 with"),
    ):
        write_model(tmp_path, description(**changes), tensors)
        with pytest.raises(UsageError, match=words):
            read_model(tmp_path)


def test_a_folder_without_a_model_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="holds no model"):
        read_model(tmp_path)
    (tmp_path / "model.json").write_text(description().to_json())
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be used: No such file"):
        read_model(tmp_path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "some.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int64)}
    safetensors.numpy.save_file(arrays, path)
    return path.read_bytes()


def assert_rejected(path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value)


def with_header(intact: bytes, header: Any) -> bytes:
    """The file with another header in front of the same data."""
    (size,) = HEADER_SIZE.unpack(intact[:8])
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return HEADER_SIZE.pack(len(text)) + text + intact[8 + size :]


def header_of(intact: bytes) -> dict[str, Any]:
    (size,) = HEADER_SIZE.unpack(intact[:8])
    return json.loads(intact[8 : 8 + size])


@pytest.mark.parametrize(
    "size", [0, 1, 7, 1 << 20, 1 << 31, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1]
)
def test_a_header_of_an_impossible_size_is_rejected(intact: bytes, tmp_path: Path, size: int):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(HEADER_SIZE.pack(size) + intact[8:])
    assert_rejected(path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a", {"data_offsets": [0, 1 << 20]}),
        ("a", {"data_offsets": [0, 1 << 63]}),
        ("a", {"data_offsets": [-24, 0]}),
        ("a", {"data_offsets": [24, 0]}),
        ("a", {"data_offsets": [8, 32]}),  # overlaps with b
        ("b", {"data_offsets": [24, 56]}),
        ("a", {"data_offsets": [0]}),
        ("a", {"data_offsets": "all"}),
        ("a", {"shape": [2, 4]}),
        ("a", {"shape": [1 << 62, 4]}),
        ("a", {"shape": [1 << 63]}),
        ("a", {"shape": [-2, -3]}),
        ("a", {"shape": None}),
        ("a", {"dtype": "F128"}),
        ("a", {"dtype": 7}),
        ("a", {"dtype": "F64"}),
    ],
)
def test_a_header_that_does_not_match_the_data_is_rejected(
    intact: bytes, tmp_path: Path, name: str, changes: dict[str, Any]
):
    header = header_of(intact)
    header[name] |= changes
    path = tmp_path / "odd.safetensors"
    path.write_bytes(with_header(intact, header))
    assert_rejected(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b'"a"', b"\xff\xfe", b'{"a": 1}', b"{}"])
def test_a_header_that_is_no_table_of_arrays_is_rejected(
    intact: bytes, tmp_path: Path, text: bytes
):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(with_header(intact, text))
    assert_rejected(path)


def with_type(name: str, num_bytes: int) -> bytes:
    """A file with one array of a type that NumPy lacks."""
    header = {"a": {"dtype": name, "shape": [2], "data_offsets": [0, num_bytes]}}
    text = json.dumps(header).encode()
    return HEADER_SIZE.pack(len(text)) + text + b"\x80\x3f" * (num_bytes // 2)


def test_bfloat16_is_read(tmp_path: Path):
    (tmp_path / "bf16.safetensors").write_bytes(with_type("BF16", 4))
    found = read_tensors(tmp_path / "bf16.safetensors")["a"].astype(np.float32)
    np.testing.assert_array_equal(found, [1, 1])


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_a_type_without_meaning_for_a_network_is_rejected(tmp_path: Path, name: str):
    (tmp_path / "f8.safetensors").write_bytes(with_type(name, 2))
    with pytest.raises(UsageError, match="not a safetensors file"):
        read_tensors(tmp_path / "f8.safetensors")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20])
def test_a_truncated_file_is_rejected(intact: bytes, tmp_path: Path, length: int):
    path = tmp_path / "short.safetensors"
    path.write_bytes(intact[:length])
    assert_rejected(path)
    path.write_bytes(intact[:-1])
    assert_rejected(path)
    path.write_bytes(intact + b"\0")
    assert_rejected(path)


def test_a_thousand_mutations_never_end_in_another_error(intact: bytes, tmp_path: Path):
    """A changed byte may leave a valid file, such as one with another name."""
    rng, path = np.random.default_rng(0), tmp_path / "odd.safetensors"
    rejected: list[str] = []
    (size,) = HEADER_SIZE.unpack(intact[:8])
    for _ in range(1000):
        mutated = bytearray(intact)
        for position in rng.integers(8 + size, size=rng.integers(1, 4)):
            mutated[position] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            read_tensors(path)
        except UsageError as error:
            rejected.append(str(error))
    assert len(rejected) > 500
    assert not any("\n" in line for line in rejected)
