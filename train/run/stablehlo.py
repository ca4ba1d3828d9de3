"""A trained network as a serialized program, which runs without this trainer.

Shapes: B images, S the side of the input, C channels.
"""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from train.run.trained import Trained
from train.step.network import make_forward

STABLEHLO = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(folder: Path, trained: Trained) -> None:
    """Write a program from uint8 images (B, S, S, C) to float32 probabilities (B, classes).

    It contains the parameters and the normalization of colors; B is any number. Load it with
    `jax.export.deserialize`.
    """
    experiment = trained.config.experiment
    forward = make_forward(experiment, len(trained.description.class_names))
    network = jax.device_get(trained.network)

    def probabilities(images: jax.Array) -> jax.Array:
        logits, _ = forward(network, images, train=False)
        return jax.nn.softmax(logits)

    (batch,) = jax.export.symbolic_shape("B")
    side = experiment.image_size
    images = jax.ShapeDtypeStruct((batch, side, side, experiment.num_channels), jnp.uint8)
    program = jax.export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)
    (folder / STABLEHLO).write_bytes(program.serialize())
