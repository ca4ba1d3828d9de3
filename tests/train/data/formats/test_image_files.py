"""Image files: which are found, and which are skipped for what reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.data import images
from train.data.formats.image_folder import Options, open_source
from train.data.formats.source import TRAIN, Source
from train.data.records import Dataset

ThreeSteps = Callable[[str, Path], dict[str, Any]]
PrepareFolder = Callable[..., Dataset]
Write = Callable[..., list[Path]]
WriteSplits = Callable[..., None]


def found(root: Path) -> Source:
    return open_source(Options(name="mine", path=root))


def names_of(source: Source, split: str) -> list[str]:
    return [example.name for example in source.examples if example.split == split]


def verified(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "mine" / "1.0.0" / "verified.json").read_text())


def test_symbolic_links_are_followed_and_loops_are_counted(
    write_images: Write,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    elsewhere = root.parent / "elsewhere"
    for name in "ab":
        write_images(elsewhere / name, 5)
        (root / "train").mkdir(exist_ok=True)
        (root / "train" / name).symlink_to(elsewhere / name)
    (file,) = write_images(root.parent / "single", 1)
    (root / "train" / "a" / "linked.png").symlink_to(file)
    (root / "train" / "a" / "to-itself.png").symlink_to("to-itself.png")
    (root / "train" / "a" / "broken.png").symlink_to("nowhere")
    (root / "train" / "a" / "loop").symlink_to(elsewhere)
    (root / "train" / "b" / "loop").symlink_to(root)
    (root / "train" / "up").symlink_to(root.parent)
    for name in "xyz":  # folders that link to one another
        (elsewhere / "b" / name).mkdir()
        for other in "xyz":
            (elsewhere / "b" / name / other).symlink_to(elsewhere / "b" / other)
    source = found(root)
    assert [name for name in names_of(source, TRAIN) if name.startswith("a")] == [
        *(f"a/{index}.png" for index in range(5)),
        "a/linked.png",
    ]
    assert len(source.examples) == 11
    assert source.skipped["broken or circular symbolic links"] >= 6
    assert set(source.skipped) == {
        "broken or circular symbolic links",
        "symbolic links to folders that were already read",
    }
    prepare_folder(root, data_dir)
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


ENDINGS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".JPEG": "JPEG",
    ".png": "PNG", ".PNG": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".Webp": "WEBP", ".avif": "AVIF", ".heic": "HEIF", ".HEIF": "HEIF", ".hif": "HEIF",
}  # fmt: skip


def test_every_format_that_the_decoder_reads_is_found(
    write_images: Write,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_images(root / "train" / "a", 4)
    write_images(root / "val" / "a", 1)
    write_images(root / "val" / "b", 1)
    for number, (ending, format_) in enumerate(ENDINGS.items()):
        if format_ not in ("AVIF", "HEIF") or getattr(images, f"HAS_{format_}"):
            (path,) = write_images(root / "train" / "b", 1, ending)
            path.rename(path.with_name(f"{number}{ending}"))
    prepare_folder(root, data_dir)
    facts = verified(data_dir)
    assert facts["skipped"] == {}
    expected = {"PNG": 6, "JPEG": 5, "BMP": 1, "GIF": 1, "TIFF": 2, "WEBP": 1}
    expected |= {"AVIF": 1} if images.HAS_AVIF else {}
    expected |= {"HEIF": 3} if images.HAS_HEIF else {}
    assert facts["splits"]["train"]["formats"] == expected
    assert three_steps("mine", data_dir)["eval/num_examples"] == 2


def test_formats_without_their_package_are_counted(
    write_splits: WriteSplits, root: Path, monkeypatch: pytest.MonkeyPatch
):
    write_splits(root.parent, images=2)
    for name in ("x.avif", "x.HEIC", "y.heif", "z.hif"):
        (root / "a" / name).write_bytes(b"")
    for is_readable, skipped in (
        (True, {}),
        (
            False,
            {
                "AVIF images, which need 'pip install -U pillow'": 1,
                "HEIC images, which need 'pip install pillow-heif'": 3,
            },
        ),
    ):
        monkeypatch.setattr(images, "HAS_AVIF", is_readable)
        monkeypatch.setattr(images, "HAS_HEIF", is_readable)
        source = found(root)
        assert source.skipped == skipped
        assert len(source.examples) == (8 if is_readable else 4)


def test_everything_that_is_not_an_image_is_counted(
    write_splits: WriteSplits,
    root: Path,
    data_dir: Path,
    three_steps: ThreeSteps,
    prepare_folder: PrepareFolder,
):
    write_splits(root, train=4, val=2)
    files = (
        ".hidden.jpg", "train/.DS_Store", "train/a/._0.png", "train/a/.cache/x.png",
        "__MACOSX/a/x.png", "train/b/Thumbs.db", "train/b/desktop.ini", "train/a/notes.txt",
        "val/b/more.TXT", "train/a/x.npy", "train/LICENSE", "extra/x.png", "extra/deep/y.txt",
        "train/outside.png", "val/outside.png", "top.png",
    )  # fmt: skip
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    os.mkfifo(root / "train" / "a" / "pipe.png")
    prepare_folder(root, data_dir)
    assert verified(data_dir)["skipped"] == {
        "hidden files": 4,
        "files of the operating system": 3,
        "files ending in .txt": 2,
        "files ending in .npy": 1,
        "files without an ending": 1,
        "files in the folder extra": 2,
        "images outside class folders": 3,
        "pipes, sockets and devices": 1,
    }
    assert three_steps("mine", data_dir)["eval/num_examples"] == 4
