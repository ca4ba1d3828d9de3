"""Optimizers: SGD as in section 5.1 of the paper, LARS and LAMB."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from train.config import MOMENTUM, WEIGHT_DECAY, Experiment, Optimizer
from train.model.resnet import ARCHITECTURES


def decay_mask(params: optax.Params) -> optax.Params:
    """Select the parameters to decay: all except γ and β of batch normalization, under `bn`."""

    def is_decayed(path: jax.tree_util.KeyPath, _: object) -> bool:
        return all(getattr(entry, "key", None) != "bn" for entry in path)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(
    learning_rate: optax.Schedule,
    name: Optimizer = "sgd",
    *,
    momentum: float = MOMENTUM,
    weight_decay: float = WEIGHT_DECAY,
    mask: Callable[[optax.Params], optax.Params] = decay_mask,
) -> optax.GradientTransformation:
    """Make the optimizer of a run; its state holds the learning rate that was applied.

    `sgd` is the paper's, with Nesterov momentum; the defaults of momentum and weight decay are the
    paper's too. The decay is added to the gradient before the momentum, so scaling the loss differs
    from scaling the learning rate (section 3, remark 1). `optax.sgd` keeps the learning rate out of
    the velocity (eq. 9), so it needs no momentum correction (remark 2). `lars` (You et al. 2017,
    arXiv:1708.03888) and `lamb` (You et al. 2019, arXiv:1904.00962) scale each layer's update by
    the norm of its weights, for minibatches above 8k. They need learning rates of their own.
    `optax.lars` folds the learning rate into the velocity (eq. 10).

    Args:
        learning_rate: schedule over updates.
        name: name of the optimizer.
        momentum: momentum of `sgd` and `lars`; `lamb` has β = 0.9 and 0.999 instead.
        weight_decay: weight decay of the parameters in the mask.
        mask: function from parameters to a tree of bools: True for parameters that decay and, with
            `lars`, are scaled per layer.
    """
    if name == "lars":
        lars = optax.inject_hyperparams(
            optax.lars,
            static_args=(
                "weight_decay", "weight_decay_mask", "trust_coefficient", "eps",
                "trust_ratio_mask", "momentum", "nesterov",
            ),
        )  # fmt: skip
        return lars(
            learning_rate,
            weight_decay=weight_decay,
            weight_decay_mask=mask,
            trust_ratio_mask=mask,
            momentum=momentum,
            nesterov=True,
        )
    if name == "lamb":
        lamb = optax.inject_hyperparams(
            optax.lamb, static_args=("b1", "b2", "eps", "eps_root", "weight_decay", "mask")
        )
        return lamb(learning_rate, weight_decay=weight_decay, mask=mask)
    sgd = optax.inject_hyperparams(optax.sgd, static_args=("momentum", "nesterov"))
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        sgd(learning_rate, momentum=momentum, nesterov=True),
    )


def with_multipliers(
    optimizer: optax.GradientTransformation, experiment: Experiment
) -> optax.GradientTransformation:
    """Scale the updates of the head and of frozen stages, as the experiment asks.

    Args:
        optimizer: the optax chain.
        experiment: the run's experiment.

    Returns:
        The same chain if nothing is scaled.
    """
    head, stages = experiment.head_learning_rate_multiplier, experiment.freeze_stages
    if head == 1 and stages == 0:
        return optimizer
    num_frozen = sum(ARCHITECTURES[experiment.model].blocks[:stages])

    def scaled(path: jax.tree_util.KeyPath, update: jax.Array) -> jax.Array:
        names = [str(getattr(entry, "key", "")) for entry in path]
        if names[0] == "head":
            return head * update
        is_frozen = names[0] == "stem" or (names[0] == "blocks" and int(names[1]) < num_frozen)
        return jnp.zeros_like(update) if stages and is_frozen else update

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.chain(optimizer, optax.stateless(scale))
