"""Labels of ImageNet's validation images in Kaggle's archive, which has them in a CSV file."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from train.data.formats.image_files import portable
from train.data.formats.source import shortened
from train.errors import UsageError

SOLUTION = "LOC_val_solution.csv"
SYNSET = re.compile(r"n\d{8}")  # WordNet's number of a noun, the name of a class of ImageNet
NUM_LEVELS = 3  # from Kaggle's CLS-LOC to the folder with the CSV file


def find_solution(folders: Sequence[str], excluded: Iterable[str]) -> Path | None:
    """Find the CSV file in some folders, above the first of them, or a few levels below it.

    Args:
        folders: the folder that the user named, and those inside it that contain everything.
        excluded: folders with images, which are not searched.
    """
    above = [*Path(folders[0]).parents[: NUM_LEVELS + 1]]
    above += Path(os.path.realpath(folders[0])).parents[: NUM_LEVELS + 1]
    for folder in (*map(Path, folders), *above):
        if (folder / SOLUTION).is_file():
            return folder / SOLUTION
    return next(_below(folders[0], set(excluded), NUM_LEVELS), None)


def _below(folder: str, excluded: set[str], num_levels: int) -> Iterator[Path]:
    if os.path.isfile(os.path.join(folder, SOLUTION)):
        yield Path(folder) / SOLUTION
    if num_levels and folder not in excluded:
        with os.scandir(folder) as entries:
            inner = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        for path in inner:
            yield from _below(path, excluded, num_levels - 1)


def read_solution(path: Path) -> dict[str, str]:
    """Read the synset of each image, by the image's name without its ending.

    The columns are ImageId, and PredictionString such as "n01751748 44 85 129 175": a synset and a
    bounding box, for each object in the image. All objects of an image have the same synset.

    Raises:
        UsageError: if it has another format.
    """
    synsets: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
                raise UsageError(
                    f"{path} must have the columns ImageId and PredictionString; download it again"
                )
            for row, fields in enumerate(reader, start=2):
                synset = (fields["PredictionString"] or "").split(" ")[0]
                if not SYNSET.fullmatch(synset) or fields["ImageId"] in synsets:
                    raise UsageError(
                        f"row {row} of {path} has no class, or repeats an image; download it again"
                    )
                synsets[fields["ImageId"]] = synset
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from None
    return synsets


def label_images(names: Sequence[str], solution: Path) -> dict[str, list[str]]:
    """Assign images to classes.

    Args:
        names: paths of the images.
        solution: the CSV file.

    Returns:
        The images of each synset.

    Raises:
        UsageError: unless the CSV file lists exactly these images.
    """
    synsets = read_solution(solution)
    stems = {os.path.splitext(os.path.basename(name))[0]: name for name in names}
    unlisted = [stems[stem] for stem in sorted(stems.keys() - synsets.keys())]
    missing = sorted(synsets.keys() - stems.keys())
    if unlisted or missing:
        problems = [
            f"does not list {len(unlisted)} of the {len(names)} validation images "
            f"({shortened([portable(name) for name in unlisted])})"
            if unlisted
            else "",
            f"lists {len(missing)} that do not exist ({shortened(missing)})" if missing else "",
        ]
        raise UsageError(
            f"{solution} {' and '.join(filter(None, problems))}; unpack Kaggle's archive again"
        )
    labeled: dict[str, list[str]] = {}
    for stem, name in stems.items():
        labeled.setdefault(synsets[stem], []).append(name)
    return labeled
