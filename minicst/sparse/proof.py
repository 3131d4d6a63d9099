"""Theorem 1 in exact numbers: the bound, each line of its proof, and what symmetry saves.

Every function takes a problem of ``theory``: all 2^n losses and keep_prob. The lines of the proof
come out as pairs of numbers, so that one sees how much each inequality gives away.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from minicst.sparse.estimators import preconditioner
from minicst.sparse.masks import checked_keep_prob, enumerate_masks
from minicst.sparse.moments import estimator_moments
from minicst.sparse.theory import (
    Array,
    checked_problem,
    conditional_squared_difference,
    expected_loss,
    mask_probabilities,
    max_squared_difference,
)

# Below, s^(2 alpha - 2) of Eq. (8) overflows together with its neighbours.
_SMALLEST_OPEN = 1e-100


def bound_factor(keep_prob: ArrayLike, precondition_power: float) -> Array:
    """E (H^alpha grad ln p)_j^2 = (s_j (1 - s_j))^(2 alpha - 1), the bound's factor of channel j.

    The paper writes s^(2a) (1-s)^(2a-1) + s^(2a-1) (1-s)^(2a), which is this times s + (1 - s).
    alpha acts as an adaptive step size: at 1/2 the score has mean square 1 in every channel; above,
    channels near 0 and 1 take smaller steps; below, larger ones, without limit. At alpha = 0 the
    factor is 1/s + 1/(1 - s).

    In s in (0, 1) it falls with alpha: its slope is 2 ln(s (1 - s)) times itself, and
    s (1 - s) <= 1/4. At s in {0, 1} there is no slope: the factor is inf below alpha = 1/2, 1 at
    1/2 and 0 above (0^x), as limits of s -> 0 at fixed alpha. The estimators are 0 there.

    Paper: A.2, Eq. (10); Remark 3, alpha = 0 [remark3]; Remark 4, adaptive step size [remark4]

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        float64 (n,); inf where s in {0, 1} and alpha < 1/2.

    Raises:
        ValueError: an argument outside its range, or ``keep_prob`` not 1-D.
    """
    s = checked_keep_prob(keep_prob)
    preconditioner(s, precondition_power)  # checks alpha
    with np.errstate(divide="ignore"):
        return (s * (1.0 - s)) ** (2.0 * precondition_power - 1.0)


def variance_bound(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.5
) -> float:
    """Theorem 1's bound of the total variance of VR-PGE: sum_j (s_j (1-s_j))^(2 alpha - 1) Vmax.

    |C| Vmax(s) at alpha = 1/2, and no more above. It holds for every alpha in [0, 1]; below 1/2
    it grows without limit as some s_j -> 0 or 1, and is inf where one has arrived, although a
    decided channel adds nothing to the variance itself.

    Paper: Theorem 1 [thm1], A.2, Eq. (11); Remark 3 at alpha = 0 [remark3]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The bound, >= 0; 0 where Vmax = 0.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    largest = max_squared_difference(losses, keep_prob)
    factors = bound_factor(keep_prob, precondition_power)
    return float(factors.sum() * largest) if largest > 0.0 else 0.0


@dataclass(frozen=True)
class ProofStep:
    """One line of the proof of Theorem 1 as numbers: left, relation, right.

    Attributes:
        equation: number of the line in A.2, or where it stands.
        claim: the step in words.
        relation: "=" or "<=".
        left: of every channel, (n,).
        right: of every channel, (n,).
    """

    equation: str
    claim: str
    relation: str
    left: Array
    right: Array

    @property
    def slack(self) -> Array:
        """Right minus left of every channel, (n,): what the step gives away."""
        return self.right - self.left

    @property
    def totals(self) -> tuple[float, float, float]:
        """Left, right and slack summed over channels."""
        return float(self.left.sum()), float(self.right.sum()), float(self.slack.sum())

    def holds(self, tolerance: float = 1e-10) -> bool:
        """Whether it holds in every channel, to `tolerance` of the larger side."""
        allowed = tolerance * np.maximum(np.abs(self.left), np.abs(self.right))
        apart = np.abs(self.slack) if self.relation == "=" else -self.slack
        return bool((apart <= allowed).all())


