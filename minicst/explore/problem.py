"""One step of VR-PGE on two channels, as numbers: `frame(state)`; nothing is drawn here.

With two channels there are four masks and four losses, so every expectation is a sum of four
terms and every estimate that can come up is one of sixteen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicst.sparse.estimators import pge, preconditioner, vr_pge
from minicst.sparse.masks import enumerate_masks, score_function
from minicst.sparse.moments import Moments, estimator_moments
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.proof import variance_bound
from minicst.sparse.theory import expected_loss, expected_loss_gradient, mask_probabilities

Array = NDArray[np.float64]

MASKS = enumerate_masks(2)
MASK_NAMES = tuple(f"({int(a)},{int(b)})" for a, b in MASKS)
# At s = 0 or 1 a mask with m != s is never drawn and has no score: the sliders stay inside.
LOWEST, HIGHEST = 0.02, 0.98
ESTIMATORS = ("pge", "vr-pge", "vr-pge-symmetric")
# Half widths of the picture of the estimates.
_VIEWS = tuple(factor * 10.0**power for power in range(-2, 4) for factor in (1.0, 2.0, 5.0))


@dataclass(frozen=True)
class State:
    """Where all sliders stand.

    Attributes:
        keep_prob: s = (s1, s2), in [0.02, 0.98].
        precondition_power: alpha, in [0, 1].
        keep_prob_lr: eta, the step size.
        budget: K of s1 + s2 <= K.
        losses: of the masks (0,0), (1,0), (0,1), (1,1), without the level.
        level: what is added to all four losses.
        drawn: numbers of m and m' among the four masks.
    """

    keep_prob: tuple[float, float] = (0.4, 0.6)
    precondition_power: float = 0.5
    keep_prob_lr: float = 0.3
    budget: float = 1.0
    losses: tuple[float, float, float, float] = (2.0, 0.5, 1.0, 0.5)
    level: float = 0.0
    drawn: tuple[int, int] = (3, 2)


@dataclass(frozen=True)
class Ellipse:
    """The 1-sigma ellipse of a 2x2 covariance.

    Attributes:
        major: half of the longer axis, the standard deviation along it.
        minor: half of the shorter one.
        angle: from the first coordinate to the longer axis, degrees, in (-90, 90].
    """

    major: float
    minor: float
    angle: float


@dataclass(frozen=True)
class Spread:
    """How an estimator scatters.

    Attributes:
        moments: mean and covariance, of ``estimator_moments``.
        ellipse: of the covariance.
    """

    moments: Moments
    ellipse: Ellipse

    @property
    def total_variance(self) -> float:
        """Sum of both channels' variances."""
        return self.moments.total_variance


@dataclass(frozen=True)
class Frame:
    """All numbers of one position of the sliders.

    Attributes:
        state: the sliders.
        losses: L of the four masks, level included, (4,).
        mask_probability: p(m|s), (4,).
        pair_probability: p(m|s) p(m'|s), (4, 4), row m.
        expected_loss: Phi(s).
        gradient: H^alpha grad Phi(s), (2,).
        mean_step: s - eta H^alpha grad Phi(s), (2,).
        score: grad ln p(m|s) of the four masks, (4, 2).
        preconditioner: diagonal of H^alpha, (2,).
        estimates: VR-PGE of all pairs, (4, 4, 2).
        pge_estimates: PGE of all masks, at the same alpha, (4, 2).
        steps: s - eta times each of `estimates`, (4, 4, 2).
        z: the drawn pair's step, before the projection, (2,).
        projected: the new keep_prob, (2,).
        multiplier: v of the projection.
        spreads: of the estimators in ESTIMATORS.
        bound: Theorem 1's, of VR-PGE's total variance.
        view: half width of the picture of the estimates; what PGE does has no part in it.
    """

    state: State
    losses: Array
    mask_probability: Array
    pair_probability: Array
    expected_loss: float
    gradient: Array
    mean_step: Array
    score: Array
    preconditioner: Array
    estimates: Array
    pge_estimates: Array
    steps: Array
    z: Array
    projected: Array
    multiplier: float
    spreads: dict[str, Spread]
    bound: float
    view: float

    @property
    def loss_a(self) -> float:
        """L(m) of the drawn pair."""
        return float(self.losses[self.state.drawn[0]])

    @property
    def loss_b(self) -> float:
        """L(m')."""
        return float(self.losses[self.state.drawn[1]])

    @property
    def difference(self) -> float:
        """L(m) - L(m')."""
        return self.loss_a - self.loss_b

    @property
    def estimate(self) -> Array:
        """VR-PGE of the drawn pair, (2,)."""
        return np.asarray(self.estimates[self.state.drawn])

    @property
    def ratio(self) -> float:
        """PGE's total variance over VR-PGE's; NaN where VR-PGE has none."""
        return variance_ratio(self.spreads["pge"], self.spreads["vr-pge"])


