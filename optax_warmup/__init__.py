"""Learning rate warmup and large-minibatch scaling for optax.

After Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv:1706.02677.
"""

from optax_warmup._current import current_learning_rate
from optax_warmup._decay import (
    inverse_sqrt_decay,
    piecewise_values,
    warmup_piecewise_decay,
    warmup_stable_decay,
)
from optax_warmup._momentum import FoldedMomentumState, folded_momentum
from optax_warmup._phases import BatchSizePhase, BatchSizePhases
from optax_warmup._plateau import WarmupPlateauState, warmup_then_plateau
from optax_warmup._ramps import damped_warmup, exponential_damping, exponential_warmup, ramp_warmup
from optax_warmup._recipe import LargeMinibatchRecipe
from optax_warmup._scaling import linear_scaling, sqrt_scaling
from optax_warmup._warmup import constant_warmup, gradual_warmup, gradual_warmup_scheduler

__version__ = "0.1.0"

__all__ = [
    "BatchSizePhase",
    "BatchSizePhases",
    "FoldedMomentumState",
    "LargeMinibatchRecipe",
    "WarmupPlateauState",
    "constant_warmup",
    "current_learning_rate",
    "damped_warmup",
    "exponential_damping",
    "exponential_warmup",
    "folded_momentum",
    "gradual_warmup",
    "gradual_warmup_scheduler",
    "inverse_sqrt_decay",
    "linear_scaling",
    "piecewise_values",
    "ramp_warmup",
    "sqrt_scaling",
    "warmup_piecewise_decay",
    "warmup_stable_decay",
    "warmup_then_plateau",
]
