"""Mean and covariance of every estimator on a problem of 2^n losses, exactly, in two ways.

The two share nothing: ``enumerated_moments`` calls the estimator on every possible draw,
``estimator_moments`` adds up a few sums over the 2^n losses and never calls it.

Notation of the comments: L is a loss minus its mean, z = (m - s) / sqrt(s (1 - s)) the score in
units of its standard deviation (0 for a channel with s in {0, 1}, which is decided), E an
expectation over masks. E z = 0 and E z z^T = 1, and H^alpha score = (s (1 - s))^(alpha - 1/2) z.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicst.sparse.estimators import preconditioner
from minicst.sparse.masks import enumerate_masks
from minicst.sparse.rules import RULES, Draws
from minicst.sparse.theory import (
    Array,
    checked_problem,
    conditional_means,
    expected_loss,
    mask_probabilities,
    product_over_masks,
)

# Four times the pairs of masks of 10 channels: some seconds.
MAX_JOINT_DRAWS = 2**22
_ROWS = 2**14  # joint draws at a time


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of an estimator of H^alpha grad Phi(s).

    Attributes:
        mean: (n,).
        covariance: (n, n).
    """

    mean: Array
    covariance: Array

    @property
    def second_moment(self) -> Array:
        """E g_j^2 of each channel, (n,)."""
        return np.diagonal(self.covariance) + self.mean**2

    @property
    def total_variance(self) -> float:
        """E |g|^2 - |E g|^2, the sum of all channels' variances."""
        return float(np.trace(self.covariance))


def estimator_moments(
    estimator: str,
    losses: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
    n_masks: int = 2,
    baseline: float = 0.0,
) -> Moments:
    """Mean and covariance of one estimate, from sums over the 2^n losses; n to 16.

    With L the loss minus its mean, z = (m - s) / sqrt(s (1 - s)), a = E L z, S = E L^2 z z^T, all
    in units of (s (1 - s))^(alpha - 1/2):

    - vr-pge: covariance C = S + Var(L) - a a^T
    - vr-pge-symmetric: (S + Var(L)) / 2 = (C + a a^T) / 2
    - vr-pge-multi: 2 / (k (k - 1)) (2 (k - 2) zeta_1 + zeta_2), as it is the U-statistic of the
      kernel (L - L') (z - z') / 2: zeta_1 = (S - a a^T) / 4, zeta_2 = the symmetric form's
    - pge, pge-moving-average: E (L(m) - b)^2 z z^T - a a^T with the loss itself and a fixed b
    - coin: mean 0, covariance S + Var(L)
    - disarm, arm: from the products of L(m) L(m~) in the basis prod_c z_c of the masks, in which
      an antithetic channel has the correlation -min(s, 1 - s) / max(s, 1 - s)

    ARM's step (1/2 - U) / (s (1 - s)) also moves channels that are equal in both masks: at
    s_j -> 0 its variance grows as s_j^(2 alpha - 2), for every alpha < 1, where the other
    estimators stay bounded from alpha = 1/2 on.

    Paper: Sec. 4.2.2, (VR-PGE) [vr-pge], and the variance of PGE [pge-var]

    Args:
        estimator: one of ``minicst.sparse.rules.RULES``.
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].
        n_masks: k of vr-pge-multi, at least 2; the others have their own number.
        baseline: b of pge-moving-average.

    Raises:
        ValueError: unknown estimator, wrong shapes or ranges, a number that is not finite.
    """
    losses, s = checked_problem(losses, keep_prob)
    _check_options(estimator, n_masks, baseline)
    centered = losses - expected_loss(losses, s)
    first, second, power = _score_sums(centered, s)
    both = second + power * np.eye(s.size)  # E (L - L')^2 z z^T
    outer = np.outer(first, first)
    if estimator == "vr-pge":
        covariance = both - outer
    elif estimator == "vr-pge-symmetric":
        covariance = both / 2.0
    elif estimator == "vr-pge-multi":
        k = n_masks
        zeta_1, zeta_2 = (second - outer) / 4.0, both / 2.0
        covariance = 2.0 / (k * (k - 1)) * (2 * (k - 2) * zeta_1 + zeta_2)
    elif estimator == "coin":
        first, covariance = np.zeros_like(first), both
    elif estimator in ("pge", "pge-moving-average"):
        shifted = losses - (baseline if estimator == "pge-moving-average" else 0.0)
        covariance = _score_sums(shifted, s)[1] - outer
    else:
        covariance = _antithetic_second_moment(estimator, centered, s, second) - outer
    scale = _score_deviation(s, precondition_power)
    return Moments(scale * first, np.outer(scale, scale) * covariance)


