"""Starting from a trained network: `--init-from`, with the paper's constant warmup."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.__main__ import main
from train.config import Config
from train.errors import UsageError
from train.export import main as export
from train.recipes import digits
from train.run.checkpoint import load_network
from train.step.network import make_forward
from train.step.optimizer import make_optimizer, with_multipliers
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


def network_of(workdir: Path, workers: Workers) -> tuple[Any, Any]:
    _, network = load_network(workdir, workers)
    network = jax.device_get(network)
    return network.params, network.batch_stats


def test_a_model_file_starts_a_run_like_its_workdir(
    trained: Path, digits_dir: Path, tmp_path: Path
):
    """A folder of train.export, and its safetensors file alone, hold the same network."""
    assert export(["--workdir", str(trained), "--out", str(tmp_path / "model")]) == 0
    digests: set[str] = set()
    for name, source in enumerate(
        (trained, tmp_path / "model", tmp_path / "model" / "model.safetensors")
    ):
        workdir = tmp_path / str(name)
        flags = ["--init-from", str(source), "--num-steps", "2", "--workdir", str(workdir)]
        assert main([*SHORT, *flags, "--data-dir", str(digits_dir)]) == 0
        digests.add(json.loads((workdir / "summary.json").read_text())["params_digest"])
    assert len(digests) == 1


def test_frozen_parts_stay_as_they_are(
    trained: Path, digits_dir: Path, tmp_path: Path, workers: Workers
):
    flags = ["--freeze-stages", "2", "--freeze-batch-stats", "--num-steps", "3"]
    flags += ["--init-from", str(trained), "--workdir", str(tmp_path / "run")]
    assert main([*SHORT, *flags, "--data-dir", str(digits_dir)]) == 0
    before, after = network_of(trained, workers), network_of(tmp_path / "run", workers)
    jax.tree.map(np.testing.assert_array_equal, after[1], before[1])
    for name in ("stem", "head"):
        same = jax.tree.map(np.array_equal, after[0][name], before[0][name])
        assert all(jax.tree.leaves(same)) == (name == "stem")
    blocks = zip(after[0]["blocks"].values(), before[0]["blocks"].values(), strict=True)
    unchanged = [all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b))) for a, b in blocks]
    assert unchanged == [True, True, False]


@pytest.mark.parametrize("freezes", [True, False])
def test_frozen_averages_normalize_the_images_of_training(workers: Workers, freezes: bool):
    network = jax.tree.map(jnp.asarray, jax.device_get(fresh(workers).network))
    images = np.random.default_rng(0).integers(256, size=(16, 8, 8, 1)).astype(np.uint8)
    forward = make_forward(digits().replace(freeze_batch_stats=freezes).experiment, 10)
    training, after = forward(network, images, train=True)
    evaluation, _ = forward(network, images, train=False)
    assert np.array_equal(training, evaluation) == freezes
    before = network.batch_stats["stem"]["bn"]["mean"]
    assert np.array_equal(after["stem"]["bn"]["mean"], before) == freezes


def test_without_the_other_flag_the_averages_of_frozen_stages_change(
    trained: Path, digits_dir: Path, tmp_path: Path, workers: Workers
):
    flags = ["--freeze-stages", "2", "--num-steps", "1", "--init-from", str(trained)]
    flags += ["--workdir", str(tmp_path / "run"), "--data-dir", str(digits_dir)]
    assert main([*SHORT, *flags]) == 0
    before, after = network_of(trained, workers), network_of(tmp_path / "run", workers)
    jax.tree.map(np.testing.assert_array_equal, after[0]["stem"], before[0]["stem"])
    assert not np.array_equal(after[1]["stem"]["bn"]["mean"], before[1]["stem"]["bn"]["mean"])


def test_a_gradient_that_is_not_finite_leaves_frozen_stages_alone(workers: Workers):
    experiment = digits().replace(freeze_stages=3, head_learning_rate_multiplier=2).experiment
    optimizer = with_multipliers(make_optimizer(lambda step: 0.1), experiment)
    params = fresh(workers).network.params
    infinite = jax.tree.map(lambda leaf: np.full(leaf.shape, np.inf, np.float32), params)
    updates: Any = optimizer.update(infinite, optimizer.init(params), params)[0]
    assert not np.any(jax.tree.leaves(updates["stem"])[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["blocks"]))
    assert not np.any(np.isfinite(updates["head"]["bias"]))


def test_the_head_learns_faster_by_its_multiplier(
    trained: Path, digits_dir: Path, tmp_path: Path, workers: Workers
):
    """In the first step the update is in proportion to the learning rate."""
    changes: list[Any] = []
    before, _ = network_of(trained, workers)
    for multiplier in ("1", "4"):
        workdir = tmp_path / multiplier
        flags = ["--head-learning-rate-multiplier", multiplier, "--num-steps", "1"]
        flags += ["--init-from", str(trained), "--workdir", str(workdir)]
        assert main([*SHORT, *flags, "--data-dir", str(digits_dir)]) == 0
        after, _ = network_of(workdir, workers)
        changes.append(jax.tree.map(np.subtract, after, before))
    one, four = changes
    jax.tree.map(np.testing.assert_array_equal, one["stem"], four["stem"])
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(four["head"][name], 4 * one["head"][name], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--freeze-stages", "1"], "--freeze-stages keeps a part of a trained network"),
        (["--freeze-batch-stats"], "--freeze-batch-stats keeps a part of a trained network"),
        (["fine-tune", "--dataset", "digits"], "--init-from is missing: the recipe fine-tune"),
        (
            ["--freeze-stages", "4", "--init-from", "TRAINED"],
            "--freeze-stages is 4; it must be from 0 to 3",
        ),
        (
            ["--init-from", "TRAINED", "--model", "resnet18"],
            "holds a resnet8, and --model is resnet18",
        ),
        (
            ["--init-from", "TRAINED", "--mean", *["0.4"] * 3, "--std", *["0.3"] * 3],
            "takes images of 1 color(s), and --mean and --std have 3 number(s)",
        ),
        (["--init-from", "FILE.txt"], "ends in .safetensors, .pth, .pt, .bin"),
        (["--init-from", "FILE.safetensors"], "not a safetensors file"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    flags: list[str], words: str, trained: Path, digits_dir: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    places = {"TRAINED": str(trained)}
    for name in ("FILE.txt", "FILE.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        places[name] = str(tmp_path / name)
    words_of_command = [places.get(flag, flag) for flag in flags]
    workdir = ["--workdir", str(tmp_path / "run"), "--data-dir", str(digits_dir)]
    assert main([*words_of_command, *SHORT, *workdir]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
