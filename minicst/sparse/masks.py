"""Channel masks: drawing them, their probability, the score function, enumeration.

A mask m holds one 0/1 entry per prunable channel; entry c is 1 with probability s_c
(``keep_prob``), independently of the others. Plain arrays only: this module has no tensor and
no tape, because nothing here is ever differentiated by the chain rule.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 2**20 masks of 20 channels are 20 MB; each further channel more than doubles that.
MAX_ENUMERATED_CHANNELS = 20


def sample_mask(keep_prob: ArrayLike, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw one mask: m = 1[U < s], U uniform on [0, 1).

    A channel with s = 0 is never drawn and one with s = 1 always is.

    Paper: Sec. 4.1, m_c ~ Bernoulli(s_c), and Algorithm 1, line 5 [alg1]
    Differs: one draw for all layers of a pass; the released code draws inside each layer's
        forward, in validation too.

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        rng: NumPy generator; takes n numbers from it.

    Returns:
        The mask, bool, shape (n,).

    Raises:
        TypeError: ``rng`` is not a ``np.random.Generator``.
        ValueError: ``keep_prob`` is not 1-D, has a NaN or leaves [0, 1].
    """
    _check_rng(rng)
    keep_prob = checked_keep_prob(keep_prob)
    return rng.random(keep_prob.size) < keep_prob


class AntitheticMask(NDArray[np.bool_]):
    """One half of an antithetic pair: a bool array that says so.

    The halves share their random numbers. Estimators that take one loss as the other's
    independent baseline are biased on such a pair, and refuse an array of this class. Views and
    slices keep the class; ``np.asarray`` and ``np.stack`` leave a plain array.
    """


def sample_antithetic_masks(
    keep_prob: ArrayLike, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Draw an antithetic pair of masks: m = 1[U < s] and m~ = 1[1 - U <= s], one U for both.

    Each half alone is a draw from p(m|s). Together they differ as often as they can: where
    s <= 1/2 they are never both 1, where s >= 1/2 never both 0.

    Paper: not in the paper; the pair of ARM (Yin and Zhou, 2019, arXiv 1807.11143) and DisARM
        (Dong, Mnih and Tucker, 2020, arXiv 2006.10680) in place of Algorithm 1, line 5 [alg1]

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        rng: NumPy generator; takes n numbers from it.

    Returns:
        ``(mask_a, mask_b, uniform)``: two masks, bool (n,), of class ``AntitheticMask``, and U,
        float64 (n,), which ``arm`` needs.

    Raises:
        TypeError: ``rng`` is not a ``np.random.Generator``.
        ValueError: ``keep_prob`` is not 1-D, has a NaN or leaves [0, 1].
    """
    _check_rng(rng)
    keep_prob = checked_keep_prob(keep_prob)
    uniform = rng.random(keep_prob.size)
    # U in [0, 1), 1 - U in (0, 1]: with <= a channel of s = 0 is never drawn, one of s = 1 always.
    mask_a, mask_b = uniform < keep_prob, 1.0 - uniform <= keep_prob
    return mask_a.view(AntitheticMask), mask_b.view(AntitheticMask), uniform


def score_function(mask: ArrayLike, keep_prob: ArrayLike) -> NDArray[np.float64]:
    """Score function grad_s ln p(m|s) = (m - s) / (s (1 - s)), elementwise.

    Its mean over the masks is zero, E[(m - s)^2] / (s (1 - s)) = 1. At s in {0, 1} the score
    is 0 where m = s; a mask with m != s there can't have been drawn and is refused.

    Paper: Sec. 4.2.2, grad ln p(m|s) = (m - s) / (s (1 - s)) [score]
    Differs: the paper takes s in (0, 1) only; the released code adds 1e-20 to s and to 1 - s.

    Args:
        mask: one draw (n,) or rows of draws (n_draws, n); bool, or numbers 0 and 1.
        keep_prob: s, shape (n,), in [0, 1].

    Returns:
        The score, float64, shaped like ``mask``.

    Raises:
        ValueError: wrong shapes, NaN, entries other than 0 and 1, or an impossible draw.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask = checked_mask(mask, keep_prob)
    variance = keep_prob * (1.0 - keep_prob)
    # The smallest normal number makes 0/0 into 0 at s in {0, 1}; any s above 3e-308 is as it was.
    return (mask - keep_prob) / np.maximum(variance, np.finfo(np.float64).tiny)


def log_probability(mask: ArrayLike, keep_prob: ArrayLike) -> NDArray[np.float64]:
    """Log-probability ln p(m|s) = sum_c m_c ln s_c + (1 - m_c) ln(1 - s_c).

    A channel with s in {0, 1} and m = s adds exactly 0.

    Paper: Sec. 4.2.2, p(m|s) inside grad ln p(m|s) [score]

    Args:
        mask: one draw (n,) or rows of draws (n_draws, n); bool, or numbers 0 and 1.
        keep_prob: s, shape (n,), in [0, 1].

    Returns:
        Natural logarithm, float64: shape () for one draw, (n_draws,) for rows.

    Raises:
        ValueError: wrong shapes, NaN, entries other than 0 and 1, or an impossible draw.
    """
    keep_prob = checked_keep_prob(keep_prob)
    mask = checked_mask(mask, keep_prob)
    drawn_prob = np.where(mask, keep_prob, 1.0 - keep_prob)
    return np.asarray(np.log(drawn_prob).sum(axis=-1))


def enumerate_masks(n: int) -> NDArray[np.bool_]:
    """All 2^n masks of n channels; row i holds the binary digits of i, lowest digit first.

    With them an expectation over p(m|s) is a finite sum: exact, no sampling noise.

    Paper: Sec. 4.1, Eq. (2), the expectation over m as a finite sum [eq2]

    Args:
        n: number of channels, 0 to 20.

    Returns:
        The masks, bool, shape (2^n, n).

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: ``n`` is negative or above 20.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n is {n!r}; a whole number of channels is needed")
    if not 0 <= n <= MAX_ENUMERATED_CHANNELS:
        raise ValueError(
            f"n is {n}; 2**n masks are listed for 0 <= n <= {MAX_ENUMERATED_CHANNELS} only, "
            "draw samples with sample_mask above that"
        )
    number = np.arange(2**n)
    masks = np.empty((2**n, n), dtype=np.bool_)
    for channel in range(n):  # by column: a (2**n, n) array of integers would be 8 times larger
        masks[:, channel] = (number >> channel) & 1
    return masks


def top_k_mask(keep_prob: ArrayLike, budget: float) -> NDArray[np.bool_]:
    """Keep the k = floor(budget) most probable channels; of equal ones those of lower index.

    Paper: Algorithm 1, line 9, a rule for the final mask in place of sampling [alg1]
    Differs: the paper samples the final mask; the released code takes the best of 10 samples.

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        budget: K >= 0; above n all channels are kept.

    Returns:
        The mask, bool, shape (n,), with min(k, n) ones.

    Raises:
        ValueError: ``keep_prob`` is not 1-D, has a NaN or leaves [0, 1]; ``budget`` is negative
            or not finite.
    """
    keep_prob = checked_keep_prob(keep_prob)
    if not (np.isfinite(budget) and budget >= 0):
        raise ValueError(f"budget is {budget!r}; a finite number of channels >= 0 is needed")
    # rho * n in floating point may fall just short of a whole number (0.29 * 100 < 29).
    n_kept = int(np.floor(budget + 1e-9))
    mask = np.zeros(keep_prob.size, dtype=np.bool_)
    mask[np.argsort(-keep_prob, kind="stable")[:n_kept]] = True
    return mask


def _check_rng(rng: np.random.Generator) -> None:
    """Raise TypeError for anything but a generator (a seed, the old RandomState)."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng is a {type(rng).__name__}; a np.random.Generator is needed, "
            "for example np.random.default_rng(0)"
        )


