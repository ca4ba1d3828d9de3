"""WebDataset shards, written by the webdataset library."""

import gzip
import io
import os
import resource
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from webdataset.tariterators import base_plus_ext
from webdataset.writer import ShardWriter, TarWriter

from train.data.dataset import open_dataset
from train.data.formats.source import Source
from train.data.formats.webdataset import SHARDS_OPEN, Options, open_source
from train.data.records import Records
from train.errors import UsageError
from train.prepare import main
from train.recipes import tfds


def images(number: int, seed: int, ending: str = ".png") -> list[bytes]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(number, 12, 10, 3), dtype=np.uint8)
    return [cv2.imencode(ending, image)[1].tobytes() for image in pixels]


def write(path: Path, *samples: dict[str, Any]) -> None:
    """Write samples whose keys are `key` or their numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as writer:
        for number, sample in enumerate(samples):
            members = {name: value for name, value in sample.items() if name != "key"}
            writer.write({"__key__": sample.get("key", f"{number:03d}"), **members})


def write_members(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))


def stored(records: Records) -> list[tuple[bytes, int, str]]:
    return [
        (record["image"], record["label"], record["file_name"])
        for record in records.__getitems__(range(len(records)))
    ]


def opened(*files: Path) -> Source:
    return open_source(Options(name="x", files=tuple(map(str, files))))


LABELS = [0, 1] * 16


def test_shards_with_numbers_in_splits_are_trained_on(
    tmp_path: Path,
    three_steps: Callable[[str, Path], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
):
    shards, data = tmp_path / "shards", tmp_path / "data"
    shards.mkdir()
    parts = {"train": images(32, 0, ".jpg"), "val": images(8, 1, ".jpg"), "test": images(4, 2)}
    for split, encoded in parts.items():
        with ShardWriter(f"{shards}/{split}-%06d.tar", maxcount=10, verbose=0) as writer:
            for number, image in enumerate(encoded):
                sample = {"__key__": f"{split}/{number:06d}", "json": {"width": 10}}
                label = {} if split == "test" else {"cls": LABELS[number]}
                writer.write({**sample, "png" if split == "test" else "jpg": image, **label})
    flags = ["--name", "mine", "--data-dir", str(data)]
    pattern = f"{shards}/{{test-000000,train-{{000000..000003}},val-000000}}.tar"
    assert main(["webdataset", pattern, *flags]) == 0
    said = capsys.readouterr().out
    assert "32 train, 8 validation images" in said
    assert ["unlabeled", "test", "image(s)", "4"] in [line.split() for line in said.splitlines()]
    dataset = open_dataset(tfds().replace(dataset="mine", data_dir=data))
    assert dataset.class_names == ["0", "1"]
    names = [f"train/{number:06d}" for number in range(32)]
    assert stored(dataset.train) == list(zip(parts["train"], LABELS, names, strict=True))
    assert three_steps("mine", data)["eval/num_examples"] == 8


WORDS = ["cat" if label else "dog" for label in LABELS]
TEENS = [label + 10 for label in LABELS]


@pytest.mark.parametrize(
    ("samples", "class_names"),
    [
        ([{"cls": word} for word in WORDS], ["cat", "dog"]),
        ([{"cls": f"{label:03d}"} for label in LABELS], ["000", "001"]),  # names, not numbers
        ([{"json": {"label": word}} for word in WORDS], ["cat", "dog"]),
        ([{"json": {"class_id": label, "x": []}} for label in LABELS], ["0", "1"]),
        (
            [
                {"json": {"target": label, "class_name": word}}
                for label, word in zip(LABELS, WORDS, strict=True)
            ],
            ["dog", "cat"],
        ),
        (
            [
                {"cls": label, "json": {"label": "other", "label_name": word}}
                for label, word in zip(LABELS, WORDS, strict=True)
            ],
            ["dog", "cat"],
        ),
    ],
    ids=["words", "padded numbers", "json words", "json numbers", "json names", "cls and json"],
)
def test_one_shard_is_trained_on(
    tmp_path: Path,
    three_steps: Callable[[str, Path], dict[str, Any]],
    samples: list[dict[str, Any]],
    class_names: list[str],
):
    path, data, encoded = tmp_path / "animals.tar", tmp_path / "data", images(32, 0)
    write(path, *({"png": one, **sample} for one, sample in zip(encoded, samples, strict=True)))
    flags = ["--name", "mine", "--data-dir", str(data), "--held-out", "0.25"]
    assert main(["webdataset", str(path), *flags]) == 0
    dataset = open_dataset(tfds().replace(dataset="mine", data_dir=data))
    assert dataset.class_names == class_names
    assert (len(dataset.train), len(dataset.evaluation)) == (24, 8)
    labels = [class_names.index(word) for word in WORDS] if "cat" in class_names else LABELS
    expected = [
        (one, label, f"{number:03d}")
        for number, (one, label) in enumerate(zip(encoded, labels, strict=True))
    ]
    assert sorted(stored(dataset.train) + stored(dataset.evaluation)) == sorted(expected)
    assert three_steps("mine", data)["eval/num_examples"] == 8


def test_keys_are_those_of_the_webdataset_library(tmp_path: Path):
    path = tmp_path / "a.tar"
    names = ["./x/1.jpg", "./x/1.cls", "x.y/2.JPG", "x.y/2.cls", "3.left.jpeg", "3.cls"]
    names += ["__meta__/4.jpg", ".5.jpg", "x/._6.jpg", "__MACOSX/7.jpg", "PaxHeader/8.jpg"]
    names += ["README", "README.md", "9.txt"]
    write_members(path, [(name, name.encode()) for name in names])
    source = opened(path)
    assert [(example.name, source.read(example)) for example in source.examples] == [
        ("x/1", b"./x/1.jpg"),
        ("x.y/2", b"x.y/2.JPG"),
        ("3", b"3.left.jpeg"),
    ]
    assert source.skipped == {
        "file(s) that belong to no sample": 6,
        "sample(s) without an image": 2,
    }
    assert [base_plus_ext(name)[0] for name in names[:6:2]] == ["./x/1", "x.y/2", "3"]


def test_threads_read_from_more_shards_than_are_kept_open(tmp_path: Path):
    for number in range(3 * SHARDS_OPEN):
        sample = {"key": f"{number}", "jpg": b"%d" % number, "cls": number % 2}
        write(tmp_path / f"{number:04d}.tar", sample)
    source = opened(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + SHARDS_OPEN + 20, limits[1]))
    try:
        with ThreadPoolExecutor(16) as threads:
            read = list(threads.map(source.read, list(source.examples) * 3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read == [example.name.encode() for example in source.examples] * 3
    del source
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if Path(link).is_relative_to(tmp_path)]


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (["a", "b", "c", "b"], "because the label 0 has the names a and c"),
        (["a", "a", "a", "a"], "because the labels 0 and 1 have the name a"),
        (["a", None, "a", None], "because the label 1 has no name"),
    ],
)
def test_contradictory_class_names_are_replaced_by_numbers(
    tmp_path: Path, names: list[str | None], warning: str
):
    samples = [
        {"jpg": b"x", "json": {"label": number % 2, "label_name": name}}
        for number, name in enumerate(names)
    ]
    write(tmp_path / "a.tar", *samples)
    source = opened(tmp_path / "a.tar")
    assert source.class_names == ["0", "1"]
    assert source.warnings == [f"classes are named by their numbers, {warning}"]


def cut(number: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("rb+") as file:
            file.truncate(number)

    return make


def damage(path: Path) -> None:
    """Overwrite the header of the third member."""
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[2].offset
    with path.open("rb+") as file:
        file.seek(offset)
        file.write(b"x" * 512)


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def end_of_data(path: Path) -> int:
    """Offset of the end of the last member, which has one block of data."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    assert last.size <= 512
    return last.offset_data + 512


