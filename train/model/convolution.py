"""Convolution and pooling in the form that the platform is fast at.

On CPUs XLA computes a matrix product in half the time of the 1x1 convolution that it is, with its
gradients, and a chain of comparisons in a fifth of the time of a pooling's window reduction, with
its gradient. Other platforms get XLA's own operations, which it fuses better there.

Shapes: B images, H rows, W columns, C channels, O output channels.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def convolve(
    x_bhwc: jax.Array,
    kernel_hwco: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolve as `jax.lax.conv_general_dilated`, whose place this takes in `nnx.Conv`.

    Args:
        x_bhwc: images.
        kernel_hwco: of any size; 1x1 kernels are the ones with another form.
        strides: along H and W.
        padding: before and after, along H and W; none around a 1x1 kernel.
        options: as `nnx.Conv` passes them where neither dilated nor grouped.
    """
    convolution = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    if kernel_hwco.shape[:2] != (1, 1):
        return convolution(x_bhwc, kernel_hwco)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x[:, :: strides[0], :: strides[1]]
        # Two axes, because gradients of products with more are transposed by way of copies.
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x_bhwc, kernel_hwco, cpu=product, default=convolution)


def max_pool(x_bhwc: jax.Array) -> jax.Array:
    """Take the largest of 3x3 pixels around every second one, of values that are not negative.

    Where several are largest, the first has the gradient, in rows from the top.
    """
    border = ((0, 0), (1, 1), (1, 1), (0, 0))

    def reduction(x: jax.Array) -> jax.Array:
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, border)

    def comparisons(x: jax.Array) -> jax.Array:
        _, h, w, _ = x.shape
        x = jnp.pad(x, border)  # with a value as low as any
        pixels = (
            x[:, top : h + top : 2, left : w + left : 2]
            for top, left in itertools.product(range(3), repeat=2)
        )
        return functools.reduce(lambda a, b: jnp.where(a >= b, a, b), pixels)

    return jax.lax.platform_dependent(x_bhwc, cpu=comparisons, default=reduction)