def enumerated_moments(
    estimator: str,
    losses: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
    n_masks: int = 2,
    baseline: float = 0.0,
) -> Moments:
    """Mean and covariance of one estimate by calling the estimator on every possible draw.

    Independent masks: all ordered k-tuples, (2^n)^k. An antithetic pair: a channel is in one of
    three states, (m, m~) = (1, 0) or (0, 1) with probability min(s, 1 - s) each, or equal; 3^n.
    Given the state U is uniform on an interval and ARM linear in it, so a few values of U in each
    state integrate ARM's first and second moments exactly.

    Paper: A.2, expectations over m and m' as finite sums [eq8-11]

    Args:
        estimator: one of ``minicst.sparse.rules.RULES``.
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].
        n_masks: k of vr-pge-multi, at least 2.
        baseline: b of pge-moving-average.

    Raises:
        ValueError: as ``estimator_moments``, or more than 2^22 joint draws.
    """
    losses, s = checked_problem(losses, keep_prob)
    _check_options(estimator, n_masks, baseline)
    rule = RULES[estimator]
    mean, second = np.zeros(s.size), np.zeros((s.size, s.size))
    if rule.antithetic:
        draws = _antithetic_draws(losses, s, with_uniform=estimator == "arm")
    else:
        draws = _independent_draws(losses, s, rule.masks_per_step(n_masks), baseline)
    for probability, draw in draws:
        estimate = rule.estimate(draw, s, precondition_power)  # (rows, n)
        mean += probability @ estimate
        second += estimate.T @ (probability[:, None] * estimate)
    return Moments(mean, second - np.outer(mean, mean))


def _check_options(estimator: str, n_masks: int, baseline: float) -> None:
    if estimator not in RULES:
        raise ValueError(f"unknown estimator {estimator!r}; choose one of {', '.join(RULES)}")
    if isinstance(n_masks, bool) or not isinstance(n_masks, (int, np.integer)) or n_masks < 2:
        raise ValueError(f"n_masks is {n_masks!r}; a whole number of masks >= 2 is needed")
    if not np.isfinite(baseline):
        raise ValueError(f"baseline is {baseline!r}; a finite number is needed")


def _variance(s: Array) -> Array:
    return s * (1.0 - s)


def _score_deviation(s: Array, precondition_power: float) -> Array:
    """(s (1 - s))^(alpha - 1/2): the standard deviation of H^alpha score; 0 where decided."""
    preconditioner(s, precondition_power)  # checks alpha
    open_ = _variance(s) > 0.0
    return np.where(open_, np.where(open_, _variance(s), 1.0) ** (precondition_power - 0.5), 0.0)


def _score_sums(losses: Array, s: Array) -> tuple[Array, Array, float]:
    """E L z (n,), E L^2 z z^T (n, n) and E L^2."""
    deviation = np.sqrt(_variance(s))
    z = np.zeros((losses.size, s.size))
    np.divide(enumerate_masks(s.size) - s, deviation, out=z, where=deviation > 0.0)
    weighted = mask_probabilities(s) * losses
    squared = weighted * losses
    return z.T @ weighted, z.T @ (squared[:, None] * z), float(squared.sum())


def _antithetic_second_moment(estimator: str, losses: Array, s: Array, second: Array) -> Array:
    """E g g^T of disarm or arm in units of (s (1 - s))^(alpha - 1/2); losses centered.

    With q = min(s, 1 - s), sigma = m - m~ and D = L(m) - L(m~), channel j's step is
    D sigma_j (1 - q_j) / 2 on average over U. In the basis chi_S = prod_{c in S} z_c the losses
    are sum_S c_S chi_S, and E L(m) L(m~) = sum_S r_S c_S^2 with r_S = prod_{c in S} -q_c/(1-q_c).
    """
    n, q, deviation = s.size, np.minimum(s, 1.0 - s), np.sqrt(_variance(s))
    c = losses
    for j in range(n):
        off, on = np.moveaxis(c.reshape(-1, 2, 2**j), 1, 0)
        c = np.stack([(1.0 - s[j]) * off + s[j] * on, deviation[j] * (on - off)], axis=1)
        c = c.reshape(-1)
    r = product_over_masks(np.stack([np.ones(n), -q / (1.0 - q)], axis=1))

    # Off the diagonal: E D^2 sigma_i sigma_j, whose L(m)^2 and L(m~)^2 parts are `second` each.
    moment = second / 2.0
    for j in range(n):
        for i in range(j):
            shape = (-1, 2, 2 ** (j - i - 1), 2, 2**i)  # digits above j, j, between, i, below i
            (c00, c01), (c10, c11) = np.transpose(c.reshape(shape), (1, 3, 0, 2, 4))
            cross = (r.reshape(shape)[:, 0, :, 0] * (c11 * c00 - c10 * c01)).sum()
            moment[i, j] = moment[j, i] = moment[i, j] - cross

    # On it: sigma_j^2 = 1 with probability 2 q_j, and then D = L(m_j = 1) - L(m_j = 0) with the
    # other channels' antithetic pair inside.
    squares = conditional_means(losses**2, s).sum(axis=1)  # E L(m_j = 0)^2 + E L(m_j = 1)^2
    spread = 2.0 * (float(mask_probabilities(s) @ losses**2) - float((r * c * c).sum()))  # E D^2
    for j in np.flatnonzero(deviation > 0.0).tolist():
        off, on = np.moveaxis(c.reshape(-1, 2, 2**j), 1, 0)
        slope = on / deviation[j]
        pairs = (r.reshape(-1, 2, 2**j)[:, 0] * (off + (1.0 - s[j]) * slope)) * (off - s[j] * slope)
        flipped = squares[j] - 2.0 * pairs.sum()  # E [D^2 | sigma_j^2 = 1]
        if estimator == "disarm":
            moment[j, j] = (1.0 - q[j]) / 2.0 * flipped
            continue
        # E (1/2 - U)^2 for U in [0, q) is (1/4 + d/2 + d^2) / 3, in [q, 1 - q) it is d^2 / 3.
        d = 0.5 - q[j]
        moved = (0.25 + 0.5 * d + d * d) / 3.0 * 2.0 * q[j] * flipped
        equal = d * d / 3.0 * (spread - 2.0 * q[j] * flipped)
        moment[j, j] = (moved + equal) / deviation[j] ** 2
    return moment


