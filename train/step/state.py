"""What a run carries from step to step, and how it starts."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train.config import Experiment
from train.errors import UsageError
from train.step.network import Network, Tree, make_network
from train.step.noise_scale import NoiseScale, no_estimate
from train.step.workers import Workers

# Compiler options by platform. The initial state is computed once, and on CPUs LLVM's optimization
# of its random numbers takes longer than everything else that a run compiles.
COMPILER_OPTIONS: dict[str, Any] = {"cpu": {"xla_backend_optimization_level": 1}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a checkpoint holds; trees of arrays."""

    step: jax.Array
    """Number of completed updates, int32."""
    network: Network
    opt_state: optax.OptState
    noise_scale: NoiseScale | None = None
    """Moving averages for the gradient noise scale; None if it is not requested."""


def initial_state(
    experiment: Experiment,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    workers: Workers,
) -> TrainState:
    """The state before the first step, computed on all devices at once."""
    platform = workers.mesh.devices.flat[0].platform
    create = jax.jit(
        _creation(experiment, num_classes, optimizer), out_shardings=workers.replicated
    )
    return create.lower().compile(compiler_options=COMPILER_OPTIONS.get(platform))()


def _creation(
    experiment: Experiment, num_classes: int, optimizer: optax.GradientTransformation
) -> Callable[[], TrainState]:
    """The function that computes the state before the first step."""

    def create() -> TrainState:
        model = make_network(experiment, num_classes)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            network=Network(params=params, batch_stats=batch_stats),
            opt_state=optimizer.init(params),
            noise_scale=no_estimate() if experiment.noise_scale else None,
        )

    return create


def abstract_state(
    experiment: Experiment,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    workers: Workers,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is computed or allocated."""
    shapes = jax.eval_shape(_creation(experiment, num_classes, optimizer))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=workers.replicated), shapes
    )


def transplant(network: Network, into: TrainState) -> TrainState:
    """Put a trained network into a fresh state.

    The head stays fresh if the number of classes differs.

    Args:
        network: the trained network.
        into: the initial state of the new run.

    Raises:
        UsageError: if any other array does not fit. The message names it and both shapes.
    """

    def graft(fresh: Tree, trained: Tree) -> Tree:
        by_name = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trained)}
        names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh)}
        if names != by_name.keys():
            odd = ", ".join(sorted(names ^ by_name.keys())[:3])
            raise UsageError(f"--init-from holds another network: only one of the two has {odd}")

        def choose(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
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
        network=Network(
            params=graft(into.network.params, network.params),
            batch_stats=graft(into.network.batch_stats, network.batch_stats),
        ),
    )


def _name(path: jax.tree_util.KeyPath) -> str:
    return "/".join(str(entry.key) for entry in path)


def params_digest(params: Tree) -> str:
    """SHA-256 of the parameters' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(jax.device_get(value).tobytes())
    return digest.hexdigest()