def frame(state: State) -> Frame:
    """Compute all numbers of a position of the sliders; each comes from `minicst.sparse`.

    Paper: Sec. 4.2.2, (VR-PGE) and (PGE) on two channels, and proj_S of Algorithm 1, line 6

    Raises:
        ValueError: as the functions of `minicst.sparse`, for values out of range.
    """
    s, alpha, lr = np.array(state.keep_prob), state.precondition_power, state.keep_prob_lr
    losses = np.array(state.losses) + state.level
    probability = mask_probabilities(s)
    gradient = expected_loss_gradient(losses, s, alpha)
    estimates = all_estimates(losses, s, alpha)
    steps = s - lr * estimates
    projected, multiplier = project_capped_simplex(steps[state.drawn], state.budget)
    spreads = {name: spread(name, losses, s, alpha) for name in ESTIMATORS}
    return Frame(
        state=state,
        losses=losses,
        mask_probability=probability,
        pair_probability=np.outer(probability, probability),
        expected_loss=expected_loss(losses, s),
        gradient=gradient,
        mean_step=s - lr * gradient,
        score=score_function(MASKS, s),
        preconditioner=preconditioner(s, alpha),
        estimates=estimates,
        pge_estimates=pge(losses, MASKS, s, alpha),
        steps=steps,
        z=steps[state.drawn],
        projected=projected,
        multiplier=multiplier,
        spreads=spreads,
        bound=variance_bound(losses, s, alpha),
        view=view_of(spreads["vr-pge"]),
    )


def all_estimates(losses: Array, keep_prob: Array, precondition_power: float) -> Array:
    """VR-PGE of all sixteen pairs of masks, (4, 4, 2): row m, column m'."""
    a, b = np.divmod(np.arange(16), 4)
    rows = vr_pge(losses[a], losses[b], MASKS[a], keep_prob, precondition_power)
    return rows.reshape(4, 4, 2)


def spread(estimator: str, losses: Array, keep_prob: Array, precondition_power: float) -> Spread:
    """Exact moments of an estimator, and the ellipse of its covariance."""
    moments = estimator_moments(estimator, losses, keep_prob, precondition_power)
    return Spread(moments, ellipse_of(moments.covariance))


def variance_ratio(above: Spread, below: Spread) -> float:
    """Quotient of two total variances; NaN where the lower one is 0 (to rounding)."""
    nothing = below.total_variance <= 1e-12 * above.total_variance
    return float("nan") if nothing else above.total_variance / below.total_variance


def ellipse_of(covariance: Array) -> Ellipse:
    """The 1-sigma ellipse: its half axes are the standard deviations along the eigenvectors."""
    variances, vectors = np.linalg.eigh(covariance)
    minor, major = np.sqrt(np.maximum(variances, 0.0))
    x, y = vectors[:, 1]
    angle = float(np.degrees(np.arctan2(y, x)))
    return Ellipse(float(major), float(minor), (angle + 90.0) % 180.0 - 90.0)


def view_of(vr_pge_spread: Spread) -> float:
    """Half width of the picture of the estimates: VR-PGE's ellipse fills about half of it."""
    mean = np.abs(vr_pge_spread.moments.mean)
    reach = float(mean.max()) + 1.6 * vr_pge_spread.ellipse.major
    return next((view for view in _VIEWS if view >= reach), _VIEWS[-1])


def mask_number(text: str, option: str) -> int:
    """'10' -> 1, the number of the mask with channel 1 alone.

    Raises:
        ValueError: if it isn't one of 00, 10, 01, 11.
    """
    names = [f"{int(a)}{int(b)}" for a, b in MASKS]
    bare = text.translate(str.maketrans("", "", "(), "))
    if bare not in names:
        raise ValueError(
            f"{option} {text}: a mask of two channels is one of {', '.join(names)} (10: channel 1 "
            "is kept, channel 2 isn't)"
        )
    return names.index(bare)
