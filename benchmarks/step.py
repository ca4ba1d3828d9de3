"""How many images a second each way of training ResNet-50 takes a step on, on one device.

    python -m venv .venv-bench
    .venv-bench/bin/pip install -c constraints.txt -e '.[train,bench]'
    .venv-bench/bin/python benchmarks/step.py [--image-sizes 128 224] [--dtypes float32 bfloat16]
        [--batch-sizes 32 64 ...] [--out benchmarks/step.json]

Prints tables and writes the same numbers as JSON. On a CPU the defaults are float32, minibatches of
32 and images of both sizes; elsewhere both types, minibatches of 32 to 512 and 224x224. Each
subject has a process of its own; the processes take turns, because a shared machine's speed drifts
by more than what is to be measured. A subject that cannot be imported or does not fit the device is
said to be missing, and left out.

Subjects, each fed with the same random images, on the device, and updated by SGD with Nesterov
momentum 0.9 and weight decay 1e-4 in the gradient:

- `optax-warmup`: this trainer, n = 32. It alone normalises uint8 pixels inside of its step; the
  others are given them normalised.
- `flax`: nnx.BatchNorm, over the whole minibatch, and the data-parallel step of JAX's examples:
  plain `jit`, a minibatch divided over a mesh, donated parameters.
- `torch`: the network of transformers in the usual loop; with bfloat16 under autocast.
- `torch, channels_last`: the same with that layout of memory.
- `torch, compiled`: the same again under torch.compile.
- `keras`: keras.applications.ResNet50 on its JAX backend; it has the strides on 1x1 convolutions,
  which takes 7 % fewer multiplications.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4
NUM_CLASSES, BATCH_SIZE_PER_WORKER = 1000, 32
BLOCKS = (3, 4, 6, 3)
PACKAGES = ["jax", "flax", "optax", "torch", "transformers", "keras"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained on."""

    image_size: int
    batch_size: int
    dtype: str

    def images(self) -> Any:
        """The same random pixels for every subject: uint8 (B, S, S, 3)."""
        import numpy as np

        shape = (self.batch_size, self.image_size, self.image_size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def normalized(self) -> Any:
        """Those in float32, as most trainers are fed."""
        import numpy as np

        return (self.images().astype(np.float32) - 127.5) / 73.9

    def labels(self) -> Any:
        """Random classes, int32 (B,)."""
        import numpy as np

        return np.random.default_rng(1).integers(0, NUM_CLASSES, self.batch_size, dtype=np.int32)


Run = Callable[[int], Any]
"""Make that many steps, to their end."""


def trainer(setting: Setting) -> tuple[Any, Any, Any]:
    """This repository's step, with a state and a minibatch to call it with."""
    import jax
    import jax.numpy as jnp

    from train.recipes import imagenet
    from train.step.examples import abstract_minibatch
    from train.step.optimizer import make_optimizer
    from train.step.state import initial_state
    from train.step.train_step import make_train_step
    from train.step.workers import make_workers

    n = min(BATCH_SIZE_PER_WORKER, setting.batch_size)
    config = imagenet().replace(
        image_size=setting.image_size,
        dtype=setting.dtype,
        num_workers=setting.batch_size // n,
        batch_size_per_worker=n,
    )
    workers = make_workers(config, jax.devices()[:1])
    optimizer = make_optimizer(lambda _: jnp.float32(LEARNING_RATE))
    train_step = make_train_step(config.experiment, NUM_CLASSES, optimizer, workers)
    state = initial_state(config.experiment, NUM_CLASSES, optimizer, workers)
    minibatch = jax.tree.map(
        lambda of: jnp.zeros(of.shape, of.dtype, device=of.sharding),
        abstract_minibatch(config.experiment, workers),
    )._replace(
        images=workers.to_devices(setting.images()), labels=workers.to_devices(setting.labels())
    )
    return train_step, state, minibatch


def optax_warmup(setting: Setting) -> Run:
    """This repository's step, over and over."""
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
    """What JAX's examples do."""
    import jax
    import jax.numpy as jnp
    import numpy as np
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
            self.head = nnx.Linear(channels, NUM_CLASSES, dtype=dtype, rngs=rngs)

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
    whole, divided = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    state = jax.device_put((params, batch_stats, optimizer.init(params)), whole)
    minibatch = jax.device_put((setting.normalized(), setting.labels()), divided)

    def run(num_steps: int) -> None:
        nonlocal state
        metrics = None
        for _ in range(num_steps):
            state, metrics = step(state, *minibatch)
        jax.block_until_ready((state, metrics))

    return run


def torch_network(setting: Setting, *, channels_last: bool = False, compiled: bool = False) -> Run:
    """What PyTorch's users do, at three levels of care."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        ResNetConfig,
        ResNetForImageClassification,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = (
        ResNetForImageClassification(ResNetConfig(num_labels=NUM_CLASSES))
        .to(device)
        .to(memory_format=layout)
    )
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
                loss = torch.nn.functional.cross_entropy(forward(images).logits, labels)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def keras_network(setting: Setting) -> Run:
    """What Keras's users do, without its loop over a data set."""
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


SUBJECTS: dict[str, Callable[[Setting], Run]] = {
    "optax-warmup": optax_warmup,
    "flax": flax_example,
    "torch": torch_network,
    "torch, channels_last": functools.partial(torch_network, channels_last=True),
    "torch, compiled": functools.partial(torch_network, channels_last=True, compiled=True),
    "keras": keras_network,
}


def answer(subject: str, setting: Setting) -> None:
    """In a subject's process: time as many steps as standard input asks for."""
    start = time.perf_counter()
    try:
        run = SUBJECTS[subject](setting)
        run(1)
    except Exception as error:  # not installed, no C++ compiler, out of the device's memory, ...
        reason = " ".join(str(error).split())[:200]
        print(json.dumps({"missing": f"{type(error).__name__}: {reason}"}), flush=True)
        return
    first, start = time.perf_counter() - start, time.perf_counter()
    run(1)
    ready = {"first_step_s": first, "step_s": time.perf_counter() - start}
    print(json.dumps({"missing": None} | ready), flush=True)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        print(json.dumps(spent), flush=True)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A process that waits for its turn."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, setting: Setting) -> Subject:
        """Start it; its first answer says whether it could."""
        command = [sys.executable, __file__, "--subject", name, "--dtypes", setting.dtype]
        command += ["--batch-sizes", str(setting.batch_size)]
        process = subprocess.Popen(
            [*command, "--image-sizes", str(setting.image_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {
                "PYTHONPATH": str(Path(__file__).parents[1]),
                # The processes share a GPU's memory.
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            },
        )
        return cls(name, process)

    def read(self) -> dict[str, Any]:
        """Wait for one answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "ended without an answer"}

    def turn(self, num_steps: int) -> dict[str, Any]:
        """Let it work for a round."""
        assert self.process.stdin
        self.process.stdin.write(f"{num_steps}\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        """End it."""
        self.process.communicate()


def measure(setting: Setting, rounds: int, names: list[str]) -> dict[str, Any]:
    """Let the subjects take turns with one setting."""
    load = os.getloadavg()[0]  # what else the machine is doing
    missing: dict[str, str] = {}
    first: dict[str, float] = {}
    num_steps: dict[str, int] = {}
    subjects: list[Subject] = []
    for name in names:
        subject = Subject.start(name, setting)
        ready = subject.read()
        if ready["missing"]:
            missing[name] = ready["missing"]
            subject.stop()
            continue
        first[name] = ready["first_step_s"]
        # Half a second or more, so that starting and waiting do not count.
        num_steps[name] = max(1, round(0.5 / ready["step_s"]))
        subjects.append(subject)
    rates: dict[str, dict[str, list[float]]] = {
        subject.name: {"seconds": [], "cpu_seconds": []} for subject in subjects
    }
    for _ in range(rounds):
        for subject in subjects:
            spent = subject.turn(num_steps[subject.name])
            for clock, each in rates[subject.name].items():
                each.append(setting.batch_size * num_steps[subject.name] / spent[clock])
    for subject in subjects:
        subject.stop()
    report: dict[str, Any] = dataclasses.asdict(setting) | {
        "load_average_before": load,
        "missing": missing,
        "subjects": {},
    }
    for name, rate in rates.items():
        report["subjects"][name] = entry = {
            "images_per_second": statistics.median(rate["seconds"]),
            "images_per_cpu_second": statistics.median(rate["cpu_seconds"]),
            "first_step_s": first[name],
        }
        if "optax-warmup" in rates:
            for key, clock in (("ratio", "seconds"), ("ratio_cpu", "cpu_seconds")):
                pairs = zip(rates["optax-warmup"][clock], rate[clock], strict=True)
                # Round by round, against what ran just before or after.
                entry[f"optax_warmup_{key}"] = statistics.median(a / b for a, b in pairs)
    return report


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """What the measurements were taken on, asked in a process that holds no device afterwards."""
    code = "import jax; print(jax.devices()[0].platform, jax.devices()[0].device_kind, sep='|')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    device, kind = asked.stdout.split("\n")[0].split("|")
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return {"platform": device, "device": kind, "cpu": model, "cores": cores}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Measures training steps of ResNet-50.")
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--image-sizes", type=int, nargs="+")
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"])
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subject:
        [batch_size], [dtype], [size] = options.batch_sizes, options.dtypes, options.image_sizes
        answer(options.subject, Setting(image_size=size, batch_size=batch_size, dtype=dtype))
        return
    machine = hardware()
    on_cpu = machine["platform"] == "cpu"
    report: dict[str, Any] = {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": machine,
        "rounds": options.rounds,
        "settings": [],
    }
    for dtype, image_size, batch_size in itertools.product(
        options.dtypes or (["float32"] if on_cpu else ["bfloat16", "float32"]),
        options.image_sizes or ([128, 224] if on_cpu else [224]),
        options.batch_sizes or ([32] if on_cpu else [32, 64, 128, 256, 512]),
    ):
        setting = Setting(image_size=image_size, batch_size=batch_size, dtype=dtype)
        result = measure(setting, options.rounds, options.subjects)
        report["settings"].append(result)
        print(f"{dtype}, {image_size}x{image_size}, minibatch {batch_size}")
        print(f"  {'':<22}{'images/s':>10}{'first step, s':>15}{'optax-warmup is':>18}")
        for name, entry in result["subjects"].items():
            ratio = entry.get("optax_warmup_ratio")
            print(
                f"  {name:<22}{entry['images_per_second']:>10.1f}{entry['first_step_s']:>15.1f}"
                + (f"{ratio:>16.2f} ×" if ratio else "")
            )
        for name, reason in result["missing"].items():
            print(f"  {name:<22}missing: {reason}")
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
