"""The optimizers, compared with their papers' equations in NumPy."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_warmup import current_learning_rate, piecewise_values
from train.model.resnet import ARCHITECTURES, ResNet, WorkerBatchNorm
from train.step.optimizer import decay_mask, make_optimizer

Name = Literal["sgd", "lars", "lamb"]
Arrays = dict[str, np.ndarray]

RATES = [0.1, 0.4, 0.2]  # up as in a warmup, then down as at a milestone
MOMENTUM, DECAY = 0.9, 1e-4  # section 5.1

# Large weights and small gradients, so that the decay is not lost in rounding.
SHAPES = {"conv/kernel": (3, 3, 2, 4), "bn/scale": (4,), "bn/bias": (4,), "head/bias": (5,)}
DECAYED = {"conv/kernel", "head/bias"}


def arrays(seed: int, scale: float) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()}


def as_tree(flat: Arrays) -> dict[str, dict[str, jax.Array]]:
    tree: dict[str, dict[str, jax.Array]] = {}
    for path, value in flat.items():
        layer, name = path.split("/")
        tree.setdefault(layer, {})[name] = jnp.asarray(value, jnp.float32)
    return tree


def as_flat(tree: Any) -> Arrays:
    return {f"{a}/{b}": np.asarray(x) for a, layer in tree.items() for b, x in layer.items()}


def three_updates(name: Name) -> tuple[list[Arrays], list[float]]:
    """Updates of three steps, and the learning rates that the state records."""
    optimizer = make_optimizer(piecewise_values(RATES, [1, 2]), name)
    params: Any = as_tree(arrays(0, scale=10))
    state = optimizer.init(params)
    moves: list[Arrays] = []
    rates: list[float] = []
    # Adam's bias correction in optax raises a float to an integer power.
    with jax.numpy_dtype_promotion("standard" if name == "lamb" else "strict"):
        for step in range(3):
            gradients = as_tree(arrays(1 + step, scale=0.01))
            updates, state = jax.jit(optimizer.update)(gradients, state, params)
            params = optax.apply_updates(params, updates)
            moves.append(as_flat(updates))
            rates.append(float(current_learning_rate(state)))
    return moves, rates


def sgd(name: str, step: int, w: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
    """Equation 9, with Nesterov momentum and weight decay in the gradient."""
    if name in DECAYED:
        g = g + DECAY * w
    u = memory[name] = MOMENTUM * memory.get(name, 0) + g
    return -RATES[step] * (g + MOMENTUM * u)


def lars(name: str, step: int, w: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
    """You et al. 2017, algorithm 1, with trust coefficient 0.001 and Nesterov momentum."""
    local_rate = 1.0
    if name in DECAYED:
        g = g + DECAY * w
        local_rate = 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
    move = RATES[step] * local_rate * g
    v = memory[name] = MOMENTUM * memory.get(name, 0) + move
    return -(move + MOMENTUM * v)


def lamb(name: str, step: int, w: np.ndarray, g: np.ndarray, memory: dict[str, Any]) -> np.ndarray:
    """You et al. 2019, algorithm 2, with β = 0.9 and 0.999."""
    m, v = memory.get(name, (0, 0))
    m, v = memory[name] = (0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2)
    r = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-6)
    if name in DECAYED:
        r = r + DECAY * w
    return -RATES[step] * np.linalg.norm(w) / np.linalg.norm(r) * r


@pytest.mark.parametrize(("name", "equation"), [("sgd", sgd), ("lars", lars), ("lamb", lamb)])
def test_three_updates_match_the_equations(name: Name, equation: Callable[..., np.ndarray]):
    moves, _ = three_updates(name)
    weights, memory = arrays(0, scale=10), {}
    for step, found in enumerate(moves):
        gradients = arrays(1 + step, scale=0.01)
        for path, w in weights.items():
            expected = equation(path, step, w, gradients[path], memory)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(found[path] / largest, expected / largest, atol=2e-6)
            weights[path] = w + expected


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb"])
def test_momentum_and_weight_decay_can_be_changed(name: Name):
    def second_update(**changes: Any) -> np.ndarray:
        optimizer = make_optimizer(optax.constant_schedule(0.1), name, **changes)
        params: Any = as_tree(arrays(0, scale=10))
        state, updates = optimizer.init(params), params
        with jax.numpy_dtype_promotion("standard" if name == "lamb" else "strict"):
            for seed in (1, 2):
                gradients = as_tree(arrays(seed, scale=0.01))
                updates, state = optimizer.update(gradients, state, params)
        return as_flat(updates)["conv/kernel"]

    default = second_update()
    assert np.array_equal(second_update(momentum=MOMENTUM, weight_decay=DECAY), default)
    assert not np.allclose(second_update(weight_decay=0.1), default, rtol=1e-3)
    # LAMB has no momentum to set.
    changes = not np.allclose(second_update(momentum=0.0), default, rtol=1e-3)
    assert changes == (name != "lamb")


@pytest.mark.parametrize("name", ["sgd", "lars", "lamb"])
def test_the_state_records_the_applied_learning_rate(name: Name):
    _, rates = three_updates(name)
    np.testing.assert_allclose(rates, RATES, rtol=1e-7)


@pytest.mark.parametrize("model", ["resnet8", "resnet18", "resnet50"])
def test_all_parameters_decay_except_scale_and_bias_of_batch_normalization(model: str):
    def make() -> ResNet:
        return ResNet(
            ARCHITECTURES[model],
            num_classes=10,
            num_input_channels=3,
            group_size=2,
            dtype=jnp.dtype(jnp.float32),
            rngs=nnx.Rngs(0),
        )

    network = nnx.eval_shape(make)
    of_batch_norms = {
        (*path, name)
        for path, module in nnx.iter_modules(network)
        if isinstance(module, WorkerBatchNorm)
        for name in ("scale", "bias")
    }
    # ResNet-50 has one in the stem, three in each of 16 blocks, and four on shortcuts.
    expected = {"resnet8": 1 + 2 * 3 + 2, "resnet18": 1 + 2 * 8 + 3, "resnet50": 1 + 3 * 16 + 4}
    assert len(of_batch_norms) == 2 * expected[model]

    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    not_decayed = {tuple(entry.key for entry in path) for path, decays in mask if not decays}
    assert not_decayed == of_batch_norms
    assert len(mask) > len(of_batch_norms)


def test_scaling_the_loss_differs_from_scaling_the_learning_rate():
    """Section 3, remark 1: weight decay is a separate term, which scaling the loss omits."""
    k, rate = 8, 0.05
    params: Any = as_tree(arrays(0, scale=10))
    gradients = as_tree(arrays(1, scale=0.01))

    def update(learning_rate: float, scale: float) -> Arrays:
        optimizer = make_optimizer(optax.constant_schedule(learning_rate))
        scaled = jax.tree.map(lambda g: g * jnp.float32(scale), gradients)
        return as_flat(optimizer.update(scaled, optimizer.init(params), params)[0])

    by_rate, by_loss = update(k * rate, 1), update(rate, k)
    for name, weights in arrays(0, scale=10).items():
        if name not in DECAYED:
            np.testing.assert_allclose(by_rate[name], by_loss[name], rtol=1e-5)
            continue
        # The first Nesterov update is 1 + 0.9 times the gradient. Scaling the rate, as the trainer
        # does, multiplies the decay by k; scaling the loss does not.
        missing = (k - 1) * rate * (1 + MOMENTUM) * DECAY * weights
        np.testing.assert_allclose(by_loss[name] - by_rate[name], missing, rtol=1e-2, atol=1e-6)
        assert np.linalg.norm(missing) > 0.01 * np.linalg.norm(by_rate[name])


def test_the_mask_of_decayed_parameters_can_be_replaced():
    params: Any = as_tree(arrays(0, scale=10))
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(
        optax.constant_schedule(1.0),
        mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim == 1, tree),
    )
    moves = as_flat(optimizer.update(zeros, optimizer.init(params), params)[0])
    assert {name for name, move in moves.items() if np.any(move)} == set(SHAPES) - {"conv/kernel"}
