"""The first second of a command: Ctrl-C, and locales in which names cannot be encoded."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def start(module: str, *words: str, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=os.environ | (environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("module", ["train", "train.evaluate", "train.prepare", "train.pod"])
@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_ctrl_c_during_the_imports_prints_one_line(module: str, seconds: float):
    process = start(module, "--help")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was faster
        assert out.startswith("usage")
        return
    assert (process.returncode, err) == (1, f"python -m {module}: interrupted\n")


def test_ctrl_c_prints_one_line_while_a_command_waits(tmp_path: Path):
    """Another process is preparing the same data set."""
    folder = tmp_path / "incomplete.digits"
    folder.mkdir()
    with (folder / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start("train", "--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path))
        time.sleep(8)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", "python -m train: interrupted\n")


def test_an_ignored_interrupt_stays_ignored():
    """`nohup` ignores it, and so do background jobs of scripts."""
    command = [sys.executable, "-m", "train.evaluate", "--help"]
    script = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    script += "os.execv(sys.executable, sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(5):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].startswith("usage")
    assert process.returncode == 0


def test_importing_the_trainer_changes_no_handler():
    script = "import signal, train; print(signal.getsignal(signal.SIGINT).__name__)"
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "default_int_handler\n"


def test_names_outside_ascii_work_in_an_ascii_locale(tmp_path: Path):
    for split in ("train", "validation"):
        for seed, name in enumerate(("Äpfel", "桜")):
            for index in range(4):
                path = tmp_path / "Bilder" / split / name / f"ü{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng([len(split), seed, index])
                image = rng.integers(0, 255, (16, 16, 3), np.uint8)
                path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    data = ("--data-dir", str(tmp_path / "gegeben für"))
    workdir = ("--workdir", str(tmp_path / "Läufe"))
    prepare = ("train.prepare", "image-folder", str(tmp_path / "Bilder"), "--name", "fruits", *data)
    train = (
        *("train", "tfds", "--dataset", "fruits", "--model", "resnet8", "--image-size", "8"),
        *("--num-workers", "1", "--batch-size-per-worker", "8", "--num-steps", "1"),
        *(*data, *workdir),
    )
    for words in (prepare, train, ("train.evaluate", *workdir)):
        process = start(*words, environ=ASCII)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), (words, out)
        if words is prepare:
            assert "Äpfel" in out
        else:
            assert "Läufe" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(
    tmp_path: Path, encoding: str
):
    process = start(
        "train.evaluate", "--workdir", str(tmp_path / "桜"), environ={"PYTHONIOENCODING": encoding}
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"--workdir {tmp_path}/? holds no run" in err


@pytest.mark.parametrize("module", ["train.memory", "optax_warmup"])
def test_a_reader_that_stops_early_ends_a_command_silently(module: str):
    """`head` does it."""
    with start(module, *(["--help"] if module == "train.memory" else [])) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (1, "")


HUGE = """
import ctypes, os, re, sys
from pathlib import Path
sys.argv[0] = "-m"  # Python's own value for `python -m train`
import train
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
ctypes.memset(malloc(ctypes.c_size_t(64 << 20)), 1, 64 << 20)
[kilobytes] = re.findall(r"AnonHugePages: +([0-9]+)", Path("/proc/self/smaps_rollup").read_text())
print(int(kilobytes) >= 32 << 10, os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.parametrize(
    ("tunables", "are_huge"), [(None, True), ("glibc.malloc.hugetlb=0", False)]
)
def test_large_memory_is_in_huge_pages_unless_the_user_tunes_glibc(
    tunables: str | None, are_huge: bool
):
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("huge pages are not on request here")
    if not version or tuple(map(int, version.split()[1].split("."))) < (2, 35):
        pytest.skip("the C library cannot request huge pages")
    environ = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    result = subprocess.run(
        [sys.executable, "-c", HUGE],
        cwd=ROOT,
        env=environ | ({} if tunables is None else {"GLIBC_TUNABLES": tunables}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{are_huge} {tunables or 'glibc.malloc.hugetlb=1'}\n"