def link(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(info)


def members(*items: tuple[str, bytes]) -> Callable[[Path], None]:
    return lambda path: write_members(path, items)


def samples(*some: dict[str, Any]) -> Callable[[Path], None]:
    return lambda path: write(path, *({"key": f"1-{n}", **one} for n, one in enumerate(some)))


IMAGE = images(1, 0)[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (cut(100), "train-1.tar is not a complete tar archive: truncated header"),
        (
            lambda path: cut(end_of_data(path) - 300)(path),
            "train-1.tar is not a complete tar archive: unexpected end of data",
        ),
        (lambda path: cut(end_of_data(path))(path), "it is truncated or damaged after 003.png"),
        (
            lambda path: cut(end_of_data(path) + 512)(path),
            "it is truncated or damaged after 003.png",
        ),
        (damage, "it is truncated or damaged after 000.png"),
        (append, "it is truncated or damaged after 003.png"),
        (compress, "train-1.tar is compressed, so its images have no random access; unpack it"),
        (link, "the member 1.jpg of "),
        (
            samples({"jpg": IMAGE, "cls": 0}, {"jpg": IMAGE}),
            "train-1.tar has no label; label it or remove it",
        ),
        (samples({"jpg": IMAGE}), "the sample 1-0 of "),
        (samples({"jpg": IMAGE, "json": {"label": None}}), "has no label; label it"),
        (samples({"jpg": IMAGE, "json": {"label": [1]}}), "has the label [1]; it must be an int"),
        (samples({"jpg": IMAGE, "json": {"label": True}}), "has the label true; it must be an int"),
        (samples({"jpg": IMAGE, "json": b"{"}), "is neither text nor JSON"),
        (samples({"jpg": IMAGE, "cls": b"\xff"}), "is neither text nor JSON"),
        (samples({"jpg": IMAGE, "cls": -1}), "has the label -1; labels must number the classes"),
        (samples({"jpg": IMAGE, "cls": 999}), "has the label 999; labels must number the classes"),
        (samples({"jpg": IMAGE, "png": IMAGE, "cls": 0}), "has the images 1-0.jpg and 1-0.png"),
        (
            samples({"left.jpg": IMAGE, "right.jpg": IMAGE, "cls": 0}),
            "has the images 1-0.left.jpg and 1-0.right.jpg",
        ),
        (samples({"npy": b"x", "cls": 0}), "train-1.tar has .cls but no image; put the image"),
        (samples({"key": "0-0", "jpg": IMAGE, "cls": 0}), "the key 0-0 is in "),
        (
            samples(*({"key": key, "jpg": IMAGE, "cls": 0} for key in "xyx")),
            "the key x is twice in ",
        ),
    ],
)
def test_an_unsuitable_second_shard_is_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Any],
    words: str,
):
    for shard, key in (("train-0", "0-"), ("train-1", "00")):
        samples = ({"key": f"{key}{n}", "png": IMAGE, "cls": n % 2} for n in range(4))
        write(tmp_path / f"{shard}.tar", *samples)
    make(tmp_path / "train-1.tar")
    reject(tmp_path, capsys, words)


def reject(folder: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    data = folder / "data"
    assert main(["webdataset", str(folder), "--name", "mine", "--data-dir", str(data)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (data / "mine").exists()


def test_shards_without_labels_are_reported_with_what_they_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "train.tar", *({"jpg": IMAGE, "txt": "a cat"} for _ in range(3)))
    write(tmp_path / "val.tar", {"jpg": IMAGE, "cls": 0})
    reject(
        tmp_path, capsys, "has no training labels; add .cls to each sample, or .json with one of"
    )
    with pytest.raises(UsageError, match=r"its members are \.jpg \(3\), \.txt \(3\)$"):
        opened(tmp_path)


def test_a_shard_that_changes_while_it_is_read_is_reported(tmp_path: Path):
    path = tmp_path / "a.tar"
    write(path, *({"jpg": IMAGE, "cls": n} for n in range(2)))
    source = opened(path)
    cut(600)(path)
    with pytest.raises(UsageError, match="it changed while it was read"):
        source.read(source.examples[1])
