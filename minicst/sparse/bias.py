"""What keeps VR-PGE unbiased, and what breaks it: Eq. (13), empty groups, antithetic pairs.

Every function takes a problem of ``theory``: all 2^n losses and keep_prob. Clipping keep_prob to
[eps, 1 - eps] is no case of its own: an estimate at any s is unbiased for the gradient at that s,
clipping only changes which s can be reached.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicst.sparse.estimators import pge
from minicst.sparse.masks import checked_keep_prob, enumerate_masks
from minicst.sparse.theory import (
    Array,
    checked_problem,
    expected_loss,
    expected_loss_gradient,
    mask_probabilities,
)


@dataclass(frozen=True)
class MeanTerms:
    """The two terms of E VR-PGE, and what they should add up to, each (n,).

    Attributes:
        policy_gradient: H^alpha E L(m) grad ln p.
        baseline: H^alpha E L(m') E grad ln p, the paper's I; 0.
        gradient: H^alpha grad Phi by differences of conditional means.
    """

    policy_gradient: Array
    baseline: Array
    gradient: Array


def mean_terms(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.5
) -> MeanTerms:
    """Unbiasedness: E VR-PGE = H^alpha E L grad ln p - H^alpha E L(m') E grad ln p.

    The second term vanishes whatever the losses are, since E grad ln p = grad 1 = 0 and m' is
    independent of m.

    Paper: A.3, Eq. (13) [eq13]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1]; at 0 with some s in {0, 1} the gradient has an entry
            that the policy gradient lacks.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    losses, s = checked_problem(losses, keep_prob)
    p = mask_probabilities(s)
    drawn = p > 0.0
    masks, p = enumerate_masks(s.size)[drawn], p[drawn]
    score = pge(np.ones(p.size), masks, s, precondition_power)  # H^alpha grad ln p, (masks, n)
    return MeanTerms(
        p @ pge(losses[drawn], masks, s, precondition_power),
        expected_loss(losses, s) * (p @ score),
        expected_loss_gradient(losses, s, precondition_power),
    )


@dataclass(frozen=True)
class RepairMeans:
    """Expected VR-PGE where empty groups are repaired, each (n,).

    Attributes:
        drawn: with the drawn mask in the score.
        used: with the repaired mask in the score.
        gradient: H^alpha grad of E L(repair(m)), with the rule of repair held fixed.
    """

    drawn: Array
    used: Array
    gradient: Array


def repair_means(
    losses: ArrayLike,
    masks_used: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> RepairMeans:
    """Which mask belongs in the score when a drawn mask is repaired before use.

    L(repair(m)) is a function of the drawn m as any other, so the score of the drawn mask is
    unbiased for it. The score of the repaired mask is not, in the channels that repair switches on:
    its mean isn't 0 there, and they get the credit for draws that never happened. Even the sign
    may be wrong.

    Paper: not in the paper, which has no rule for empty layers; A.3, Eq. (13) shows it [eq13]

    Args:
        losses: all 2^n losses.
        masks_used: the mask used in place of each of the 2^n masks, 0/1, (2^n, n).
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, a used mask that can't be
            drawn (it switches on a channel with s = 0), so that its score isn't defined.
    """
    losses, s = checked_problem(losses, keep_prob)
    masks = enumerate_masks(s.size)
    used = np.asarray(masks_used)
    if used.shape != masks.shape or not ((used == 0) | (used == 1)).all():
        raise ValueError(
            f"masks_used has shape {used.shape}; a mask of 0 and 1 for each drawn one is needed, "
            f"{masks.shape}"
        )
    used_losses = losses[used.astype(np.int64) @ (1 << np.arange(s.size))]
    p = mask_probabilities(s)
    drawn = p > 0.0
    centered, p = (used_losses - p @ used_losses)[drawn], p[drawn]  # m' is independent: its mean
    return RepairMeans(
        p @ pge(centered, masks[drawn], s, precondition_power),
        p @ pge(centered, used[drawn], s, precondition_power),
        expected_loss_gradient(used_losses, s, precondition_power),
    )


def antithetic_bias(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.5
) -> Array:
    """Bias of ``vr_pge`` and ``vr_pge_symmetric``, had they accepted an antithetic pair.

    E (L(m) - L(m~)) H^alpha score(m) = H^alpha grad Phi / max(s, 1 - s): up to twice too long, and
    in another direction, since the factor differs between channels. DisARM's max(s, 1 - s) takes
    just that away.

    Paper: A.3, Eq. (13), where the masks are not independent [eq13]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The bias, float64 (n,); 0 where s in {0, 1}.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    s = checked_keep_prob(keep_prob)
    gradient = expected_loss_gradient(losses, s, precondition_power)
    return gradient * (1.0 / np.maximum(s, 1.0 - s) - 1.0)
