"""A minibatch as the step sees it: images, labels, and the sentinels that stand for neither.

Shapes: A accumulation steps, kn/A images in each part of a minibatch, S the side of the input,
C channels.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from train.config import Experiment
from train.step.workers import Workers

NO_LABEL = -1
"""Label of padding, which fills the last evaluation minibatch."""

NO_CLASS = -2
"""Class predicted when the logits are not finite. It equals no label, not even `NO_LABEL`."""

A = TypeVar("A")


class Examples(NamedTuple, Generic[A]):
    """Images with labels: NumPy rows on the host, a sharded minibatch on the devices.

    Attributes:
        images: uint8 (..., S, S, C).
        labels: int32 (...).
    """

    images: A
    labels: A


def abstract_minibatch(experiment: Experiment, workers: Workers) -> Examples[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a minibatch, to compile for."""
    parts = (workers.accumulation_steps, workers.batch_size // workers.accumulation_steps)
    pixels = (experiment.image_size, experiment.image_size, experiment.num_channels)
    return Examples(
        jax.ShapeDtypeStruct((*parts, *pixels), jnp.uint8, sharding=workers.sharded),
        jax.ShapeDtypeStruct(parts, jnp.int32, sharding=workers.sharded),
    )
