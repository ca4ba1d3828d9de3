"""Preparing data sets: a user's own images, and data sets of tensorflow-datasets."""

import contextlib
import inspect
import itertools
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
from pathlib import Path

import cv2
import numpy as np
import pytest

from train.data.dataset import open_dataset
from train.data.records import Dataset
from train.prepare import FORMATS, main
from train.recipes import tfds

ROOT = Path(__file__).parents[2]


def write_images(folder: Path, number: int, brightness: int, ending: str = "png") -> None:
    folder.mkdir(parents=True)
    for index in range(number):
        image = np.full((12, 10, 3), (brightness + index) % 256, np.uint8)
        assert cv2.imwrite(str(folder / f"{index}.{ending}"), image)


def opened(name: str, data_dir: Path) -> Dataset:
    return open_dataset(tfds().replace(dataset=name, data_dir=data_dir))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_becomes_a_data_set_with_the_exact_bytes_of_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images, data = tmp_path / "images", tmp_path / "data"
    for split, number in (("train", 5), ("validation", 2)):
        write_images(images / split / "dark", number, 10)
        write_images(images / split / "bright", number, 200, ending="jpg")
    (images / "train" / "dark" / "notes.txt").write_text("not an image")
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 0
    assert "10 train, 4 validation images" in capsys.readouterr().out
    dataset = opened("mine", data)
    assert dataset.num_classes == 2
    assert (len(dataset.train), len(dataset.evaluation)) == (10, 4)
    records = dataset.train.__getitems__(range(10))
    # Classes are numbered in the order of their names.
    stored = {(record["image"], record["label"]) for record in records}
    assert stored == {
        (path.read_bytes(), label)
        for label, name in enumerate(("bright", "dark"))
        for path in (images / "train" / name).glob("*.*g")
    }

    before = contents(data)
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 0
    assert "already prepared" in capsys.readouterr().out
    assert contents(data) == before


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        ({}, [], "not a folder"),
        ({"a": 0}, [], "make a folder for each class"),
        ({"a": 3, "b": 1}, [], "class(es) b"),
        ({"a": 3, "b": 3}, ["--held-out", "1"], "--held-out is 1;"),
        ({"a": 3, "b": 3}, ["--name", "My-Images"], "--name is My-Images"),
        ({"train/a": 3, "train/b": 3, "validation/a": 3, "validation/c": 3}, [], "class(es) c"),
    ],
)
def test_an_unsuitable_folder_is_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: dict[str, int],
    flags: list[str],
    words: str,
):
    for name, number in make.items():
        write_images(tmp_path / "images" / name, number, 0)
    command = ["image-folder", str(tmp_path / "images"), "--name", "mine"]
    assert main([*command, "--data-dir", str(tmp_path / "data"), *flags]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not list(tmp_path.rglob("*array_record*"))


SIGNAL_AT_AN_EVENT = """
import itertools, os, runpy, sys

number, wanted, words, turn = sys.argv[1:5]
turns = itertools.count(1)

def stop(event, arguments):
    if event == wanted and words in str(arguments[0]) and next(turns) == int(turn):
        os.kill(os.getpid(), int(number))

del sys.argv[1:5]
sys.addaudithook(stop)
runpy.run_module("train.prepare", run_name="__main__", alter_sys=True)
"""


def signaled(
    number: signal.Signals, event: str, words: str, turn: int, flags: list[str]
) -> "subprocess.CompletedProcess[str]":
    """Run the command; send it a signal at the given occurrence of one of Python's audit events."""
    command = [sys.executable, "-c", SIGNAL_AT_AN_EVENT, str(int(number)), event, words, str(turn)]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 600 images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "a", 300, 0)
    write_images(folder / "b", 300, 100)
    return folder