def _independent_draws(
    losses: Array, s: Array, k: int, baseline: float
) -> Iterator[tuple[Array, Draws]]:
    """Yield (probabilities, draws) of all ordered k-tuples of possible masks, both coins each."""
    masks, probability = enumerate_masks(s.size), mask_probabilities(s)
    possible = np.flatnonzero(probability)
    count = possible.size**k
    _check_count(count, f"{k}-tuples of {possible.size} masks")
    for start in range(0, count, _ROWS):
        flat = np.arange(start, min(start + _ROWS, count))
        tuples = possible[np.stack(np.unravel_index(flat, (possible.size,) * k), axis=1)]  # (r, k)
        weight = probability[tuples].prod(axis=1) / 2.0
        for coin in (1.0, -1.0):  # only the coin control looks at it
            coins = np.full(len(flat), coin)
            yield weight, Draws(losses[tuples], masks[tuples], baseline=baseline, coin=coins)


def _antithetic_draws(losses: Array, s: Array, with_uniform: bool) -> Iterator[tuple[Array, Draws]]:
    """Yield (probabilities, draws) of all joint states, with some values of U in each.

    Given the state, each U_j is uniform on an interval. The two Gauss-Legendre nodes center +- half
    width / sqrt(3) give its mean and square; signs that are balanced and uncorrelated (parities
    of the binary digits of run & (j + 1)) do so for all channels at once, products included.
    """
    n, q, same = s.size, np.minimum(s, 1.0 - s), (s > 0.5).astype(np.float64)
    # Three states a channel: (m, m~) = (1, 0), (0, 1), equal.
    chance = np.stack([q, q, 1.0 - 2.0 * q])  # (3, n)
    center = np.stack([q / 2.0, 1.0 - q / 2.0, np.full(n, 0.5)])
    half_width = np.stack([q / 2.0, q / 2.0, 0.5 - q])
    mask_a, mask_b = np.stack([0 * q + 1, 0 * q, same]), np.stack([0 * q, 0 * q + 1, same])
    n_runs = 2 ** n.bit_length() if with_uniform else 1
    common = np.arange(n_runs)[:, None] & np.arange(1, n + 1)
    sign = 1.0 - 2.0 * (np.bitwise_count(common) % 2)  # (n_runs, n)
    channel, count = np.arange(n), int(3**n * n_runs)
    _check_count(count, f"joint states of {n} channels")
    for start in range(0, count, _ROWS):
        number, run = np.divmod(np.arange(start, min(start + _ROWS, count)), n_runs)
        state = np.stack(np.unravel_index(number, (3,) * n), axis=1)  # (rows, n)
        probability = chance[state, channel].prod(axis=1) / n_runs
        keep = probability > 0.0
        state, run = state[keep], run[keep]
        uniform = center[state, channel] + sign[run] * half_width[state, channel] / np.sqrt(3.0)
        uniform = np.minimum(uniform, np.nextafter(1.0, 0.0))  # where q is below 1e-16
        masks = np.stack([mask_a[state, channel], mask_b[state, channel]], axis=1) == 1.0
        numbers = masks @ (1 << channel)  # (rows, 2)
        yield probability[keep], Draws(losses[numbers], masks, uniform=uniform)


def _check_count(count: int, what: str) -> None:
    if count > MAX_JOINT_DRAWS:
        raise ValueError(
            f"{count} {what} are more than {MAX_JOINT_DRAWS} to enumerate: take fewer channels or "
            "masks, or estimator_moments"
        )
