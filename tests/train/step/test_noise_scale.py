"""The gradient noise scale: its bias, its value in a step, and a resumed run."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from train.config import Config
from train.errors import UsageError
from train.loop import DONE, run
from train.model.resnet import ARCHITECTURES, Architecture
from train.recipes import digits
from train.step.examples import Examples, abstract_minibatch
from train.step.network import make_network, normalize
from train.step.noise_scale import DECAY, NoiseScale, estimate, moved, no_estimate
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state
from train.step.train_step import StepMetrics, make_train_step
from train.step.workers import make_workers

K, N = 8, 4
NUM_CLASSES = 10


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch: pytest.MonkeyPatch):
    """A ResNet of one block, which compiles quickly."""
    tiny = Architecture(blocks=(1,), bottleneck=False, width=4, small_stem=True)
    monkeypatch.setitem(ARCHITECTURES, "tiny", tiny)


# ---- The estimates ----------------------------------------------------------------------------


def test_estimate_of_two_parts_matches_a_hand_calculation():
    """Mean gradients (3, 0) and (1, 2) of 4 images each: inner product 3, trace 4·8/2."""
    contributions = np.array([[1.5, 0], [0.5, 1]], np.float32)
    total = jnp.square(contributions.sum(0)).sum()
    found = estimate(total, jnp.square(contributions).sum(), num_parts=2, batch_size=8)
    assert (float(found.squared_norm), float(found.trace)) == (3, 16)
    assert float(found.images) == pytest.approx(16 / 3)


@pytest.mark.parametrize("num_parts", [2, 4, 16])
def test_both_terms_are_unbiased(num_parts: int):
    """Losses |w - x|²/2 have the gradients w - x, so G = w and Σ = Cov(x) for x of mean 0."""
    draws, batch_size, g = 40_000, 16, np.array([1.0, -0.5, 0.25])
    deviations = np.array([3.0, 2.0, 1.0])
    rng = np.random.default_rng(0)
    gradients = g - deviations * rng.normal(size=(draws, num_parts, batch_size // num_parts, 3))
    parts = gradients.sum(2) / batch_size
    total = np.square(parts.sum(1)).sum(1)
    found = estimate(total, np.square(parts).sum((1, 2)), num_parts, batch_size)  # pyright: ignore[reportArgumentType]
    for values, truth in zip(found, (np.square(g).sum(), np.square(deviations).sum()), strict=True):
        assert values.mean() == pytest.approx(truth, rel=0.02)  # |G|² of a minibatch is 67 % more


def test_the_ratio_of_the_averages_is_unbiased():
    new = NoiseScale(jnp.float32(2.0), jnp.float32(500.0))
    average = no_estimate()
    assert np.isnan(average.images)
    for _ in range(5):
        average = moved(average, new)
        assert float(average.images) == pytest.approx(250, rel=1e-6)
    assert float(average.trace) == pytest.approx(500 * (1 - DECAY**5), rel=1e-5)


def test_the_noise_scale_is_nan_unless_the_squared_norm_is_positive():
    assert np.isnan(NoiseScale(jnp.float32(-1.0), jnp.float32(500.0)).images)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_estimates_are_omitted_from_the_averages(bad: float):
    before = NoiseScale(jnp.float32(2.0), jnp.float32(500.0))
    for new in (before._replace(trace=jnp.float32(bad)), before._replace(squared_norm=-bad)):
        assert moved(before, new) == before


# ---- In the step ------------------------------------------------------------------------------


@functools.cache
def rows() -> Examples:
    rng = np.random.default_rng(1)
    # Workers see images of different brightness, so that their gradients differ.
    level = np.linspace(40, 250, K).repeat(N).reshape(-1, 1, 1, 1)
    return Examples(
        (rng.random((K * N, 8, 8, 1)) * level).astype(np.uint8),
        rng.integers(2, size=K * N).astype(np.int32),  # few classes, so that the loss can fall
    )


@functools.cache
def two_steps(
    num_devices: int, accumulation_steps: int, *, noise_scale: bool = True
) -> tuple[list[TrainState], list[StepMetrics], str]:
    """States and metrics after each of two steps, and the text of the compiled step."""
    config = digits().replace(
        model="tiny",  # pyright: ignore[reportArgumentType]
        num_workers=K,
        batch_size_per_worker=N,
        accumulation_steps=accumulation_steps,
        noise_scale=noise_scale,
    )
    workers = make_workers(config, jax.devices()[:num_devices])
    optimizer = make_optimizer(optax.constant_schedule(0.1))
    state = initial_state(config.experiment, NUM_CLASSES, optimizer, workers)
    lowered = make_train_step(config.experiment, NUM_CLASSES, optimizer, workers).lower(
        state, abstract_minibatch(config.experiment, workers)
    )
    step = lowered.compile()
    states, all_metrics = [], []
    for _ in range(2):
        state, metrics = step(state, Examples(*map(workers.to_devices, rows())))
        # Copies, because the next step donates the state.
        states.append(jax.tree.map(np.array, state))
        all_metrics.append(jax.device_get(metrics))
    return states, all_metrics, step.as_text() or ""


@functools.cache
def gradients_of_workers() -> np.ndarray:
    """Mean gradient of each worker's images in the first step, shape (K, parameters)."""
    tiny: Any = {"model": "tiny", "num_workers": 1, "batch_size_per_worker": N}
    config = digits().replace(**tiny)

    @jax.jit
    @nnx.grad
    def gradient(network: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network(
            normalize(
                images, config.experiment.mean, config.experiment.std, jnp.dtype(jnp.float32)
            ),
            train=True,
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found = []
    for images, labels in zip(*(x.reshape(K, N, *x.shape[1:]) for x in rows()[:2]), strict=True):
        gradients = gradient(make_network(config.experiment, NUM_CLASSES), images, labels)
        leaves = jax.tree.leaves(nnx.to_pure_dict(gradients))
        found.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves]))
    return np.stack(found)


