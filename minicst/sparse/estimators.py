"""Policy-gradient estimators of the gradient of Phi(s) = E L(m): PGE, VR-PGE and controls.

All that enters is losses (plain numbers), the masks they were measured with and the keep
probabilities. No activation, no weight, no tape: a pruned channel costs nothing here, and that
is why the forward and the backward pass may both run on physically small sub-networks.

Every estimator takes one draw (losses are scalars, masks (n,)) or rows of independent draws
(losses (n_draws,), masks (n_draws, n)) and returns an array shaped like the mask. The expected
value of all of them but ``coin_flip`` is H^alpha grad Phi(s).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicst.sparse.masks import checked_keep_prob, checked_mask


def preconditioner(keep_prob: ArrayLike, precondition_power: float) -> NDArray[np.float64]:
    """Diagonal of the preconditioner H^alpha(s) = diag(s (1 - s))^alpha.

    Paper: Sec. 4.2.2, Eq. (4) [eq4]
    Differs: alpha may be 0 (no preconditioning) and 1 (no division left) beside the paper's
        (0, 1); the released code has 1/2 built in.

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The diagonal, float64, shape (n,).

    Raises:
        ValueError: an argument outside its range, or ``keep_prob`` not 1-D.
    """
    keep_prob = checked_keep_prob(keep_prob)
    return (keep_prob * (1.0 - keep_prob)) ** _checked_power(precondition_power)


def pge(
    loss: ArrayLike, mask: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.0
) -> NDArray[np.float64]:
    """Policy-gradient estimator L(m) H^alpha grad ln p(m|s).

    Unbiased, and noisy: its variance grows with the square of the loss itself.

    Paper: Sec. 4.2.2, (PGE) and Eq. (3) [pge]
    Differs: the paper's PGE has no preconditioner (alpha = 0, the default here); the same alpha
        as in ``vr_pge`` makes the two comparable.

    Args:
        loss: L(m), scalar or (n_draws,), finite.
        mask: m, (n,) or (n_draws, n), 0/1.
        keep_prob: s the mask was drawn from, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shaped like ``mask``.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, an impossible draw.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask = _checked_mask(mask, keep_prob, "mask")
    loss = _checked_loss(loss, mask, "loss")
    return loss[..., None] * (mask - keep_prob) * _score_scale(keep_prob, precondition_power)


