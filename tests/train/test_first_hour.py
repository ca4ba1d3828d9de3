"""The first hour of a new user: every line on the screen and in log files is this project's."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Every kind of line that the commands below may print.
OURS = [
    # the plan
    r"(network|devices|workers|data|starts from|writes to|minibatch|learning rate|warmup) {3,}.+",
    r"(optimizer|length|stops after) {3,}.+",
    r" +step +epoch +learning rate",
    r"(first step|last warmup step|first step after warmup|last step) +[\d. e-]+",
    r"milestone, epoch \d+ +[\d. e-]+",
    r"decoding the \d+ images of the split .(train|test). once: .+",
    r"never reached: milestones at epochs [\d, ]+",
    # progress and outcome
    r"step \d+/\d+  epoch \d+\.\d  loss \d+\.\d+  error .+  rate .+ images/s",
    r"stopping after this step; saving \.\.\.",
    r"stopped after step \d+ of \d+ and saved; the same command resumes",
    r"resuming after step \d+",
    r"(already )?finished: \d+ steps, \d+ images seen, test error .+",
    r"test error of the last epoch .+ images/s",
    r"results: .+",
    r"step \d+: loss .+; predictions: .+",
    r" (class +images +error +loss|\w+ +\d+ +[\d.]+ % +[\d.]+) ",
    # preparing photographs
    r" [\w ]+ +(train +validation|\d[\d x]* +\d[\d x]*|PNG +PNG) ",
    r" ─+ ",
    r"verified photographs in .+: 24 train, 8 validation images",
    r"inspecting photographs: .+",
    r"wrote .+/inspect\.png",
    # several processes
    r"waiting at most 300 s \(--coordinator-timeout-seconds\) for 2 processes at .+",
    r" *",
]


class User:
    """Runs commands in an empty home folder, with their output in files.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = {"PATH", "LANG", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "LD_LIBRARY_PATH"}
        self._environ = {name: os.environ[name] for name in names if name in os.environ}
        self._environ |= {"HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
        (folder / "home").mkdir()

    def start(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command, `python -m module words > log 2>&1`."""
        number = len(list(self.folder.glob("log*")))
        with (self.folder / f"log{number}").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.folder,
                env=self._environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, module: str, *words: str) -> None:
        """Run a command that must succeed."""
        process = self.start(module, *words)
        assert process.wait(timeout=240) == 0, self.log()

    def log(self) -> str:
        """What the commands have printed so far."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("log*")))


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def photographs(folder: Path) -> None:
    for split, number in (("train", 12), ("validation", 4)):
        for name in ("cats", "dogs"):
            for index in range(number):
                path = folder / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng([number, len(split), ord(name[0]), index])
                image = rng.integers(0, 255, (24, 32, 3), np.uint8)
                path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_every_line_of_the_first_hour_is_ours(user: User):
    # Train on the digits, stop, resume, evaluate.
    digits = ("train", "--num-steps", "60", "--workdir", "runs/digits")
    process = user.start(*digits)
    wait_for(user.folder / "runs" / "digits" / "metrics.jsonl", '"step": 10')
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) in (75, 0)
    user.run(*digits)
    user.run("train.evaluate", "--workdir", "runs/digits")
    user.run(*digits)  # it is finished

    # Own photographs.
    photographs(user.folder / "photographs")
    user.run("train.prepare", "image-folder", "photographs", "--name", "photographs")
    own = (
        *("tfds", "--dataset", "photographs", "--model", "resnet8", "--image-size", "16"),
        *("--num-workers", "2", "--batch-size-per-worker", "4", "--num-epochs", "3"),
        *("--warmup-epochs", "1", "--milestones", "2", "--workdir", "runs/own"),
    )
    user.run("train.inspect", *own)
    user.run("train", *own)
    user.run("train.evaluate", "--workdir", "runs/own")

    # Two processes.
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    cluster = ("--coordinator-address", f"localhost:{port}", "--num-processes", "2")
    both = [
        user.start(
            *("train", "--num-steps", "12", "--workdir", "runs/two", "--num-devices", "2"),
            *(*cluster, "--process-id", str(index)),
        )
        for index in range(2)
    ]
    assert [process.wait(timeout=240) for process in both] == [0, 0], user.log()

    lines = user.log().splitlines()
    assert sum(line.startswith("finished: ") for line in lines) == 3
    assert sum(line.startswith("network ") for line in lines) >= 4
    foreign = [line for line in lines if not any(re.fullmatch(kind, line) for kind in OURS)]
    assert not foreign
