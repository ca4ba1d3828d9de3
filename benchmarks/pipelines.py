"""Input pipelines that benchmarks/input_pipeline.py compares.

Each yields the number of images of a minibatch when that minibatch is complete. Functions import
their library themselves, so that a process is not slowed by the threads of another library.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.photographs import NUM_IMAGES, SHORTER_SIDES, encoded_images

BATCH_SIZE = 128


def optax_warmup(
    folder: Path, cores: int, processes: int = 0, dataset_name: str = "photographs"
) -> Iterator[int]:
    """The pipeline of this repository's trainer."""
    import jax

    from train.data.dataset import open_dataset
    from train.data.minibatches import training_minibatches
    from train.data.reader import on_devices
    from train.plan import make_plan
    from train.recipes import imagenet
    from train.step.workers import make_workers

    config = imagenet().replace(
        dataset=dataset_name,
        data_dir=folder,
        num_workers=BATCH_SIZE // 32,
        num_reader_threads=cores,
        num_reader_processes=processes,
    )
    dataset, workers = open_dataset(config), make_workers(config)
    minibatches = training_minibatches(make_plan(config, dataset, workers), 0, 1_000_000)
    for minibatch in on_devices(minibatches, workers):
        jax.block_until_ready(minibatch)
        yield BATCH_SIZE


def tf_data(folder: Path, cores: int, method: str) -> Iterator[int]:
    """The pipeline of Flax's ImageNet example, except that images stay uint8."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import jax
    import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    file = str(folder / f"images-{cores}-{method}.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for encoded in encoded_images(folder):
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
            label = tf.train.Feature(int64_list=tf.train.Int64List(value=[0]))
            features = tf.train.Features(feature={"image": image, "label": label})
            writer.write(tf.train.Example(features=features).SerializeToString())

    def load(record: Any) -> tuple[Any, Any]:
        example = tf.io.parse_single_example(
            record,
            {
                "image": tf.io.FixedLenFeature([], tf.string),
                "label": tf.io.FixedLenFeature([], tf.int64),
            },
        )
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(example["image"]),
            tf.zeros([1, 0, 4], tf.float32),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.io.decode_and_crop_jpeg(example["image"], window, channels=3)
        image = tf.image.resize(image, [224, 224], method)
        image = tf.image.random_flip_left_right(image)
        image = tf.saturate_cast(tf.round(image), tf.uint8)
        return image, tf.cast(example["label"], tf.int32)

    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    options.deterministic = False
    minibatches = (
        tf.data.TFRecordDataset(file)
        .repeat()
        .shuffle(NUM_IMAGES)
        .map(load, num_parallel_calls=cores)
        .batch(BATCH_SIZE, drop_remainder=True)
        .prefetch(2)
        .with_options(options)
    )
    for minibatch in minibatches.as_numpy_iterator():
        jax.block_until_ready(jax.device_put(minibatch))
        yield BATCH_SIZE


def torch_loader(folder: Path, cores: int) -> Iterator[int]:
    """The pipeline of PyTorch's ImageNet example, without torchvision and with uint8 images."""
    import math
    import random

    import numpy as np
    import torch  # pyright: ignore[reportMissingImports]
    from PIL import Image

    torch.set_num_threads(1)
    paths = sorted((folder / "images").rglob("*.jpg"))

    def load(path: Path) -> Any:
        image = Image.open(path).convert("RGB")
        for _ in range(10):
            area = image.width * image.height * random.uniform(0.08, 1.0)
            aspect_ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            width = round(math.sqrt(area * aspect_ratio))
            height = round(math.sqrt(area / aspect_ratio))
            if width <= image.width and height <= image.height:
                break
        else:
            width = height = min(image.size)
        left = random.randint(0, image.width - width)
        top = random.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((224, 224), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))

    class Photographs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return load(paths[index]), 0

    loader = torch.utils.data.DataLoader(
        Photographs(),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=cores,
        persistent_workers=True,
        prefetch_factor=2,
    )
    while True:
        for images, _ in loader:
            yield len(images)


def decoding(folder: Path, cores: int, decode: Callable[[bytes], Any]) -> Iterator[int]:
    """Decoding alone, in threads."""
    images = itertools.cycle(encoded_images(folder))

    def decode_some(encoded: list[bytes]) -> None:
        for each in encoded:
            decode(each)

    with ThreadPoolExecutor(cores) as pool:
        while True:
            parts = [list(itertools.islice(images, BATCH_SIZE // 4)) for _ in range(4)]
            list(pool.map(decode_some, parts))
            yield BATCH_SIZE


def simplejpeg_alone(folder: Path, cores: int) -> Iterator[int]:
    """Decoding alone, by libjpeg-turbo."""
    import simplejpeg

    return decoding(folder, cores, simplejpeg.decode_jpeg)


def cv2_alone(folder: Path, cores: int) -> Iterator[int]:
    """Decoding alone, by OpenCV."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def decode(encoded: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)

    return decoding(folder, cores, decode)


PIPELINES: Mapping[str, Callable[[Path, int], Iterator[int]]] = {
    "simplejpeg": simplejpeg_alone,
    "optax-warmup": optax_warmup,
    "tf.data": lambda folder, cores: tf_data(folder, cores, "bilinear"),
    "tf.data, bicubic": lambda folder, cores: tf_data(folder, cores, "bicubic"),
    "torch": torch_loader,
    "cv2": cv2_alone,
    "optax-warmup, processes": lambda folder, cores: optax_warmup(folder, cores, processes=cores),
} | {
    f"optax-warmup, shorter side {side}": functools.partial(
        optax_warmup, dataset_name=f"photographs_{side}"
    )
    for side in SHORTER_SIDES
}
