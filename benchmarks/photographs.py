"""Data sets of JPEGs: two photographs that scikit-learn ships, cropped and resized at random."""

from pathlib import Path

HEIGHT, WIDTH, QUALITY, NUM_IMAGES = 375, 500, 97, 512
SHORTER_SIDES = (320, 256)


def make_images(folder: Path) -> None:
    """Write the images as FOLDER/images/CLASS/*.jpg, and prepare data sets of them in FOLDER.

    These are "photographs" and, reduced to a shorter side of N pixels, "photographs_N".
    """
    from train.data.formats.image_folder import Options, open_source
    from train.data.preparation import prepare

    write_images(folder / "images", NUM_IMAGES)
    for side in (None, *SHORTER_SIDES):
        name = "photographs" if side is None else f"photographs_{side}"
        options = Options(
            path=folder / "images", name=name, held_out=0.01, shorter_side=side, data_dir=folder
        )
        prepare(open_source(options), options, lambda *_: lambda _: None)


def write_images(folder: Path, num_images: int) -> None:
    """Write distinct images as FOLDER/CLASS/*.jpg, for two classes."""
    import joblib
    import numpy as np
    import simplejpeg
    from sklearn.datasets import load_sample_images

    from train.data.augmentation import resize

    photographs = load_sample_images().images

    def write(index: int) -> None:
        rng = np.random.default_rng(index)
        label, number = index % len(photographs), index // len(photographs)
        photograph = photographs[label]
        height, width, _ = photograph.shape
        crop_height = round(height * rng.uniform(0.7, 1.0))
        crop_width = round(crop_height * WIDTH / HEIGHT)
        top = rng.integers(height - crop_height + 1)
        left = rng.integers(width - crop_width + 1)
        crop = photograph[top : top + crop_height, left : left + crop_width]
        image = np.ascontiguousarray(resize(crop, HEIGHT, WIDTH))
        path = folder / str(label) / f"{number}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="420"))

    for label in range(len(photographs)):
        (folder / str(label)).mkdir(parents=True)
    joblib.Parallel(n_jobs=-1, prefer="threads")(
        joblib.delayed(write)(index) for index in range(num_images)
    )


def encoded_images(folder: Path) -> list[bytes]:
    """Read the bytes of every JPEG."""
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))]
