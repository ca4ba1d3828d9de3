"""One run trained by several real processes, which communicate through Gloo on this machine."""

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from train.__main__ import main
from train.data.minibatches import epoch_order
from train.evaluate import main as evaluate
from train.prepare import main as prepare
from train.recipes import digits
from train.run.checkpoint import load_network
from train.step.workers import make_workers

ROOT = Path(__file__).parents[2]
PRIME = 353  # test images; coprime to batch size, workers, devices and processes
FLAGS = [
    *("tfds", "--dataset", "digits_in_folders", "--model", "resnet8", "--image-size", "8"),
    *("--augmentation", "shift", "--num-workers", "8", "--batch-size-per-worker", "16"),
    *("--num-steps", "20", "--log-every-steps", "1"),
    # A low rate: at the recipe's, rounding is amplified after a dozen steps for some data orders.
    *("--base-learning-rate", "0.002"),
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return clean | {
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }


def prepared(tmp_path: Path, *corrupt: int) -> Path:
    """A data_dir with the digits as a user's own images, `PRIME` of them for testing.

    Args:
        tmp_path: folder for everything.
        corrupt: the images to truncate.
    """
    folder, data_dir = tmp_path / "folders", tmp_path / "data"
    digits: Any = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("validation" if index < PRIME else "train") / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        png = cv2.imencode(".png", (image * 15).astype(np.uint8))[1].tobytes()
        path.write_bytes(png[:40] if index in corrupt else png)
    flags = ["--name", "digits_in_folders", "--data-dir", str(data_dir), "--skip-corrupt"]
    assert prepare(["image-folder", str(folder), *flags]) == 0
    if corrupt:  # as if they had become corrupt later, in data that was never verified
        for name in ("verified.json", "corrupt_images.jsonl"):
            (data_dir / "digits_in_folders" / "1.0.0" / name).unlink()
    return data_dir


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("intact"))


@pytest.fixture(scope="module")
def one_process(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of twenty steps by one process on 8 devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert main([*FLAGS, "--workdir", str(workdir), "--data-dir", str(data_dir)]) == 0
    return workdir


def two_processes(workdir: Path, data_dir: Path) -> list[subprocess.Popen[str]]:
    """Start the processes of one run."""
    cluster = ["--coordinator-address", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "train", *FLAGS, "--num-devices", "4", *cluster),
                *("--process-id", str(process)),
                *("--workdir", str(workdir), "--data-dir", str(data_dir)),
            ],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def test_two_processes_of_four_devices_match_one_of_eight(
    one_process: Path, data_dir: Path, tmp_path: Path
):
    workdir = tmp_path / "run"
    together = two_processes(workdir, data_dir)
    said = [process.communicate(timeout=240) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    assert "8 x cpu, 2 process(es)" in said[0][0]
    for word in ("network", "writes to", "step ", "finished"):  # only process 0 prints them;
        assert word in said[0][0]  # Gloo's threads print in both
        assert word not in said[1][0]

    records, expected = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (workdir, one_process)
    )
    assert [record["step"] for record in records] == list(range(1, 21))
    for record, other in zip(records, expected, strict=True):
        assert record["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5)
    for name in ("eval/num_examples", "eval/top1_error", "eval/top5_error"):
        assert records[-1][name] == expected[-1][name]
    assert records[-1]["eval/num_examples"] == PRIME

    workers = make_workers(digits(), jax.devices())
    networks = [load_network(folder, workers) for folder in (workdir, one_process)]
    assert [step for step, _ in networks] == [20, 20]
    for part in ("params", "batch_stats"):
        got, other = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(getattr(network, part))])
            for _, network in networks
        )
        assert np.linalg.norm(got - other) < 1e-5 * np.linalg.norm(other)


def message(split: str, data_dir: Path, *corrupt: int) -> str:
    """Pattern of the error of a truncated image."""
    name = "|".join(map(str, corrupt))
    return (
        rf"digits_in_folders, split '{split}', image (\d+) \(\d/(?:{name})\.png\): not an image "
        r"that can be decoded: .* \(40 bytes\); 'python -m train\.prepare verify digits_in_folders "
        rf"--data-dir {data_dir} --skip-corrupt' omits corrupt images from training"
    )


CORRUPT = (PRIME + 100, PRIME + 1000)  # an epoch omits some images, but hardly both of these


@pytest.fixture(scope="module")
def corrupt_train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("corrupt"), *CORRUPT)


@pytest.mark.parametrize("num_reader_processes", ["0", "2"])
def test_corrupt_training_image_ends_the_run(
    corrupt_train: Path, tmp_path: Path, num_reader_processes: str
):
    """The last checkpoint is that of the step before."""
    workdir = tmp_path / "run"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "train", *FLAGS, "--checkpoint-every-steps", "1"),
            *("--num-reader-processes", num_reader_processes),
            *("--workdir", workdir, "--data-dir", corrupt_train),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 1
    pattern = f"python -m train: {message('train', corrupt_train, *CORRUPT)}; (.*)\n"
    line = re.fullmatch(pattern, ended.stderr)
    assert line, ended.stderr
    order = np.concatenate([epoch_order(0, epoch, 1797 - PRIME)[:1408] for epoch in range(2)])
    step = int(np.flatnonzero(order == int(line[1]))[0]) // 128
    last = f"the last good checkpoint is {workdir}/checkpoints/{step}"
    assert line[2] == (last if step else "no checkpoint yet")


def test_corrupt_evaluation_image_ends_the_run_and_the_evaluation(
    one_process: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data_dir = prepared(tmp_path, 7)
    capsys.readouterr()
    flags = ["--data-dir", str(data_dir), "--workdir"]
    assert main([*FLAGS, "--num-steps", "3", *flags, str(tmp_path / "run")]) == 1
    line = f"python -m train: {message('validation', data_dir, 7)}; no checkpoint yet\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert evaluate(["--allow-data-change", *flags, str(one_process)]) == 1
    line = f"python -m train.evaluate: {message('validation', data_dir, 7)}\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert not (one_process / "predictions.csv").exists()


def test_corrupt_image_of_one_process_ends_both(corrupt_train: Path, tmp_path: Path):
    """The process that reads the image names it, and JAX ends the other within a minute."""
    together = two_processes(tmp_path / "run", corrupt_train)

    def complaint(process: subprocess.Popen[str]) -> str:
        lines: Any = process.stderr
        return next((line for line in lines if line.startswith("python -m train: ")), "")

    with ThreadPoolExecutor(2) as pool:
        complaints = [pool.submit(complaint, process) for process in together]
        wait(complaints, return_when=FIRST_COMPLETED)
        assert all(process.wait(timeout=60) for process in together)
    pattern = f"python -m train: {message('train', corrupt_train, *CORRUPT)}; "
    assert sum(bool(re.match(pattern, complaint.result())) for complaint in complaints) == 1
    assert not any("Traceback" in process.communicate()[1] for process in together)
