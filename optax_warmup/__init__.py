"""Learning rate warmup and large-minibatch scaling for optax.

The method is that of Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
arXiv:1706.02677. All schedules share these conventions:

- A schedule is a function from the number of updates made so far to the learning rate of the next
  one. Any integer type is accepted, inside and outside `jit`. Formulas call this number t.
- `init_value` and `peak_value` are the learning rates at the start and end of a warmup. They are
  finite and not negative, and `init_value` is at most `peak_value`. All learning rates may be
  arrays or traced values.
- `warmup_steps`, at least 0, is the number of updates in the warmup. With 0 there is no warmup: the
  schedule equals the one that follows.
- `after` is the schedule that follows. Its step 0 is the first update after the warmup, so it
  should start at `peak_value`.
- `skip_init=True` replaces t by t + 1 in the ramp. A ramp from 0 then does not waste its first
  update, and reaches the peak one step earlier.
- `dtype` is the float type of the learning rates: float32, or float64 if `jax_enable_x64` is set.

An argument outside its range raises a `ValueError` that names it, its value and the allowed values.
"""

from optax_warmup._current import current_learning_rate
from optax_warmup._decay import (
    inverse_sqrt_decay,
    piecewise_values,
    warmup_piecewise_decay,
    warmup_stable_decay,
)
from optax_warmup._epochs import epochs_to_steps
from optax_warmup._momentum import FoldedMomentumState, folded_momentum
from optax_warmup._phase import BatchSizePhase
from optax_warmup._phases import BatchSizePhases
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
    "epochs_to_steps",
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
