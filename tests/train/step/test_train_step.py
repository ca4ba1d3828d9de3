"""One update and one evaluation: exact, and independent of the layout of the workers."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import Config
from train.model.resnet import ARCHITECTURES, BN_EPSILON, Architecture
from train.recipes import digits
from train.step.evaluation import make_evaluation_step
from train.step.examples import NO_CLASS, Examples, abstract_minibatch
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state
from train.step.train_step import StepMetrics, make_train_step
from train.step.workers import Workers, make_workers

K, N = 8, 4
NUM_CLASSES = 10


@pytest.fixture(autouse=True)
def narrow_resnet50(monkeypatch: pytest.MonkeyPatch):
    """The layout of ResNet-50, thin and short enough to be computed in float64 too."""
    narrow = Architecture(blocks=(2, 1, 1, 1), bottleneck=True, width=4)
    monkeypatch.setitem(ARCHITECTURES, "narrow50", narrow)


def small_config(**changes: Any) -> Config:
    return digits().replace(**({"num_workers": K, "batch_size_per_worker": N} | changes))


def schedule(step: Any) -> Any:
    return 0.01 + 0.001 * jnp.asarray(step, jnp.float32)


def images_of_step(config: Config, step: int) -> Examples:
    rng = np.random.default_rng((1, step))
    shape = (
        K * N,
        config.experiment.image_size,
        config.experiment.image_size,
        len(config.experiment.mean),
    )
    # Workers see images of different brightness, so that their statistics differ.
    level = np.linspace(40, 250, K).repeat(N).reshape(-1, 1, 1, 1)
    return Examples(
        (rng.random(shape) * level).astype(np.uint8),
        rng.integers(NUM_CLASSES, size=K * N).astype(np.int32),
    )


def make(
    config: Config, workers: Workers, rate: optax.Schedule = schedule
) -> tuple[jax.stages.Wrapped, TrainState]:
    optimizer = make_optimizer(rate)
    step = make_train_step(config.experiment, NUM_CLASSES, optimizer, workers)
    return step, initial_state(config.experiment, NUM_CLASSES, optimizer, workers)


def run_steps(
    config: Config, workers: Workers, num_steps: int
) -> tuple[TrainState, list[StepMetrics]]:
    train_step, state = make(config, workers)
    all_metrics: list[StepMetrics] = []
    for step in range(num_steps):
        rows = images_of_step(config, step)
        state, metrics = train_step(state, Examples(*(workers.to_devices(x) for x in rows)))
        all_metrics.append(jax.device_get(metrics))
    return state, all_metrics


# ---- Reference steps: the paper's equations in float64 ----------------------------------------


def reference_forward(
    params: Any, images: jax.Array, architecture: Architecture, statistics: list[Any]
) -> jax.Array:
    """Logits of ONE worker's n images; its batch statistics are appended in order of use."""

    def conv_bn(x: jax.Array, layer: Any, stride: int) -> jax.Array:
        kernel = layer["conv"]["kernel"]
        pad = kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        statistics.append((mean, var))
        x = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(var + BN_EPSILON).reshape(1, 1, 1, -1)
        return x * layer["bn"]["scale"].reshape(1, 1, 1, -1) + layer["bn"]["bias"].reshape(
            1, 1, 1, -1
        )

    x = jax.nn.relu(conv_bn(images, params["stem"], 1 if architecture.small_stem else 2))
    if not architecture.small_stem:
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
    first_of_stage = np.cumsum((0, *architecture.blocks))[1:-1].tolist()
    for index in range(sum(architecture.blocks)):
        block = params["blocks"][index]
        stride = 2 if index in first_of_stage else 1
        strides = (1, stride, 1) if architecture.bottleneck else (stride, 1)
        # The network computes the shortcut first.
        has_projection = block.get("shortcut") is not None
        shortcut = conv_bn(x, block["shortcut"], stride) if has_projection else x
        for place, layer_stride in enumerate(strides):
            x = conv_bn(x, block["layers"][place], layer_stride)
            x = jax.nn.relu(x) if place < len(strides) - 1 else x
        x = jax.nn.relu(x + shortcut)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"].reshape(1, -1)


def reference_statistics(batch_stats: Any, architecture: Architecture) -> list[Any]:
    """Running averages as (mean, variance), in the order of `reference_forward`."""
    layers = [batch_stats["stem"]]
    for index in range(sum(architecture.blocks)):
        block = batch_stats["blocks"][index]
        layers += [block["shortcut"]] if block.get("shortcut") is not None else []
        layers += [block["layers"][place] for place in sorted(block["layers"])]
    return [(layer["bn"]["mean"], layer["bn"]["var"]) for layer in layers]


