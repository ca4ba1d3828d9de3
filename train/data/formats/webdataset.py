"""WebDataset shards: tar archives in which the members KEY.jpg and KEY.cls are one sample."""

import dataclasses
import functools
import itertools
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from train.data.formats import splits
from train.data.formats.labels import Found, number, without_unlabeled_test
from train.data.formats.source import TRAIN, Example, Source
from train.errors import UsageError

KIND = "tar archive"
IMAGES = frozenset(
    {
        "jpg",
        "jpeg",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "heic",
        "heif",
        "jp2",
        "jxl",
    }
)
LABEL_FIELDS = ("label", "cls", "class", "class_id", "target")
NAME_FIELDS = ("label_name", "class_name")
FOREIGN = frozenset({"__MACOSX", "PaxHeader", "PaxHeaders"})  # folders that some archivers add
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
SHARDS_OPEN = 64
NOISE, NO_IMAGE = "file(s) that belong to no sample", "sample(s) without an image"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(splits.Options):
    """Prepare WebDataset shards: tar archives with KEY.jpg and KEY.cls or KEY.json."""


class _Member(NamedTuple):
    """A member of a shard that belongs to a sample."""

    name: str
    key: str
    extension: str
    offset: int
    size: int
    contents: bytes
    """Its bytes if it may be a label."""


def open_source(options: Options) -> Source:
    """Read the headers and the labels of shards; their images are read later.

    Raises:
        UsageError: if a shard is damaged, or a sample lacks a label or has several images.
    """
    files = splits.find_files(options, ".tar")
    found: list[Found] = []
    skipped = Counter[str]()
    extensions = Counter[str]()
    names: defaultdict[int | str, set[str]] = defaultdict(set)
    shard_of: dict[tuple[str, str], Path] = {}
    for file in files:
        members = _members(file.path, skipped)
        for key, group in itertools.groupby(members, key=lambda member: member.key):
            sample = list(group)
            if file.split == TRAIN:
                extensions.update(member.extension for member in sample)
            image = _image(sample, file.path)
            if image is None:
                skipped[NO_IMAGE] += 1
                continue
            if (other := shard_of.get((file.split, key))) is not None:
                where = f"in {other} and {file.path}" if other != file.path else f"twice in {other}"
                raise UsageError(f"the key {key} is {where}; keys must be unique in a split")
            shard_of[file.split, key] = file.path
            label, name = _label(sample, file.path)
            if label is not None and name is not None:
                names[label].add(name)
            found.append(Found(file.split, key, label, (file.path, image.offset, image.size)))
    train = [example.label for example in found if example.split == TRAIN]
    if train and all(label is None for label in train):
        counts = ", ".join(f".{name} ({count})" for name, count in extensions.most_common())
        raise UsageError(
            f"{splits.origin(files, KIND)} has no training labels; add .cls to each sample, or "
            f".json with one of {', '.join(LABEL_FIELDS)}; its members are {counts}"
        )
    found, unlabeled = without_unlabeled_test(found)
    class_names, warnings = _class_names({example.label for example in found}, names)
    examples, class_names = number(
        found, class_names, lambda example: f"the sample {example.name} of {example.location[0]}"
    )
    return Source(
        origin=splits.origin(files, KIND),
        class_names=class_names,
        examples=examples,
        read=_reader(),
        skipped=skipped | unlabeled,
        warnings=warnings,
    )


