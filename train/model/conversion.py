"""Parameters of a ResNet under the names and in the layouts of torchvision.

timm uses the same names. Those of Hugging Face's `ResNetForImageClassification` are translated.

Shapes: a kernel is (H, W, C, O) here and (O, C, H, W) there; the weights of the head are
(C, classes) here and (classes, C) there.
"""

import itertools
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.errors import UsageError
from train.model.resnet import ARCHITECTURES, Architecture, ResNet

Tensors = dict[str, np.ndarray]
Tree = Any
"""Nested dictionaries with arrays as leaves."""

NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
HEAD = {"kernel": "fc.weight", "bias": "fc.bias"}
COUNTER = "num_batches_tracked"

PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")
"""What wrappers such as DistributedDataParallel and torch.compile put before each name."""

NUM_AXES = {"conv1.weight": 4, "layer1.0.conv1.weight": 4, "fc.weight": 2, "fc.bias": 1}
"""Number of axes of the arrays that tell a ResNet from other networks."""

UNSUPPORTED = {
    "conv1.0.weight": "a deep stem of several convolutions, as in ResNet-C and -D",
    "layer1.0.downsample.2.weight": "average pooling in its shortcuts, as in ResNet-D",
    "layer2.0.downsample.2.weight": "average pooling in its shortcuts, as in ResNet-D",
    "layer1.0.se.fc1.weight": "squeeze-and-excitation",
    "conv1.bias": "a stem with bias",
}
"""Arrays of other ResNets, and what they mean."""

HUGGING_FACE = {
    r"(?:resnet\.)?embedder\.embedder\.convolution\.": "conv1.",
    r"(?:resnet\.)?embedder\.embedder\.normalization\.": "bn1.",
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.": (
        "layer{0}.{1}.conv{2}."
    ),
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.": (
        "layer{0}.{1}.bn{2}."
    ),
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.": (
        "layer{0}.{1}.downsample.0."
    ),
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.": (
        "layer{0}.{1}.downsample.1."
    ),
    r"classifier\.1\.": "fc.",
}
"""Beginnings of Hugging Face's names, and of torchvision's for the same layers."""


def to_torchvision(params: Tree, batch_stats: Tree, model: str, num_updates: int) -> Tensors:
    """Convert a network's arrays to torchvision's.

    Args:
        params: parameters of a `ResNet`, by name.
        batch_stats: its running averages, by name.
        model: name of its architecture in `ARCHITECTURES`.
        num_updates: training steps, which PyTorch counts in each batch normalization.

    Returns:
        Arrays by torchvision's names, as `state_dict()` of its ResNets has them.
    """
    names = dict(_names(ARCHITECTURES[model]))
    found: Tensors = {}
    for path, leaf in (*_leaves(params), *_leaves(batch_stats)):
        found[names[path]] = _to_their_layout(path, np.asarray(leaf))
    for name in [*found]:
        if name.endswith(".running_mean"):
            counter = name.replace("running_mean", COUNTER)
            found[counter] = np.asarray(num_updates, np.int64)
    return found


def from_torchvision(tensors: Mapping[str, np.ndarray]) -> tuple[str, Tree, Tree]:
    """Convert the arrays of a ResNet of torchvision, timm or Hugging Face.

    Args:
        tensors: its arrays, by name.

    Returns:
        The name of the architecture in `ARCHITECTURES`, the parameters and the running averages;
        trees of float32 arrays.

    Raises:
        UsageError: if it is another network. The message says what differs.
    """
    theirs = {torchvision_name(name): array for name, array in tensors.items()}
    model = _recognize(theirs)
    names = dict(_names(ARCHITECTURES[model]))
    expected = {*names.values()}
    known = expected | {name.replace("running_mean", COUNTER) for name in expected}
    if missing := sorted(expected - theirs.keys()):
        raise UsageError(f"it lacks the array {missing[0]} of a {model}")
    if unknown := sorted(theirs.keys() - known):
        raise UsageError(f"it has an array {unknown[0]}, which a {model} does not have")

    def convert(path: jax.tree_util.KeyPath, like: jax.ShapeDtypeStruct) -> np.ndarray:
        name = _path(path)
        array = theirs[names[name]]
        wanted = _to_their_layout(name, np.empty(like.shape, np.bool_)).shape
        if array.shape != wanted:
            raise UsageError(
                f"its array {names[name]} has the shape {array.shape}; in a {model} it has {wanted}"
            )
        return _to_our_layout(name, array).astype(np.float32)

    num_classes, num_channels = len(theirs["fc.bias"]), theirs["conv1.weight"].shape[1]
    params, batch_stats = (
        jax.tree_util.tree_map_with_path(convert, tree)
        for tree in _abstract(model, num_classes, num_channels)
    )
    return model, params, batch_stats


