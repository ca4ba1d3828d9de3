"""The setting of all comparisons, chosen on the reference alone and written down before them.

Fashion-MNIST at 14x14 pixels, so that a run takes minutes: 60,000 images, the paper's schedule at a
tenth of its length (9 epochs, warmup for half of one, ÷10 at 3, 6 and 8), n = 16, and a reference
minibatch of 64. Its rate is one of 0.05, 0.1, 0.2 and 0.4 (`python -m experiments reference`): the
least whose error there is within a quarter of a point of the best one's, since a larger one leaves
less room to scale. The large minibatch is the largest with at least 100 steps an epoch, of which
the paper's has 156: 512, 8 times the reference.
"""

from typing import Any

from train.config import Config
from train.recipes import RECIPES

NUM_EXAMPLES = 60_000
BATCH_SIZE_PER_WORKER = 16
REFERENCE, LARGE = 64, 512
RATES = (0.05, 0.1, 0.2, 0.4)
RATE = 0.2
NUM_PARTS = 8  # in which a large minibatch goes through one core, the faster by an eighth


def setting(batch_size: int, **changes: Any) -> Config:
    """Scale the reference to a minibatch, by the paper's rule and with its gradual warmup.

    Args:
        batch_size: kn, a multiple of n.
        changes: of single fields.
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
