"""Several seeds in one command, scored as in the paper."""

import json
import statistics
from pathlib import Path

import pytest

from train.__main__ import main


def test_seeds_are_scored_together(
    digits_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    flags = ["--num-epochs", "3", "--warmup-epochs", "1", "--milestones", "2", "--seeds", "5", "7"]
    command = [*flags, "--workdir", str(tmp_path / "runs"), "--data-dir", str(digits_dir)]
    assert main(command) == 0
    first_said = capsys.readouterr().out
    errors = {
        seed: json.loads((tmp_path / f"runs/seed-{seed}/summary.json").read_text())[
            "top1_error_median_last5"
        ]
        for seed in (5, 7)
    }
    score = json.loads((tmp_path / "runs/seeds.json").read_text())
    assert score["top1_error"] == {str(seed): error for seed, error in errors.items()}
    mean, deviation = statistics.mean(errors.values()), statistics.stdev(errors.values())
    assert score["top1_error_mean"] == pytest.approx(mean)
    assert score["top1_error_std"] == pytest.approx(deviation)
    assert f"{100 * mean:.2f} ± {100 * deviation:.2f} %" in first_said
    assert "(mean ± standard deviation of the median of the last 3 epochs); last" in first_said
    runs = [
        json.loads((tmp_path / f"runs/seed-{seed}/summary.json").read_text()) for seed in (5, 7)
    ]
    assert score["runs"] == {"5": runs[0], "7": runs[1]}
    assert score["num_epochs_in_median"] == 3
    assert score["seconds"] == sum(run["seconds"] for run in runs)
    for name in ("top1_error_last", "top1_error_best", "top5_error_last", "eval_loss_last"):
        assert score[f"{name}_mean"] == pytest.approx(statistics.mean(run[name] for run in runs))
    digests = {
        json.loads(path.read_text())["params_digest"]
        for path in tmp_path.glob("runs/*/summary.json")
    }
    assert len(digests) == 2

    assert main(command) == 0  # a rerun trains nothing and prints the same result
    second_said = capsys.readouterr().out
    assert second_said.count("already finished") == 2
    assert second_said.splitlines()[-1] == first_said.splitlines()[-1]

    (tmp_path / "runs/seeds.json").unlink()
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert main(command) == 0  # only process 0 writes and prints
    assert not (tmp_path / "runs/seeds.json").exists()
    assert capsys.readouterr().out == ""
