"""The trainer compared with what readers of the paper would write in PyTorch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_warmup import warmup_piecewise_decay
from train.model.conversion import to_torchvision, torchvision_name
from train.model.resnet import ARCHITECTURES
from train.recipes import digits
from train.step.examples import Examples
from train.step.network import normalize
from train.step.optimizer import make_optimizer
from train.step.state import initial_state
from train.step.train_step import make_train_step
from train.step.workers import make_workers

K, N, SIZE, NUM_CLASSES, NUM_STEPS = 4, 8, 64, 5, 30
WEIGHT_DECAY, MOMENTUM = 1e-4, 0.9
SCHEDULE = warmup_piecewise_decay(0.0025, 0.01, 10, {20: 0.1})


def minibatch_of(step: int) -> tuple[np.ndarray, np.ndarray]:
    """A class is a position of a bright square on a noisy background, which is learned quickly."""
    rng = np.random.default_rng(step)
    labels = rng.integers(NUM_CLASSES, size=K * N)
    images = rng.integers(60, 120, size=(K * N, SIZE, SIZE, 3))
    for image, label in zip(images, labels, strict=True):
        image[16:48, 10 * label : 10 * label + 16] += 100
    return images.astype(np.uint8), labels.astype(np.int32)


def network_of_transformers(width: int) -> Any:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * 2**stage for stage in range(4)],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=NUM_CLASSES,
    )
    return transformers.ResNetForImageClassification(config).train()


def test_thirty_steps_match_pytorch(monkeypatch: pytest.MonkeyPatch):
    """Statistics per worker, loss over kn images, decay without γ and β, warmup and decay."""
    torch: Any = pytest.importorskip("torch")
    narrow = dataclasses.replace(ARCHITECTURES["resnet18"], width=8)
    monkeypatch.setitem(ARCHITECTURES, "resnet18", narrow)
    config = digits().replace(
        model="resnet18",
        image_size=SIZE,
        mean=(0.4,) * 3,
        std=(0.2,) * 3,
        num_workers=K,
        batch_size_per_worker=N,
        accumulation_steps=2,
    )
    workers = make_workers(config, jax.devices()[:1])
    optimizer = make_optimizer(SCHEDULE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    arguments = (config.experiment, NUM_CLASSES, optimizer, workers)
    train_step, state = make_train_step(*arguments), initial_state(*arguments)

    def tensors() -> dict[str, np.ndarray]:
        network = jax.device_get(state.network)
        return to_torchvision(network.params, network.batch_stats, "resnet18", 0)

    theirs = network_of_transformers(8)
    start = tensors()
    theirs.load_state_dict(
        {name: torch.tensor(start[torchvision_name(name)]) for name in theirs.state_dict()}
    )
    named = dict(theirs.named_parameters())
    sgd = torch.optim.SGD(
        [
            {"params": [p for name, p in named.items() if "normalization" not in name]},
            {
                "params": [p for name, p in named.items() if "normalization" in name],
                "weight_decay": 0.0,
            },
        ],
        lr=1.0,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=WEIGHT_DECAY,
    )
    ours_losses: list[float] = []
    their_losses: list[float] = []
    for step in range(NUM_STEPS):
        images, labels = minibatch_of(step)
        minibatch = Examples(workers.to_devices(images), workers.to_devices(labels))
        state, metrics = train_step(state, minibatch)
        ours_losses.append(float(metrics.loss))

        normalized = np.asarray(
            normalize(jnp.asarray(images), (0.4,) * 3, (0.2,) * 3, jnp.dtype(jnp.float32))
        )
        for group in sgd.param_groups:
            group["lr"] = float(SCHEDULE(step))
        sgd.zero_grad()
        total = 0.0
        for worker in range(K):
            mine = slice(worker * N, (worker + 1) * N)
            logits = theirs(torch.tensor(normalized[mine].transpose(0, 3, 1, 2))).logits
            loss = torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels[mine], dtype=torch.long), reduction="sum"
            ) / (K * N)
            loss.backward()
            total += loss.item()
        sgd.step()
        their_losses.append(total)
    np.testing.assert_allclose(ours_losses, their_losses, rtol=1e-4)
    assert ours_losses[-1] < 0.9 * ours_losses[0]
    ours = tensors()
    for name, parameter in named.items():
        expected = parameter.detach().numpy()
        difference = np.linalg.norm(ours[torchvision_name(name)] - expected)
        assert difference <= 1e-3 * max(np.linalg.norm(expected), 1e-3), name
