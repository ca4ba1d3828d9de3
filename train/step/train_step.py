"""One optimizer update and one evaluation minibatch, as pure functions.

Shapes: A accumulation steps, kn/A images of a minibatch in each, S the side of the input, C
channels. Minibatches are uint8 images (A, kn/A, S, S, C), int32 labels and indices of corrupt
images (A, kn/A).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optax_warmup import current_learning_rate
from train.config import Config
from train.data.images import normalize
from train.data.minibatches import SOUND, Examples
from train.step.noise_scale import estimate, moved
from train.step.state import TrainState, make_network
from train.step.workers import Workers

# Of the compiler, by the kind of device. A v5e has 128 MiB of fast memory, of which a fusion gets
# 16: with 32 a step of ResNet-50 is expected to take 4 % fewer cycles (benchmarks/README.md).
COMPILER_OPTIONS = {"TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"}}

NO_CLASS = -2  # predicted where the logits are not finite; the label of no image, nor of padding


class StepMetrics(NamedTuple):
    """Of one update, over its minibatch, as scalars on the device."""

    loss: jax.Array
    top1_error: jax.Array
    learning_rate: jax.Array
    """The rate that was applied."""
    num_corrupt: jax.Array
    """Images in whose place others stood."""
    is_finite: jax.Array
    """Whether the loss and all of the state after the update are finite."""
    noise_scale: jax.Array | None
    """In images, over the last updates; NaN where it cannot be told, None where not asked for."""


class Predictions(NamedTuple):
    """Of one evaluation minibatch, for each of its images, (A, kn/A, ...), on every device."""

    labels: jax.Array
    """The right class, or `NO_LABEL` of padding and corrupt images; int32."""
    classes: jax.Array
    """The likeliest five classes, or all where there are fewer, likeliest first; int32."""


class Steps(NamedTuple):
    """The two compiled functions of a run."""

    train: Any
    """(TrainState, Examples) -> (TrainState, StepMetrics); the state given is used up."""
    evaluate: Any
    """(params, batch_stats, Examples) -> Predictions."""


def abstract_minibatch(config: Config, workers: Workers) -> Examples:
    """Shapes, types and shardings of a minibatch, to compile for before there is one."""
    parts = (workers.accumulation_steps, workers.batch_size // workers.accumulation_steps)
    pixels = (config.image_size, config.image_size, len(config.mean))
    return Examples(
        jax.ShapeDtypeStruct((*parts, *pixels), jnp.uint8, sharding=workers.divided),
        jax.ShapeDtypeStruct(parts, jnp.int32, sharding=workers.divided),
        jax.ShapeDtypeStruct(parts, jnp.int32, sharding=workers.divided),
    )


def make_steps(
    config: Config, num_classes: int, optimizer: optax.GradientTransformation, workers: Workers
) -> Steps:
    """Build both functions for a run, jitted with explicit shardings."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_network(config, num_classes)))

    def apply(params: Any, batch_stats: Any, images: jax.Array, *, train: bool) -> Any:
        network = nnx.merge(graph, params, batch_stats)
        x = normalize(images, config.mean, config.std, jnp.dtype(config.dtype))
        logits = network(x, train=train)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def loss_of_part(params: Any, batch_stats: Any, part: Examples) -> Any:
        logits, new_stats = apply(params, batch_stats, part.images, train=True)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, part.labels)
        # Normalised by the whole minibatch kn, not by a worker's n (paper, section 3, remark 3).
        loss = cross_entropy.sum() / workers.batch_size
        # Each part carries its share of the mean over all workers.
        new_stats = jax.tree.map(lambda stat: stat / workers.num_parts, new_stats)
        # Counted in the gradients' type, so that one reduction takes all; exact up to 2**24 images.
        errors = (logits.argmax(axis=1) != part.labels).sum(dtype=jnp.float32)
        num_corrupt = (part.corrupt != SOUND).sum(dtype=jnp.float32)
        return loss, (new_stats, errors, num_corrupt)

    def gradients_of_part(constants: Any, part: Examples) -> Any:
        outcome, gradients = jax.value_and_grad(loss_of_part, has_aux=True)(*constants, part)
        squares = optax.tree.norm(gradients, squared=True) if config.noise_scale else None
        return outcome, gradients, squares

    def train_step(state: TrainState, minibatch: Examples) -> tuple[TrainState, StepMetrics]:
        (loss, (batch_stats, errors, num_corrupt)), gradients, squares = workers.sum_over_minibatch(
            gradients_of_part, (state.params, state.batch_stats), minibatch
        )
        noise_scale = state.noise_scale
        if noise_scale is not None:
            squared_norm = optax.tree.norm(gradients, squared=True)
            new = estimate(squared_norm, squares, workers.num_parts, workers.batch_size)
            noise_scale = moved(noise_scale, new)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            noise_scale=noise_scale,
        )
        # What is not finite in a gradient is not finite in the parameters either; to look through
        # the whole state would take a TPU 4 % of a step.
        is_finite = _is_finite((loss, new_state.params))
        if config.on_nonfinite == "skip":
            # The optimizer's count stands still too, as in optax.apply_if_finite: the schedule goes
            # on at the next update that is applied.
            unchanged = dataclasses.replace(state, step=new_state.step)
            new_state = jax.tree.map(
                lambda new, old: jnp.where(is_finite, new, old), new_state, unchanged
            )
        error = errors / workers.batch_size
        rate = current_learning_rate(opt_state)
        num_corrupt = num_corrupt.astype(jnp.int32)
        noise_scale = None if new_state.noise_scale is None else new_state.noise_scale.images
        return new_state, StepMetrics(loss, error, rate, num_corrupt, is_finite, noise_scale)

    def predictions_of_part(constants: Any, part: Examples) -> Predictions:
        params, batch_stats = constants
        logits, _ = apply(params, batch_stats, part.images, train=False)
        _, classes = jax.lax.top_k(logits, min(5, num_classes))
        # A network that has blown up predicts nothing; it would be right by chance otherwise.
        is_sound = jnp.isfinite(logits).all(axis=1, keepdims=True)
        return Predictions(part.labels, jnp.where(is_sound, classes, NO_CLASS))

    def evaluation_step(params: Any, batch_stats: Any, minibatch: Examples) -> Predictions:
        return workers.map_over_minibatch(predictions_of_part, (params, batch_stats), minibatch)

    whole, divided = workers.replicated, workers.divided
    device_kind = workers.mesh.devices.flat[0].device_kind
    return Steps(
        train=jax.jit(
            train_step,
            in_shardings=(whole, divided),
            out_shardings=whole,
            donate_argnums=0,
            compiler_options=COMPILER_OPTIONS.get(device_kind),
        ),
        evaluate=jax.jit(
            evaluation_step, in_shardings=(whole, whole, divided), out_shardings=whole
        ),
    )


def _is_finite(tree: Any) -> jax.Array:
    """Whether every number in a tree of arrays is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
