"""A user's own images, in folders named after their classes, as a tensorflow-datasets builder."""

import io
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Find the images of each class: `folder/CLASS/**/*.jpg` and the like, in a fixed order."""
    return {
        of_class.name: sorted(
            path
            for path in of_class.rglob("*")
            if path.suffix.lower() in ENDINGS and path.is_file()
        )
        for of_class in sorted(folder.iterdir())
        if of_class.is_dir() and not of_class.name.startswith(".")
    }


def hold_out(
    images: dict[str, list[Path]], share: float
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Split off a share of each class for testing, at random but always the same.

    Args:
        images: of each class.
        share: of the images that are held out, more than 0 and less than 1; at least one of each
            class, and at least one is left.

    Returns:
        Training images and test images.
    """
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for number, (name, paths) in enumerate(images.items()):
        order = np.random.default_rng((0, number)).permutation(len(paths))
        num_test = min(max(1, round(share * len(paths))), len(paths) - 1)
        test[name] = sorted(paths[index] for index in order[:num_test])
        train[name] = sorted(paths[index] for index in order[num_test:])
    return train, test


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Labelled images whose files are stored as they are, so that TensorFlow is not needed.

    Args:
        data_dir: where tensorflow-datasets keeps prepared data.
        train: training images of each class.
        test: test images of each class; the same classes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, data_dir: Path, train: dict[str, list[Path]], test: dict[str, list[Path]]
    ) -> None:
        self._images = {"train": train, "validation": test}
        super().__init__(data_dir=data_dir, file_format="array_record")

    @classmethod
    def named(cls, name: str) -> type["ImageFolder"]:
        """Make a builder of this kind with a name, which to tensorflow-datasets is the class's."""
        return types.new_class(
            name, (cls,), {"skip_registration": True}, lambda body: body.update(name=name)
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images from a folder.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(self._images["train"])),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self._images}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for label, paths in self._images[split].items():
            for path in paths:
                example = {
                    "image": io.BytesIO(path.read_bytes()),
                    "label": label,
                    "file_name": f"{label}/{path.name}",
                }
                yield str(path), example
