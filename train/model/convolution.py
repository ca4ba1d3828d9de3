"""Convolution and pooling, in the form that is fastest on the platform.

On CPUs, XLA computes a matrix product in half the time of the equivalent 1x1 convolution, and a
chain of comparisons in a fifth of the time of a window reduction for pooling, each including its
gradients. Some 3x3 convolutions are faster as matrix products too; `form_on_cpu` chooses by shape,
and `python -m benchmarks.convolution` measures the alternatives. The others are XLA's convolution
with gradients that are fast inside loops. Other platforms use XLA's own operations, which fuse
better there.

Shapes: B images, H rows, W columns, C channels, O output channels.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

WHOLE_IMAGE_SIDE = 2  # pixels; larger images waste more arithmetic on zeros than patches copy
PATCHES_SIDE = 4  # pixels, at stride 1
PATCHES_CHANNELS = 4


def convolve(
    x_bhwc: jax.Array,
    kernel_hwco: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolve; a drop-in replacement for `jax.lax.conv_general_dilated`, for `nnx.Conv`.

    Args:
        x_bhwc: images.
        kernel_hwco: kernel of any size; only 1x1 and 3x3 kernels become matrix products.
        strides: strides along H and W.
        padding: padding before and after, along H and W; zero for a 1x1 kernel.
        options: other arguments that `nnx.Conv` passes, without dilation or feature groups.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    stride = strides[0]
    same = all(s == stride for s in strides)
    centered = all(
        tuple(p) == (n // 2, n // 2) for p, n in zip(padding, kernel_hwco.shape, strict=False)
    )
    if not (same and centered):
        return plain(x_bhwc, kernel_hwco)
    form = FORMS[form_on_cpu(x_bhwc.shape, kernel_hwco.shape, stride)]

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return form(x, kernel, stride)

    return jax.lax.platform_dependent(x_bhwc, kernel_hwco, cpu=on_cpu, default=plain)


def form_on_cpu(image: Sequence[int], kernel: Sequence[int], stride: int) -> str:
    """Name the form in `FORMS` of a convolution on CPUs.

    Measured on two cores, forward and backward (benchmarks/README.md). XLA's own convolution is
    slow if the window is larger than the image, and its gradients are slow for stride 2.

    Args:
        image: shape (B, H, W, C) of the images.
        kernel: shape (height, width, C, O) of the kernel, which is padded by half its size.
        stride: stride along H and W.
    """
    _, height, width, channels = image
    if tuple(kernel[:2]) == (1, 1):
        return "product"
    if tuple(kernel[:2]) != (3, 3):
        return "convolution"
    if max(height, width) <= WHOLE_IMAGE_SIDE:
        return "whole image"
    if stride == 2 or max(height, width) <= PATCHES_SIDE or channels <= PATCHES_CHANNELS:
        return "patches"
    return "convolution"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x_bhwc: jax.Array, kernel_hwco: jax.Array, stride: int) -> jax.Array:
    """XLA's convolution with padding by half the kernel, and gradients that are fast inside loops.

    For its fast convolutions, XLA needs images (B, H, W, C) and kernels (H, W, C, O). It transposes
    other layouts, which gradients have by default, but only outside loops. Inside one, a step took
    16 times as long. Here the gradients are transposed in JAX.
    """
    return _convolve(x_bhwc, kernel_hwco, [(n // 2, n // 2) for n in kernel_hwco.shape[:2]], stride)


def _convolve(
    x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]], stride: int = 1, **dilation
) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=layout, **dilation
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    return convolution(x, kernel, stride), (x, kernel)


def _gradients(stride: int, arguments: Any, error: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = arguments
    padding_of_error: list[tuple[int, int]] = []
    padding_of_x: list[tuple[int, int]] = []
    for axis in (1, 2):
        size, before = kernel.shape[axis - 1], kernel.shape[axis - 1] // 2
        # Rows or columns after the center of the last window.
        missing = x.shape[axis] - ((error.shape[axis] - 1) * stride + 1)
        padding_of_error.append((size - 1 - before, before + missing))
        padding_of_x.append((before, size - 1 - before - missing))
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dilation = (stride, stride)
    of_x = _convolve(error, flipped, padding_of_error, lhs_dilation=dilation)
    # The channels of x act as images, and the B images as channels.
    of_kernel = _convolve(
        x.transpose(3, 1, 2, 0), error.transpose(1, 2, 0, 3), padding_of_x, rhs_dilation=dilation
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


convolution.defvjp(_forward, _gradients)


def product(x_bhwc: jax.Array, kernel_hwco: jax.Array, stride: int) -> jax.Array:
    """1x1 convolution as one matrix product."""
    x = x_bhwc[:, ::stride, ::stride]
    # Two axes, because the gradients of products with more need transposed copies.
    return (x.reshape(-1, x.shape[-1]) @ kernel_hwco[0, 0]).reshape(*x.shape[:-1], -1)


def patches(x_bhwc: jax.Array, kernel_hwco: jax.Array, stride: int) -> jax.Array:
    """3x3 convolution as one matrix product of the 3x3 patch around each output pixel."""
    _, h, w, c = x_bhwc.shape
    x = jnp.pad(x_bhwc, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pixels = [
        x[:, top : h + top : stride, left : w + left : stride]
        for top, left in itertools.product(range(3), repeat=2)
    ]
    patch = jnp.concatenate(pixels, axis=-1)
    y = patch.reshape(-1, 9 * c) @ kernel_hwco.reshape(9 * c, -1)
    return y.reshape(*patch.shape[:-1], -1)


def whole_image(x_bhwc: jax.Array, kernel_hwco: jax.Array, stride: int) -> jax.Array:
    """3x3 convolution as one matrix product of whole images.

    The matrix has a block (C, O) for each pair of an input and an output pixel: the kernel's value
    at their offset, or zero if they are not neighbors.
    """
    b, h, w, c = x_bhwc.shape
    columns = _toeplitz(kernel_hwco, 1, w, stride)  # (3, w, output columns, C, O)
    rows = _toeplitz(columns, 0, h, stride)  # (h, output rows, w, output columns, C, O)
    _, out_h, _, out_w, _, o = rows.shape
    matrix = rows.transpose(0, 2, 4, 1, 3, 5).reshape(h * w * c, out_h * out_w * o)
    return (x_bhwc.reshape(b, -1) @ matrix).reshape(b, out_h, out_w, o)


def _toeplitz(kernel: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    """Replace an axis of 3 offsets by two axes: `size` input and the output positions."""
    border = [(0, 0)] * kernel.ndim
    border[axis] = (size, size)
    padded = jnp.pad(kernel, border)
    return jnp.stack(
        [
            # Output position p covers the input positions p - 1, p and p + 1.
            jax.lax.slice_in_dim(padded, size + 1 - p, 2 * size + 1 - p, axis=axis)
            for p in range(0, size, stride)
        ],
        axis=axis + 1,
    )


FORMS = {
    "convolution": convolution,
    "product": product,
    "patches": patches,
    "whole image": whole_image,
}


def max_pool(x_bhwc: jax.Array) -> jax.Array:
    """Pool nonnegative values to the maximum of 3x3 windows, with stride 2.

    Among equal maxima, the first in row-major order gets the gradient.
    """
    border = ((0, 0), (1, 1), (1, 1), (0, 0))

    def reduction(x: jax.Array) -> jax.Array:
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, border)

    def comparisons(x: jax.Array) -> jax.Array:
        _, h, w, _ = x.shape
        x = jnp.pad(x, border)  # no value is below zero
        pixels = (
            x[:, top : h + top : 2, left : w + left : 2]
            for top, left in itertools.product(range(3), repeat=2)
        )
        return functools.reduce(lambda a, b: jnp.where(a >= b, a, b), pixels)

    return jax.lax.platform_dependent(x_bhwc, cpu=comparisons, default=reduction)
