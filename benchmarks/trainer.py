"""The trainer's parts, as several benchmarks measure them: ResNet on random images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.config import Config
from train.step.examples import Examples, abstract_minibatch
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state
from train.step.train_step import make_train_step
from train.step.workers import Workers, make_workers

LEARNING_RATE, NUM_CLASSES = 0.1, 1000


class Trainer(NamedTuple):
    """Workers, jitted training step and initial state of a configuration."""

    workers: Workers
    train_step: jax.stages.Wrapped
    state: TrainState


def make_trainer(
    config: Config, devices: Sequence[Any] | None = None, num_classes: int = NUM_CLASSES
) -> Trainer:
    """Build the trainer's parts with a constant learning rate."""
    workers = make_workers(config, devices)
    optimizer = make_optimizer(lambda _: jnp.float32(LEARNING_RATE))
    arguments = (config.experiment, num_classes, optimizer, workers)
    return Trainer(workers, make_train_step(*arguments), initial_state(*arguments))


def random_minibatch(config: Config, workers: Workers, seed: int = 0) -> Examples[jax.Array]:
    """Make a minibatch of random images and labels on the devices; each process adds its rows."""
    rng = np.random.default_rng(seed)
    num_rows = config.experiment.batch_size // jax.process_count()

    def random(like: jax.ShapeDtypeStruct) -> jax.Array:
        shape = (num_rows, *like.shape[2:])
        return workers.to_devices(rng.integers(0, 256, shape).astype(like.dtype))

    return jax.tree.map(random, abstract_minibatch(config.experiment, workers))
