"""Vmax(s) from sampled masks: conditional V of every channel and value, forced flips, the maximum.

Vmax is a maximum of noisy means. Common values of m_j are measured on the pool of masks itself,
rare ones by forcing them; the maximum is chosen on one half of the masks and valued on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicst.variance.monte_carlo import (
    FEWEST,
    Array,
    Estimate,
    Leaving,
    Loss,
    Mask,
    Pool,
    loss_moments,
)


@dataclass(frozen=True)
class ConditionalV:
    """V_jb = E over m_-j, E over m' of (L(m) - L(m'))^2 with m_j := b; arrays (2, n), row b.

    Attributes:
        value: NaN where not measured.
        se: jackknife standard error.
        count: sampled masks behind it.
    """

    value: Array
    se: Array
    count: NDArray[np.int64]


def conditional_v(masks: Mask, losses: Array, n_blocks: int) -> ConditionalV:
    """V_jb of all channels from a pool: masks with m_j = b against all other masks.

        V_jb = mean over i with m_ij = b of D_i,   D_i = 1 / (N - 1) sum over k of (L_i - L_k)^2

    Biased only by how far the other masks' share of m_kj = b is off: 1 / N of a channel's effect.

    Paper: A.1, the conditional expectation inside Eq. (7) [eq7]

    Args:
        masks: (n_masks, n) independent draws; n_masks a multiple of n_blocks.
        losses: (n_masks,).
        n_blocks: blocks of the jackknife.
    """
    centered = losses - losses.mean()  # (L_i - L_k)^2 doesn't notice, and nothing cancels
    by_block = masks.reshape(n_blocks, -1, masks.shape[1]).astype(np.float64)
    powers = np.stack([centered**p for p in range(3)]).reshape(3, n_blocks, -1)
    ones = np.einsum("pbi,bij->pbj", powers, by_block)  # (3, n_blocks, n): sums over m_ij = 1
    sums = np.stack([powers.sum(axis=2)[..., None] - ones, ones])  # (2, 3, n_blocks, n), row b
    whole = sums.sum(axis=2)
    value = _mean_of_differences(whole)
    without = _mean_of_differences(whole[:, :, None] - sums)
    count = np.rint(whole[:, 0]).astype(np.int64)
    measured = count >= FEWEST
    with np.errstate(invalid="ignore"):
        se = Leaving(value, np.moveaxis(without, 1, 0)).se
    return ConditionalV(np.where(measured, value, np.nan), np.where(measured, se, np.nan), count)


def _mean_of_differences(sums: Array) -> Array:
    """V_jb from sums over masks (2, 3, ..., n) of L^0, L^1, L^2, row b."""
    total = sums.sum(axis=0)  # over both values of m_j: all masks
    n, first, second = total
    with np.errstate(invalid="ignore", divide="ignore"):
        # mean over i with m_ij = b of 1 / (N - 1) sum over k of (L_i - L_k)^2
        mean, square = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
        return (n * square - 2.0 * mean * first + second) / (n - 1.0)


@dataclass(frozen=True)
class Flips:
    """V_jb of chosen entries by forced flips, for values that the pool hardly ever has.

    Attributes:
        entries: (n_entries, 2): channel j and value b.
        strata: (n_entries,) number of the entry's stratum.
        changes: (n_entries, n_draws): D_i after the flip minus D_i before it, of one pool mask
            each; V_jb = V + mean change.
        rows: (n_draws,) numbers of these pool masks, the same for all entries.
    """

    entries: NDArray[np.int64]
    strata: NDArray[np.int64]
    changes: Array
    rows: NDArray[np.int64]

    def values(self, v: float, v_se: float, rows: NDArray[np.bool_]) -> tuple[Array, Array]:
        """V_jb and its standard error, both (n_entries,), from some of the pool masks."""
        chosen = self.changes[:, rows]
        n = chosen.shape[1]
        se = np.sqrt(v_se**2 + chosen.var(axis=1, ddof=1) / n)
        return v + chosen.mean(axis=1), se


# Edges of the strata of P(m_j = b): forced flips see all orders of magnitude of rarity.
STRATA = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def choose_entries(
    keep_prob: Array, rare: NDArray[np.bool_], per_stratum: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose entries (j, b) for forced flips, up to `per_stratum` of each stratum of P(m_j = b).

    Args:
        keep_prob: s, shape (n,).
        rare: (2, n), row b: possible entries that the pool doesn't measure.
        per_stratum: entries of a stratum; all if it has fewer.
        rng: chooses.

    Returns:
        Entries (n_entries, 2) of j and b, and the stratum of each.
    """
    probability = np.stack([1.0 - keep_prob, keep_prob])
    stratum = np.searchsorted(STRATA[1:-1], probability)
    entries, strata = [], []
    for number in range(len(STRATA) - 1):
        b, j = np.nonzero(rare & (stratum == number))
        at = np.sort(rng.permutation(b.size)[:per_stratum])
        entries.append(np.stack([j[at], b[at]], axis=1))
        strata.append(np.full(at.size, number))
    return np.concatenate(entries), np.concatenate(strata)


