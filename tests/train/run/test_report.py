"""Detection of loss spikes."""

from pathlib import Path

import numpy as np
import pytest

from train.__main__ import main
from train.run.report import SpikeDetector

# Losses of the first 100 steps of `python -m train --base-learning-rate 0.2`, with which kη = 1.6;
# the warmup ends with step 55.
CONSTANT = [
    2.3, 2.3, 2.3, 2.29, 2.26, 2.25, 2.29, 2.26, 2.18, 2.22, 2.11, 2.14, 2.11, 2.07, 2.06, 2.04,
    2.13, 1.94, 1.91, 1.89, 1.87, 1.82, 1.89, 1.85, 1.66, 1.68, 1.55, 1.6, 1.57, 1.46, 1.41, 1.36,
    1.16, 1.29, 1.28, 1.16, 1.05, 1.02, 0.82, 0.99, 0.77, 0.79, 0.69, 0.65, 0.62, 0.56, 0.71,
    0.65, 0.47, 0.52, 0.48, 0.51, 0.42, 0.43, 0.48, 0.46, 2.15, 4.47, 6.36, 3.18, 3.12, 2.37,
    2.35, 2.28, 2.16, 2.17, 2.2, 2.14, 2.23, 2.06, 2.0, 2.04, 2.16, 1.97, 1.95, 1.97, 1.93, 1.86,
    1.95, 1.95, 2.01, 1.93, 1.73, 1.78, 1.77, 1.91, 2.07, 1.98, 1.87, 1.76, 1.74, 1.75, 1.89,
    1.94, 1.57, 1.71, 1.71, 1.57, 1.49, 1.66,
]  # fmt: skip
GRADUAL = [
    2.3, 2.3, 2.3, 2.29, 2.25, 2.24, 2.28, 2.24, 2.17, 2.15, 2.05, 2.03, 2.02, 2.03, 1.98, 2.03,
    1.91, 1.7, 1.64, 1.46, 1.54, 1.53, 1.74, 1.34, 1.32, 1.47, 1.0, 0.88, 0.79, 0.71, 0.7, 0.6,
    0.58, 0.81, 0.66, 0.54, 0.84, 1.06, 1.28, 0.93, 0.62, 0.7, 0.58, 0.53, 0.52, 0.39, 0.44, 0.56,
    0.31, 0.53, 0.61, 0.81, 0.69, 0.51, 0.48, 0.37, 0.47, 0.63, 0.5, 0.23, 0.26, 0.15, 0.28, 0.31,
    0.29, 0.49, 0.48, 0.24, 0.26, 0.13, 0.17, 0.2, 0.45, 0.3, 0.22, 0.26, 0.29, 0.28, 0.31, 0.22,
    0.15, 0.25, 0.13, 0.12, 0.16, 0.2, 0.16, 0.16, 0.03, 0.11, 0.22, 0.13, 0.12, 0.09, 0.14, 0.15,
    0.08, 0.26, 0.13, 0.15,
]  # fmt: skip


def spikes(losses: list[float]) -> list[int]:
    """Steps, counted from 1, at which a spike is detected."""
    finder = SpikeDetector()
    return [step for step, loss in enumerate(losses, 1) if finder.add(loss)]


def test_spike_after_constant_warmup_is_detected_once():
    assert spikes(CONSTANT) == [59]  # the third high loss raises the median of five


def test_gradual_warmup_to_the_same_rate_has_no_spike():
    assert spikes(GRADUAL) == []


@pytest.mark.parametrize("level", [6.9, 1.0, 0.1, 1e-3])
def test_noise_is_not_a_spike(level: float):
    rng = np.random.default_rng(0)
    falling = level * (0.3 + 0.7 * np.exp(-np.arange(5000) / 1000))
    noise = rng.lognormal(sigma=0.1 if level > 0.5 else 0.6, size=5000)
    assert spikes((falling * noise).tolist()) == []


def test_short_outlier_is_not_a_spike():
    losses = [1.0] * 40 + [9.0, 9.0] + [1.0] * 40
    assert spikes(losses) == []


def test_second_spike_is_detected_too():
    assert spikes([1.0] * 25 + [2.0] * 40 + [4.0] * 40) == [28, 68]


def test_run_reports_a_spike_with_a_hint(
    tmp_path: Path, digits_dir: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [
        "--warmup",
        "constant",
        "--warmup-epochs",
        "2",
        "--base-learning-rate",
        "0.2",
        "--num-steps",
        "30",
    ]
    flags += ["--log-every-steps", "1000"]
    assert main(["--workdir", str(tmp_path), "--data-dir", str(digits_dir), *flags]) == 0
    said = capsys.readouterr().out
    assert said.count("the loss jumped up before step") == 1
    assert "(learning rate 1.6); if the rate has just risen, it rose too abruptly" in said
