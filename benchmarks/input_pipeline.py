"""How many images a second each way of feeding ImageNet's training delivers, per core.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,bench]'
    .venv-bench/bin/python benchmarks/input_pipeline.py [--out benchmarks/input_pipeline.json]

Prints a table and writes the same numbers as JSON. Takes four minutes on two cores. The images are
two photographs that scikit-learn ships, cropped and resized to 500×375 in varied ways. Each subject
has a process of its own for each number of cores, pinned to them; the processes take turns in
short rounds, because a shared machine's speed drifts by more than what is to be measured. A subject
that cannot be imported is said to be missing, and left out.

Subjects, each with as many threads or processes as cores, and minibatches of 128 uint8 images:

- `optax-warmup`: the recipe `imagenet`, from ArrayRecord to minibatches on JAX's device.
- `optax-warmup, processes`: the same with --num-reader-processes, where there are several cores.
- `tf.data`: TFRecord, sample_distorted_bounding_box, decode_and_crop_jpeg (which decodes no more
  than the crop), resize (without averaging) and a flip, as in Flax's ImageNet example; a private
  pool of threads, no order to be kept, 2 minibatches prefetched; to JAX's device. Bilinear, and
  bicubic.
- `torch`: DataLoader with Pillow, doing what torchvision's RandomResizedCrop (bilinear, which
  averages in Pillow) and RandomHorizontalFlip do; persistent worker processes, 2 minibatches
  prefetched by each.
- `simplejpeg`, `cv2`: decoding alone, of bytes in memory, in a pool of threads.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HEIGHT, WIDTH, QUALITY = 375, 500, 97
NUM_IMAGES, BATCH_SIZE = 512, 128
MINIBATCHES_A_ROUND = 6
PACKAGES = [
    "jax", "grain", "simplejpeg", "opencv-python-headless", "tensorflow-cpu", "torch", "pillow",
]  # fmt: skip


def make_images(folder: Path) -> None:
    """Write the photographs as FOLDER/CLASS/*.jpg, ArrayRecord and TFRecord."""
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
    """Every image's bytes, in memory."""
    return [path.read_bytes() for path in sorted((folder / "images").rglob("*.jpg"))]


def optax_warmup(folder: Path, cores: int, processes: int = 0) -> Iterator[int]:
    """This repository's pipeline."""
    import jax

    from train.data.dataset import open_dataset
    from train.data.minibatches import training_minibatches
    from train.data.reader import on_devices
    from train.plan import make_plan
    from train.recipes import imagenet
    from train.step.workers import make_workers

    config = imagenet().replace(
        dataset="photographs",
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
    """What Flax's ImageNet example does, with images left as uint8."""
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
    """What PyTorch's ImageNet example does with torchvision, but for tensors of uint8."""
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
    """Nothing but decoding, in threads."""
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
    """Bare decoding by libjpeg-turbo."""
    import simplejpeg

    return decoding(folder, cores, simplejpeg.decode_jpeg)


def cv2_alone(folder: Path, cores: int) -> Iterator[int]:
    """Bare decoding by OpenCV."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def decode(encoded: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)

    return decoding(folder, cores, decode)


SUBJECTS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    "simplejpeg": simplejpeg_alone,
    "optax-warmup": optax_warmup,
    "tf.data": lambda folder, cores: tf_data(folder, cores, "bilinear"),
    "tf.data, bicubic": lambda folder, cores: tf_data(folder, cores, "bicubic"),
    "torch": torch_loader,
    "cv2": cv2_alone,
    "optax-warmup, processes": lambda folder, cores: optax_warmup(folder, cores, processes=cores),
}


def answer(subject: str, folder: Path, cores: int) -> None:
    """In a subject's process: time as many minibatches as standard input asks for."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import psutil

    def cpu_seconds() -> float:
        me = psutil.Process()
        spent = [each.cpu_times() for each in (me, *me.children(recursive=True))]
        return sum(times.user + times.system for times in spent)

    try:
        minibatches = SUBJECTS[subject](folder, cores)
        next(minibatches)  # the imports, and all that is done once
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"missing": None}), flush=True)
    for line in sys.stdin:
        # What was prefetched while the others had their turn is not counted.
        for _ in range(MINIBATCHES_A_ROUND):
            next(minibatches)
        start, cpu_start, images = time.perf_counter(), cpu_seconds(), 0
        for _ in range(int(line)):
            images += next(minibatches)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "images": images}), flush=True)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A process that waits for its turn."""

    name: str
    cores: int
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, folder: Path, cores: int) -> Subject:
        """Start it; its first answer says whether it could."""
        command = [sys.executable, __file__, "--subject", name, "--cores", str(cores)]
        process = subprocess.Popen(
            [*command, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
        )
        return cls(name, cores, process)

    def read(self) -> dict[str, Any]:
        """Wait for one answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} on {self.cores} cores ended without an answer")
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        """Let it work for a round."""
        assert self.process.stdin
        self.process.stdin.write(f"{MINIBATCHES_A_ROUND}\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        """End it, and its own processes with it."""
        self.process.stdin.close() if self.process.stdin else None
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Let all subjects take turns; images a second per core, by the clock and by CPU time."""
    names = list(SUBJECTS)
    missing: dict[str, str] = {}
    subjects: list[Subject] = []
    for cores, name in itertools.product((1, 2), names):
        if cores > len(os.sched_getaffinity(0)) or (cores == 1 and "processes" in name):
            continue
        subject = Subject.start(name, folder, cores)
        if reason := subject.read()["missing"]:
            missing[name] = reason
            subject.stop()
        else:
            subjects.append(subject)
    readings: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(rounds + 1):
        for subject in subjects:
            reading = subject.turn()
            if number:  # the first round warms caches
                readings.setdefault((subject.name, subject.cores), []).append(reading)
    for subject in subjects:
        subject.stop()
    report: dict[str, Any] = {"missing": missing}
    for cores in sorted({cores for _, cores in readings}):
        rates: dict[str, dict[str, list[float]]] = {
            name: {
                "clock": [r["images"] / r["seconds"] / cores for r in readings[name, cores]],
                "cpu": [r["images"] / r["cpu_seconds"] for r in readings[name, cores]],
            }
            for name in names
            if (name, cores) in readings
        }
        report[f"cores_{cores}"] = {
            name: {
                "images_per_second_per_core": statistics.median(rate["clock"]),
                "images_per_cpu_second": statistics.median(rate["cpu"]),
                # Round by round, against what ran just before or after.
                "over_simplejpeg": median_ratio(rate["clock"], rates["simplejpeg"]["clock"]),
                "over_simplejpeg_cpu": median_ratio(rate["cpu"], rates["simplejpeg"]["cpu"]),
            }
            for name, rate in rates.items()
        }
        if "tf.data" in rates:
            ours, theirs = rates["optax-warmup"], rates["tf.data"]
            report[f"cores_{cores}"]["optax-warmup"] |= {
                "over_tf_data": median_ratio(ours["clock"], theirs["clock"]),
                "over_tf_data_cpu": median_ratio(ours["cpu"], theirs["cpu"]),
            }
    return report


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of the ratio within each."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Makes the images, measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures pipelines from files to devices.")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        answer(options.subject, options.folder, options.cores)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder)
        report: dict[str, Any] = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "packages": {name: version(name) for name in PACKAGES},
            "image_kilobytes": statistics.mean(len(each) for each in encoded_images(folder)) / 1e3,
            "rounds": options.rounds,
        } | measure(folder, options.rounds)
    for name, reason in report["missing"].items():
        print(f"{name} is left out: {reason}")
    print(f"{'images a second per core':<28}{'clock':>8}{'CPU':>8}{'÷ simplejpeg':>14}{'CPU':>8}")
    for cores in (1, 2):
        for name, entry in report.get(f"cores_{cores}", {}).items():
            print(
                f"{cores} × {name:<24}{entry['images_per_second_per_core']:>8.0f}"
                f"{entry['images_per_cpu_second']:>8.0f}{entry['over_simplejpeg']:>14.2f}"
                f"{entry['over_simplejpeg_cpu']:>8.2f}"
            )
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