def model_of(params: Tree) -> str | None:
    """Name of the architecture in `ARCHITECTURES` that has these parameters, by its blocks."""
    blocks = params["blocks"].values()
    num_layers = {len(block["layers"]) for block in blocks}
    for name, architecture in ARCHITECTURES.items():
        layers = 3 if architecture.bottleneck else 2
        if (len(blocks), num_layers) == (sum(architecture.blocks), {layers}):
            return name
    return None


def _names(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Name of each array here, such as blocks/0/layers/1/conv/kernel, and in torchvision."""

    def layer(ours: str, conv: str, norm: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}/conv/kernel", f"{conv}.weight"
        for name, other in NORM.items():
            yield f"{ours}/bn/{name}", f"{norm}.{other}"

    yield from layer("stem", "conv1", "bn1")
    number, in_channels = 0, architecture.width
    for stage, num_blocks in enumerate(architecture.blocks):
        channels = architecture.width * 2**stage * (4 if architecture.bottleneck else 1)
        for block in range(num_blocks):
            ours, theirs = f"blocks/{number}", f"layer{stage + 1}.{block}"
            for index in range(3 if architecture.bottleneck else 2):
                yield from layer(
                    f"{ours}/layers/{index}", f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}"
                )
            if block == 0 and (stage > 0 or in_channels != channels):
                yield from layer(
                    f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1"
                )
            number, in_channels = number + 1, channels
    for name, other in HEAD.items():
        yield f"head/{name}", other


def torchvision_name(name: str) -> str:
    """Torchvision's name of an array with any of the supported names."""
    name = PREFIXES.sub("", name)
    for pattern, template in HUGGING_FACE.items():
        if match := re.match(pattern, name):
            stage, block, index = (*map(int, match.groups()), 0, 0, 0)[:3]
            return template.format(stage + 1, block, index + 1) + name[match.end() :]
    return name


def _recognize(theirs: Mapping[str, np.ndarray]) -> str:
    """Name of an architecture in `ARCHITECTURES`, by the names and shapes of its arrays."""
    for name, what in UNSUPPORTED.items():
        if name in theirs:
            raise UsageError(f"it has {what} ({name}), which is not supported")
    for name, num_axes in NUM_AXES.items():
        if name not in theirs:
            raise UsageError(
                f"it has no array {name}, so it is not a ResNet of torchvision, timm or Hugging "
                "Face"
            )
        if theirs[name].ndim != num_axes:
            raise UsageError(
                f"its array {name} has {theirs[name].ndim} axes; it must have {num_axes}"
            )
    stem = theirs["conv1.weight"].shape
    names = set(theirs)
    num_stages = _count(names, "layer{}.0.conv1.weight", first=1)
    found = Architecture(
        blocks=tuple(
            _count(names, f"layer{stage}." + "{}.conv1.weight")
            for stage in range(1, num_stages + 1)
        ),
        bottleneck="layer1.0.conv3.weight" in names,
        width=stem[0],
        small_stem=stem[2:] == (3, 3),
    )
    for name, architecture in ARCHITECTURES.items():
        if found == architecture:
            return name
    blocks = "-".join(map(str, found.blocks))
    raise UsageError(
        f"it has {blocks} blocks of {3 if found.bottleneck else 2} convolutions in its stages and "
        f"a stem of {'x'.join(map(str, stem[2:]))}, {stem[0]} channels wide; that is none of "
        f"{', '.join(ARCHITECTURES)}"
    )


def _count(names: Container[str], template: str, first: int = 0) -> int:
    """How many consecutive numbers make a name of a template, from the first one."""
    return next(n for n in itertools.count() if template.format(first + n) not in names)


def _abstract(model: str, num_classes: int, num_input_channels: int) -> tuple[Tree, Tree]:
    """Shapes of the parameters and of the running averages of a network."""

    def make() -> ResNet:
        return ResNet(
            ARCHITECTURES[model],
            num_classes=num_classes,
            num_input_channels=num_input_channels,
            group_size=1,
            dtype=jnp.dtype(jnp.float32),
            rngs=nnx.Rngs(0),
        )

    network = nnx.eval_shape(make)
    params, batch_stats = nnx.state(network, nnx.Param), nnx.state(network, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _leaves(tree: Tree) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _path(path), leaf


def _path(path: jax.tree_util.KeyPath) -> str:
    return "/".join(str(getattr(entry, "key", entry)) for entry in path)


def _to_their_layout(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("conv/kernel"):
        array = array.transpose(3, 2, 0, 1)
    elif path == "head/kernel":
        array = array.transpose()
    return np.ascontiguousarray(array)


def _to_our_layout(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("conv/kernel") and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.transpose() if path == "head/kernel" else array
