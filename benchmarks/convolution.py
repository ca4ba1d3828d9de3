"""Time of the 3x3 convolutions of ResNets on a CPU, in each form that the trainer could choose.

    python -m benchmarks.convolution

It prints a table and writes the same numbers as JSON, in about three minutes on two cores. Each
shape is measured forward, and forward and backward, in float32: 128 images for resnet8, 32 for
ResNet-50. The forms take turns within each round; a time is the minimum of the rounds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.markdown import table
from benchmarks.report import environment, make_parser, save
from train.model.convolution import FORMS, form_on_cpu

# The matrix of a whole image has the fourth power of its side as many blocks.
LARGEST_WHOLE_IMAGE = 4


class Layer(NamedTuple):
    """Shape of a 3x3 convolution."""

    network: str
    batch_size: int
    side: int
    in_channels: int
    out_channels: int
    stride: int

    @property
    def image(self) -> tuple[int, int, int, int]:
        """Shape of the images."""
        return self.batch_size, self.side, self.side, self.in_channels

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """Shape of the kernel."""
        return 3, 3, self.in_channels, self.out_channels


def layers() -> list[Layer]:
    """The different 3x3 convolutions of resnet8 and ResNet-50 at several image sizes."""
    found: list[Layer] = []
    for size in (8, 14, 28, 32):
        found.append(Layer("resnet8", 128, size, 3 if size == 32 else 1, 16, 1))
        channels = 16
        for stage in range(3):
            side = -(-size // 2**stage)
            if stage > 0:
                found.append(
                    Layer("resnet8", 128, -(-size // 2 ** (stage - 1)), channels, 2 * channels, 2)
                )
                channels *= 2
            found.append(Layer("resnet8", 128, side, channels, channels, 1))
    for size in (128, 224):
        for stage in range(4):
            side, channels = size // 4 // 2**stage, 64 * 2**stage
            if stage > 0:
                found.append(Layer("resnet50", 32, 2 * side, channels, channels, 2))
            found.append(Layer("resnet50", 32, side, channels, channels, 1))
    return list(dict.fromkeys(found))


def forms(layer: Layer) -> dict[str, Callable[..., jax.Array]]:
    """The forms that can compute a layer: XLA's convolution and matrix products."""
    names = ["convolution", "patches"] + ["whole image"] * (layer.side <= LARGEST_WHOLE_IMAGE)

    def form(name: str) -> Callable[..., jax.Array]:
        return lambda x, kernel: FORMS[name](x, kernel, layer.stride)

    return {name: form(name) for name in names}


def with_gradients(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Compute a form and its two gradients, given the gradient of its output."""

    def run(x: jax.Array, kernel: jax.Array, error: jax.Array) -> Any:
        y, pull_back = jax.vjp(form, x, kernel)
        return y, pull_back(error)

    return run


def fastest(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each run: the minimum over rounds in which they take turns."""
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        jax.block_until_ready(run())
        start = time.perf_counter()
        jax.block_until_ready(run())
        # At least 5 ms, to make the overhead of a turn negligible.
        repeats[name] = 1 + int(0.005 / (time.perf_counter() - start))
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            outcome: Any = None
            for _ in range(repeats[name]):
                outcome = run()
            jax.block_until_ready(outcome)
            spent[name].append((time.perf_counter() - start) / repeats[name])
    return {name: min(each) * 1e3 for name, each in spent.items()}


def measure(layer: Layer, rounds: int) -> dict[str, Any]:
    """Measure a layer in each form."""
    rng = np.random.default_rng(0)

    def numbers(shape: Sequence[int]) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, kernel = numbers(layer.image), numbers(layer.kernel)
    out_side = -(-layer.side // layer.stride)
    error = numbers((layer.batch_size, out_side, out_side, layer.out_channels))
    forward = {name: functools.partial(jax.jit(f), x, kernel) for name, f in forms(layer).items()}
    both = {
        name: functools.partial(jax.jit(with_gradients(f)), x, kernel, error)
        for name, f in forms(layer).items()
    }
    return layer._asdict() | {
        "forward_ms": fastest(forward, rounds),
        "forward_backward_ms": fastest(both, rounds),
    }


def convolutions(report: dict[str, Any]) -> str:
    """Milliseconds of each layer forward / forward and backward; the trainer's form is bold."""
    names = ["convolution", "patches", "whole image"]

    def cell(measured: dict[str, Any], name: str) -> str:
        if name not in measured["forward_ms"]:
            return ""
        layer = Layer(**{field: measured[field] for field in Layer._fields})
        chosen = form_on_cpu(layer.image, layer.kernel, layer.stride)
        times = f"{measured['forward_ms'][name]:.2f} / {measured['forward_backward_ms'][name]:.2f}"
        return f"**{times}**" if name == chosen else times

    rows = (
        [
            f"{layer['network']}: {layer['batch_size']}×{layer['side']}×{layer['side']}, "
            f"{layer['in_channels']} → {layer['out_channels']}"
            + (", stride 2" if layer["stride"] == 2 else ""),
            *(cell(layer, name) for name in names),
        ]
        for layer in report["layers"]
    )
    return table(["ms", *names], rows)


def main() -> None:
    """Run the command."""
    parser = make_parser(__file__, "Measure the forms of 3x3 convolutions on a CPU.")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each form; default: 10")
    options = parser.parse_args()
    report = environment(["jax"]) | {"rounds": options.rounds, "layers": []}
    for layer in layers():
        report["layers"].append(measure(layer, options.rounds))
        print(layer, flush=True)
    print(convolutions(report))
    save(options.out, report)


if __name__ == "__main__":
    main()