def checked_keep_prob(keep_prob: ArrayLike) -> NDArray[np.float64]:
    """Return ``keep_prob`` as a float64 vector, or say what is wrong with it."""
    array = np.asarray(keep_prob, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"keep_prob has shape {array.shape}; one flat vector (n,) is needed, "
            "concatenate the channel groups"
        )
    inside = (array >= 0.0) & (array <= 1.0)  # False for NaN
    if not inside.all():
        channel = int(np.argmin(inside))
        raise ValueError(
            f"keep_prob[{channel}] is {array[channel]}; every entry must be in [0, 1], "
            "project it with project_capped_simplex"
        )
    return array


def checked_mask(
    mask: ArrayLike, keep_prob: NDArray[np.float64], name: str = "mask"
) -> NDArray[np.bool_]:
    """Return ``mask`` as bool, or say why it is not a draw from ``keep_prob``."""
    array = np.asarray(mask)
    if array.ndim not in (1, 2) or array.shape[-1] != keep_prob.size:
        raise ValueError(
            f"{name} has shape {array.shape}, keep_prob {keep_prob.shape}; a mask is one draw "
            "(n,) or rows of draws (n_draws, n) over the same n channels"
        )
    kept = array == 1
    if not (kept | (array == 0)).all():
        raise ValueError(
            f"{name} has entries other than 0 and 1 (or NaN); pass the mask itself, "
            "not indices of kept channels and not probabilities"
        )
    impossible = np.where(kept, keep_prob == 0.0, keep_prob == 1.0)
    if impossible.any():
        channel = int(np.argwhere(impossible)[0, -1])
        raise ValueError(
            f"{name} disagrees with keep_prob[{channel}] = {keep_prob[channel]:g}: such a mask "
            "can't have been drawn; pass the mask as drawn, together with the keep_prob it "
            "was drawn from"
        )
    return kept