# Audit event, words in its first argument, and its occurrence.
WHILE_WRITING = ("open", ".png", 200)
WHILE_VERIFYING = ("import", "PIL.PpmImagePlugin", 1)  # Pillow loads it with the first image
WHILE_SAVING = ("open", "verified.json.tmp", 1)
WHILE_PUBLISHING = ("os.rename", "incomplete.mine/mine", 1)
PLACES = (WHILE_WRITING, WHILE_VERIFYING, WHILE_SAVING, WHILE_PUBLISHING)


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, WHILE_WRITING),
        *itertools.product((signal.SIGKILL, signal.SIGINT), PLACES),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value[1],
)
def test_an_interrupted_preparation_leaves_no_data_set(
    tmp_path: Path, images: Path, number: signal.Signals, place: tuple[str, str, int]
):
    data = tmp_path / "data"
    flags = ["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]
    process = signaled(number, *place, flags)
    said = process.stderr
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert said.splitlines() == ["python -m train.prepare: interrupted"]
        assert not list(data.rglob("incomplete.*"))
    else:
        assert process.returncode == -number
        assert list(data.rglob("incomplete.*"))
    assert not (data / "mine").exists()
    assert main(flags) == 0
    assert not list(data.rglob("incomplete.*"))
    assert len(opened("mine", data).train) == 540


@pytest.mark.parametrize(
    ("place", "survivors"),
    [
        (WHILE_WRITING, ["1.0.0"]),
        (WHILE_VERIFYING, ["1.0.0"]),
        (WHILE_SAVING, ["1.0.0"]),
        (WHILE_PUBLISHING, ["1.0.0"]),
        (("os.rename", "data/mine/1.0.0", 1), ["1.0.0", "1.0.1"]),
        (("shutil.rmtree", "replaced.1.0.0", 1), ["1.0.1"]),
        (("os.remove", "mine-train", 1), ["1.0.1"]),  # in the middle of the deletion
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_a_killed_replacement_leaves_the_old_version_or_the_new_one(
    tmp_path: Path, images: Path, place: tuple[str, str, int], survivors: list[str]
):
    data, few = tmp_path / "data", tmp_path / "few"
    for name in "ab":
        write_images(few / name, 10, 50)
    ending = ["--name", "mine", "--data-dir", str(data)]
    assert main(["image-folder", str(few), *ending]) == 0
    flags = ["image-folder", str(images), *ending, "--overwrite"]
    assert signaled(signal.SIGKILL, *place, flags).returncode == -signal.SIGKILL
    assert sorted(path.name for path in (data / "mine").iterdir()) == survivors
    dataset = opened("mine", data)
    assert dataset.version == survivors[-1]
    size = 18 if survivors[-1] == "1.0.0" else 540
    assert len(dataset.train.__getitems__(range(size))) == len(dataset.train) == size

    assert main(flags) == 0
    dataset = opened("mine", data)
    assert dataset.version == ("1.0.1" if survivors[-1] == "1.0.0" else "1.0.2")
    assert [path.name for path in (data / "mine").iterdir()] == [dataset.version]
    assert [path.name for path in data.iterdir()] == ["mine"]
    assert len(dataset.train) == 540


def test_two_preparations_of_one_name_at_once_are_rejected(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["image-folder", str(images), "--name", "mine", "--data-dir", str(tmp_path)]
    command = [sys.executable, "-c", SIGNAL_AT_AN_EVENT, str(int(signal.SIGSTOP))]
    with subprocess.Popen([*command, *map(str, WHILE_WRITING), *flags], cwd=ROOT) as first:
        os.waitpid(first.pid, os.WUNTRACED)
        try:
            assert main(flags) == 2
            said = capsys.readouterr().err
            assert f"mine is being prepared in {tmp_path} by process {first.pid} on " in said
            assert said.count("\n") == 1
            assert main([*flags, "--overwrite"]) == 2
        finally:
            first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert len(opened("mine", tmp_path).train) == 540


def test_a_taken_name_is_reported_with_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    for folder in ("images", "images2"):  # the path of one is a part of the other's
        for name in "ab":
            write_images(tmp_path / folder / name, 10, 0)
    ending = ["--name", "mine", "--data-dir", str(data)]
    assert main(["image-folder", str(tmp_path / "images2"), *ending]) == 0
    before = contents(data)
    capsys.readouterr()

    assert main(["image-folder", str(tmp_path / "images2"), *ending]) == 0
    origin = rf"prepared from the folder {tmp_path}/images2 on 20\d\d-\d\d-\d\d \d\d:\d\d"
    assert re.search(
        rf"mine is already prepared .*, {origin}; nothing was done", capsys.readouterr().out
    )
    for flags in (
        [str(tmp_path / "images")],
        [str(tmp_path / "images2"), "--shorter-side", "8"],
        [str(tmp_path / "images2"), "--held-out", "0.5"],
    ):
        assert main(["image-folder", *flags, *ending]) == 2
        said = capsys.readouterr().err
        assert re.search(rf"--name mine is taken: .* was {origin}; .* --overwrite", said)
        assert said.count("\n") == 1
    assert contents(data) == before
    assert main(["image-folder", str(tmp_path / "images"), *ending, "--overwrite"]) == 0
    assert contents(data).keys().isdisjoint(before)


def test_overwriting_keeps_what_is_not_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A user may give a data set the name of the folder with its images."""
    for split in ("train", "validation"):
        for name in "ab":
            write_images(tmp_path / "mine" / split / name, 4, 0)
    before = contents(tmp_path)
    flags = ["image-folder", str(tmp_path / "mine"), "--name", "mine", "--data-dir", str(tmp_path)]
    assert main([*flags, "--overwrite"]) == 2
    assert "exists, but is not a prepared data set" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["imagenet2012", "cifar10", "digits", "fashion_mnist"])
def test_names_of_published_data_sets_are_rejected(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], name: str
):
    assert main(["image-folder", str(images), "--name", name, "--data-dir", str(tmp_path)]) == 2
    assert f"--name {name} belongs to a published data set" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_corrupt_images_are_listed_before_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, data = tmp_path / "images", tmp_path / "data"
    for name in "ab":
        write_images(folder / "train" / name, 5, 0)
        write_images(folder / "validation" / name, 3, 100)
    for name in ("train/a/3.png", "validation/b/0.png"):
        damage(folder / name)
    flags = ["image-folder", str(folder), "--name", "mine", "--data-dir", str(data)]
    assert main(flags) == 1
    said = capsys.readouterr()
    first, second, last = said.err.splitlines()
    assert first.startswith("split 'train', image 3 (a/3.png): not an image that can be decoded: ")
    assert second.startswith("split 'validation', image 3 (b/0.png): not an image that can be ")
    assert last.startswith(
        f"python -m train.prepare: 2 image(s) of the folder {folder} are corrupt"
    )
    assert "--skip-corrupt" in last
    assert said.out == ""
    assert not list(data.iterdir())

    assert main([*flags, "--skip-corrupt"]) == 0
    said = capsys.readouterr()
    listed = data / "mine" / "1.0.0" / "corrupt_images.jsonl"
    assert f"2 corrupt image(s) will be omitted; {listed} lists them" in said.out
    assert said.err == ""
    dataset = opened("mine", data)
    assert (len(dataset.train), len(dataset.evaluation)) == (9, 5)

    verifying = ["verify", "mine", "--data-dir", str(data)]
    assert main(verifying) == 1  # nobody allows to skip them now
    assert capsys.readouterr().err.splitlines()[:2] == [first, second]
    assert not listed.exists()
    assert main([*verifying, "--skip-corrupt"]) == 0
    assert "9 train, 5 validation images" in capsys.readouterr().out
    assert (len(opened("mine", data).train), len(opened("mine", data).evaluation)) == (9, 5)
    assert main(flags) == 0  # it is still known what it was prepared from
    assert "nothing was done" in capsys.readouterr().out


def test_a_data_set_from_elsewhere_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, number in (("a", 10), ("b", 10)):
        write_images(tmp_path / "images" / "train" / name, number, 0)
    write_images(tmp_path / "images" / "validation" / "a", 2, 0)
    data = tmp_path / "data"
    ending = ["--name", "mine", "--data-dir", str(data)]
    assert main(["image-folder", str(tmp_path / "images"), *ending]) == 0
    prepared = capsys.readouterr().out
    folder = data / "mine" / "1.0.0"
    (folder / "verified.json").unlink()
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"description": "Images."}))
    assert main(["verify", "mine", "--data-dir", str(data)]) == 0
    assert capsys.readouterr().out == prepared
    assert "warning: class(es) b have no images in the split 'validation'" in prepared
    assert "warning: 2 image(s) of the split 'validation' are in 'train' too" in prepared
    assert opened("mine", data).fingerprint.contents  # pyright: ignore[reportOptionalMemberAccess]
    assert main(["image-folder", str(tmp_path / "images"), *ending]) == 2
    assert "was prepared elsewhere on 20" in capsys.readouterr().err


def test_a_read_only_data_set_is_reported_in_one_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(tmp_path)]) == 0
    capsys.readouterr()
    mount = ["mount", "--bind", "-o", "ro", str(tmp_path), str(tmp_path)]
    if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"only root may mount: {done.stderr.strip()}")
    try:
        assert main(["verify", "mine", "--data-dir", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert "mine/1.0.0 cannot be written to (Read-only file system)" in said
        assert said.count("\n") == 1
        flags = ["image-folder", str(images), "--name", "other", "--data-dir", str(tmp_path)]
        assert main(flags) == 2
        said = capsys.readouterr().err
        assert "Read-only file system" in said
        assert said.count("\n") == 1
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_nothing_but_the_result_is_printed_without_a_terminal(tmp_path: Path, images: Path):
    flags = ["image-folder", str(images), "--name", "mine", "--data-dir", str(tmp_path)]
    command = [sys.executable, "-m", "train.prepare", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = [words for line in done.stdout.splitlines() if (words := line.split())]
    assert lines[0] == ["split", "train", "validation"]
    assert ["2", "classes", "train", "validation"] in lines
    assert lines[-1][:2] == ["verified", "mine"]
    assert len(lines) == 12


def test_a_terminal_that_cannot_encode_a_class_name_gets_question_marks(tmp_path: Path):
    for name in ("[red]", "розы"):
        write_images(tmp_path / "images" / name, 4, 0)
    flags = ["image-folder", str(tmp_path / "images"), "--name", "mine", "--data-dir"]
    done = subprocess.run(
        [sys.executable, "-m", "train.prepare", *flags, str(tmp_path / "data")],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = [line.replace("|", " ").split() for line in done.stdout.splitlines()]
    assert ["[red]", "3", "1"] in words
    assert ["????", "3", "1"] in words


def test_long_preparations_print_lines_without_a_terminal(
    tmp_path: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("train.prepare.SECONDS_BETWEEN_LINES", 0.0)
    assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:600] == [f"writing: {i} of 600 images" for i in range(1, 601)]
    assert "verifying: 600 of 600 images" in lines


def test_a_narrow_terminal_breaks_lines_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.prepare.terminal_width", lambda: 40)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["digits"]) == 0
    assert capsys.readouterr().out.split("\n")[0].rstrip() == (
        "digits need no preparation; nothing was"
    )
    assert main(["--help"]) == 0
    assert "\n  PUBLISHED     Name of a data set of\n" in capsys.readouterr().out


def test_a_terminal_shows_one_bar(tmp_path: Path, images: Path):
    """On a real terminal of 40 columns."""
    flags = ["image-folder", str(images), "--name", "mine", "--data-dir", str(tmp_path)]
    primary, secondary = pty.openpty()
    termios.tcsetwinsize(secondary, (24, 40))
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "CI")}
    with subprocess.Popen(
        [sys.executable, "-m", "train.prepare", *flags],
        cwd=ROOT,
        env=clean | {"TERM": "xterm"},
        stdout=secondary,
        stderr=secondary,
    ) as process:
        os.close(secondary)
        raw = b""
        with contextlib.suppress(OSError):  # raised when the process has closed its side
            while part := os.read(primary, 65536):
                raw += part
    os.close(primary)
    assert process.returncode == 0
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.decode())
    drawn = [line for line in re.split("[\r\n]+", said) if "/600" in line]
    assert {line.split()[0] for line in drawn} == {"writing", "verifying"}
    assert all(len(line) <= 40 for line in drawn)
    assert raw.count(b"\x1b[1A") == 1  # it is one line, which is erased in the end
    assert said.count("\n") < 30


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images, data = tmp_path / "images", tmp_path / "data"
    for name in "ab":
        (images / name).mkdir(parents=True)
        for number in range(4):
            (images / name / f"{number}.jpg").write_bytes(os.urandom(500_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        assert main(["image-folder", str(images), "--name", "mine", "--data-dir", str(data)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The message is the last output; a progress bar that moves up a line would overwrite it.
    last = re.split("[\r\n]+|\x1b\\[A", capsys.readouterr().err.rstrip("\n"))[-1]
    assert last.startswith("python -m train.prepare: ")
    assert "File too large" in last
    assert not (data / "mine" / "1.0.0").exists()
    assert not list(data.rglob("incomplete.*"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["image-folder", ".", "--name", "a", "--data-dir", "/dev/null/x"], "/dev/null/x"),
        ([], "name a format of your own images, or a published data set"),
        (["image_folder", ".", "--name", "a"], "did you mean image-folder?"),
        (["imagefolder", ".", "--name", "a"], "did you mean image-folder?"),
        (["verfy", "a"], "did you mean verify?"),
        (["image-folder", ".", "--nam", "a"], "--name"),
        (["verify", "absent", "--data-dir", "."], "absent is not prepared in ."),
        (["image-folder", ".", "--name", "a", "--shorter-side", "7"], "--shorter-side is 7"),
    ],
)
def test_bad_arguments_are_reported_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
):
    write_images(tmp_path / "a", 2, 0)
    write_images(tmp_path / "b", 2, 0)
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("python -m train.prepare: ")
    assert words in said.err.splitlines()[-1]


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_the_overview_lists_every_format(args: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(args) == (0 if args else 2)
    said = capsys.readouterr()
    lines = (said.out if args else said.err).splitlines()
    for name, format_ in FORMATS.items():
        first = inspect.cleandoc(format_.Options.__doc__).splitlines()[0]
        assert [line for line in lines if line.split() == [name, *first.split()]], name
    assert any(line.split()[:2] == ["verify", "NAME"] for line in lines if line)


@pytest.mark.parametrize("word", [*FORMATS, "verify", "cifar10"])
def test_every_word_has_its_own_help(word: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        main([word, "--help"])
    assert not ending.value.code
    assert "--data-dir" in capsys.readouterr().out
