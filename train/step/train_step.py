"""One optimizer update as a pure function.

Shapes: A accumulation steps, kn/A images in each part of a minibatch, S the side of the input,
C channels. A minibatch is uint8 images (A, kn/A, S, S, C) with int32 labels (A, kn/A).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_warmup import current_learning_rate
from train.config import Experiment, OnNonfinite
from train.step.examples import Examples
from train.step.network import Network, Tree, make_forward
from train.step.noise_scale import estimate, moved
from train.step.state import TrainState
from train.step.workers import Workers

# Compiler options by kind of device. A v5e has 128 MiB of fast memory and gives a fusion 16 MiB of
# it. With 32 MiB a step of ResNet-50 takes an estimated 4 % fewer cycles (benchmarks/README.md).
COMPILER_OPTIONS = {"TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"}}


PartSums = tuple[Tree, jax.Array]
"""Share of the new batch statistics, number of errors."""


class StepMetrics(NamedTuple):
    """Metrics of one update over its minibatch; scalars on the devices."""

    loss: jax.Array
    top1_error: jax.Array
    """Fraction of the images."""
    learning_rate: jax.Array
    """The rate that was applied."""
    is_finite: jax.Array
    """Whether the loss and all parameters after the update are finite."""
    noise_scale: jax.Array | None
    """Gradient noise scale in images, a moving average. NaN while undefined; None if not
    requested."""


def make_train_step(
    experiment: Experiment,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    workers: Workers,
    on_nonfinite: OnNonfinite = "stop",
) -> jax.stages.Wrapped:
    """Build the jitted training step.

    Args:
        experiment: the run's experiment.
        num_classes: classes of the data set.
        optimizer: the optax chain; its state must hold the learning rate that was applied.
        workers: layout over the devices.
        on_nonfinite: "skip" keeps the state if the update is not finite. "stop" lets the caller
            decide by `StepMetrics.is_finite`.

    Returns:
        (TrainState, Examples) -> (TrainState, StepMetrics). The given state is donated.
    """
    forward = make_forward(experiment, num_classes)

    def loss_of_part(
        params: Tree, batch_stats: Tree, part: Examples[jax.Array]
    ) -> tuple[jax.Array, PartSums]:
        network = Network(params=params, batch_stats=batch_stats)
        logits, new_stats = forward(network, part.images, train=True)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, part.labels)
        # Normalize by the whole minibatch kn, not by a worker's n (paper, section 3, remark 3).
        loss = cross_entropy.sum() / workers.batch_size
        # Each part contributes its share of the mean over all workers.
        new_stats = jax.tree.map(lambda stat: stat / workers.num_parts, new_stats)
        # The count has the gradients' dtype, so that one all-reduce takes all; exact to 2**24.
        errors = (logits.argmax(axis=1) != part.labels).sum(dtype=jnp.float32)
        return loss, (new_stats, errors)

    def gradients_of_part(
        network: Network, part: Examples[jax.Array]
    ) -> tuple[tuple[jax.Array, PartSums], Tree, jax.Array | None]:
        outcome, gradients = jax.value_and_grad(loss_of_part, has_aux=True)(
            network.params, network.batch_stats, part
        )
        squares = optax.tree.norm(gradients, squared=True) if experiment.noise_scale else None
        return outcome, gradients, squares

    def train_step(
        state: TrainState, minibatch: Examples[jax.Array]
    ) -> tuple[TrainState, StepMetrics]:
        (loss, (batch_stats, errors)), gradients, squares = workers.sum_over_minibatch(
            gradients_of_part, state.network, minibatch
        )
        noise_scale = state.noise_scale
        if noise_scale is not None and squares is not None:
            squared_norm = optax.tree.norm(gradients, squared=True)
            new = estimate(squared_norm, squares, workers.num_parts, workers.batch_size)
            noise_scale = moved(noise_scale, new)
        if experiment.freeze_batch_stats:
            batch_stats = state.network.batch_stats  # not the sum of its shares, which is rounded
        params = state.network.params
        updates, opt_state = optimizer.update(gradients, state.opt_state, params)
        new_state = TrainState(
            step=state.step + 1,
            network=Network(params=optax.apply_updates(params, updates), batch_stats=batch_stats),
            opt_state=opt_state,
            noise_scale=noise_scale,
        )
        # A gradient that is not finite makes the parameters not finite. Checking the whole state
        # would take a TPU 4 % of a step.
        is_finite = _is_finite((loss, new_state.network.params))
        if on_nonfinite == "skip":
            # The optimizer's count does not advance either, as in optax.apply_if_finite: the
            # schedule resumes with the next update that is applied.
            unchanged = dataclasses.replace(state, step=new_state.step)
            new_state = jax.tree.map(
                lambda new, old: jnp.where(is_finite, new, old), new_state, unchanged
            )
        return new_state, StepMetrics(
            loss=loss,
            top1_error=errors / workers.batch_size,
            learning_rate=current_learning_rate(opt_state),
            is_finite=is_finite,
            noise_scale=None if new_state.noise_scale is None else new_state.noise_scale.images,
        )

    device_kind = workers.mesh.devices.flat[0].device_kind
    return jax.jit(
        train_step,
        in_shardings=(workers.replicated, workers.sharded),
        out_shardings=workers.replicated,
        donate_argnums=0,
        compiler_options=COMPILER_OPTIONS.get(device_kind),
    )


def _is_finite(tree: Tree) -> jax.Array:
    """Whether every number in a tree of arrays is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
