"""The gradient noise scale: which minibatch sizes are worth trying (McCandlish et al. 2018).

Let G be the gradient of the expected loss, and Σ the covariance of the gradient of one image. Then
the gradient of a minibatch of B images has the expected squared norm |G|² + tr Σ / B. The noise
scale is tr Σ / |G|² images (arXiv:1812.06162, section 2.2): the minibatch size at which noise and
signal are equal. Far below it, doubling the minibatch halves the number of steps; above it, the
gain diminishes. It grows as the loss falls and when the learning rate is lowered.

Both terms are estimated from P parts of a minibatch of kn images, at the cost of a sum of squares:
a part gives the gradient of kn/P images, all parts together that of kn (appendix A.1). P affects
the variance of the estimates, not their expectation.

- Every part holds whole workers, so parts are identically distributed even with batch
  normalization: Σ is then n times the covariance of a worker's gradient.
- Weight decay is not part of these gradients, because the optimizer adds it.
- An epoch uses each image once, so minibatches vary less than independent samples would. If the
  noise scale approaches the size of the training set, |G|² is underestimated and can be negative.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A single estimate of |G|² is mostly noise and often negative. It settles over 100 updates, while
# the noise scale itself takes epochs to change.
DECAY = 0.99


class NoiseScale(NamedTuple):
    """Terms of the noise scale, as one estimate or a moving average; float32 scalars."""

    squared_norm: jax.Array
    """|G|², the squared norm of the gradient of the expected loss."""
    trace: jax.Array
    """tr Σ, the trace of the covariance of one image's gradient."""

    @property
    def images(self) -> jax.Array:
        """The noise scale; NaN if |G|² is not positive, as before the first update."""
        return jnp.where(self.squared_norm > 0, self.trace / self.squared_norm, jnp.nan)


def no_estimate() -> NoiseScale:
    """Start both averages at zero; the missing bias correction cancels in their ratio."""
    return NoiseScale(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def estimate(
    squared_norm: jax.Array, sum_of_squares: jax.Array, num_parts: int, batch_size: int
) -> NoiseScale:
    """Estimate both terms from one minibatch, without bias (appendix A.1).

    Args:
        squared_norm: squared norm of the minibatch gradient.
        sum_of_squares: sum of the squared norms of the P contributions to that gradient; each is
            1/P of the mean gradient of a part.
        num_parts: number of parts P, at least 2.
        batch_size: size of the minibatch, kn.
    """
    of_parts = num_parts * sum_of_squares  # mean squared norm of a gradient of kn/P images
    return NoiseScale(
        squared_norm=(num_parts * squared_norm - of_parts) / (num_parts - 1),
        trace=batch_size * (of_parts - squared_norm) / (num_parts - 1),
    )


def moved(average: NoiseScale, new: NoiseScale) -> NoiseScale:
    """Update the moving averages with a new estimate, if it is finite."""
    is_finite = jnp.isfinite(new.squared_norm) & jnp.isfinite(new.trace)
    return jax.tree.map(
        lambda old, new: jnp.where(is_finite, DECAY * old + (1 - DECAY) * new, old), average, new
    )
