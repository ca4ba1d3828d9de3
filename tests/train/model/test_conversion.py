"""Round trips between this trainer's ResNets and those of transformers, in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.networks import random_network, trees_of
from train.errors import UsageError
from train.model.conversion import from_torchvision, to_torchvision
from train.model.resnet import ARCHITECTURES, ResNet

MODELS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
NUM_CLASSES = 7


def network(model: str, num_channels: int = 3) -> ResNet:
    """A network with random parameters and running averages that are not the initial ones."""
    made = random_network(model, num_classes=NUM_CLASSES, num_channels=num_channels, group_size=2)
    rng = np.random.default_rng(1)
    graph, params, batch_stats = nnx.split(made, nnx.Param, nnx.BatchStat)

    def vary(leaf: jax.Array) -> jax.Array:
        if leaf.ndim > 1:
            return leaf
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)

    return nnx.merge(graph, jax.tree.map(vary, params), jax.tree.map(vary, batch_stats))


def logits_of(made: ResNet, images: np.ndarray) -> np.ndarray:
    return np.asarray(nnx.jit(lambda m, x: m(x, train=False))(made, jnp.asarray(images)))


def images(num_channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.normal(size=(2, 64, 64, num_channels)).astype(np.float32)


def of_transformers(model: str) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    architecture = ARCHITECTURES[model]
    expansion = 4 if architecture.bottleneck else 1
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64 * 2**stage * expansion for stage in range(4)],
        depths=list(architecture.blocks),
        layer_type="bottleneck" if architecture.bottleneck else "basic",
        num_labels=NUM_CLASSES,
    )
    return transformers.ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("model", MODELS)
def test_an_exported_network_has_the_same_logits_in_pytorch(model: str):
    torch: Any = pytest.importorskip("torch")
    from train.model.conversion import torchvision_name

    theirs, ours = of_transformers(model), network(model)
    tensors = to_torchvision(*trees_of(ours), model, num_updates=3)
    state = {name: torch.tensor(tensors[torchvision_name(name)]) for name in theirs.state_dict()}
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        got = theirs(torch.tensor(images().transpose(0, 3, 1, 2))).logits.numpy()
    expected = logits_of(ours, images())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("model", MODELS)
def test_a_network_of_pytorch_has_the_same_logits_here(model: str):
    torch: Any = pytest.importorskip("torch")
    theirs = of_transformers(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in theirs.state_dict().items():
        if "normalization" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
    with torch.no_grad():
        expected = theirs(torch.tensor(images().transpose(0, 3, 1, 2))).logits.numpy()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    recognized, params, batch_stats = from_torchvision(tensors)
    assert recognized == model
    ours = network(model)
    nnx.update(ours, params)
    nnx.update(ours, batch_stats)
    got = logits_of(ours, images())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "num_channels"), [("resnet8", 1), ("resnet18", 3), ("resnet50", 1)]
)
def test_conversion_there_and_back_keeps_every_bit(model: str, num_channels: int):
    before = trees_of(network(model, num_channels))
    tensors = to_torchvision(*before, model, num_updates=12)
    assert tensors["bn1.num_batches_tracked"] == 12
    recognized, *after = from_torchvision(tensors)
    assert recognized == model
    jax.tree.map(np.testing.assert_array_equal, tuple(after), before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_ignored(prefix: str):
    tensors = to_torchvision(*trees_of(network("resnet18")), "resnet18", num_updates=1)
    recognized, params, _ = from_torchvision({prefix + k: v for k, v in tensors.items()})
    assert recognized == "resnet18"
    np.testing.assert_array_equal(params["head"]["bias"], tensors["fc.bias"])


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    tensors = to_torchvision(*trees_of(network("resnet18")), "resnet18", num_updates=1)
    for name, array in changes.items():
        tensors.pop(name, None)
        if array is not None:
            tensors[name] = array
    return tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1.weight": None, "conv1.0.weight": np.zeros(1)}, "a deep stem"),
        ({"layer2.0.downsample.2.weight": np.zeros(1)}, "average pooling in its shortcuts"),
        ({"layer1.0.se.fc1.weight": np.zeros(1)}, "squeeze-and-excitation"),
        ({"fc.weight": None}, "no array fc.weight, so it is not a ResNet"),
        ({"layer3.1.bn2.bias": None}, "lacks the array layer3.1.bn2.bias of a resnet18"),
        (
            {"layer3.1.extra": np.zeros(1)},
            "an array layer3.1.extra, which a resnet18 does not have",
        ),
        ({"conv1.weight": np.zeros((64, 3, 5, 5))}, r"conv1.weight has the shape \(64, 3, 5, 5\)"),
        ({"conv1.weight": np.zeros((32, 3, 7, 7))}, "7x7, 32 channels wide"),
        (
            {"layer2.0.conv2.weight": np.zeros((128, 4, 3, 3))},
            r"layer2.0.conv2.weight has the shape \(128, 4, 3, 3\); in a resnet18 it has "
            r"\(128, 128, 3, 3\)",
        ),
        ({"bn1.bias": np.zeros((64, 1))}, r"bn1.bias has the shape \(64, 1\)"),
        ({"fc.bias": np.zeros(())}, "fc.bias has 0 axes; it must have 1"),
        ({"conv1.weight": np.zeros(3)}, "conv1.weight has 1 axes; it must have 4"),
    ],
)
def test_another_network_is_named(changes: dict[str, np.ndarray | None], words: str):
    with pytest.raises(UsageError, match=words):
        from_torchvision(changed(**changes))
