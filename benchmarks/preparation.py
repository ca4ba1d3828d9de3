"""Speed and memory of `python -m train.prepare` on photographs.

    python -m benchmarks.preparation

It writes 20,000 JPEGs of 500x375, prepares them and a tenth of them in processes of their own, and
compares verification with the bare decoder in interleaved rounds on all cores. Verification reads
records from ArrayRecord files, digests and checks them; the bare decoder has its bytes in memory.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import simplejpeg

from benchmarks.photographs import write_images
from benchmarks.report import environment, make_parser, save
from benchmarks.subject import Subject, answer, median_ratio
from benchmarks.tables import preparation as table_of
from train.data.formats import image_folder
from train.data.preparation import prepare
from train.data.records import Records
from train.data.stored import open_builder, open_records
from train.data.verification import verify_split

IMAGES_PER_ROUND = 2000


class Sample:
    """The first records of a split."""

    def __init__(self, records: Records, num_images: int) -> None:
        self._records, self._num_images = records, min(num_images, len(records))

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[index]

    def __getitems__(self, indices: Any) -> Any:
        return self._records.__getitems__(indices)


def serve(images: Path, name: str, data_dir: Path) -> None:
    """Prepare a folder; print the seconds of each stage and the memory of this process."""
    began = {"finding": time.perf_counter()}

    def stage(description: str, _: int) -> Callable[[int], None]:
        began[description] = time.perf_counter()
        return lambda _: None

    options = image_folder.Options(path=images, name=name, data_dir=data_dir)
    prepare(image_folder.open_source(options), options, stage)
    ends = [*list(began.values())[1:], time.perf_counter()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {name: end - start for (name, start), end in zip(began.items(), ends, strict=True)}
    answer(seconds=seconds, peak_bytes=peak)


def compare(records: Records, rounds: int) -> dict[str, Any]:
    """Images per second of verification and of the bare decoder, in turns on all cores."""
    sample = Sample(records, IMAGES_PER_ROUND)
    encoded = [sample[index]["image"] for index in range(len(sample))]
    cores = len(os.sched_getaffinity(0))

    def bare() -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            for _ in pool.map(lambda data: simplejpeg.decode_jpeg(data, "RGB") is None, encoded):
                pass
        return len(encoded) / (time.perf_counter() - began)

    def verification() -> float:
        began = time.perf_counter()
        verify_split("train", sample, 2, True, lambda _: None)
        return len(sample) / (time.perf_counter() - began)

    rates: dict[str, list[float]] = {"bare": [], "verification": []}
    for number in range(rounds + 1):
        turn = {"bare": bare(), "verification": verification()}
        if number:  # the first round warms caches
            for name, rate in turn.items():
                rates[name].append(rate)
            print({name: round(rate) for name, rate in turn.items()}, flush=True)
    return {
        "bare_images_per_second": statistics.median(rates["bare"]),
        "verification_images_per_second": statistics.median(rates["verification"]),
        "verification_over_bare": median_ratio(rates["verification"], rates["bare"]),
        "rates": rates,
    }


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure the preparation of a data set.")
    parser.add_argument("--images", type=int, default=20_000, help="JPEGs; default: 20000")
    parser.add_argument("--rounds", type=int, default=7, help="turns; default: 7")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--data-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        serve(options.folder, options.name, options.data_dir)
        return
    report = environment(["simplejpeg", "array-record", "grain"]) | {"rounds": options.rounds}
    report["preparations"] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in (options.images // 10, options.images):
            images = folder / f"images-{number}"
            write_images(images, number)
            flags = {"folder": images, "name": f"photographs_{number}", "data-dir": folder / "data"}
            subject = Subject.start("preparation", "benchmarks.preparation", flags, {})
            report["preparations"].append({"images": number} | subject.read())
            subject.stop()
            print(report["preparations"][-1], flush=True)
        builder = open_builder(f"photographs_{options.images}", folder / "data")
        report |= compare(open_records(builder, "train"), options.rounds)
    print(table_of(report))
    save(options.out, report)


if __name__ == "__main__":
    main()
