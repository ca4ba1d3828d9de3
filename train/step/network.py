"""The network as arrays: its parameters and batch statistics, and the function that applies them.

Shapes: B images, S the side of the input, C channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.config import Experiment
from train.model.resnet import ARCHITECTURES, ResNet

Tree = Any
"""Nested dictionaries with arrays as leaves."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Parameters and running averages of a network; trees of float32 arrays keyed by name."""

    params: Tree
    batch_stats: Tree
    """Running averages of batch normalization."""


Forward = Callable[..., tuple[jax.Array, Tree]]
"""(Network, images, *, train: bool) -> logits (B, classes) and new batch statistics."""


def make_network(experiment: Experiment, num_classes: int) -> ResNet:
    """The network with its initial parameters, a function of the seed alone."""
    return ResNet(
        ARCHITECTURES[experiment.model],
        num_classes=num_classes,
        num_input_channels=experiment.num_channels,
        group_size=experiment.batch_size_per_worker,
        dtype=jnp.dtype(experiment.dtype),
        rngs=nnx.Rngs(experiment.seed),
    )


def make_forward(experiment: Experiment, num_classes: int) -> Forward:
    """The forward pass as a pure function of the network's arrays and uint8 images (B, S, S, C)."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_network(experiment, num_classes)))

    def forward(network: Network, images: jax.Array, *, train: bool) -> tuple[jax.Array, Tree]:
        model = nnx.merge(graph, network.params, network.batch_stats)
        dtype = jnp.dtype(experiment.dtype)
        x = normalize(images, experiment.mean, experiment.std, dtype)
        logits = model(x, train=train and not experiment.freeze_batch_stats)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    return forward


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """Subtract the mean of each color and divide by its standard deviation.

    Args:
        images: uint8 (..., C).
        mean: mean of each color on a scale from 0 to 1.
        std: standard deviation of each color on a scale from 0 to 1.
        dtype: dtype of the result; the arithmetic is float32.
    """
    mean_c = np.asarray(mean, np.float32) * np.float32(255)
    scale_c = np.float32(1) / (np.asarray(std, np.float32) * np.float32(255))
    shape = (1,) * (images.ndim - 1) + (len(mean),)
    centered = images.astype(jnp.float32) - mean_c.reshape(shape)
    return (centered * scale_c.reshape(shape)).astype(dtype)
