"""Starting from a trained network: `--init-from`, with the paper's constant warmup."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.__main__ import main
from train.config import Config
from train.errors import UsageError
from train.recipes import digits
from train.run.checkpoint import load_network
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state, transplant
from train.step.workers import Workers, make_workers

SHORT = ["--num-epochs", "4", "--warmup-epochs", "1", "--milestones", "3", "--log-every-steps", "1"]


@pytest.fixture(scope="module")
def trained(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert main([*SHORT, "--workdir", str(workdir), "--data-dir", str(digits_dir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def workers() -> Workers:
    return make_workers(digits(), jax.devices()[:2])


def fresh(workers: Workers, *, num_classes: int = 10, **changes: object) -> TrainState:
    config: Config = digits().replace(seed=9, **changes)
    return initial_state(config.experiment, num_classes, make_optimizer(lambda step: 0.1), workers)


def test_transplant_copies_the_network_but_not_the_optimizer(trained: Path, workers: Workers):
    _, network = load_network(trained, workers)
    before = fresh(workers)
    state = transplant(network, into=before)
    for got, expected in (
        (state.network.params, network.params),
        (state.network.batch_stats, network.batch_stats),
    ):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(state) == jax.tree.structure(before)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert state.step == 0
    assert state.opt_state is before.opt_state


def test_head_is_reinitialized_for_another_number_of_classes(trained: Path, workers: Workers):
    _, network = load_network(trained / "checkpoints" / "44", workers)
    before = fresh(workers, num_classes=3)
    state = transplant(network, into=before)
    assert state.network.params["head"]["kernel"] is before.network.params["head"]["kernel"]
    assert state.network.params["head"]["bias"] is before.network.params["head"]["bias"]
    np.testing.assert_array_equal(
        state.network.params["stem"]["conv"]["kernel"], network.params["stem"]["conv"]["kernel"]
    )


def test_mismatched_parameter_is_reported_with_both_shapes(trained: Path, workers: Workers):
    _, network = load_network(trained, workers)

    def shapes_of(**changes: Any) -> TrainState:
        return jax.eval_shape(lambda: fresh(workers, **changes))

    with pytest.raises(UsageError, match=r"stem/conv/kernel .*\(3, 3, 1, 16\) .*\(3, 3, 3, 16\)"):
        transplant(network, into=shapes_of(mean=(0.5,) * 3, std=(0.5,) * 3))
    with pytest.raises(UsageError, match=r"another network.*blocks/"):
        transplant(network, into=shapes_of(model="resnet18"))


@pytest.mark.parametrize("path", ["", "nowhere", "checkpoints/7"])
def test_missing_checkpoint_is_a_usage_error(
    trained: Path, tmp_path: Path, workers: Workers, path: str
):
    with pytest.raises(UsageError, match="has no checkpoint"):
        load_network(tmp_path if path == "" else trained / path, workers)


def test_fine_tuning_starts_at_the_trained_loss_with_constant_warmup(
    trained: Path, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    common = [*SHORT, "--workdir", str(tmp_path), "--data-dir", str(digits_dir)]
    assert main([*common, "--init-from", str(tmp_path / "nothing")]) == 2
    capsys.readouterr()
    # The failed command has not claimed the workdir.
    assert main([*common, "--init-from", str(trained)]) == 0
    records, before = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, trained)
    )
    rates = [record["train/learning_rate"] for record in records]
    np.testing.assert_allclose(rates, [0.0125] * 11 + [0.1] * 22 + [0.01] * 11, rtol=1e-6)
    # The first loss is near the trained network's last one, far below a fresh network's ln 10.
    first, last = records[0]["train/loss"], before[-1]["train/loss"]
    assert first == pytest.approx(last, rel=0.1)
    assert first < 0.85 * before[0]["train/loss"]


def test_fine_tuning_with_a_small_batch_has_no_warmup(tmp_path: Path):
    config = digits().replace(init_from=tmp_path, num_workers=1)
    assert config.experiment.large_minibatch_recipe(1437).warmup_steps == 0
