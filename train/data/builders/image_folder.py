"""Builder for a user's own images, in one folder per class."""

import io
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Find the images of each class, `folder/CLASS/**/*.jpg` and so on, in a fixed order."""
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
    """Hold out a random but reproducible share of each class for testing.

    Args:
        images: images of each class.
        share: fraction to hold out, above 0 and below 1. Of each class, at least one image is held
            out and at least one remains.

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
    """Labeled images whose files are stored unchanged, so that TensorFlow is not needed.

    Args:
        data_dir: folder for data sets prepared by tensorflow-datasets.
        train: training images of each class.
        test: test images of each class, for the same classes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, data_dir: Path, train: dict[str, list[Path]], test: dict[str, list[Path]]
    ) -> None:
        self._images = {"train": train, "validation": test}
        super().__init__(data_dir=data_dir, file_format="array_record")

    @classmethod
    def named(cls, name: str) -> type["ImageFolder"]:
        """Make a subclass with this name: tensorflow-datasets names a data set by its class."""
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

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, object]:
        return {split: self._generate_examples(split) for split in self._images}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, object]]]:
        for label, paths in self._images[split].items():
            for path in paths:
                example = {
                    "image": io.BytesIO(path.read_bytes()),
                    "label": label,
                    "file_name": f"{label}/{path.name}",
                }
                yield str(path), example