@pytest.mark.parametrize(("model", "size"), [("resnet8", 8), ("narrow50", 64)])
def test_three_steps_match_the_paper_in_float64(model: str, size: int):
    config = small_config(model=model, image_size=size)
    architecture = ARCHITECTURES[model]
    workers = make_workers(config, jax.devices()[:2])
    _, state = make(config, workers)
    start = jax.device_get((state.network.params, state.network.batch_stats))
    state, metrics = run_steps(config, workers, 3)

    with jax.enable_x64(True):
        params, running = jax.tree.map(lambda x: np.asarray(x, np.float64), start)
        running = reference_statistics(running, architecture)

        def loss(params: Any, images: jax.Array, labels: np.ndarray) -> tuple[jax.Array, Any]:
            """One worker's part of the loss: divided by kn, not by n (section 3, remark 3)."""
            statistics: list[Any] = []
            logits = reference_forward(params, images, architecture, statistics)
            likelihood = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
            return -(likelihood * jax.nn.one_hot(labels, NUM_CLASSES)).sum() / (K * N), statistics

        loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        velocity = jax.tree.map(np.zeros_like, params)
        for step in range(3):
            rows = images_of_step(config, step)
            images = jnp.asarray(
                (rows.images / 255 - config.experiment.mean[0]) / config.experiment.std[0],
                jnp.float64,
            )
            of_workers = [
                jax.device_get(loss_and_gradient(params, images[mine], rows.labels[mine]))
                for mine in (slice(j * N, (j + 1) * N) for j in range(K))
            ]
            np.testing.assert_allclose(
                metrics[step].loss, sum(value for (value, _), _ in of_workers), rtol=1e-4
            )
            gradient = jax.tree.map(lambda *g: sum(g), *(g for _, g in of_workers))
            means = jax.tree.map(lambda *s: sum(s) / K, *(s for (_, s), _ in of_workers))
            running = jax.tree.map(lambda r, s: 0.9 * r + 0.1 * s, running, means)
            # Weight decay as a term of the loss, not on γ and β (section 5.1), then eq. 9 with
            # Nesterov's look-ahead: u ← m·u + g; w ← w - η·(g + m·u).
            gradient = jax.tree_util.tree_map_with_path(
                lambda path, g, w: g if "bn" in jax.tree_util.keystr(path) else g + 1e-4 * w,
                gradient,
                params,
            )
            velocity = jax.tree.map(lambda u, g: 0.9 * u + g, velocity, gradient)
            rate = 0.01 + 0.001 * step
            params = jax.tree.map(
                lambda w, g, u, rate=rate: w - rate * (g + 0.9 * u), params, gradient, velocity
            )

    def close(got: Any, expected: Any) -> None:
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
        ):
            scale = np.abs(b).max()
            np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=2e-4 * scale, err_msg=jax.tree_util.keystr(path)
            )

    close(state.network.params, params)
    close(reference_statistics(state.network.batch_stats, architecture), running)
    assert state.step == 3


# ---- Layouts of the workers -------------------------------------------------------------------


def relative_difference(a: TrainState, b: TrainState) -> float:
    """Relative distance of the parameters, or of the statistics if that is larger."""

    def length(*trees: Any) -> float:
        leaves = jax.tree.leaves(jax.tree.map(lambda *xs: xs[0] - sum(xs[1:]), *trees))
        return float(np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves)))

    a, b = jax.device_get((a, b))
    return max(
        length(x, y) / length(y)
        for x, y in (
            (a.network.params, b.network.params),
            (a.network.batch_stats, b.network.batch_stats),
        )
    )


@pytest.fixture(scope="module")
def one_device() -> tuple[TrainState, list[StepMetrics]]:
    config = small_config()
    return run_steps(config, make_workers(config, jax.devices()[:1]), 20)


