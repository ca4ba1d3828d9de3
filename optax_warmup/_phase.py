"""One phase of a training run with a changing batch size."""

from __future__ import annotations

import dataclasses
from typing import cast

from optax_warmup import _checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizePhase:
    """Part of a training run with one batch size; see `BatchSizePhases`.

    Args:
      batch_size: number of images in one minibatch of all workers, at least 1.
      num_epochs: length in epochs, > 0; fractions are allowed.
      num_steps: length in steps, at least 1; replaces `num_epochs`.
      warmup_epochs: length in epochs of the ramp from the learning rate of the previous phase, not
        longer than the phase. Without a ramp the rate jumps.
      warmup_steps: length of the ramp in steps; replaces `warmup_epochs`.
      decay_factor: factor of the scaled learning rate in this phase; > 0 and <= 1.

    Examples:
      >>> import optax_warmup as ow
      >>> ow.BatchSizePhase(batch_size=8192, num_epochs=30, warmup_epochs=5).warmup_epochs
      5
      >>> ow.BatchSizePhase(batch_size=8192, num_steps=4680, warmup_steps=780).warmup_steps
      780

    Source:
      Batch-size change with rescaling and re-warmup, as requested in transformers #31222.
    """

    batch_size: int
    num_epochs: float | None = None
    num_steps: int | None = None
    warmup_epochs: float = 0
    warmup_steps: int | None = None
    decay_factor: float = 1.0

    def __post_init__(self) -> None:
        size = _checks.integer("batch_size", self.batch_size, minimum=1, maximum=_checks.MAX_SIZE)
        object.__setattr__(self, "batch_size", size)
        if (self.num_epochs is None) == (self.num_steps is None):
            raise ValueError(
                "exactly one of num_epochs and num_steps must be given, "
                f"got {self.num_epochs!r} and {self.num_steps!r}"
            )
        longest = {}
        if self.num_steps is None:
            _checks.real("num_epochs", self.num_epochs, above=0.0)
            longest = {"maximum": cast("float", self.num_epochs)}
        else:
            steps = _checks.integer("num_steps", self.num_steps, minimum=1)
            object.__setattr__(self, "num_steps", steps)
        _checks.real("warmup_epochs", self.warmup_epochs, minimum=0.0, **longest)
        if self.warmup_steps is not None:
            if self.warmup_epochs:
                raise ValueError(
                    "at most one of warmup_epochs and warmup_steps must be given, "
                    f"got {self.warmup_epochs!r} and {self.warmup_steps!r}"
                )
            maximum = self.num_steps or _checks.MAX_STEP
            steps = _checks.integer("warmup_steps", self.warmup_steps, maximum=maximum)
            object.__setattr__(self, "warmup_steps", steps)
        _checks.real("decay_factor", self.decay_factor, above=0.0, maximum=1.0)
