"""One optimizer update and one evaluation minibatch, as pure functions.

Shapes: A accumulation steps, kn/A images of a minibatch in each, S the side of the input, C
channels. Minibatches are uint8 images (A, kn/A, S, S, C) and int32 labels (A, kn/A).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optax_warmup import current_learning_rate
from train.config import Config
from train.images import normalize
from train.input_pipeline import NO_LABEL, Examples
from train.state import TrainState, make_network
from train.workers import Workers


class StepMetrics(NamedTuple):
    """Of one update, over its minibatch, as scalars on the device."""

    loss: jax.Array
    top1_error: jax.Array
    learning_rate: jax.Array
    """The rate that was applied."""


class EvaluationCounts(NamedTuple):
    """Of one evaluation minibatch, as int32 scalars on the device."""

    num_examples: jax.Array
    top1_errors: jax.Array
    top5_errors: jax.Array


class Steps(NamedTuple):
    """The two compiled functions of a run."""

    train: Any
    """(TrainState, Examples) -> (TrainState, StepMetrics); the state given is used up."""
    evaluate: Any
    """(params, batch_stats, Examples) -> EvaluationCounts."""


def abstract_minibatch(config: Config, workers: Workers) -> Examples:
    """Shapes, types and shardings of a minibatch, to compile for before there is one."""
    parts = (workers.accumulation_steps, workers.batch_size // workers.accumulation_steps)
    pixels = (config.image_size, config.image_size, len(config.mean))
    return Examples(
        jax.ShapeDtypeStruct((*parts, *pixels), jnp.uint8, sharding=workers.minibatch),
        jax.ShapeDtypeStruct(parts, jnp.int32, sharding=workers.minibatch),
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
        return loss, (new_stats, _num_errors(logits, part.labels, 1))

    def gradients_of_part(constants: Any, part: Examples) -> Any:
        return jax.value_and_grad(loss_of_part, has_aux=True)(*constants, part)

    def train_step(state: TrainState, minibatch: Examples) -> tuple[TrainState, StepMetrics]:
        (loss, (batch_stats, errors)), gradients = workers.sum_over_minibatch(
            gradients_of_part, (state.params, state.batch_stats), minibatch
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        error = errors.astype(jnp.float32) / workers.batch_size
        return new_state, StepMetrics(loss, error, current_learning_rate(opt_state))

    def counts_of_part(constants: Any, part: Examples) -> EvaluationCounts:
        params, batch_stats = constants
        logits, _ = apply(params, batch_stats, part.images, train=False)
        return EvaluationCounts(
            num_examples=(part.labels != NO_LABEL).sum(dtype=jnp.int32),
            top1_errors=_num_errors(logits, part.labels, 1),
            top5_errors=_num_errors(logits, part.labels, 5),
        )

    def evaluation_step(params: Any, batch_stats: Any, minibatch: Examples) -> EvaluationCounts:
        return workers.sum_over_minibatch(counts_of_part, (params, batch_stats), minibatch)

    whole, divided = workers.replicated, workers.minibatch
    return Steps(
        train=jax.jit(
            train_step, in_shardings=(whole, divided), out_shardings=whole, donate_argnums=0
        ),
        evaluate=jax.jit(
            evaluation_step, in_shardings=(whole, whole, divided), out_shardings=whole
        ),
    )


def _num_errors(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """How many examples have fewer than one right answer among their k likeliest classes.

    Padding counts as no error. A class as likely as the right one counts as likelier, so that a
    network which has collapsed to equal logits is not called right.
    """
    right = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)
    rank = (logits >= right).sum(axis=1, dtype=jnp.int32)  # 1 where nothing else is as likely
    # NaN compares false and would rank 0; it is never a right answer.
    wrong = (rank > k) | (rank < 1)
    return (wrong & (labels != NO_LABEL)).sum(dtype=jnp.int32)
