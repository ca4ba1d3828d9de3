"""ImageNet's official archives, looked at before hours are spent on them.

tensorflow-datasets' builder `imagenet2012` takes what it finds: without one of the archives it
leaves out a split, of a download that was cut it keeps what there is, and it gives the validation
images their labels by place alone.
"""

import tarfile
from pathlib import Path

import tensorflow_datasets as tfds

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def synsets() -> list[str]:
    """Name the 1,000 classes, such as n01440764, in the order of their labels."""
    return tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()


def check_archives(folder: Path | None) -> None:
    """Check that both archives are there, whole, and made of what the official ones are made of.

    Only the heads of their members are read, which takes seconds.

    Raises:
        ValueError: if they are not.
    """
    if folder is None:
        raise ValueError(f"--archives is missing; name the folder of {TRAIN} and {VALIDATION}")
    for archive in (TRAIN, VALIDATION):
        if not (folder / archive).is_file():
            raise ValueError(
                f"--archives {folder} lacks {archive}, to be had from "
                "https://image-net.org/download-images"
            )
    classes = _names(folder / TRAIN)
    expected = {f"{synset}.tar" for synset in synsets()}
    if odd := sorted(set(classes) ^ expected):
        raise ValueError(
            f"{TRAIN} must hold an archive for each of the {len(expected)} classes and nothing "
            f"else; {len(odd)} are missing or too many, such as {odd[0]}"
        )
    images = sorted(_names(folder / VALIDATION))
    for place, name in enumerate(images, start=1):
        if name != (expected_name := f"ILSVRC2012_val_{place:08d}.JPEG"):
            raise ValueError(
                f"{VALIDATION} must hold ILSVRC2012_val_00000001.JPEG and so on without a gap and "
                f"nothing else; it has {name} in place of {expected_name}"
            )


def _names(archive: Path) -> list[str]:
    try:
        with tarfile.open(archive, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        raise ValueError(f"{archive.name} is no whole tar archive: {error}") from None
    if not members:
        raise ValueError(f"{archive.name} is an empty archive")
    # A member fills up whole blocks, and two empty blocks end the archive.
    blocks = -(-members[-1].size // tarfile.BLOCKSIZE) + 2
    if archive.stat().st_size < members[-1].offset_data + blocks * tarfile.BLOCKSIZE:
        raise ValueError(f"{archive.name} is cut after {members[-1].name}")
    return [member.name for member in members]
