"""What a run carries from step to step: parameters, statistics and the optimizer's state."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train.config import Config, UsageError
from train.model.resnet import ARCHITECTURES, ResNet
from train.step.noise_scale import NoiseScale, no_estimate
from train.step.workers import Workers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a checkpoint holds; trees of arrays."""

    step: jax.Array
    """Number of updates made, int32."""
    params: Any
    """Of the network, float32."""
    batch_stats: Any
    """Running averages of batch normalisation, float32."""
    opt_state: optax.OptState
    """Of the optimizer."""
    noise_scale: NoiseScale | None = None
    """Moving averages of its estimates; None where it is not asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a checkpoint says of a network alone; trees of arrays, with names as keys."""

    step: int
    """Number of updates made."""
    params: Any
    """Float32."""
    batch_stats: Any
    """Running averages of batch normalisation, float32."""


def make_network(config: Config, num_classes: int) -> ResNet:
    """Make the run's network with its initial parameters, a function of the seed alone."""
    return ResNet(
        ARCHITECTURES[config.model],
        num_classes=num_classes,
        num_input_channels=len(config.mean),
        group_size=config.batch_size_per_worker,
        dtype=jnp.dtype(config.dtype),
        rngs=nnx.Rngs(config.seed),
    )


def initial_state(
    config: Config, num_classes: int, optimizer: optax.GradientTransformation, workers: Workers
) -> TrainState:
    """Make the state before the first step, on all devices at once."""

    def make() -> TrainState:
        network = make_network(config, num_classes)
        params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=nnx.to_pure_dict(nnx.state(network, nnx.BatchStat)),
            opt_state=optimizer.init(params),
            noise_scale=no_estimate() if config.noise_scale else None,
        )

    return jax.jit(make, out_shardings=workers.replicated)()


def transplant(network: Network, into: TrainState) -> TrainState:
    """Start from a trained network: its parameters and running averages in a fresh state.

    The head stays fresh where it has another number of classes.

    Args:
        network: what was trained.
        into: the initial state of the run that goes on from it.

    Raises:
        UsageError: if any other array does not fit; it is named with both shapes.
    """

    def graft(fresh: Any, trained: Any) -> Any:
        by_name = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}
        names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh)}
        if names != by_name.keys():
            odd = ", ".join(sorted(names ^ by_name.keys())[:3])
            raise UsageError(f"--init-from holds another network: only one of the two has {odd}")

        def choose(path: Any, leaf: jax.Array) -> jax.Array:
            name = _name(path)
            found = by_name[name]
            if found.shape == leaf.shape:
                return found
            if name.startswith("head/"):
                return leaf
            raise UsageError(
                f"--init-from does not fit: {name} has the shape {found.shape} there and "
                f"{leaf.shape} here"
            )

        return jax.tree_util.tree_map_with_path(choose, fresh)

    return dataclasses.replace(
        into,
        params=graft(into.params, network.params),
        batch_stats=graft(into.batch_stats, network.batch_stats),
    )


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(entry.key) for entry in path)


def params_digest(params: Any) -> str:
    """SHA-256 of the parameters' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()
