"""Tests of the architectures, their initialization, and batch normalization per worker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.model.resnet import ARCHITECTURES, BN_EPSILON, Architecture, ResNet, WorkerBatchNorm


def network(name: str, *, dtype: str = "float32", num_classes: int = 1000, group_size: int = 2):
    architecture = ARCHITECTURES[name]
    return ResNet(
        architecture,
        num_classes=num_classes,
        num_input_channels=1 if architecture.small_stem else 3,
        group_size=group_size,
        dtype=jnp.dtype(dtype),
        rngs=nnx.Rngs(0),
    )


# Parameters including γ and β but not running statistics, for 1000 classes (He et al. 2016).
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_counts(name: str, count: int):
    params = nnx.state(nnx.eval_shape(lambda: network(name)), nnx.Param)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_logits_are_float32_for_any_compute_dtype(dtype: str):
    net = network("resnet8", dtype=dtype, num_classes=10)
    logits = net(jnp.ones((4, 8, 8, 1), jnp.dtype(dtype)), train=True)
    assert logits.shape == (4, 10)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net))} == {jnp.dtype("float32")}
    assert net.blocks[0].layers[0](jnp.ones((2, 4, 4, 16), jnp.dtype(dtype)), train=True).dtype == (
        jnp.dtype(dtype)
    )


def test_stages_halve_the_image_with_the_stride_on_the_3x3_convolution():
    net = network("resnet50")
    strides = [
        [(layer.conv.kernel_size[0], layer.conv.strides) for layer in block.layers]
        for block in net.blocks
    ]
    down = [index for index, block in enumerate(strides) if any(s != 1 for _, s in block)]
    assert down == [3, 7, 13]  # the first blocks of stages 2, 3 and 4
    for index in down:
        assert strides[index] == [(1, 1), (3, 2), (1, 1)]

    assert net.stem.conv.kernel_size == (7, 7)
    assert net.stem.conv.strides == 2


def test_initialization_follows_section_5_1():
    net = network("resnet18")
    kernel = net.blocks[2].layers[1].conv.kernel[...]  # 3x3, 128 to 128 channels
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    assert np.abs(kernel).max() > 4 * kernel.std()  # normal, not truncated
    np.testing.assert_allclose(net.head.kernel[...].std(), 0.01, rtol=0.02)
    assert net.head.bias is not None
    np.testing.assert_array_equal(net.head.bias[...], np.zeros(1000))


@pytest.mark.parametrize("bottleneck", [True, False])
def test_the_last_scale_of_each_block_starts_at_0_and_all_others_at_1(bottleneck: bool):
    architecture = Architecture(blocks=(2, 2), bottleneck=bottleneck, width=4)
    net = ResNet(
        architecture, num_classes=2, num_input_channels=1, group_size=2,
        dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0),
    )  # fmt: skip
    assert (net.stem.bn.scale[...] == 1).all()
    for block in net.blocks:
        *others, last = block.layers
        assert (last.bn.scale[...] == 0).all()
        others += [] if block.shortcut is None else [block.shortcut]
        assert all((layer.bn.scale[...] == 1).all() for layer in others)


def test_a_new_block_is_the_identity():
    block = network("resnet18").blocks[1]
    x = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 64)), jnp.float32)
    np.testing.assert_array_equal(block(x, train=True), x)


def reference_batch_norm(x: np.ndarray, n: int, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Batch normalization of each worker's n images by its definition, in float64."""
    out = np.empty(x.shape)
    for first in range(0, len(x), n):
        images = x[first : first + n].astype(np.float64)
        mean = images.mean((0, 1, 2))
        deviation = np.sqrt(images.var((0, 1, 2)) + BN_EPSILON)
        out[first : first + n] = (images - mean) / deviation * scale + bias
    return out


def test_each_worker_is_normalized_by_its_own_statistics():
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (12, 5, 3, 7)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 7)).astype(np.float32)
    bn = WorkerBatchNorm(7, 4)
    bn.scale[...], bn.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    y = bn(jnp.asarray(x), train=True)
    np.testing.assert_allclose(y, reference_batch_norm(x, 4, scale, bias), rtol=1e-4, atol=1e-5)
    whole = reference_batch_norm(x, 12, scale, bias)
    assert np.abs(y - whole).max() > 0.1  # statistics over the whole minibatch would differ


def test_running_averages_take_the_mean_over_workers():
    x = np.random.default_rng(0).normal(2.0, 3.0, (8, 5, 5, 3)).astype(np.float32)
    bn = WorkerBatchNorm(3, 4)
    bn(jnp.asarray(x), train=True)
    per_worker = x.astype(np.float64).reshape(2, -1, 3)
    np.testing.assert_allclose(bn.mean[...], 0.1 * per_worker.mean(1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(bn.var[...], 0.9 + 0.1 * per_worker.var(1).mean(0), rtol=1e-5)


def test_evaluation_uses_only_the_running_averages():
    bn = WorkerBatchNorm(2, 4)
    bn.mean[...], bn.var[...] = jnp.array([1.0, -1.0]), jnp.array([4.0, 0.25])
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)  # not a multiple of n
    y = bn(jnp.asarray(x), train=False)
    expected = (x - np.array([1.0, -1.0])) / np.sqrt(np.array([4.0, 0.25]) + BN_EPSILON)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(bn.mean[...], [1.0, -1.0])


def test_variance_is_never_negative():
    """The one-pass variance of large equal values cancels; without the clamp it yields NaN."""
    x = jnp.full((4, 32, 32, 8), 1234.567, jnp.float32) * jnp.linspace(1, 2, 8).reshape(1, 1, 1, 8)
    bn = WorkerBatchNorm(8, 4)
    y = bn(x, train=True)
    assert np.isfinite(y).all()
    assert (bn.var[...] >= 0.9).all()
