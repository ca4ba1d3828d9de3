"""`python -m experiments` as a user runs it: stopped, resumed, and run once more."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.plan import TRIALS
from experiments.results import load_runs
from train.run.workdir import read_summary

ROOT = Path(__file__).parents[2]
SECONDS = 300.0  # timeout of the command


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments", *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    process = start(*words)
    output, _ = process.communicate(timeout=SECONDS)
    return process.returncode, output


def test_an_experiment_is_stopped_and_resumed_and_its_results_are_reused(
    tmp_path: Path, fashion_mnist_dir: Path
):
    words = ["noise-scale", "--workdir", str(tmp_path), "--data-dir", str(fashion_mnist_dir)]
    names = ["kn-64-noise-scale", "kn-512-noise-scale"]
    process = start(*words, "--jobs", "1")
    records = tmp_path / names[0] / "seed-0" / "metrics.jsonl"
    began = time.monotonic()
    while not (records.exists() and records.read_text()):
        assert process.poll() is None
        assert time.monotonic() - began < SECONDS
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, output
    assert output.splitlines()[-1] == "stopped and saved; rerun the command to resume"
    assert not load_runs(tmp_path, names[1])

    code, output = run(*words)
    assert code == 0, output
    for name in names:
        saved = load_runs(tmp_path, name)[0]
        summary = read_summary(tmp_path / name / "seed-0")
        assert saved["params_digest"] == summary["params_digest"]
        assert saved["top1_error"] == summary["top1_error_median_last5"]
        assert [epoch for epoch, _ in saved["test_error"]] == list(range(1, 10))
        assert saved["train_error"][0][1] > saved["train_error"][-1][1]  # the network has learned
        assert [epoch for epoch, _ in saved["noise_scale"]][-1] == 9
        written = json.loads((tmp_path / name / "seed-0" / "config.json").read_text())
        assert written["base_learning_rate"] == TRIALS[name].config.experiment.base_learning_rate
    page = (tmp_path / "tables.md").read_text()
    assert "| noise scale (images) | rate at its peak |" in page
    assert (tmp_path / "noise_scale.png").stat().st_size > 10_000

    code, output = run(*words)
    assert code == 0, output
    assert output.startswith("0 of 2 runs to do")
    assert (tmp_path / "tables.md").read_text() == page


def test_data_that_is_not_prepared_is_reported_in_one_line(tmp_path: Path):
    words = ["noise-scale", "--workdir", str(tmp_path / "runs"), "--data-dir", str(tmp_path)]
    code, output = run(*words, "--jobs", "1")
    assert code == 2
    last = output.splitlines()[-1]
    assert last.startswith(
        "python -m experiments: kn-64-noise-scale, seed 0 ended with exit code 2"
    )
    assert "python -m train.prepare fashion_mnist" in last
    assert "Traceback" not in output


def test_a_wrong_command_line_is_reported_in_one_line():
    for words in (["warm-up"], ["warmup", "--jobs", "0"]):
        code, output = run(*words)
        assert code == 2
        assert output.startswith("python -m experiments: ")
        assert len(output.splitlines()) == 1, output
