"""Networks that benchmarks/step.py compares: ResNet-50 and a small one in several libraries.

Each is trained on the same random images, which stay on the device, by SGD with Nesterov momentum
0.9 and weight decay 1e-4 in the gradient. Functions import their library themselves, because a
process must not hold the device for a library that it does not measure. The file is long because
each library builds its own network.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
BATCH_SIZE_PER_WORKER = 32
BLOCKS = (3, 4, 6, 3)
SMALL_WIDTHS = (16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, and shape and type of the minibatches."""

    image_size: int
    batch_size: int
    dtype: str
    network: str = "resnet50"

    @property
    def num_channels(self) -> int:
        """Channels of the images: small ones below 32 pixels are gray, as digits are."""
        return 1 if self.network == "resnet8" and self.image_size < 32 else 3

    @property
    def num_classes(self) -> int:
        """Classes of the images, those of ImageNet or ten."""
        return 10 if self.network == "resnet8" else 1000

    @property
    def batch_size_per_worker(self) -> int:
        """Images n that this trainer normalizes together: those of its recipes."""
        return min(16 if self.network == "resnet8" else BATCH_SIZE_PER_WORKER, self.batch_size)

    def images(self) -> Any:
        """Random pixels, the same for every library: uint8 (B, S, S, C)."""
        shape = (self.batch_size, self.image_size, self.image_size, self.num_channels)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def normalized(self) -> Any:
        """The same images, normalized, in float32."""
        return (self.images().astype(np.float32) - 127.5) / 73.9

    def labels(self) -> Any:
        """Random classes, int32 (B,)."""
        return np.random.default_rng(1).integers(
            0, self.num_classes, self.batch_size, dtype=np.int32
        )


Run = Callable[[int], Any]
"""Runs this many steps and blocks until they are done."""


def trainer(setting: Setting) -> tuple[Any, Any, Any]:
    """This repository's step, and a state and a minibatch as its arguments."""
    import jax

    from benchmarks.trainer import make_trainer, random_minibatch
    from train.recipes import digits, imagenet

    n = setting.batch_size_per_worker
    recipe = digits() if setting.num_channels == 1 else imagenet()
    config = recipe.replace(
        model=setting.network,
        image_size=setting.image_size,
        dtype=setting.dtype,
        num_workers=setting.batch_size // n,
        batch_size_per_worker=n,
    )
    workers, train_step, state = make_trainer(config, jax.devices()[:1], setting.num_classes)
    images, labels = (workers.to_devices(rows) for rows in (setting.images(), setting.labels()))
    minibatch = random_minibatch(config, workers)._replace(images=images, labels=labels)
    return train_step, state, minibatch


def optax_warmup(setting: Setting) -> Run:
    """This repository's trainer."""
    import jax

    step, state, minibatch = trainer(setting)

    def run(num_steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(num_steps):
            state, metrics = step(state, minibatch)
        jax.block_until_ready((state, metrics))

    return run


def flax_example(setting: Setting) -> Run:
    """Flax's BatchNorm with the data-parallel step of JAX's examples."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    dtype, rngs = jnp.dtype(setting.dtype), nnx.Rngs(0)

    class ConvBN(nnx.Module):
        def __init__(self, channels: int, features: int, kernel: int, stride: int = 1) -> None:
            self.conv = nnx.Conv(
                channels, features, (kernel, kernel), stride,
                padding=kernel // 2, use_bias=False, dtype=dtype, rngs=rngs,
            )  # fmt: skip
            self.bn = nnx.BatchNorm(features, momentum=0.9, dtype=dtype, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.bn(self.conv(x))

    class Bottleneck(nnx.Module):
        def __init__(self, channels: int, width: int, stride: int, projects: bool) -> None:
            self.first = ConvBN(channels, width, 1)
            self.second = ConvBN(width, width, 3, stride)
            self.third = ConvBN(width, 4 * width, 1)
            self.shortcut = ConvBN(channels, 4 * width, 1, stride) if projects else None

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.third(nnx.relu(self.second(nnx.relu(self.first(x)))))
            return nnx.relu(y + (self.shortcut(x) if self.shortcut else x))

    class ResNet50(nnx.Module):
        def __init__(self) -> None:
            self.stem = ConvBN(3, 64, 7, 2)
            blocks, channels = [], 64
            for stage, num_blocks in enumerate(BLOCKS):
                for index in range(num_blocks):
                    stride = 2 if stage > 0 and index == 0 else 1
                    blocks.append(Bottleneck(channels, 64 * 2**stage, stride, index == 0))
                    channels = 256 * 2**stage
            self.blocks = nnx.List(blocks)
            self.head = nnx.Linear(channels, setting.num_classes, dtype=dtype, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.stem(x))
            x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    graph, params, batch_stats = nnx.split(ResNet50(), nnx.Param, nnx.BatchStat)
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(LEARNING_RATE, MOMENTUM, nesterov=True),
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, batch_stats, opt_state = state

        def loss_of(params: Any) -> Any:
            network = nnx.merge(graph, params, batch_stats, copy=True)
            logits = network(images.astype(dtype)).astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, nnx.state(network, nnx.BatchStat))

        (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        accuracy = (logits.argmax(-1) == labels).mean()
        return (optax.apply_updates(params, updates), batch_stats, opt_state), (loss, accuracy)

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    replicated, sharded = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    state = jax.device_put((params, batch_stats, optimizer.init(params)), replicated)
    minibatch = jax.device_put((setting.normalized(), setting.labels()), sharded)

    def run(num_steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(num_steps):
            state, metrics = step(state, *minibatch)
        jax.block_until_ready((state, metrics))

    return run


def torch_resnet50(setting: Setting) -> Any:
    """The ResNet of transformers."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        ResNetConfig,
        ResNetForImageClassification,
    )

    return ResNetForImageClassification(ResNetConfig(num_labels=setting.num_classes))


