"""A data set of JPEGs: two photographs that scikit-learn ships, cropped and resized at random."""

import contextlib
from pathlib import Path

HEIGHT, WIDTH, QUALITY, NUM_IMAGES = 375, 500, 97, 512


def make_images(folder: Path) -> None:
    """Write the images as FOLDER/images/CLASS/*.jpg, and as the data set "photographs"."""
    import numpy as np
    import simplejpeg
    import tensorflow_datasets as tfds
    from sklearn.datasets import load_sample_images

    from train.data.builders.image_folder import ImageFolder
    from train.data.images import resize

    rng = np.random.default_rng(0)
    paths: dict[str, list[Path]] = {}
    for label, photograph in enumerate(load_sample_images().images):
        height, width, _ = photograph.shape
        paths[str(label)] = []
        for number in range(NUM_IMAGES // 2):
            crop_height = round(height * rng.uniform(0.7, 1.0))
            crop_width = round(crop_height * WIDTH / HEIGHT)
            top = rng.integers(height - crop_height + 1)
            left = rng.integers(width - crop_width + 1)
            crop = photograph[top : top + crop_height, left : left + crop_width]
            path = folder / "images" / str(label) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.ascontiguousarray(resize(crop, HEIGHT, WIDTH))
            path.write_bytes(simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="420"))
            paths[str(label)].append(path)
    builder = ImageFolder.named("photographs")(
        data_dir=folder, train=paths, test={label: some[:1] for label, some in paths.items()}
    )
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare()


def encoded_images(folder: Path) -> list[bytes]:
    """Read the bytes of every JPEG."""
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))]
