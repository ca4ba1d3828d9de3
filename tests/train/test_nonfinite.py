"""Losses and gradients that are not finite: the update is discarded, and the run reports it."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from train.__main__ import main
from train.recipes import digits
from train.run.checkpoint import load_network
from train.step.examples import Examples
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.train_step import make_train_step
from train.step.workers import make_workers

# After the first step the weights are finite, but too large for finite activations.
EXPLODING = ["--base-learning-rate", "1e30", "--warmup", "none", "--checkpoint-every-steps", "1"]


def records(workdir: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def steps_of(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_finite(workdir: Path, step: int) -> None:
    newest, network = load_network(workdir, make_workers(digits(), jax.devices()[:1]))
    assert newest == step
    for leaf in jax.tree.leaves((network.params, network.batch_stats)):
        assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize("level", [1, 255])
def test_skipped_update_changes_only_the_number_of_steps(level: int):
    """Pixels of 1 make only the variance infinite; pixels of 255, loss and gradients too."""
    config = digits().replace(num_workers=2, batch_size_per_worker=2, mean=(0.0,), std=(1e-38,),
        on_nonfinite="skip", noise_scale=True,
    )  # fmt: skip
    workers = make_workers(config, jax.devices()[:2])
    optimizer = make_optimizer(optax.linear_schedule(0.1, 0.05, 4))
    train_step = make_train_step(
        config.experiment, 10, optimizer, workers, config.machine.on_nonfinite
    )

    def minibatch(pixel: int) -> Examples:
        images = np.zeros((4, 8, 8, 1), np.uint8)
        images[1:] = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) % 2 * pixel
        labels = np.arange(4, dtype=np.int32)
        return Examples(*map(workers.to_devices, (images, labels)))

    def train(*pixels: int) -> tuple[Any, list[bool]]:
        state, finite = initial_state(config.experiment, 10, optimizer, workers), []
        for pixel in pixels:
            state, metrics = train_step(state, minibatch(pixel))
            finite.append(bool(metrics.is_finite))
        return jax.device_get(state), finite

    (without, all_finite), (skipped, finite) = train(0, 0), train(0, level, 0, level)
    assert (all_finite, finite) == ([True, True], [True, False, True, False])
    assert (without.step, skipped.step) == (2, 4)
    for name in ("network", "opt_state", "noise_scale"):
        jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(without, name))


def test_run_stops_at_once_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    command = ["--workdir", str(workdir), "--data-dir", str(digits_dir), *EXPLODING]
    for _ in range(2):  # the second run resumes from the checkpoint
        assert main(command) == 1
        assert capsys.readouterr().err == (
            "python -m train: loss or gradients of step 2 are not finite (learning rate 8e+30); a "
            "lower --base-learning-rate or a longer --warmup-epochs may help, or --on-nonfinite "
            f"skip; the last good checkpoint is {workdir}/checkpoints/1\n"
        )
        assert steps_of(workdir) == [1]
        assert_finite(workdir, 1)
        assert records(workdir) == []
        assert not (workdir / "summary.json").exists()


def test_skipped_updates_are_counted_across_resumes_up_to_a_limit(
    tmp_path: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    command = ["--workdir", str(workdir), "--data-dir", str(digits_dir), *EXPLODING]
    command += ["--on-nonfinite", "skip", "--max-nonfinite-steps"]
    for limit, last in (("2", 3), ("4", 5)):
        assert main([*command, limit]) == 1
        said = capsys.readouterr()
        assert f"step {last} are not finite (learning rate 8e+30): update skipped, " in said.out
        assert said.err == (
            f"python -m train: loss or gradients of step {last + 1} are not finite (learning rate "
            f"8e+30), and --max-nonfinite-steps is {limit}; the last good checkpoint is "
            f"{workdir}/checkpoints/{last}\n"
        )
        assert_finite(workdir, last)
        counted = {
            r["step"]: (r["train/loss"], r["train/nonfinite_steps"]) for r in records(workdir)
        }
        assert counted == {step: (None, step - 1) for step in range(2, last + 1)}
    assert main([*command, "5", "--num-steps", "6"]) == 0
    assert "loss not finite" in capsys.readouterr().out
    assert records(workdir)[-1]["train/nonfinite_steps"] == 5
    assert json.loads((workdir / "summary.json").read_text())["num_steps"] == 6
    assert_finite(workdir, 6)