def forced_flips(
    loss: Loss,
    pool: Pool,
    entries: NDArray[np.int64],
    strata: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Flips:
    """Set m_j := b in masks of the pool and evaluate them against all other masks of the pool.

    The rest of a pool mask is a draw of m_-j, whatever its own m_j. With
    D(L) = mean over the other masks k of (L - L_k)^2 the mean of D(L flipped) is V_jb and that of
    D(L as drawn) is V: the difference of the two is small where one channel does little, and
    V + mean difference has far less noise than the mean of D(L flipped) alone.

    Paper: A.1, the conditional expectation inside Eq. (7) [eq7]

    Args:
        loss: of a mask.
        pool: independent masks.
        entries: (n_entries, 2) of j and b.
        strata: (n_entries,).
        rows: numbers of the pool masks that are flipped.
    """
    changes = np.zeros((len(entries), rows.size))
    for e, (j, b) in enumerate(entries):
        for r, row in enumerate(rows):
            if pool.masks[row, j] == b:
                continue
            flipped = pool.masks[row].copy()
            flipped[j] = b
            others = np.delete(pool.losses, row)
            after, before = loss(flipped), pool.losses[row]
            changes[e, r] = ((after - others) ** 2 - (before - others) ** 2).mean()
    return Flips(entries, strata, changes, rows)


@dataclass(frozen=True)
class LargestV:
    """Vmax(s) = max over j and b of V_jb, from noisy V_jb.

    Attributes:
        split: the entry is chosen on one half of the masks and valued on the other, both ways,
            mean: below Vmax on average, as the noisy choice may miss the largest entry.
        naive: the largest value on all masks: above Vmax on average, as it picks the noise too.
        channel: j of the naive one.
        kept: b of the naive one.
        probability: P(m_j = b) of the naive one.
        n_pool: entries measured by the pool, at least FEWEST masks in each half.
        n_flipped: entries measured by forced flips.
        n_unmeasured: possible entries that neither has measured.
        n_impossible: entries of probability 0, left out; the score never meets them.
    """

    split: Estimate
    naive: Estimate
    channel: int
    kept: int
    probability: float
    n_pool: int
    n_flipped: int
    n_unmeasured: int
    n_impossible: int


def rare_entries(masks: Mask, keep_prob: Array) -> NDArray[np.bool_]:
    """(2, n): possible values of m_j that a half of the pool has fewer than FEWEST times."""
    half = len(masks) // 2
    kept = np.stack([masks[:half].sum(axis=0), masks[half:].sum(axis=0)])  # (2 halves, n)
    count = np.stack([half - kept, kept]).min(axis=1)
    return (count < FEWEST) & _possible(keep_prob)


def largest_v(pool: Pool, keep_prob: Array, n_blocks: int, flips: Flips | None = None) -> LargestV:
    """Vmax(s) from a pool, and from forced flips where the pool has too few masks.

    Paper: A.1, Eq. (7) [eq7], and Fig. 4 [fig4]
    Differs: the maximum runs over possible entries only.

    Args:
        pool: independent masks, an even number of blocks.
        keep_prob: s, shape (n,).
        n_blocks: blocks of the pool, even.
        flips: of rare entries.

    Raises:
        ValueError: so few masks that no value of any channel came up FEWEST times.
    """
    half = len(pool.losses) // 2
    rare = rare_entries(pool.masks, keep_prob)
    common = _possible(keep_prob) & ~rare
    if not common.any():
        raise ValueError(f"{len(pool.losses)} masks measure no entry of Vmax: draw more")
    b, j = np.nonzero(common)
    entries = np.stack([j, b], axis=1)
    if flips is not None:
        entries = np.concatenate([entries, flips.entries])

    def values(rows: slice, blocks: int) -> tuple[Array, Array]:
        losses = pool.losses[rows]
        table = conditional_v(pool.masks[rows], losses, blocks)
        value, se = table.value[common], table.se[common]
        if flips is not None and len(flips.entries):
            inside = np.zeros(pool.losses.size, bool)
            inside[rows] = True
            v = loss_moments(losses, blocks).v.estimate()
            more, more_se = flips.values(v.value, v.se, inside[flips.rows])
            value, se = np.concatenate([value, more]), np.concatenate([se, more_se])
        return value, se

    first = values(slice(0, half), n_blocks // 2)
    second = values(slice(half, None), n_blocks // 2)
    all_values, all_se = values(slice(None), n_blocks)
    top = int(np.argmax(all_values))
    one = second[0][np.argmax(first[0])], second[1][np.argmax(first[0])]
    two = first[0][np.argmax(second[0])], first[1][np.argmax(second[0])]
    channel, kept = (int(x) for x in entries[top])
    n_flipped = 0 if flips is None else len(flips.entries)
    return LargestV(
        split=Estimate(float(one[0] + two[0]) / 2, float(np.hypot(one[1], two[1])) / 2),
        naive=Estimate(float(all_values[top]), float(all_se[top])),
        channel=channel,
        kept=kept,
        probability=float(keep_prob[channel] if kept else 1.0 - keep_prob[channel]),
        n_pool=int(common.sum()),
        n_flipped=n_flipped,
        n_unmeasured=int(rare.sum()) - n_flipped,
        n_impossible=int((~_possible(keep_prob)).sum()),
    )


def _possible(keep_prob: Array) -> NDArray[np.bool_]:
    return np.stack([keep_prob < 1.0, keep_prob > 0.0])
