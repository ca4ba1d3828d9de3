"""Residual networks with batch normalization per worker (paper, sections 2.3 and 5.1).

Shapes: B images, H rows, W columns, C channels; n images per worker (`group_size`). The network
knows neither mesh nor optimizer.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from train.model.convolution import convolve, max_pool

BN_MOMENTUM = 0.9  # for running averages (paper, section 5.1)
BN_EPSILON = 1e-5

# He et al. (2015) in fan-out mode, as in the ResNets that the paper builds on.
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
head_normal = nnx.initializers.normal(0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a ResNet."""

    blocks: tuple[int, ...]
    """Number of residual blocks in each stage."""
    bottleneck: bool
    """Use blocks of 1x1, 3x3 and 1x1 convolutions instead of two 3x3 ones."""
    width: int = 64
    """Number of channels of the first stage; each later stage doubles it."""
    small_stem: bool = False
    """Use a 3x3 convolution of stride 1 instead of a 7x7 one of stride 2 and pooling."""


ARCHITECTURES = {
    "resnet8": Architecture(blocks=(1, 1, 1), bottleneck=False, width=16, small_stem=True),
    "resnet18": Architecture(blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": Architecture(blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture(blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture(blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture(blocks=(3, 8, 36, 3), bottleneck=True),
}


class WorkerBatchNorm(nnx.Module):
    """Batch normalization that normalizes each group of n images separately.

    In training, each group uses its own statistics, and the running averages take the mean over
    all groups. Statistics and arithmetic are float32; the variance is never negative.

    Args:
        num_channels: number of channels C.
        group_size: number of images n of one worker.
        zero_scale: initialize γ to 0 instead of 1.
    """

    def __init__(self, num_channels: int, group_size: int, *, zero_scale: bool = False) -> None:
        self.group_size = group_size
        initial_scale = jnp.zeros if zero_scale else jnp.ones
        self.scale = nnx.Param(initial_scale((num_channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_channels,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((num_channels,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_channels,), jnp.float32))

    def __call__(self, x_bhwc: jax.Array, *, train: bool) -> jax.Array:
        """Normalize (B, H, W, C); in training, B must be a multiple of n."""
        c = x_bhwc.shape[-1]
        if not train:
            mean, var = self.mean[...].reshape(1, 1, 1, c), self.var[...].reshape(1, 1, 1, c)
            return _normalize(x_bhwc, mean, var, self)
        x_gnhwc = x_bhwc.reshape(-1, self.group_size, *x_bhwc.shape[1:])
        x32 = x_gnhwc.astype(jnp.float32)
        mean = x32.mean((1, 2, 3), keepdims=True)
        # E[x²] - E[x]² takes one pass over the data, but rounding can make it negative.
        var = jnp.maximum(jnp.square(x32).mean((1, 2, 3), keepdims=True) - jnp.square(mean), 0)
        for running, batch in ((self.mean, mean), (self.var, var)):
            running[...] = BN_MOMENTUM * running[...] + (1 - BN_MOMENTUM) * batch.reshape(
                -1, c
            ).mean(0)
        return _normalize(x_gnhwc, mean, var, self).reshape(x_bhwc.shape)


def _normalize(x: jax.Array, mean: jax.Array, var: jax.Array, bn: WorkerBatchNorm) -> jax.Array:
    ones = (1,) * (x.ndim - 1)
    scale = jax.lax.rsqrt(var + BN_EPSILON) * bn.scale[...].reshape(*ones, -1)
    # One multiplication and one addition per value; the backward pass then stores only x.
    offset = bn.bias[...].reshape(*ones, -1) - mean * scale
    return (x.astype(jnp.float32) * scale + offset).astype(x.dtype)


class ConvBN(nnx.Module):
    """A convolution without bias, padded for odd kernels, then batch normalization."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        *,
        group_size: int,
        zero_scale: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            kernel_init=he_normal,
            dtype=dtype,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.bn = WorkerBatchNorm(out_channels, group_size, zero_scale=zero_scale)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Convolve and normalize (B, H, W, C)."""
        return self.bn(self.conv(x), train=train)


class Block(nnx.Module):
    """A residual block; γ of its last batch normalization starts at 0 (paper, section 5.1).

    So a new block is the identity. A bottleneck has its stride on the 3x3 convolution.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, bottleneck: bool,
        make: Callable[..., ConvBN],
    ) -> None:  # fmt: skip
        out_channels = 4 * channels if bottleneck else channels
        if bottleneck:
            layers = [
                make(in_channels, channels, 1, 1),
                make(channels, channels, 3, stride),
                make(channels, out_channels, 1, 1, zero_scale=True),
            ]
        else:
            layers = [
                make(in_channels, channels, 3, stride),
                make(channels, out_channels, 3, 1, zero_scale=True),
            ]
        self.layers = nnx.List(layers)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = make(in_channels, out_channels, 1, stride) if changes_shape else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Add the layers' output for (B, H, W, C) to the input or its projection."""
        shortcut = x if self.shortcut is None else self.shortcut(x, train=train)
        *inner, last = self.layers
        for layer in inner:
            x = nnx.relu(layer(x, train=train))
        return nnx.relu(last(x, train=train) + shortcut)


class ResNet(nnx.Module):
    """A residual network (He et al. 2016), initialized as in section 5.1 of the paper.

    Args:
        architecture: one of `ARCHITECTURES`.
        num_classes: number of classes.
        num_input_channels: 3 for RGB, 1 for grayscale.
        group_size: number of images n that batch normalization normalizes together.
        dtype: compute dtype; parameters, statistics and logits are float32.
        rngs: random generators for the initial parameters.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        num_classes: int,
        num_input_channels: int,
        group_size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        make = functools.partial(ConvBN, group_size=group_size, dtype=dtype, rngs=rngs)

        self.small_stem = architecture.small_stem
        kernel, stride = (3, 1) if self.small_stem else (7, 2)
        channels = architecture.width
        self.stem = make(num_input_channels, channels, kernel, stride)
        blocks: list[Block] = []
        in_channels = channels
        for stage, num_blocks in enumerate(architecture.blocks):
            channels = architecture.width * 2**stage
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(in_channels, channels, stride, architecture.bottleneck, make))
                in_channels = 4 * channels if architecture.bottleneck else channels
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            in_channels, num_classes, kernel_init=head_normal, dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, x_bhwc: jax.Array, *, train: bool) -> jax.Array:
        """Compute float32 logits (B, classes) of normalized images (B, H, W, C)."""
        x = nnx.relu(self.stem(x_bhwc, train=train))
        if not self.small_stem:
            x = max_pool(x)
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(x.astype(jnp.float32).mean((1, 2)))