def vr_pge(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Variance-reduced estimator (L(m) - L(m')) H^alpha (m - s) / (s (1 - s)).

    L(m') is a baseline: independent of m, so it leaves the mean alone and takes away what all
    masks have in common. The two masks must be independent draws from the same s; a pair that
    shares its random numbers (antithetic, for example) makes this estimator biased.

    Paper: Sec. 4.2.2, (VR-PGE) [vr-pge]; unbiased, A.3, Eq. (13) [eq13]
    Differs: the released code computes ``vr_pge_symmetric``.

    Args:
        loss_a: L(m), scalar or (n_draws,), finite.
        loss_b: L(m'), like ``loss_a``, at the same weights and batch.
        mask_a: m, (n,) or (n_draws, n), 0/1.
        keep_prob: s both masks were drawn from, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shaped like ``mask_a``; 0 where s in {0, 1}.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, an impossible draw.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask_a = _checked_mask(mask_a, keep_prob, "mask_a")
    difference = _checked_loss(loss_a, mask_a, "loss_a") - _checked_loss(loss_b, mask_a, "loss_b")
    return (
        difference[..., None] * (mask_a - keep_prob) * _score_scale(keep_prob, precondition_power)
    )


def vr_pge_symmetric(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: ArrayLike,
    mask_b: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Symmetric form (L(m) - L(m')) H^alpha (m - m') / (2 s (1 - s)).

    The mean of ``vr_pge`` and of ``vr_pge`` with the two masks exchanged: same mean, never a
    larger variance (near half of it in smooth problems), no extra cost. Each mask serves as
    the other's leave-one-out baseline.

    Paper: Sec. 4.2.2, (VR-PGE) with m and m' averaged [vr-pge]
    Differs: this is what the released code does, at alpha = 1/2; the paper is one-sided.

    Args:
        loss_a: L(m), scalar or (n_draws,), finite.
        loss_b: L(m'), like ``loss_a``, at the same weights and batch.
        mask_a: m, (n,) or (n_draws, n), 0/1.
        mask_b: m', drawn independently of ``mask_a``, same shape.
        keep_prob: s both masks were drawn from, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shaped like ``mask_a``; 0 where s in {0, 1} and where m = m'.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, an impossible draw.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask_a = _checked_mask(mask_a, keep_prob, "mask_a")
    mask_b = _checked_mask(mask_b, keep_prob, "mask_b")
    if mask_a.shape != mask_b.shape:
        raise ValueError(
            f"mask_a has shape {mask_a.shape}, mask_b {mask_b.shape}; "
            "the masks come in pairs, pass as many of one as of the other"
        )
    difference = _checked_loss(loss_a, mask_a, "loss_a") - _checked_loss(loss_b, mask_b, "loss_b")
    half_step = 0.5 * (mask_a - mask_b)
    return difference[..., None] * half_step * _score_scale(keep_prob, precondition_power)


def coin_flip(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: ArrayLike,
    keep_prob: ArrayLike,
    coin: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Control: ``vr_pge`` with the sign of L(m) - L(m') replaced by a coin.

    |L(m) - L(m')| coin H^alpha (m - s) / (s (1 - s)): the step sizes of ``vr_pge`` and nothing
    of its information. A result that the coin reaches too is no evidence for the estimator.

    Paper: not in the paper; a control for (VR-PGE) [vr-pge]

    Args:
        loss_a: L(m), scalar or (n_draws,), finite.
        loss_b: L(m'), like ``loss_a``.
        mask_a: m, (n,) or (n_draws, n), 0/1.
        keep_prob: s, shape (n,), in [0, 1].
        coin: +1 or -1, drawn fairly and independently of the rest; shaped like ``loss_a``.
        precondition_power: alpha, in [0, 1].

    Returns:
        The control's step, float64, shaped like ``mask_a``; its mean over the coin is 0.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, an impossible draw, a
            coin other than +1 and -1.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask_a = _checked_mask(mask_a, keep_prob, "mask_a")
    difference = _checked_loss(loss_a, mask_a, "loss_a") - _checked_loss(loss_b, mask_a, "loss_b")
    coin = _checked_loss(coin, mask_a, "coin")
    if not (np.abs(coin) == 1.0).all():
        raise ValueError("coin has entries other than +1 and -1; draw it with rng.choice([-1, 1])")
    flipped = np.abs(difference) * coin
    return flipped[..., None] * (mask_a - keep_prob) * _score_scale(keep_prob, precondition_power)


def _score_scale(keep_prob: NDArray[np.float64], precondition_power: float) -> NDArray[np.float64]:
    """H^alpha / (s (1 - s)) as one power, (s (1 - s))^(alpha - 1): no product of huge and tiny."""
    variance = keep_prob * (1.0 - keep_prob)
    # The smallest normal number stands in for 0 at s in {0, 1}, where m - s = 0 multiplies the
    # result: 0 instead of 0 * inf. Any s above 3e-308 is as it was.
    variance = np.maximum(variance, np.finfo(np.float64).tiny)
    return variance ** (_checked_power(precondition_power) - 1.0)


def _checked_power(precondition_power: float) -> float:
    """Return alpha as a float, or say that it is out of range."""
    if not 0.0 <= precondition_power <= 1.0:
        raise ValueError(
            f"precondition_power is {precondition_power!r}; alpha must be in [0, 1], "
            "the paper takes 0.5"
        )
    return float(precondition_power)


def _checked_mask(
    mask: ArrayLike, keep_prob: NDArray[np.float64], name: str
) -> NDArray[np.float64]:
    """Return ``mask`` as float64 zeros and ones, or say why it is not a draw from s."""
    return checked_mask(mask, keep_prob, name).astype(np.float64)


def _checked_loss(loss: ArrayLike, mask: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return one finite float64 number per draw, or say what is wrong."""
    array = np.asarray(loss, dtype=np.float64)
    if array.shape != mask.shape[:-1]:
        raise ValueError(
            f"{name} has shape {array.shape}, the mask {mask.shape}; one number per draw is "
            "needed: a scalar for a mask (n,), a vector (n_draws,) for masks (n_draws, n)"
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name} is {array[~finite][0]}, not finite: the update of keep_prob would be lost; "
            "look at the learning rate and at the batch"
        )
    return array
