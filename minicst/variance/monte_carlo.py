"""Moments of estimators and of L(m) from sampled masks, each with a standard error.

Exact theory lists all 2^n masks; a network has hundreds or thousands of channels, so here masks
are drawn. One pool of N independent masks and their losses serves every quantity: single masks,
pairs and larger sets are cut from it in order. Its *blocks* (a few masks in a row) are left out
in turn for the standard errors of whatever has no formula: with B blocks,

    se^2 = (B - 1) / B sum_b (x_b - mean x)^2,    x_b: the same number without block b  (jackknife)

Arrays only: a loss is any function of a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minicst.randomness import rng_for
from minicst.sparse.masks import sample_antithetic_masks, sample_mask
from minicst.sparse.rules import Draws, Rule

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Loss = Callable[[Mask], float]

# Fewer sampled masks with m_j = b than this say nothing of what depends on m_j = b.
FEWEST = 5


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    se: float


@dataclass(frozen=True)
class Leaving:
    """A statistic of the whole pool, and with each block left out.

    Attributes:
        whole: any shape.
        without: (n_blocks, *shape).
    """

    whole: Array
    without: Array

    @property
    def se(self) -> Array:
        """Jackknife standard error, shaped like ``whole``."""
        n_blocks = len(self.without)
        spread = self.without - self.without.mean(axis=0)
        return np.sqrt((n_blocks - 1) / n_blocks * (spread**2).sum(axis=0))

    def estimate(self) -> Estimate:
        """The number and its error, for a statistic of shape ()."""
        return Estimate(float(self.whole), float(self.se))

    def __truediv__(self, other: Leaving) -> Leaving:
        """Ratio of two statistics of the same pool: what they share cancels in its error."""
        return Leaving(self.whole / other.whole, self.without / other.without)

    def mean_over(self, channels: NDArray[np.bool_]) -> Leaving:
        """Mean over some channels, the last axis."""
        return Leaving(
            self.whole[..., channels].mean(axis=-1), self.without[..., channels].mean(axis=-1)
        )


@dataclass(frozen=True)
class Pool:
    """Masks and their losses.

    Attributes:
        masks: (n_masks, n) bool, independent; of antithetic pairs (n_pairs, 2, n).
        losses: (n_masks,), or (n_pairs, 2).
        uniform: U of antithetic pairs, (n_pairs, n), or None.
    """

    masks: Mask
    losses: Array
    uniform: Array | None = None


def draw_pool(loss: Loss, keep_prob: Array, n_masks: int, seed: int, *key: int | str) -> Pool:
    """Draw independent masks and evaluate them; mask i comes from the stream (seed, *key, i)."""
    masks = np.stack([sample_mask(keep_prob, rng_for(seed, *key, i)) for i in range(n_masks)])
    return Pool(masks, np.array([loss(mask) for mask in masks], np.float64))


def draw_pairs(loss: Loss, keep_prob: Array, n_pairs: int, seed: int, *key: int | str) -> Pool:
    """Draw antithetic pairs and evaluate both halves; pair i comes from (seed, *key, i)."""
    triples = [sample_antithetic_masks(keep_prob, rng_for(seed, *key, i)) for i in range(n_pairs)]
    masks = np.stack([np.stack([a, b]) for a, b, _ in triples])
    losses = np.array([[loss(mask) for mask in pair] for pair in masks], np.float64)
    return Pool(masks, losses, np.stack([uniform for _, _, uniform in triples]))


@dataclass(frozen=True)
class GradientMoments:
    """Sample moments, over draws, of an estimator at alpha = 0.

    At another alpha the estimate is h = (s (1 - s))^alpha times that of alpha = 0, channel by
    channel, and so the variance is h^2 times as large: nothing needs to be drawn anew.

    Attributes:
        n_draws: of the estimator.
        mean: (n,).
        variance: (n,) sample variance, sum (g - mean)^2 / (n_draws - 1); its jackknife by blocks.
        se: (n,) standard error of the variance, from the fourth central moment m4:
            se^2 = (m4 - (n_draws - 3) / (n_draws - 1) variance^2) / n_draws.
    """

    n_draws: int
    mean: Array
    variance: Leaving
    se: Array

    def at(self, weights: Array) -> Leaving:
        """Variance, channel by channel, times the squared preconditioner h^2, (n,)."""
        return Leaving(self.variance.whole * weights, self.variance.without * weights)


def gradient_moments(rule: Rule, draws: Draws, keep_prob: Array, n_blocks: int) -> GradientMoments:
    """Moments of an estimator's rows of draws, one block after another.

    Paper: Sec. 5.5 and Fig. 3 (right): variance of the gradient of each channel [fig3]

    Args:
        rule: of the estimator.
        draws: rows (n_draws, k, n).
        keep_prob: s, shape (n,).
        n_blocks: blocks of draws for the jackknife, at least 2; n_draws is a multiple of it.

    Raises:
        ValueError: draws that can't be split into so many blocks.
    """
    n_draws = len(draws.losses)
    if n_blocks < 2 or n_draws % n_blocks:
        raise ValueError(
            f"{n_draws} draws in {n_blocks} blocks: two blocks or more of equal size are needed"
        )
    gradient = rule.estimate(draws, keep_prob, 0.0)
    mean = gradient.mean(axis=0)
    gradient = gradient - mean
    size = n_draws // n_blocks
    by_block = gradient.reshape(n_blocks, size, -1)
    first, second = by_block.sum(axis=1), (by_block**2).sum(axis=1)
    total = second.sum(axis=0)
    variance = total / (n_draws - 1)
    # sum over all blocks of first is 0, so without block b it is -first[b].
    left = n_draws - size
    without = (total - second - first**2 / left) / (left - 1)
    fourth = (gradient**4).mean(axis=0)
    square = (fourth - (n_draws - 3) / (n_draws - 1) * variance**2) / n_draws
    se = np.sqrt(np.maximum(square, 0.0))
    return GradientMoments(n_draws, mean, Leaving(variance, np.maximum(without, 0.0)), se)


@dataclass(frozen=True)
class LossMoments:
    """Moments of L(m).

    Attributes:
        mean: E L.
        square: E L^2.
        v: V(s) = E E (L(m) - L(m'))^2 = 2 Var L, the mean over all pairs of masks of the pool.
    """

    mean: Leaving
    square: Leaving
    v: Leaving


def loss_moments(losses: Array, n_blocks: int) -> LossMoments:
    """E L, E L^2 and V from a pool's losses.

    V = 1 / (N (N - 1)) sum over i != k of (L_i - L_k)^2, unbiased, is twice the sample variance.

    Paper: A.1, Eq. (6) [eq6], and E L^2 of Fig. 4 [fig4]

    Args:
        losses: (n_masks,) of independent masks; a multiple of n_blocks.
        n_blocks: blocks of the jackknife.
    """
    rest = np.stack(
        [np.delete(losses.reshape(n_blocks, -1), b, 0).ravel() for b in range(n_blocks)]
    )
    return LossMoments(
        Leaving(losses.mean(), rest.mean(axis=1)),
        Leaving((losses**2).mean(), (rest**2).mean(axis=1)),
        # A variance doesn't change with the origin; from one of the losses, equal ones give 0.
        Leaving(
            2.0 * (losses - losses[0]).var(ddof=1), 2.0 * (rest - losses[0]).var(axis=1, ddof=1)
        ),
    )
