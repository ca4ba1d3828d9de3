"""Data sets that have a name in tensorflow-datasets, from a download or from local archives."""

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, naming
from tensorflow_datasets.core.dataset_builder import DatasetBuilder
from tensorflow_datasets.core.download.download_manager import DownloadConfig

from train.data import store
from train.data.formats import cifar, digits, fashion_mnist, imagenet2012, tfrecord
from train.data.formats.source import TEST, TRAIN, VALIDATION, Source
from train.data.formats.source import Options as SourceOptions
from train.data.preparation import (
    Prepared,
    Stage,
    complete,
    publish_verified,
    transformation,
)
from train.data.preparation import (
    prepare as prepare_source,
)
from train.data.stored import check_features, open_records
from train.errors import UsageError, check_folder, check_number
from train.run.workarounds import quiet_tensorflow_datasets

PROG = "python -m train.prepare"

# Published archives that are read here, without TensorFlow.
READ_HERE: dict[str, Callable[[Path], Source]] = {
    "fashion_mnist": fashion_mnist.open_source,
    "cifar10": cifar.open_cifar10,
    "cifar100": cifar.open_cifar100,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Prepare a data set of tensorflow-datasets, such as imagenet2012 or fashion_mnist.

    For your own images: `python -m train.prepare image-folder PATH --name NAME`.
    """

    name: str = dataclasses.field(metadata={"positional": "NAME"})
    """Name of the data set: NAME, NAME/CONFIG or NAME/CONFIG:VERSION."""

    archives: Path | None = None
    """Folder with the published files, for data sets that cannot be downloaded freely."""

    shorter_side: int | None = None
    """Store larger images reduced to this many pixels on their shorter side, as JPEG of quality
    95. Default: store every file unchanged."""

    skip_corrupt: bool = False
    """List corrupt images and leave them out of training instead of failing."""

    data_dir: Path = Path(constants.DATA_DIR)
    """Folder to write the prepared data set to. Downloads are kept in its folder downloads."""

    def __post_init__(self) -> None:
        """Check everything that needs no files."""
        check_number("shorter_side", self.shorter_side, minimum=8)
        check_folder("data_dir", self.data_dir)


def names() -> set[str]:
    """Names that belong to published data sets."""
    return {digits.NAME, *READ_HERE, *tfds.list_builders(with_community_datasets=False)}


def check_name(name: str, formats: Collection[str]) -> None:
    """Reject a word of the command line that is neither a format nor a published data set.

    Args:
        name: the word.
        formats: names of all formats, to suggest one.

    Raises:
        UsageError: with the closest name.
    """
    if (format_ := name.lower().replace("_", "-")) in formats:
        raise UsageError(
            f"there is no format {name}; did you mean {format_}? Use '{PROG} {format_} ...'"
        )
    close = difflib.get_close_matches(name.lower(), [*formats, "verify", *sorted(names())], n=1)
    hint = (
        f"; {f'did you mean {close[0]}? For' if close else 'for'} your own images, use '{PROG} "
        f"FORMAT ... --name NAME' with one of the formats {', '.join(formats)}"
    )
    try:
        base, _ = naming.parse_builder_name_kwargs(name)
    except ValueError:
        raise UsageError(
            f"{name} cannot be prepared; a name is NAME, NAME/CONFIG or NAME/CONFIG:VERSION{hint}"
        ) from None
    if str(base) not in names():
        raise UsageError(f"tensorflow-datasets has no data set {name}{hint}")


def check(options: Options, formats: Collection[str]) -> None:
    """Reject what cannot be prepared, before anything is installed or downloaded.

    Args:
        options: what the user asks for.
        formats: names of all formats, to suggest one.

    Raises:
        UsageError: if the name is unknown, or another option is unsuitable.
    """
    check_name(options.name, formats)
    if options.archives is not None and not options.archives.is_dir():
        raise UsageError(f"--archives {options.archives} is not a folder")


def prepare(options: Options, stage: Stage) -> Prepared:
    """Download or read a published data set, verify it and give it its name.

    Args:
        options: what the user asks for.
        stage: reports progress.

    Raises:
        UsageError: if TensorFlow is missing, or the data set cannot be prepared or trained on.
        CorruptImagesError: if images are corrupt, without `skip_corrupt`.
    """
    read_here = READ_HERE.get(options.name)
    if read_here is not None and options.archives is not None:
        ours = _as_source_options(options.name, options)
        return prepare_source(read_here(options.archives), ours, stage)
    hint = ", or name the folder with its published files with --archives" if read_here else ""
    tfrecord.require_tensorflow(f"preparing {options.name}", hint)
    base, _ = naming.parse_builder_name_kwargs(options.name)
    if str(base) == "imagenet2012":
        try:
            imagenet2012.check_archives(options.archives)
        except ValueError as error:
            raise UsageError(f"{options.name}: {error}") from None
    with store.staging(str(base), options.data_dir) as folder:
        return _build(options, folder, stage)


def _build(options: Options, folder: Path, stage: Stage) -> Prepared:
    """Let tensorflow-datasets prepare a data set in its staging folder, and publish it."""
    stage("downloading and preparing", 0)
    with _in_one_line(options.name):
        builder = tfds.builder(options.name, data_dir=folder, file_format="array_record")
    check_features(builder)  # before a download
    downloads = options.data_dir / "downloads"
    with _in_one_line(options.name):
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=DownloadConfig(
                manual_dir=options.archives,
                extract_dir=downloads / "extracted",
                try_download_gcs=False,
            ),
        )
    origin = f"{builder.info.full_name} of tensorflow-datasets"
    if options.archives is not None:
        origin += f" and the files in {options.archives.absolute()}"
    ours = _as_source_options(builder.name, options)
    if options.shorter_side is None and _can_evaluate(builder):
        return publish_verified(builder, folder, ours, stage, origin, {}, [])

    # Write it again, with smaller images or with a part held out.
    config = builder.builder_config.name if builder.builder_config else ""
    original = folder / "original"
    Path(builder.data_dir).rename(original)
    source = tfrecord.source_of(tfds.builder_from_directory(original), origin)
    warnings: list[str] = []
    if source.splits == [TRAIN]:
        warnings.append(
            f"{builder.info.full_name} has no labeled images to test on, so {ours.held_out:.0%} of "
            "each class were held out from training"
        )
    source = complete(source, ours)
    advance = stage("writing", len(source.examples))
    builder = store.write(source, ours.name, folder, transformation(ours), advance, config)
    return publish_verified(builder, folder, ours, stage, origin, source.skipped, warnings)


def _can_evaluate(builder: DatasetBuilder) -> bool:
    """Whether the split that errors are measured on exists and has labels."""
    split = next((name for name in (VALIDATION, TEST) if name in builder.info.splits), None)
    return (
        split is not None
        and builder.info.splits[split].num_examples > 0
        and open_records(builder, split)[0]["label"] >= 0
    )


def _as_source_options(name: str, options: Options) -> SourceOptions:
    return SourceOptions(
        name=name,
        shorter_side=options.shorter_side,
        skip_corrupt=options.skip_corrupt,
        data_dir=options.data_dir,
    )


@contextlib.contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """Silence tensorflow-datasets and shorten its errors, which its 245 builders choose freely."""
    try:
        with quiet_tensorflow_datasets():
            yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{name}: {reason}") from None
