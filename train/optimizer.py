"""The optimizer of the paper's section 5.1, as an optax chain."""

from typing import Any

import jax
import optax

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


def decay_mask(params: Any) -> Any:
    """Mark what is decayed: all but γ and β of batch normalisation, which live under `bn`."""

    def is_decayed(path: tuple[Any, ...], _: Any) -> bool:
        return all(getattr(entry, "key", None) != "bn" for entry in path)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """SGD with Nesterov momentum 0.9 and weight decay 1e-4 in the gradient.

    The decay is a term of the loss, so it enters before the momentum; scaling the loss would not
    scale it (paper, section 3, remark 1). `optax.sgd` keeps the learning rate out of the velocity
    (eq. 9), so a change of the rate needs no momentum correction (remark 2). The hyperparameters
    are injected so that the state holds the rate that was applied.
    """
    sgd = optax.inject_hyperparams(optax.sgd, static_args=("momentum", "nesterov"))
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY, decay_mask),
        sgd(learning_rate=learning_rate, momentum=MOMENTUM, nesterov=True),
    )
