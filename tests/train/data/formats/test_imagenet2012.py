"""Tests of ImageNet, from the official archives to an exact evaluation.

The archives generated here have the official structure and names, with a few small images: one
holds 1,000 archives of classes, and the other the first of the 50,000 validation images.
"""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train.data.dataset import open_dataset
from train.data.formats.imagenet2012 import TRAIN, VALIDATION, check_archives, synsets
from train.data.images import decode
from train.data.records import Records
from train.recipes import imagenet

ROOT = Path(__file__).parents[4]
NUM_VALIDATION = 50
# The official archive has a CMYK image and a PNG under these names, which TFDS converts.
CMYK, PNG = "n01739381_1309.JPEG", "n02105855_2933.JPEG"


def encoded(number: int, mode: str = "RGB", file_format: str = "JPEG") -> bytes:
    """A small image whose size and color depend on the number."""
    size = 20 + number % 17, 20 + number % 13
    color = tuple(number * step % 256 for step in (1, 3, 7))
    buffer = io.BytesIO()
    Image.new("RGB", size, color).convert(mode).save(buffer, file_format)
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> None:
    path.write_bytes(tar_bytes(files))


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TRAINING_IMAGES = {
    synset: {
        f"{synset}_{number}.JPEG": encoded(label + 1000 * number)
        for number in range(1, 2 + label % 2)
    }
    for label, synset in enumerate(synsets())
}
TRAINING_IMAGES[CMYK[:9]][CMYK] = encoded(1, mode="CMYK")
TRAINING_IMAGES[PNG[:9]][PNG] = encoded(2, file_format="PNG")
VALIDATION_IMAGES = {
    f"ILSVRC2012_val_{place:08d}.JPEG": encoded(place, mode="L" if place == 7 else "RGB")
    for place in range(1, NUM_VALIDATION + 1)
}


@pytest.fixture(scope="module")
def whole_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    tar(
        folder / TRAIN,
        {f"{synset}.tar": tar_bytes(images) for synset, images in TRAINING_IMAGES.items()},
    )
    tar(folder / VALIDATION, VALIDATION_IMAGES)
    return folder


@pytest.fixture
def archives(whole_archives: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole_archives, tmp_path / "archives"))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda train, validation: train.unlink(), f"lacks {TRAIN}"),
        (lambda train, validation: validation.unlink(), f"lacks {VALIDATION}"),
        (
            lambda train, validation: cut(train, 0),
            f"{TRAIN} is not a complete tar archive: empty file",
        ),
        (lambda train, validation: tar(train, {}), f"{TRAIN} is an empty archive"),
        (
            lambda train, validation: validation.write_bytes(b"<html>" * 1000),
            f"{VALIDATION} is not a complete tar archive",
        ),
        # Truncated inside a member, inside a member's header, and between two members.
        (lambda train, validation: cut(train, 5 * 10752 + 600), f"{TRAIN} is"),
        (
            lambda train, validation: cut(train, 5 * 10752 + 300),
            f"{TRAIN} is truncated after n01494475.tar",
        ),
        (lambda train, validation: cut(validation, 1536), f"{VALIDATION} is truncated after"),
        (
            lambda train, validation: tar(train, {"n01440764.tar": b""}),
            "999 are missing or unexpected, such as n01443537.tar",
        ),
        (
            lambda train, validation: tar(validation, {"val/ILSVRC2012_val_00000001.JPEG": b""}),
            "contains val/ILSVRC2012_val_00000001.JPEG instead of ILSVRC2012_val_00000001.JPEG",
        ),
        (
            lambda train, validation: tar(
                validation, {f"ILSVRC2012_val_0000000{place}.JPEG": b"" for place in (1, 3)}
            ),
            "contains ILSVRC2012_val_00000003.JPEG instead of ILSVRC2012_val_00000002.JPEG",
        ),
    ],
)
def test_archives_that_differ_from_the_official_ones_are_refused(
    archives: Path, damage: Callable[[Path, Path], None], words: str
):
    damage(archives / TRAIN, archives / VALIDATION)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        check_archives(archives)
    assert "\n" not in str(error.value)


def test_complete_archives_are_accepted(whole_archives: Path):
    check_archives(whole_archives)


def python_m(words: str) -> str:
    """Run a command of the project as a user does, and return its output."""
    command = [sys.executable, "-m", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored(records: Records) -> dict[str, tuple[bytes, int]]:
    return {
        record["file_name"]: (record["image"], record["label"])
        for record in records.__getitems__(range(len(records)))
    }


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="TensorFlow, which prepares ImageNet, is not installed: pip install -e '.[prepare]'",
)
def test_from_official_archives_to_an_exact_evaluation(whole_archives: Path, tmp_path: Path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    prepare = f"train.prepare imagenet2012 --archives {whole_archives} --data-dir {data}"
    num_training = sum(map(len, TRAINING_IMAGES.values()))
    sizes = f"{num_training} train, {NUM_VALIDATION} validation images"
    assert sizes in python_m(prepare)
    assert "already prepared" in python_m(prepare)

    dataset = open_dataset(imagenet().replace(data_dir=data))
    assert dataset.num_classes == 1000
    training = stored(dataset.train)
    expected = {
        name: (image, label)
        for label, images in enumerate(TRAINING_IMAGES.values())
        for name, image in images.items()
    }
    assert training.keys() == expected.keys()
    for name, number in ((CMYK, 1), (PNG, 2)):
        image, label = training.pop(name)
        assert label == expected.pop(name)[1]
        assert image[:3] == b"\xff\xd8\xff"  # a JPEG
        np.testing.assert_allclose(
            decode(image, 3).mean((0, 1)), decode(encoded(number), 3).mean((0, 1)), atol=9
        )
    assert training == expected
    # Validation images in the order of their names, with the labels that TFDS ships.
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    assert stored(dataset.evaluation) == {
        name: (image, synsets().index(synset))
        for (name, image), synset in zip(VALIDATION_IMAGES.items(), labels, strict=False)
    }

    python_m(
        f"train imagenet --workdir {workdir} --data-dir {data} --model resnet18 --image-size 32 "
        "--num-workers 2 --batch-size-per-worker 8 --num-steps 2 --num-devices 1 "
        "--log-every-steps 1"
    )
    first, last = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], last["step"]) == (1, 2)
    assert 4 < first["train/loss"] < 12  # ln 1000 is 6.9
    assert last["eval/num_examples"] == NUM_VALIDATION
