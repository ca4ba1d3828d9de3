"""Random access to records: the same as tensorflow-datasets' own, without omitted ones."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train.data.records import Dataset, StoredRecords, WithoutOmitted, image_name
from train.data.stored import find, open_records


@pytest.fixture
def builder(digits_dir: Path) -> Any:
    return find("digits", digits_dir)


def test_records_are_those_that_tensorflow_datasets_reads(builder: Any):
    records = open_records(builder, "test")
    decoders = {"image": tfds.decode.SkipDecoding()}
    expected = builder.as_data_source("test", decoders=decoders)
    assert len(records) == len(expected) == 360
    for ours, theirs in zip(records.__getitems__(range(360)), expected, strict=True):
        assert ours["image"] == theirs["image"]
        assert ours["label"] == theirs["label"]
        assert ours["file_name"] == theirs["file_name"].decode()
    assert records[7] == records.__getitems__([7])[0]


def test_records_can_be_sent_to_another_process(builder: Any):
    records = open_records(builder, "test")
    first = records[0]
    assert pickle.loads(pickle.dumps(records))[0] == first


def example(**features: Any) -> bytes:
    info = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
        **{name: tfds.features.Text() for name in features},
    }
    values = {"image": b"\xff\xd8", "label": 2} | features
    return tfds.features.FeaturesDict(info).serialize_example(values)


@pytest.mark.parametrize(
    ("features", "name"),
    [({}, None), ({"id": "train_7"}, "train_7"), ({"file_name": "café.jpg"}, "café.jpg")],
)
def test_the_name_of_an_image_is_in_one_of_two_features(features: Any, name: str | None):
    record = StoredRecords([example(**features)])[0]
    assert record["label"] == 2
    assert image_name(record) == name


class Numbers:
    """Records that are their own index."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": index}

    def __getitems__(self, indices: Any) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def test_omitted_records_are_skipped_and_stored_indices_known():
    records = WithoutOmitted(Numbers(), [4, 0])
    assert len(records) == 4
    assert [records[index]["label"] for index in range(4)] == [1, 2, 3, 5]
    assert [record["label"] for record in records.__getitems__([3, 0])] == [5, 1]
    dataset = Dataset(name="numbers", class_names=["a"], train=records, evaluation=Numbers())
    assert [dataset.stored_index("train", index) for index in range(4)] == [1, 2, 3, 5]
    assert [dataset.stored_index("test", index) for index in (0, 5)] == [0, 5]
    np.testing.assert_array_equal(records.stored_indices, [1, 2, 3, 5])
