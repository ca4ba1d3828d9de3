"""The setting of all trials, chosen on the reference alone before any other trial was run.

The data set is Fashion-MNIST (60,000 images) at 14x14 pixels, so that a run takes minutes. The
schedule is the paper's at a tenth of its length: 9 epochs, warmup for half an epoch, ÷10 at epochs
3, 6 and 8. n is 16 and the reference minibatch is 64.

The rate of the reference is one of 0.05, 0.1, 0.2 and 0.4 (`python -m experiments reference`): the
smallest one with an error within a quarter of a point of the lowest, because a larger rate leaves
less room to scale. The large minibatch is 512, 8 times the reference: the largest power of two with
at least 100 steps per epoch (the paper's has 156).
"""

from typing import Any

from train.config import Config
from train.recipes import RECIPES

NUM_EXAMPLES = 60_000
BATCH_SIZE_PER_WORKER = 16
REFERENCE, LARGE = 64, 512
RATES = (0.05, 0.1, 0.2, 0.4)
RATE = 0.2
NUM_PARTS = 8  # accumulation steps of a large minibatch; one core runs them an eighth faster


def setting(batch_size: int, **changes: Any) -> Config:
    """Configure linear scaling from the reference to a minibatch, with gradual warmup.

    Args:
        batch_size: kn, a multiple of n.
        changes: fields of `Config` to replace.
    """
    num_workers = batch_size // BATCH_SIZE_PER_WORKER
    fields: dict[str, Any] = {
        "image_size": 14,
        "num_workers": num_workers,
        "batch_size_per_worker": BATCH_SIZE_PER_WORKER,
        "num_epochs": 9,
        "warmup_epochs": 0.5,
        "milestones": (3, 6, 8),
        "base_learning_rate": RATE,
        "base_batch_size": REFERENCE,
        "accumulation_steps": NUM_PARTS if num_workers % (2 * NUM_PARTS) == 0 else 1,
        "log_every_steps": max(1, 10 * REFERENCE // batch_size),
        "keep_checkpoints": 1,
    }
    return RECIPES["fashion-mnist"]().replace(**(fields | changes))
