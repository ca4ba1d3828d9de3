"""Data sets in the layout of tensorflow-datasets, prepared by this project or elsewhere."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core import naming, read_only_builder
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.file_adapters import FileFormat

from train.config import JsonObject
from train.data.fingerprint import Fingerprint
from train.data.records import Records, StoredRecords
from train.data.verification import VERIFIED, Verified
from train.errors import DataError, UsageError, unusable_folder

# A data file's parts that its digest covers. The offsets of 8192 records take about 40 KB.
FIRST_BYTES, LAST_BYTES = 1 << 16, 3 << 16


def find(name: str, data_dir: Path) -> DatasetBuilder | None:
    """Find a data set that is prepared under a name, in any format.

    Raises:
        DataError: if its metadata is damaged.
    """
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        return None
    except (json_format.ParseError, json.JSONDecodeError):
        folder = data_dir / re.split("[/:]", name)[0]
        raise DataError(
            f"the metadata of {name} is damaged, dataset_info.json or features.json in {folder}; "
            "delete the folder and prepare the data set again"
        ) from None


def open_builder(name: str, data_dir: Path) -> DatasetBuilder:
    """Open a prepared data set in a format with random access.

    Raises:
        UsageError: if it is not prepared, or only in a format without random access.
    """
    try:
        naming.parse_builder_name_kwargs(name)  # before anything outside of data_dir is looked at
        reject_foreign_classes(data_dir / re.split("[/:]", name)[0])
        builder = find(name, data_dir)
        if builder is None:
            raise UsageError(_not_prepared(name, data_dir))
    except ValueError as error:
        raise UsageError(
            f"--dataset {name} cannot be opened; a name is NAME, NAME/CONFIG or "
            f"NAME/CONFIG:VERSION ({str(error).splitlines()[0]})"
        ) from None
    except OSError as error:
        raise unusable_folder("--data-dir", data_dir, error) from None
    file_format: Any = builder.info.file_format
    if FileFormat.ARRAY_RECORD not in {file_format, *builder.info.alternative_file_formats}:
        raise UsageError(
            f"--dataset {name} is prepared as {file_format.value}, which has no "
            f"random access; 'python -m train.prepare tfrecord {builder.data_dir} --name "
            f"my_{builder.name}' converts it"
        )
    if file_format != FileFormat.ARRAY_RECORD:
        return tfds.builder_from_directory(builder.data_dir, file_format="array_record")
    return builder


def check_features(builder: DatasetBuilder) -> Sequence[str]:
    """Check that a data set consists of labeled images; return the names of its classes.

    Raises:
        UsageError: if it does not.
    """
    all_features: Any = builder.info.features
    features = dict(all_features.items())
    image, label = features.get("image"), features.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        found = ", ".join(
            f"{name} ({type(kind).__name__})" for name, kind in sorted(features.items())
        )
        raise UsageError(
            f"--dataset {builder.name} has the features {found}; it must have image (Image) and "
            "label (ClassLabel)"
        )
    dtype = np.dtype(image.np_dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if dtype != np.uint8:
        raise UsageError(
            f"--dataset {builder.name} has images of {dtype.name}; they must be "
            "uint8, so prepare the data set again from 8-bit images"
        )
    return label.names


def evaluation_split(builder: DatasetBuilder) -> str:
    """Name of the split that errors are measured on.

    Raises:
        UsageError: if there is none, or no training split.
    """
    splits = builder.info.splits
    held_out = next((name for name in ("validation", "test") if name in splits), None)
    if "train" not in splits or held_out is None:
        raise UsageError(
            f"--dataset {builder.name} has the splits {sorted(splits)}; it must have 'train' and "
            "'validation' or 'test'"
        )
    return held_out


def open_records(builder: DatasetBuilder, split: str) -> Records:
    """Random access to all records of a split, with encoded images."""
    return StoredRecords(_serialized(builder, split))


def _serialized(builder: DatasetBuilder, split: str) -> Any:
    source: Any = builder.as_data_source  # its decorator hides its arguments
    return source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def prepared_names(data_dir: Path) -> list[str]:
    """Names of the data sets that are prepared in a folder: NAME, or NAME/CONFIG.

    Raises:
        OSError: if the folder cannot be read.
    """
    names: set[str] = set()
    for name in sorted(data_dir.iterdir()):  # a pattern would hide a folder that cannot be read
        for pattern in ("*/features.json", "*/*/features.json"):
            folders = [path.parent.parent for path in name.glob(pattern)]
            names |= {folder.relative_to(data_dir).as_posix() for folder in folders}
    return sorted(name for name in names if not name.startswith("incomplete."))


def _not_prepared(name: str, data_dir: Path) -> str:
    if data_dir.exists():
        names = prepared_names(data_dir)
        known = f"prepared are {', '.join(names)}" if names else "nothing is prepared there"
    else:
        names, known = [], "the folder does not exist"
    base = re.split("[/:]", name)[0]
    configs = [other for other in names if other.startswith(f"{base}/")]
    close = difflib.get_close_matches(name, names, n=1) or configs
    return (
        f"--dataset {name} is not prepared in {data_dir} ({known})"
        f"{f'; did you mean {close[0]}?' if close else ''}; prepare a published data set with "
        f"'python -m train.prepare {name} --data-dir {data_dir}', your own images with 'python -m "
        f"train.prepare image-folder PATH --name {base} --data-dir {data_dir}', or pass --data-dir"
    )


def reject_foreign_classes(folder: Path) -> None:
    """Check features.json: tensorflow-datasets imports any module that it names.

    Raises:
        UsageError: if it names another module than those of tensorflow-datasets.
    """
    for path in folder.rglob("features.json"):

        def check(fields: JsonObject, path: Path = path) -> JsonObject:
            for field in ("pythonClassName", "python_class_name"):
                if not str(fields.get(field, "tensorflow_datasets.")).startswith(
                    "tensorflow_datasets."
                ):
                    raise UsageError(
                        f"{path} asks to import {fields[field]}; a data set may only name classes "
                        "of tensorflow_datasets"
                    )
            return fields

        json.loads(path.read_text(), object_hook=check)


def fingerprint(
    class_names: Sequence[str],
    split_sizes: Mapping[str, int],
    verified: Verified | None,
    files: str,
) -> Fingerprint:
    """The fingerprint of a prepared data set.

    Args:
        class_names: names of the classes, in the order of their labels.
        split_sizes: images in each split that a run uses, without omitted ones.
        verified: what verification found, if the data set was verified.
        files: the `files_digest` of these splits.
    """
    contents = None
    if verified is not None:
        digests = [f"{split} {verified.splits[split].contents}" for split in sorted(split_sizes)]
        contents = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Fingerprint(
        class_names=list(class_names),
        split_sizes=dict(split_sizes),
        contents=contents,
        files=files,
    )


def files_digest(builder: DatasetBuilder, splits: Sequence[str]) -> str:
    """Digest what a few reads can tell about a data set: no file is read completely if it is large.

    These are the metadata, the sizes of the data files, and the beginning and the end of each. An
    ArrayRecord file ends with the offset of every record. A change in the middle of a large file
    that moves no record goes unnoticed. What verification adds to the folder is left out.

    Args:
        builder: the data set.
        splits: the splits that a run uses.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(builder.data_dir).iterdir()):
        if path.suffix in (".json", ".txt") and path.name != VERIFIED:
            digest.update(path.name.encode() + path.read_bytes())
    paths = [
        Path(path) for split in sorted(splits) for path in builder.info.splits[split].filepaths
    ]
    if missing := [path.name for path in paths if not path.exists()]:
        raise DataError(f"{builder.data_dir} lacks {', '.join(missing)}; prepare it again")
    with ThreadPoolExecutor(16) as pool:
        for path, ends in zip(paths, pool.map(_digest_ends, paths), strict=True):
            digest.update(path.name.encode() + ends)
    return digest.hexdigest()


def _digest_ends(path: Path) -> bytes:
    """Digest the size, the beginning and the end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        file.seek(0)
        digest.update(file.read(FIRST_BYTES))
        file.seek(max(FIRST_BYTES, size - LAST_BYTES))
        digest.update(file.read())
    return digest.digest()
