"""Errors about paths: a URL is rejected, whichever flag or variable holds it."""

from pathlib import Path

import pytest

from train import evaluate, export, inspect, pod, predict, prepare
from train.__main__ import main as train
from train.errors import UsageError, check_is_local

COMMANDS = {
    "--workdir": [
        (train, []),
        (evaluate.main, []),
        (export.main, ["--out", "model"]),
        (inspect.main, ["digits"]),
    ],
    "--model": [(evaluate.main, []), (predict.main, ["photo.jpg"])],
    "--sheet": [(predict.main, ["photo.jpg", "--model", "model"])],
    "--data-dir": [
        (train, []),
        (evaluate.main, ["--workdir", "run"]),
        (prepare.main, ["image-folder", "photographs", "--name", "mine"]),
        (prepare.main, ["cifar10"]),
        (prepare.main, ["verify", "mine"]),
    ],
    "--init-from": [(train, [])],
    "--compilation-cache-dir": [(train, []), (evaluate.main, ["--workdir", "run"])],
    "--predictions": [(evaluate.main, ["--workdir", "run"])],
    "--archives": [(prepare.main, ["cifar10"])],
    "--out": [
        (pod.main, ["imagenet", "--topology", "v5e:4x4"]),
        (export.main, ["--workdir", "run"]),
        (predict.main, ["photo.jpg", "--model", "model"]),
    ],
}


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/a/b", "https://host/run"])
@pytest.mark.parametrize("flag", COMMANDS)
def test_a_url_is_rejected_by_every_flag_that_takes_a_path(
    flag: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for command, words in COMMANDS[flag]:
        assert command([*words, flag, url]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{flag} is {url}; it must be a path: mount the bucket" in err
        assert "docs/clusters.md, section Storage" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_section_that_the_message_names_exists():
    text = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    assert "\n## Storage\n" in text


@pytest.mark.parametrize("path", ["runs/a", "/mnt/bucket/run", "C:/run", "a:b", "~/run"])
def test_a_path_passes(path: str):
    check_is_local("--workdir", Path(path))


def test_a_file_url_becomes_a_path():
    with pytest.raises(UsageError, match="such as /tmp/run"):
        check_is_local("--workdir", Path("file:///tmp/run"))


@pytest.mark.parametrize("name", ["gs://b/*.parquet", "hf://datasets/x/train.parquet"])
def test_a_url_is_rejected_among_files(name: str, capsys: pytest.CaptureFixture[str]):
    assert prepare.main(["parquet", name, "--name", "mine"]) == 2
    assert f"the file is {name}; it must be a path" in capsys.readouterr().err
