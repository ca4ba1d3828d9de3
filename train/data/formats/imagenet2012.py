"""Checks of ImageNet's official archives, before a preparation of several hours.

tensorflow-datasets' builder `imagenet2012` does not check them. If an archive is missing, it omits
that split; from a truncated download, it silently keeps what is there; and it labels validation
images by position alone.
"""

import tarfile
from pathlib import Path

import tensorflow_datasets as tfds

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def synsets() -> list[str]:
    """Return the names of the 1,000 classes, such as n01440764, in the order of their labels."""
    return tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()


def check_archives(folder: Path | None) -> None:
    """Check that both archives exist, are complete, and have the members of the official ones.

    Only the headers of their members are read, which takes seconds.

    Raises:
        ValueError: if an archive is missing, truncated, or has other members.
    """
    if folder is None:
        raise ValueError(f"--archives is missing; name the folder with {TRAIN} and {VALIDATION}")
    for archive in (TRAIN, VALIDATION):
        if not (folder / archive).is_file():
            raise ValueError(
                f"--archives {folder} lacks {archive}; download it from "
                "https://image-net.org/download-images"
            )
    classes = _names(folder / TRAIN)
    expected = {f"{synset}.tar" for synset in synsets()}
    if odd := sorted(set(classes) ^ expected):
        raise ValueError(
            f"{TRAIN} must contain an archive for each of the {len(expected)} classes and nothing "
            f"else; {len(odd)} are missing or unexpected, such as {odd[0]}"
        )
    images = sorted(_names(folder / VALIDATION))
    for number, name in enumerate(images, start=1):
        if name != (expected_name := f"ILSVRC2012_val_{number:08d}.JPEG"):
            raise ValueError(
                f"{VALIDATION} must contain ILSVRC2012_val_00000001.JPEG and so on, without gaps "
                f"or other files; it contains {name} instead of {expected_name}"
            )


def _names(archive: Path) -> list[str]:
    try:
        with tarfile.open(archive, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        raise ValueError(f"{archive.name} is not a complete tar archive: {error}") from None
    if not members:
        raise ValueError(f"{archive.name} is an empty archive")
    # Members are padded to whole blocks, and two empty blocks end the archive.
    blocks = -(-members[-1].size // tarfile.BLOCKSIZE) + 2
    if archive.stat().st_size < members[-1].offset_data + blocks * tarfile.BLOCKSIZE:
        raise ValueError(f"{archive.name} is truncated after {members[-1].name}")
    return [member.name for member in members]
