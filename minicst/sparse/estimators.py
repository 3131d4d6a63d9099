"""Policy-gradient estimators of the gradient of Phi(s) = E L(m): PGE, VR-PGE, relatives, a control.

All that enters is losses (plain numbers), the masks they were measured with and the keep
probabilities. No activation, no weight, no tape: a pruned channel costs nothing here, and that
is why the forward and the backward pass may both run on physically small sub-networks.

Every estimator takes one draw (losses are scalars, masks (n,)) or rows of independent draws
(losses (n_draws,), masks (n_draws, n)) and returns an array shaped like the mask. The expected
value of all of them but ``coin_flip`` is H^alpha grad Phi(s). What they cost a step:

    pge, pge_moving_average                          1 forward pass
    vr_pge, vr_pge_symmetric, arm, disarm, coin_flip 2
    vr_pge_multi                                     as many as masks
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicst.sparse.masks import AntitheticMask, checked_keep_prob, checked_mask


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


def pge_moving_average(
    loss: ArrayLike,
    baseline: ArrayLike,
    mask: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """One-pass estimator (L(m) - b) H^alpha (m - s) / (s (1 - s)), b made of earlier losses.

    Unbiased whatever b is, as long as this step's mask had no part in it. A moving average of
    the losses of earlier steps (``moving_average``) is the classic choice: it follows the mean
    loss, but not the mini-batch of this step, which L(m') of ``vr_pge`` shares.

    Paper: not in the paper; the baseline of REINFORCE (Williams, 1992) in (PGE) [pge]

    Args:
        loss: L(m), scalar or (n_draws,), finite.
        baseline: b, a number, or shaped like ``loss``; finite.
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
    baseline = np.broadcast_to(np.asarray(baseline, np.float64), np.shape(loss))
    rest = _checked_loss(loss, mask, "loss") - _checked_loss(baseline, mask, "baseline")
    return rest[..., None] * (mask - keep_prob) * _score_scale(keep_prob, precondition_power)


def moving_average(baseline: float | None, loss: float, decay: float = 0.9) -> float:
    """Return decay b + (1 - decay) L, the next step's baseline; the first one is the loss itself.

    Args:
        baseline: b so far, or None before the first step.
        loss: L(m) of this step.
        decay: share of the old baseline, in [0, 1).

    Raises:
        ValueError: ``decay`` outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay is {decay!r}; the share of the old baseline must be in [0, 1)")
    return float(loss) if baseline is None else decay * baseline + (1.0 - decay) * float(loss)


def vr_pge(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Variance-reduced estimator (L(m) - L(m')) H^alpha (m - s) / (s (1 - s)).

    L(m') is a baseline: independent of m, so it leaves the mean alone and takes away what all
    masks have in common. The two masks must be independent draws from the same s. With an
    antithetic pair this estimator is biased: a mask of ``sample_antithetic_masks`` is refused,
    ``disarm`` is the formula for it.

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
        ValueError: wrong shapes or ranges, a loss that is not finite, an impossible draw, a
            mask of an antithetic pair.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask_a = _independent_mask(mask_a, keep_prob, "mask_a")
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
    mask_a = _independent_mask(mask_a, keep_prob, "mask_a")
    mask_b = _independent_mask(mask_b, keep_prob, "mask_b")
    difference = _pair_difference(loss_a, loss_b, mask_a, mask_b)
    half_step = 0.5 * (mask_a - mask_b)
    return difference[..., None] * half_step * _score_scale(keep_prob, precondition_power)


def vr_pge_multi(
    losses: ArrayLike,
    masks: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Leave-one-out form of k masks: 1/(k-1) sum_i (L_i - mean L) H^alpha (m_i - s) / (s (1 - s)).

    Equal to the mean over i of (L_i - mean of the other losses) H^alpha score(m_i), and to the
    mean of ``vr_pge_symmetric`` over all pairs; with k = 2 it is ``vr_pge_symmetric``. Each
    further mask costs one forward pass; the variance falls a little faster than 1/k.

    Paper: Sec. 4.2.2, (VR-PGE) with several masks [vr-pge]
    Differs: the paper has two masks and is one-sided; the released code averages over its two.

    Args:
        losses: L(m_i), (k,) or (n_draws, k), k >= 2, finite.
        masks: m_i, drawn independently of each other, (k, n) or (n_draws, k, n), 0/1.
        keep_prob: s all masks were drawn from, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shape (n,) or (n_draws, n).

    Raises:
        ValueError: wrong shapes or ranges, fewer than two masks, a loss that is not finite, an
            impossible draw, masks of an antithetic pair.
    """
    keep_prob = checked_keep_prob(keep_prob)
    shape = np.shape(masks)
    if len(shape) not in (2, 3) or shape[-2] < 2:
        raise ValueError(
            f"masks has shape {shape}; two or more masks of one step are needed, (n_masks, n), or "
            "rows of them, (n_draws, n_masks, n)"
        )
    if np.shape(losses) != shape[:-1]:
        raise ValueError(
            f"losses has shape {np.shape(losses)}, masks {shape}: one loss for each mask is needed"
        )
    # One mask a row for the checks, and back.
    flat = _independent_mask(masks, keep_prob, "masks", rows=(-1, shape[-1]))
    loss = _checked_loss(np.reshape(losses, -1), flat, "losses").reshape(shape[:-1])
    centered = (loss - loss.mean(axis=-1, keepdims=True)) / (shape[-2] - 1)
    step = (centered[..., None] * (flat.reshape(shape) - keep_prob)).sum(axis=-2)
    return step * _score_scale(keep_prob, precondition_power)


def disarm(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: ArrayLike,
    mask_b: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Antithetic pair by DisARM: (L(m) - L(m~)) H^alpha (m - m~)/2 max(s, 1-s) / (s (1-s)).

    The mean of ``arm`` over all uniform numbers that give this pair of masks: same mean, never a
    larger variance. Two forward passes, as ``vr_pge_symmetric``, on masks that differ as often
    as they can.

    Paper: not in the paper; Dong, Mnih and Tucker (2020), arXiv 2006.10680, for their logit's
        gradient, here divided by s (1 - s) = ds/dlogit, in place of (VR-PGE) [vr-pge]

    Args:
        loss_a: L(m), scalar or (n_draws,), finite.
        loss_b: L(m~), like ``loss_a``, at the same weights and batch.
        mask_a: m, (n,) or (n_draws, n), 0/1, as ``sample_antithetic_masks`` returns it.
        mask_b: m~, its antithetic mask, same shape.
        keep_prob: s both masks were drawn from, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shaped like ``mask_a``; 0 where s in {0, 1} and where m = m~.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite, a pair that no uniform
            number gives (both masks 1 at s <= 1/2, both 0 at s >= 1/2).
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask_a = _checked_mask(mask_a, keep_prob, "mask_a")
    mask_b = _checked_mask(mask_b, keep_prob, "mask_b")
    difference = _pair_difference(loss_a, loss_b, mask_a, mask_b)
    both, none = mask_a + mask_b == 2.0, mask_a + mask_b == 0.0
    impossible = (both & (keep_prob <= 0.5)) | (none & (keep_prob >= 0.5))
    if impossible.any():
        channel = int(np.argwhere(impossible)[0, -1])
        raise ValueError(
            f"channel {channel} with keep_prob {keep_prob[channel]:g} has the same value in both "
            "masks, which no antithetic pair has there: draw them with sample_antithetic_masks, or "
            "use vr_pge_symmetric for independent masks"
        )
    half_step = 0.5 * (mask_a - mask_b) * np.maximum(keep_prob, 1.0 - keep_prob)
    return difference[..., None] * half_step * _score_scale(keep_prob, precondition_power)


def arm(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    uniform: ArrayLike,
    keep_prob: ArrayLike,
    precondition_power: float = 0.5,
) -> NDArray[np.float64]:
    """Antithetic pair by ARM: (L(m) - L(m~)) H^alpha (1/2 - U) / (s (1 - s)).

    m = 1[U < s] and m~ = 1[1 - U <= s], as ``sample_antithetic_masks`` draws them. ``disarm``
    has the same mean and less variance; ARM moves every channel at every step, also those whose
    mask didn't change, and so its variance grows without limit as s_j -> 0 or 1 for every
    alpha < 1, where the others stay bounded from alpha = 1/2 on (``moments`` has the numbers).

    Paper: not in the paper; Yin and Zhou (2019), arXiv 1807.11143, for their logit's gradient,
        here divided by s (1 - s) = ds/dlogit, in place of (VR-PGE) [vr-pge]

    Args:
        loss_a: L(m), scalar or (n_draws,), finite.
        loss_b: L(m~), like ``loss_a``, at the same weights and batch.
        uniform: U, (n,) or (n_draws, n), in [0, 1).
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1].

    Returns:
        The estimate, float64, shaped like ``uniform``; 0 where s in {0, 1}: such a channel is
        decided, and its logit is infinite.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    keep_prob = checked_keep_prob(keep_prob)
    uniform = np.asarray(uniform, np.float64)
    if uniform.ndim not in (1, 2) or uniform.shape[-1] != keep_prob.size:
        raise ValueError(
            f"uniform has shape {uniform.shape}, keep_prob {keep_prob.shape}; pass (n,), or rows "
            "(n_draws, n), the numbers that the masks were drawn with"
        )
    if not ((uniform >= 0.0) & (uniform < 1.0)).all():
        raise ValueError(
            "uniform has entries outside [0, 1) (or NaN); take sample_antithetic_masks"
        )
    difference = _checked_loss(loss_a, uniform, "loss_a") - _checked_loss(loss_b, uniform, "loss_b")
    undecided = (keep_prob > 0.0) & (keep_prob < 1.0)
    step = np.where(undecided, 0.5 - uniform, 0.0)
    return difference[..., None] * step * _score_scale(keep_prob, precondition_power)


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


def _independent_mask(
    mask: ArrayLike,
    keep_prob: NDArray[np.float64],
    name: str,
    rows: tuple[int, int] | None = None,
) -> NDArray[np.float64]:
    """Return ``mask`` as _checked_mask does, but refuse one half of an antithetic pair."""
    if isinstance(mask, AntitheticMask):
        raise ValueError(
            f"{name} is one half of an antithetic pair, and this estimator is biased on such a "
            "pair: use disarm or arm, or draw independent masks with sample_mask"
        )
    return _checked_mask(mask if rows is None else np.reshape(mask, rows), keep_prob, name)


def _pair_difference(
    loss_a: ArrayLike,
    loss_b: ArrayLike,
    mask_a: NDArray[np.float64],
    mask_b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return L(m) - L(m') of masks that come in pairs, or say what is wrong."""
    if mask_a.shape != mask_b.shape:
        raise ValueError(
            f"mask_a has shape {mask_a.shape}, mask_b {mask_b.shape}; "
            "the masks come in pairs, pass as many of one as of the other"
        )
    return _checked_loss(loss_a, mask_a, "loss_a") - _checked_loss(loss_b, mask_b, "loss_b")


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