@pytest.mark.parametrize(("num_devices", "accumulation_steps"), [(2, 1), (1, 4), (4, 2)])
def test_the_step_estimates_both_terms_from_the_gradients_of_its_parts(
    num_devices: int, accumulation_steps: int
):
    """The trace is the parts' sample variance; subtracting it from the norm leaves |G|²."""
    num_parts = num_devices * accumulation_steps
    parts = gradients_of_workers().reshape(num_parts, K // num_parts, -1).mean(1)
    of_minibatch = np.square(parts.mean(0)).sum()
    trace = K * N / num_parts * parts.var(0, ddof=1).sum()
    squared_norm = of_minibatch - trace / (K * N)
    states, metrics, _ = two_steps(num_devices, accumulation_steps)
    after = states[0].noise_scale
    assert after is not None
    assert float(after.trace) == pytest.approx((1 - DECAY) * trace, rel=1e-4)
    assert float(after.squared_norm) == pytest.approx(
        (1 - DECAY) * squared_norm, abs=1e-4 * (1 - DECAY) * of_minibatch
    )
    assert metrics[0].noise_scale is not None
    assert float(metrics[0].noise_scale) == pytest.approx(trace / squared_norm, rel=1e-3)


def test_the_noise_scale_changes_no_other_number_and_adds_no_all_reduce():
    off, metrics_off, text_off = two_steps(4, 2, noise_scale=False)
    on, metrics_on, text_on = two_steps(4, 2)
    assert (off[-1].noise_scale, metrics_off[-1].noise_scale) == (None, None)
    for left, right in (
        (off[-1], dataclasses.replace(on[-1], noise_scale=None)),
        (metrics_off[-1], metrics_on[-1]._replace(noise_scale=None)),
    ):
        assert jax.tree.structure(left) == jax.tree.structure(right)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # The existing all-reduce carries one more number.
    reduced_off, reduced_on = (
        [
            [int(np.prod([int(n) for n in dims.split(",") if n]))
             for dims in re.findall(r"f32\[([\d,]*)\]", result)]
            for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
        ]
        for text in (text_off, text_on)
    )  # fmt: skip
    assert len(reduced_on) == len(reduced_off) >= 1
    assert sum(map(sum, reduced_on)) == sum(map(sum, reduced_off)) + 1


# ---- In a run ---------------------------------------------------------------------------------


def noise_scales(workdir: Path) -> dict[int, float | None]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        record["step"]: record["train/noise_scale"]
        for record in map(json.loads, lines)
        if "train/noise_scale" in record
    }


def test_a_resumed_run_logs_the_same_noise_scale(
    tmp_path: Path, digits_config: Callable[..., Config]
):
    config = digits_config(
        model="tiny",
        num_workers=64,
        base_learning_rate=0.1,  # high, so that the gradient soon exceeds the noise
        warmup="none",
        noise_scale=True,
        log_every_steps=1,
        num_steps=8,
    )
    whole = config.replace(workdir=tmp_path / "whole")
    for one in (whole, config.replace(num_steps=4), config):
        assert run(one) == DONE
    logged = noise_scales(whole.output.workdir)
    assert logged == noise_scales(config.output.workdir)
    assert list(logged) == list(range(1, 9))
    assert logged[8] is not None
    with pytest.raises(UsageError, match="--noise-scale was True and is now False") as error:
        run(config.replace(noise_scale=False, num_steps=9))
    assert "\n" not in str(error.value)


def test_a_single_part_is_refused(
    digits_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one_device)
    config = digits_config(noise_scale=True, num_steps=1)
    with pytest.raises(UsageError) as error:
        run(config)
    assert str(error.value) == (
        "--noise-scale compares parts of a minibatch, and devices × accumulation steps is 1; it "
        "must be at least 2: pass --accumulation-steps 2 or more"
    )
    assert not config.output.workdir.exists()
    assert make_workers(config.replace(accumulation_steps=2)).num_parts == 2