def _members(path: Path, skipped: Counter[str]) -> Iterator[_Member]:
    """Members of a shard that belong to samples, in their order. Others are counted."""
    with path.open("rb") as file:
        if file.read(6).startswith(COMPRESSED):
            raise UsageError(
                f"{path} is compressed, so its images have no random access; unpack it first, such "
                "as with gunzip"
            )
    last = "its start"
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                last = info.name
                if info.isdir():
                    continue
                if (member := _member(tar, info, path)) is None:
                    skipped[NOISE] += 1
                else:
                    yield member
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError) as error:
        raise splits.unreadable(path, KIND, error) from None
    # tarfile takes any damaged header for the end, which two empty blocks mark.
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(2 * tarfile.RECORDSIZE)
    if len(rest) < 2 * tarfile.BLOCKSIZE or any(rest):
        raise splits.unreadable(path, KIND, f"it is truncated or damaged after {last}")


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> _Member | None:
    """A member of a sample; None if it belongs to none, such as a hidden file."""
    name = info.name.removeprefix("./")
    *folders, file_name = name.split("/")
    stem, _, extension = file_name.partition(".")
    is_hidden = any(part.startswith(".") or part in FOREIGN for part in [*folders, file_name])
    is_metadata = name.startswith("__") and name.split("/")[0].endswith("__")
    if is_hidden or is_metadata or not stem or not extension:
        return None
    if not info.isreg() or info.issparse():
        raise UsageError(
            f"the member {name} of {path} is a link or a sparse file; pack the archive again from "
            "ordinary files"
        )
    contents = b""
    if extension.lower() in ("cls", "json"):
        file = tar.extractfile(info)
        contents = file.read() if file else b""
    return _Member(
        name, "/".join([*folders, stem]), extension.lower(), info.offset_data, info.size, contents
    )


def _image(sample: Sequence[_Member], path: Path) -> _Member | None:
    """The image of a sample; None if it is not a sample of images."""
    images = [member for member in sample if member.extension.rpartition(".")[2] in IMAGES]
    if len(images) > 1:
        raise UsageError(
            f"the sample {sample[0].key} of {path} has the images {images[0].name} and "
            f"{images[1].name}; each sample must have one"
        )
    if not images and any(member.extension == "cls" for member in sample):
        raise UsageError(
            f"the sample {sample[0].key} of {path} has .cls but no image; put the image next to "
            "it in the archive"
        )
    return images[0] if images else None


def _label(sample: Sequence[_Member], path: Path) -> tuple[int | str | None, str | None]:
    """The label of a sample and the name of its class, as far as it has them."""
    contents = {member.extension: member.contents for member in sample}
    try:
        fields = json.loads(contents.get("json", b"{}"))
        word = contents.get("cls", b"").decode().strip()
    except ValueError:
        raise UsageError(
            f"the label of the sample {sample[0].key} of {path} is neither text nor JSON; pack it "
            "again"
        ) from None
    fields = fields if isinstance(fields, dict) else {}
    label = word or next((fields[name] for name in LABEL_FIELDS if name in fields), None)
    name = next((fields[name] for name in NAME_FIELDS if isinstance(fields.get(name), str)), None)
    if label is not None and type(label) not in (int, str):
        raise UsageError(
            f"the sample {sample[0].key} of {path} has the label {json.dumps(label)}; it must be "
            "an integer or a string"
        )
    if isinstance(label, str) and re.fullmatch("0|-?[1-9][0-9]*", label):
        label = int(label)
    return label, name


def _class_names(
    labels: Set[int | str | None], names: Mapping[int | str, set[str]]
) -> tuple[list[str] | None, list[str]]:
    """Names of the classes if labels are numbers, or else a warning about why there are none."""
    if not names or labels != set(range(len(labels))):
        return None, []
    label_of: dict[str, int] = {}
    for label in range(len(labels)):
        first, *others = sorted(names.get(label, ())) or [""]
        why = f"the label {label} has the names {first} and {others[0]}" if others else ""
        if not first:
            why = f"the label {label} has no name"
        elif (other := label_of.setdefault(first, label)) != label:
            why = f"the labels {other} and {label} have the name {first}"
        if why:
            return None, [f"classes are named by their numbers, because {why}"]
    return list(label_of), []


class _Shard:
    """An open shard. It closes when nobody holds it any longer, so that threads can share it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


def _reader() -> Callable[[Example], bytes]:
    """A function that reads images. It keeps a few shards open, since there may be thousands."""
    opened = functools.lru_cache(SHARDS_OPEN)(_Shard)

    def read(example: Example) -> bytes:
        path, offset, size = example.location
        shard = opened(path)
        encoded = os.pread(shard.descriptor, size, offset)
        if len(encoded) < size:
            raise splits.unreadable(path, KIND, "it changed while it was read")
        return encoded

    return read
