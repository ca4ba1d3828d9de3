"""Networks with random parameters, for tests of files that hold them."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from train.model.conversion import Tensors, to_torchvision
from train.model.resnet import ARCHITECTURES, ResNet


def random_network(
    model: str, *, num_classes: int, num_channels: int = 3, group_size: int = 1
) -> ResNet:
    """A network as it is initialized."""
    return ResNet(
        ARCHITECTURES[model],
        num_classes=num_classes,
        num_input_channels=num_channels,
        group_size=group_size,
        dtype=jnp.dtype(jnp.float32),
        rngs=nnx.Rngs(0),
    )


def trees_of(network: ResNet) -> tuple[Any, Any]:
    """Its parameters and its running averages."""
    params, batch_stats = nnx.state(network, nnx.Param), nnx.state(network, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def tensors_of(network: ResNet, model: str, num_updates: int = 1) -> Tensors:
    """Its arrays under torchvision's names."""
    return to_torchvision(*trees_of(network), model, num_updates)
