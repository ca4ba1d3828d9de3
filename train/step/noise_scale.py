"""The gradient noise scale: how large a minibatch is worth trying (McCandlish et al. 2018).

With G the gradient of the expected loss and tr Σ the trace of the covariance of one image's
gradient, that of a minibatch of B images has the squared norm |G|² + tr Σ / B in expectation. The
noise scale is tr Σ / |G|² (arXiv:1812.06162, section 2.2), in images: the minibatch at which noise
and signal are equal. Far below it twice the minibatch saves half of the steps; past it, fewer and
fewer. It grows while the loss falls, and where the rate is lowered.

Both are estimated from the parts of a minibatch of kn images, at the cost of a sum of squares: P
parts have gradients of kn/P images each, all together that of kn (appendix A.1). What P is does
not enter what is expected, only the spread.

- Every part holds whole workers, so that with batch normalisation, too, parts are alike: Σ is then
  n times the covariance of a worker's gradient.
- Weight decay is no part of these gradients: the optimizer adds it.
- An epoch shows each image once, so that minibatches spread less than if they were drawn from all
  images: where the scale comes near the size of the training set, |G|² is estimated too low, and
  may not even be positive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# One update's estimate of |G|² is mostly noise, and often negative; over 100 updates it settles,
# while the scale itself takes epochs to change.
DECAY = 0.99


class NoiseScale(NamedTuple):
    """What the noise scale is the ratio of, estimated or averaged; float32 scalars."""

    squared_norm: jax.Array
    """|G|², of the gradient of the expected loss."""
    trace: jax.Array
    """tr Σ, of the covariance of one image's gradient."""

    @property
    def images(self) -> jax.Array:
        """The noise scale; NaN where |G|² is not positive, as before the first update."""
        return jnp.where(self.squared_norm > 0, self.trace / self.squared_norm, jnp.nan)


def no_estimate() -> NoiseScale:
    """Begin the averages, at zero: both lack the same factor then, which the ratio does not see."""
    return NoiseScale(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def estimate(
    squared_norm: jax.Array, sum_of_squares: jax.Array, num_parts: int, batch_size: int
) -> NoiseScale:
    """Estimate both from one minibatch, without bias (appendix A.1).

    Args:
        squared_norm: of the minibatch's gradient, the sum of what its parts contribute.
        sum_of_squares: of the squared norms of what the parts contribute, each 1/P of a part's mean
            gradient.
        num_parts: P, at least 2.
        batch_size: the minibatch kn.
    """
    of_parts = num_parts * sum_of_squares  # the mean squared norm of a gradient of kn/P images
    return NoiseScale(
        squared_norm=(num_parts * squared_norm - of_parts) / (num_parts - 1),
        trace=batch_size * (of_parts - squared_norm) / (num_parts - 1),
    )


def moved(average: NoiseScale, new: NoiseScale) -> NoiseScale:
    """Move the averages towards a new estimate, unless it is not finite."""
    is_finite = jnp.isfinite(new.squared_norm) & jnp.isfinite(new.trace)
    return jax.tree.map(
        lambda old, new: jnp.where(is_finite, DECAY * old + (1 - DECAY) * new, old), average, new
    )
