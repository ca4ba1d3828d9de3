"""Throughput of input pipelines for ImageNet, per core.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,bench]'
    .venv-bench/bin/python -m benchmarks.input_pipeline

It prints a table and writes the same numbers as JSON, in four minutes on two cores. Each subject is
a process of its own for each number of cores, pinned to them, and the processes take turns. A
subject that cannot be imported is reported as missing and left out.

Each subject has as many threads or processes as cores, and yields minibatches of 128 uint8 images:

- `optax-warmup`: the recipe `imagenet`, from ArrayRecord to minibatches on JAX's device.
- `optax-warmup, shorter side N`: the same from images that `--shorter-side N` stored.
- `optax-warmup, processes`: the same with --num-reader-processes, on several cores.
- `tf.data`, `tf.data, bicubic`: TFRecord to JAX's device as in Flax's ImageNet example:
  sample_distorted_bounding_box, decode_and_crop_jpeg (which decodes the crop alone), bilinear or
  bicubic resizing without averaging, a flip; a private thread pool, in any order, 2 minibatches
  prefetched.
- `torch`: DataLoader with Pillow and the operations of torchvision's RandomResizedCrop (bilinear,
  which averages in Pillow) and RandomHorizontalFlip; persistent worker processes, each of which
  prefetches 2 minibatches.
- `simplejpeg`, `cv2`: decoding alone, of bytes in memory, in a thread pool.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.photographs import encoded_images, make_images
from benchmarks.pipelines import PIPELINES
from benchmarks.report import environment, make_parser, save
from benchmarks.subject import Subject, answer, median_ratio
from benchmarks.tables import pipelines

MINIBATCHES_PER_TURN = 6
PACKAGES = [
    "jax", "grain", "simplejpeg", "opencv-python-headless", "tensorflow-cpu", "torch", "pillow",
]  # fmt: skip


def serve(name: str, folder: Path, cores: int) -> None:
    """Run a subject's process: time as many minibatches as each line of input asks for."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import psutil

    def cpu_seconds() -> float:
        this = psutil.Process()
        spent = [each.cpu_times() for each in (this, *this.children(recursive=True))]
        return sum(times.user + times.system for times in spent)

    try:
        minibatches = PIPELINES[name](folder, cores)
        next(minibatches)  # imports and set-up
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(missing=None)
    for line in sys.stdin:
        # Skip what was prefetched during the turns of the others.
        for _ in range(MINIBATCHES_PER_TURN):
            next(minibatches)
        start, cpu_start, images = time.perf_counter(), cpu_seconds(), 0
        for _ in range(int(line)):
            images += next(minibatches)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
        answer(seconds=seconds, cpu_seconds=cpu, images=images)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Measure all subjects in turns: images per second and core, by the clock and by CPU time."""
    missing: dict[str, str] = {}
    subjects: dict[tuple[str, int], Subject] = {}
    for cores, name in itertools.product((1, 2), PIPELINES):
        if cores > len(os.sched_getaffinity(0)) or (cores == 1 and "processes" in name):
            continue
        flags = {"subject": name, "cores": cores, "folder": folder}
        subject = Subject.start(name, "benchmarks.input_pipeline", flags, {"JAX_PLATFORMS": "cpu"})
        if reason := subject.read()["missing"]:
            missing[name] = reason
            subject.stop()
        else:
            subjects[name, cores] = subject
    results: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in subjects}
    for number in range(rounds + 1):
        for key, subject in subjects.items():
            result = subject.turn(MINIBATCHES_PER_TURN)
            if number:  # the first round warms caches
                results[key].append(result)
    for subject in subjects.values():
        subject.stop()
    report: dict[str, Any] = {"missing": missing}
    for cores in sorted({cores for _, cores in results}):
        rates: dict[str, dict[str, list[float]]] = {
            name: {
                "clock": [r["images"] / r["seconds"] / cores for r in results[name, cores]],
                "cpu": [r["images"] / r["cpu_seconds"] for r in results[name, cores]],
            }
            for name in PIPELINES
            if (name, cores) in results
        }
        report[f"cores_{cores}"] = {
            name: {
                "images_per_second_per_core": statistics.median(rate["clock"]),
                "images_per_cpu_second": statistics.median(rate["cpu"]),
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


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure input pipelines from files to devices.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each subject; default: 7")
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        serve(options.subject, options.folder, options.cores)
        return
    report = environment(PACKAGES) | {"rounds": options.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(folder)
        sizes = [len(image) for image in encoded_images(folder)]
        report["image_kilobytes"] = statistics.mean(sizes) / 1e3
        report |= measure(folder, options.rounds)
    for name, reason in report["missing"].items():
        print(f"{name} is missing: {reason}")
    for cores in (1, 2):
        if results := report.get(f"cores_{cores}"):
            print(f"{cores} of the cores:\n\n{pipelines(results)}\n")
    save(options.out, report)


if __name__ == "__main__":
    main()
