"""Learning rate warmup and large-minibatch scaling for optax.

After Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677.
"""

from optax_warmup._current import current_learning_rate
from optax_warmup._decay import warmup_piecewise_decay
from optax_warmup._recipe import LargeMinibatchRecipe
from optax_warmup._scaling import linear_scaling, sqrt_scaling
from optax_warmup._warmup import constant_warmup, gradual_warmup

__version__ = "0.1.0"

__all__ = [
    "LargeMinibatchRecipe",
    "constant_warmup",
    "current_learning_rate",
    "gradual_warmup",
    "linear_scaling",
    "sqrt_scaling",
    "warmup_piecewise_decay",
]