def proof_steps(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.5
) -> list[ProofStep]:
    """Lines (8) to (11) of the proof of Theorem 1, and the last one, each side by its own formula.

    Each line starts from what the one before ended with. The last one, <= |C| Vmax, is the only
    one that needs alpha >= 1/2: below, it fails in every channel, as (s (1-s))^(2 alpha - 1) > 1.

    Paper: A.2, Eqs. (8)-(11) [eq8-11], for Theorem 1 [thm1]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in (0, 1) as the theorem has it.
        precondition_power: alpha, in [0, 1].

    Returns:
        The lines in order; see ``ProofStep``.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, a decided channel.
    """
    losses, s = checked_problem(losses, keep_prob)
    if not (s * (1.0 - s) >= _SMALLEST_OPEN).all():
        channel = int(np.argmin(s * (1.0 - s)))
        raise ValueError(
            f"keep_prob[{channel}] is {s[channel]:g}; Theorem 1 takes s in (0, 1): leave decided "
            "channels out of the problem, or clip keep_prob with project_capped_simplex"
        )
    a, moments = precondition_power, estimator_moments("vr-pge", losses, s, precondition_power)
    masks, p = enumerate_masks(s.size), mask_probabilities(s)
    squares = (losses - expected_loss(losses, s)) ** 2
    weighted = p * (squares + p @ squares)  # p(m) E_m' (L(m) - L(m'))^2
    distance = (masks - s) ** 2  # (2^n, n)
    h = (s ** (2 * a)) * (1.0 - s) ** (2 * a)
    shrunk = s ** (2 * (a - 1)) * (1.0 - s) ** (2 * (a - 1))
    # One channel: the two values of m_j, their probability and the square of their step.
    chance = np.stack([1.0 - s, s], axis=1)  # (n, 2)
    step = shrunk[:, None] * np.stack([s**2, (1.0 - s) ** 2], axis=1)
    largest = max_squared_difference(losses, s)
    by_value = conditional_squared_difference(losses, s)
    in_paper = s ** (2 * a) * (1.0 - s) ** (2 * a - 1) + s ** (2 * a - 1) * (1.0 - s) ** (2 * a)
    factor = bound_factor(s, a)
    chain = [
        ("A.2", "variance <= second moment E E G_j^2", "<="),
        ("8", "G_j is the loss difference times H^a times the score", "="),
        ("8", "s^2a / s^2 is s^(2(a-1))", "="),
        ("8", "average over m_-j and m' first, then over m_j", "="),
        ("9", "both averages are at most Vmax", "<="),
        ("10", "the average over m_j written out", "="),
        ("10", "s + (1 - s) = 1 leaves one power", "="),
    ]
    sides = [
        np.diagonal(moments.covariance),
        moments.second_moment,
        weighted @ (h * distance / (s**2 * (1.0 - s) ** 2)),
        weighted @ (shrunk * distance),
        (chance * by_value * step).sum(axis=1),
        largest * (chance * step).sum(axis=1),
        in_paper * largest,
        factor * largest,
    ]
    steps = [
        ProofStep(*line, left, right)
        for line, left, right in zip(chain, sides[:-1], sides[1:], strict=True)
    ]
    bound, everywhere = in_paper * largest, np.full(s.size, largest)
    steps.append(ProofStep("11", "sum over j: E E |G|^2 <= the bound", "<=", sides[1], bound))
    steps.append(
        ProofStep("Thm. 1", "falling in a, so <= |C| Vmax from a = 1/2 on", "<=", bound, everywhere)
    )
    return steps


@dataclass(frozen=True)
class SymmetricVariance:
    """Total variances of the symmetric form and of what it averages.

    Attributes:
        one_sided: of vr_pge(m, m').
        mirror_covariance: of vr_pge(m, m') with vr_pge(m', m); it equals |H^alpha grad Phi|^2.
        symmetric: of vr_pge_symmetric.
    """

    one_sided: float
    mirror_covariance: float
    symmetric: float

    @property
    def ratio(self) -> float:
        """Symmetric over one-sided, in [1/2, 1]; 1 where nothing varies."""
        return self.symmetric / self.one_sided if self.one_sided > 0.0 else 1.0


def symmetric_variance(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.5
) -> SymmetricVariance:
    """Variance of the symmetric form: (Var(one-sided) + Cov(one-sided, its mirror)) / 2.

    The covariance of vr_pge(m, m') with vr_pge(m', m) is H^alpha grad Phi grad Phi^T H^alpha: of
    -E (L - L')^2 z z'^T only 2 E L z E L' z'^T is left. So the symmetric form has half of the
    variance plus half of the squared gradient: never less than half, near it where noise is much
    larger than the gradient, and all of it for one channel at s = 1/2.

    Paper: Sec. 4.2.2, (VR-PGE), with m and m' averaged as in the released code [vr-pge]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    one_sided = estimator_moments("vr-pge", losses, keep_prob, precondition_power)
    variance, covariance = one_sided.total_variance, float(one_sided.mean @ one_sided.mean)
    return SymmetricVariance(variance, covariance, (variance + covariance) / 2.0)