def torch_resnet8(setting: Setting) -> Any:
    """This trainer's small network, with BatchNorm2d over the whole minibatch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    def conv_bn(channels: int, features: int, kernel: int, stride: int = 1) -> Any:
        conv = nn.Conv2d(channels, features, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(conv, nn.BatchNorm2d(features))

    class Block(nn.Module):
        def __init__(self, channels: int, width: int, stride: int) -> None:
            super().__init__()
            self.first = conv_bn(channels, width, 3, stride)
            self.second = conv_bn(width, width, 3)
            nn.init.zeros_(self.second[1].weight)
            is_same = channels == width and stride == 1
            self.shortcut = nn.Identity() if is_same else conv_bn(channels, width, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))

    layers, channels = [conv_bn(setting.num_channels, SMALL_WIDTHS[0], 3), nn.ReLU()], 16
    for stage, width in enumerate(SMALL_WIDTHS):
        layers.append(Block(channels, width, 1 if stage == 0 else 2))
        channels = width
    head = nn.Linear(channels, setting.num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def torch_network(setting: Setting, *, channels_last: bool = False, compiled: bool = False) -> Run:
    """The network in the usual PyTorch loop."""
    import torch  # pyright: ignore[reportMissingImports]

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    make = torch_resnet8 if setting.network == "resnet8" else torch_resnet50
    network = make(setting).to(device).to(memory_format=layout)
    optimizer = torch.optim.SGD(
        network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    images = torch.tensor(setting.normalized().transpose(0, 3, 1, 2), device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.tensor(setting.labels(), device=device, dtype=torch.int64)
    forward = torch.compile(network) if compiled else network

    def run(num_steps: int) -> None:
        loss: Any = None
        for _ in range(num_steps):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
                output = forward(images)
                logits = output if setting.network == "resnet8" else output.logits
                loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def keras_network(setting: Setting) -> Run:
    """Keras's ResNet50 on its JAX backend, without its loop over a data set."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras  # pyright: ignore[reportMissingImports]

    keras.mixed_precision.set_global_policy(
        "mixed_bfloat16" if setting.dtype == "bfloat16" else "float32"
    )
    side = setting.image_size
    network = keras.applications.ResNet50(weights=None, input_shape=(side, side, 3))
    network.compile(
        optimizer=keras.optimizers.SGD(
            LEARNING_RATE, MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        ),
        loss="sparse_categorical_crossentropy",
    )
    images, labels = jax.device_put((setting.normalized(), setting.labels()))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            network.train_on_batch(images, labels)

    return run


channels_last = functools.partial(torch_network, channels_last=True)
NETWORKS: dict[str, dict[str, Callable[[Setting], Run]]] = {
    "resnet50": {
        "optax-warmup": optax_warmup,
        "flax": flax_example,
        "torch": torch_network,
        "torch, channels_last": channels_last,
        "torch, compiled": functools.partial(channels_last, compiled=True),
        "keras": keras_network,
    },
    "resnet8": {
        "optax-warmup": optax_warmup,
        "torch": torch_network,
        "torch, channels_last": channels_last,
        "torch, compiled": functools.partial(torch_network, compiled=True),
        "torch, both": functools.partial(channels_last, compiled=True),
    },
}
"""The libraries that are compared for each network, by their names in tables."""