@pytest.mark.parametrize(
    ("num_devices", "accumulation_steps", "passes"),
    [(2, 1, 1), (8, 1, 1), (1, 2, 1), (4, 2, 1), (2, 4, 1), (1, 1, 4), (2, 2, 2)],
)
def test_twenty_steps_do_not_depend_on_the_devices(
    one_device: tuple[TrainState, list[StepMetrics]],
    num_devices: int,
    accumulation_steps: int,
    passes: int,
):
    config = small_config(accumulation_steps=accumulation_steps)
    workers = make_workers(config, jax.devices()[:num_devices])
    workers = dataclasses.replace(workers, passes=passes)
    # Rows arrive in the order of `local`, which here is that of the workers.
    assert workers.local.tolist() == list(range(K))
    state, metrics = run_steps(config, workers, 20)
    assert relative_difference(state, one_device[0]) < 1e-5
    np.testing.assert_allclose(
        [m.loss for m in metrics], [m.loss for m in one_device[1]], rtol=1e-5
    )
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_statistics_over_the_whole_minibatch_give_another_result(
    one_device: tuple[TrainState, list[StepMetrics]],
):
    config = small_config(num_workers=1, batch_size_per_worker=K * N)
    state, _ = run_steps(config, make_workers(config, jax.devices()[:1]), 20)
    assert relative_difference(state, one_device[0]) > 1e-2


def hlo(num_workers: int, accumulation_steps: int, passes: int) -> str:
    config = small_config(num_workers=num_workers, accumulation_steps=accumulation_steps)
    workers = dataclasses.replace(make_workers(config), passes=passes)
    train_step, state = make(config, workers)
    lowered = train_step.lower(state, abstract_minibatch(config.experiment, workers))
    return lowered.compile().as_text() or ""


@pytest.mark.parametrize(
    ("num_workers", "accumulation_steps", "passes"), [(8, 1, 1), (64, 4, 1), (64, 1, 4)]
)
def test_gradients_cross_devices_once(num_workers: int, accumulation_steps: int, passes: int):
    text = hlo(num_workers, accumulation_steps, passes)
    assert not re.search(r"= \S+ (all-gather|all-to-all|collective-permute|reduce-scatter)", text)
    reductions = re.findall(r"= (.*?) all-reduce(?:-start)?\((?:.*)", text)
    assert 1 <= len(reductions) <= 2
    loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    assert bool(loops) == (accumulation_steps * passes > 1)
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        assert " all-reduce" not in line or computation not in loops
    # They carry the gradients, the statistics, the loss and the errors.
    sizes = [
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for reduction in reductions
        for dims in re.findall(r"[fs]32\[([\d,]*)\]", reduction)
    ]
    _, state = make(small_config(), make_workers(small_config()))
    leaves = jax.tree.leaves((state.network.params, state.network.batch_stats))
    total = sum(leaf.size for leaf in leaves) + 2
    # Equal gradients are reduced only once: β of a projection and of the sum that it enters.
    assert total - 200 < sum(sizes) <= total


# ---- Metrics and evaluation -------------------------------------------------------------------


def test_the_logged_learning_rate_is_the_applied_one():
    """A rate of 0 leaves the parameters unchanged."""
    config = small_config()
    workers = make_workers(config)
    train_step, state = make(
        config, workers, lambda step: jnp.where(jnp.asarray(step) > 0, schedule(step), 0.0)
    )
    before = jax.device_get(state.network.params)
    rows = Examples(*(workers.to_devices(x) for x in images_of_step(config, 0)))
    for step, rate in enumerate([0, 0.011, 0.012, 0.013]):
        state, metrics = train_step(state, rows)
        np.testing.assert_allclose(metrics.learning_rate, rate, rtol=1e-6)
        if step == 0:
            after = jax.device_get(state.network.params)
            jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize(("accumulation_steps", "passes"), [(1, 1), (4, 1), (1, 4), (2, 2)])
