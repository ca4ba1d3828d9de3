"""Preparation of a data set: write, verify, publish. Its name appears only if all succeed."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tensorflow_datasets.core.dataset_builder import DatasetBuilder

from train.data import store, verification
from train.data.formats.source import (
    TRAIN,
    Options,
    Source,
    check,
    check_classes,
    date_and_time,
    hold_out,
)
from train.data.shrink import shrink
from train.data.stored import check_features, evaluation_split, files_digest, find, open_records
from train.data.verification import CorruptImage, Verified
from train.errors import DataError, UsageError

Stage = Callable[[str, int], Callable[[int], None]]
"""Function from what is about to be done, and to how many images, to a function that is called with
the number of images after each few of them."""


ELSEWHERE = "elsewhere"
"""Origin of a data set that is not known to be prepared by this project."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set that was prepared or verified.

    Attributes:
        folder: its folder.
        class_names: names of the classes, in the order of their labels.
        verified: facts about it.
        corrupt: images that training omits.
        warnings: one line for each oddity that the user should know about.
    """

    folder: Path
    class_names: tuple[str, ...]
    verified: Verified
    corrupt: list[CorruptImage]
    warnings: list[str]


class TakenError(UsageError):
    """A name under which another process has just prepared a data set."""


class CorruptImagesError(DataError):
    """Corrupt images that nobody allowed to omit.

    Attributes:
        images: every corrupt image.
    """

    def __init__(self, message: str, images: list[CorruptImage]) -> None:
        super().__init__(message)
        self.images = images


def prepare(source: Source, options: Options, stage: Stage, *, wait: bool = False) -> Prepared:
    """Write a data set, verify it and give it its name.

    Args:
        source: the data set.
        options: name, destination and what to do about corrupt images.
        stage: reports progress.
        wait: whether to wait for another process that prepares the same name.

    Raises:
        UsageError: if the data set cannot be trained on, or another process prepares this name.
        TakenError: if the name is taken, without `overwrite`.
        CorruptImagesError: if images are corrupt, without `skip_corrupt`.
    """
    origin = origin_of(source, options)
    source = complete(source, options)
    transform = transformation(options)
    with store.staging(options.name, options.data_dir, wait=wait) as folder:
        # Checked under the lock: another process may have finished since the command line was read.
        version = _next_version(options) or source.version
        source = dataclasses.replace(source, origin=origin, version=version)
        advance = stage("writing", len(source.examples))
        builder = store.write(source, options.name, folder, transform, advance)
        return publish_verified(
            builder, folder, options, stage, origin, source.skipped, list(source.warnings)
        )


def origin_of(source: Source, options: Options) -> str:
    """What a data set is prepared from, and options that change what is stored."""
    changes: list[str] = []
    if options.shorter_side is not None:
        changes.append(f"reduced to {options.shorter_side} pixels")
    if source.splits == [TRAIN] and options.held_out != Options.held_out:
        changes.append(f"{options.held_out:g} of each class held out")
    return source.origin + (f" ({', '.join(changes)})" if changes else "")


def _next_version(options: Options) -> str | None:
    """The version that replaces the data set of this name; None if there is none."""
    if (existing := find(options.name, options.data_dir)) is None:
        store.check_free(options.name, options.data_dir)
        return None
    if not options.overwrite:
        raise TakenError(f"another process has just prepared {options.name} in {existing.data_dir}")
    version = existing.version
    return f"{version.major}.{version.minor}.{int(version.patch) + 1}"


def complete(source: Source, options: Options) -> Source:
    """Check a data set, and hold out a part if it has only training images.

    Raises:
        UsageError: if the data set cannot be trained on.
    """
    source = dataclasses.replace(source, warnings=[*source.warnings, *check(source)])
    if source.splits == [TRAIN]:
        source = hold_out(source, options.held_out)
    check_classes(source.class_names, source.class_counts(), source.splits[1])
    if options.shorter_side is not None:
        source = dataclasses.replace(source, image_shape=(None, None, source.image_shape[-1]))
    return source


def transformation(options: Options) -> Callable[[bytes], bytes]:
    """Function from an encoded image to the one to be stored."""
    if (side := options.shorter_side) is None:
        return lambda encoded: encoded
    return functools.partial(shrink, shorter_side=side)


def publish_verified(
    builder: DatasetBuilder,
    folder: Path,
    options: Options,
    stage: Stage,
    origin: str,
    skipped: Mapping[str, int],
    warnings: list[str],
) -> Prepared:
    """Verify a data set in its staging folder and give it its name.

    Args:
        builder: the data set.
        folder: the folder of `store.staging`.
        options: name, destination and what to do about corrupt images.
        stage: reports progress.
        origin: what it was prepared from.
        skipped: number of files that were left out, by reason.
        warnings: oddities that are known already.
    """
    prepared = verify(
        builder, stage, origin=origin, skipped=skipped, skip_corrupt=options.skip_corrupt
    )
    name = options.name.split("/")[0].split(":")[0]
    replaced: list[Path] = []
    if options.overwrite and (existing := find(options.name, options.data_dir)) is not None:
        replaced = store.versions(Path(existing.data_dir).parent)
    store.publish(name, folder, options.data_dir)
    store.discard(replaced, folder)
    relative = prepared.folder.relative_to(folder)
    return dataclasses.replace(
        prepared, folder=options.data_dir / relative, warnings=warnings + prepared.warnings
    )


def verify(
    builder: DatasetBuilder,
    stage: Stage,
    *,
    origin: str,
    skipped: Mapping[str, int],
    skip_corrupt: bool,
) -> Prepared:
    """Verify a prepared data set and keep the result next to it.

    Args:
        builder: the data set.
        stage: reports progress.
        origin: what it was prepared from.
        skipped: number of files that preparation left out, by reason.
        skip_corrupt: whether training may omit corrupt images.

    Raises:
        UsageError: if it cannot be trained on.
        DataError: if a file or a label is damaged. The data set no longer counts as verified.
        CorruptImagesError: if images are corrupt, without `skip_corrupt`; nor does it then.
    """
    folder = Path(builder.data_dir)
    verification.check_writable(folder)
    try:
        return _verify(builder, stage, origin, skipped, skip_corrupt)
    except (DataError, UsageError):
        verification.forget(folder)
        raise


def _verify(
    builder: DatasetBuilder,
    stage: Stage,
    origin: str,
    skipped: Mapping[str, int],
    skip_corrupt: bool,
) -> Prepared:
    folder = Path(builder.data_dir)
    class_names = tuple(check_features(builder))
    used = ("train", evaluation_split(builder))
    files = files_digest(builder, used)  # before reading, so that a later change is noticed
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    splits = [name for name, size in sizes.items() if size]
    advance = stage("verifying", sum(sizes.values()))
    facts: dict[str, verification.VerifiedSplit] = {}
    digests: dict[str, np.ndarray] = {}
    corrupt: list[CorruptImage] = []
    for split in splits:
        try:
            records = open_records(builder, split)
            facts[split], some, digests[split] = verification.verify_split(
                split, records, len(class_names), split in used, advance
            )
        except (ValueError, IndexError, RuntimeError) as error:  # of the package array-record
            raise DataError(
                f"the files of the split '{split}' in {folder} are damaged: "
                f"{' '.join(str(error).split())}"
            ) from None
        corrupt += some
    if corrupt and not skip_corrupt:
        raise CorruptImagesError(
            f"{len(corrupt)} image(s) of {folder if origin == ELSEWHERE else origin} are corrupt; "
            "repair or remove them, or omit them with --skip-corrupt",
            corrupt,
        )
    for split in used:
        if split not in facts or not facts[split].num_images:
            raise UsageError(
                f"{builder.name} has no intact images in its split '{split}'; it must have some"
            )
    counts = {split: facts[split].class_counts for split in used}
    warnings = check_classes(class_names, counts, used[1])
    common = verification.common(digests[used[1]], digests["train"])
    if common:
        name = verification.describe_image(used[1], common[0], open_records(builder, used[1]))
        warnings.append(
            f"{len(common)} image(s) of the split '{used[1]}' are in 'train' too, such as "
            f"{name}; the test error will be too low, so remove them from one of the splits"
        )
    verified = Verified(
        origin=origin,
        date=date_and_time(time.time()),
        files=files,
        splits=facts,
        skipped=dict(skipped),
        num_in_several_splits=len(common),
    )
    verification.save(folder, verified, corrupt)
    return Prepared(
        folder=folder,
        class_names=class_names,
        verified=verified,
        corrupt=corrupt,
        warnings=warnings,
    )


def origin_in(builder: DatasetBuilder) -> str:
    """What a stored data set was prepared from, as far as is known."""
    with contextlib.suppress(DataError):
        if (verified := verification.load(Path(builder.data_dir))) is not None:
            return verified.origin
    return store.origin_in(builder.info.description) or ELSEWHERE


def prepared_from(builder: DatasetBuilder) -> str:
    """What a stored data set was prepared from, and when."""
    origin = origin_in(builder)
    what = origin if origin == ELSEWHERE else f"from {origin}"
    seconds = (Path(builder.data_dir) / "dataset_info.json").stat().st_mtime
    return f"prepared {what} on {date_and_time(seconds)}"