def test_predictions_are_in_the_order_of_the_images(accumulation_steps: int, passes: int):
    config = small_config(accumulation_steps=accumulation_steps)
    workers = make_workers(config, jax.devices()[:2])
    workers = dataclasses.replace(workers, passes=passes)
    _, state = make(config, workers)
    evaluate = make_evaluation_step(config.experiment, NUM_CLASSES, workers)
    rows = images_of_step(config, 0)
    network = jax.device_get(state.network)
    params = network.params
    # A random head, so that predictions differ between images.
    kernel = np.random.default_rng(3).normal(size=params["head"]["kernel"].shape)
    params["head"]["kernel"] = kernel.astype(np.float32)
    predictions = evaluate(network, Examples(*map(workers.to_devices, rows)))
    labels, classes, losses, _ = jax.device_get(predictions)
    assert classes.shape == (accumulation_steps, K * N // accumulation_steps, 5)
    np.testing.assert_array_equal(labels.reshape(-1), rows.labels)

    one = small_config(num_workers=1)
    alone = make_workers(one, jax.devices()[:1])
    evaluate_alone = make_evaluation_step(one.experiment, NUM_CLASSES, alone)
    for first in range(0, K * N, N):
        part = Examples(*(alone.to_devices(x[first : first + N]) for x in rows))
        expected = evaluate_alone(network, part)
        here = slice(first, first + N)
        np.testing.assert_array_equal(classes.reshape(-1, 5)[here], expected.classes[0])
        np.testing.assert_allclose(losses.reshape(-1)[here], expected.losses[0], rtol=1e-5)
    assert len(np.unique(classes[..., 0])) > 1


def test_network_with_non_finite_logits_predicts_no_class():
    config = small_config()
    workers = make_workers(config)
    _, state = make(config, workers)
    network = jax.device_get(state.network)
    network.params["head"]["bias"] = np.full(NUM_CLASSES, np.nan, np.float32)
    rows = Examples(*map(workers.to_devices, images_of_step(config, 0)))
    evaluate = make_evaluation_step(config.experiment, NUM_CLASSES, workers)
    predictions = evaluate(network, rows)
    assert (np.asarray(predictions.classes) == NO_CLASS).all()
    assert np.isnan(predictions.losses).all()


def test_accumulation_makes_one_update_per_step():
    config = small_config(accumulation_steps=2)
    state, metrics = run_steps(config, make_workers(config, jax.devices()[:4]), 3)
    counts = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "count" in jax.tree_util.keystr(path)
    ]
    assert counts
    assert all(count == 3 for count in counts)
    assert len(metrics) == state.step == 3


def test_gradient_of_unequal_workers_matches_one_loss_over_all_images():
    """Section 3, remark 3.

    The workers see the same images, so that normalizing them together changes nothing, but
    different labels: their losses differ, and none of their gradients is a multiple of another.
    """
    rows = images_of_step(small_config(), 0)
    rows = rows._replace(images=np.tile(rows.images[:N], (K, 1, 1, 1)))
    ends: list[TrainState] = []
    for num_workers, n in ((K, N), (1, K * N)):
        config = small_config(num_workers=num_workers, batch_size_per_worker=n)
        workers = make_workers(config, jax.devices()[:1])
        train_step, state = make(config, workers)
        for _ in range(2):
            state, _ = train_step(state, Examples(*map(workers.to_devices, rows)))
        ends.append(state)
    assert relative_difference(*ends) < 1e-5


def test_training_error_matches_the_minibatch():
    config = small_config()
    workers = make_workers(config)
    train_step, state = make(config, workers)
    rows = images_of_step(config, 0)
    network = jax.device_get(state.network)
    head = network.params["head"]
    head["kernel"] = np.zeros_like(head["kernel"])
    head["bias"] = np.arange(NUM_CLASSES, dtype=np.float32)
    state = dataclasses.replace(state, network=jax.device_put(network, workers.replicated))
    _, metrics = train_step(state, Examples(*(workers.to_devices(x) for x in rows)))
    np.testing.assert_allclose(metrics.top1_error, np.mean(rows.labels != 9), rtol=1e-6)
    nll = np.log(np.exp(np.arange(10.0)).sum()) - rows.labels
    np.testing.assert_allclose(metrics.loss, nll.mean(), rtol=1e-5)


def test_abstract_minibatch_matches_a_real_minibatch():
    """`abstract_minibatch` has the shapes, dtypes and shardings of a real minibatch."""
    config = small_config(accumulation_steps=2)
    workers = make_workers(config, jax.devices()[:4])
    real = Examples(*(workers.to_devices(x) for x in images_of_step(config, 0)))
    for abstract, array in zip(abstract_minibatch(config.experiment, workers), real, strict=True):
        assert (abstract.shape, abstract.dtype) == (array.shape, array.dtype)
        assert abstract.sharding == array.sharding


def test_step_transfers_nothing_between_host_and_device():
    config = small_config()
    workers = make_workers(config)
    train_step, state = make(config, workers)
    minibatch = Examples(*(workers.to_devices(x) for x in images_of_step(config, 0)))
    on_host = jax.device_get(minibatch)
    with jax.transfer_guard("disallow"):
        state, _ = train_step(state, minibatch)
        state, metrics = train_step(state, minibatch)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            train_step(state, on_host)
    assert jnp.isfinite(metrics.loss)
