"""Exact theory on all 2^n masks: a problem's losses, the objective, its gradient, V and Vmax.

A *problem* is a vector of 2^n losses, in the order of ``enumerate_masks(n)``, and keep_prob (n,).
The losses may come from anywhere, a real network on a mini-batch too (``loss_table``). Every
expectation is then a finite sum: nothing is sampled. Of the estimators on such a problem,
``moments`` has mean and covariance, ``proof`` Theorem 1 and ``bias`` what keeps them unbiased.
"""

from collections.abc import Callable
from typing import SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minicst.sparse.estimators import preconditioner
from minicst.sparse.masks import checked_keep_prob, enumerate_masks

Array = NDArray[np.float64]

# 2**16 losses and their masks as float64 are 8 MB; each further channel doubles that.
MAX_CHANNELS = 16


def loss_table(loss: Callable[[NDArray[np.bool_]], SupportsFloat], n: int) -> Array:
    """Evaluate a loss function on all 2^n masks.

    Paper: Sec. 4.1, Eq. (2), L(w, m) for every m [eq2]

    Args:
        loss: m, bool (n,), -> one finite number. It may run a network: then at fixed weights, on
            one mini-batch, and with a rule for masks under which nothing reaches the output.
        n: number of channels, 1 to 16.

    Returns:
        The losses, float64 (2^n,), in the order of ``enumerate_masks(n)``.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: ``n`` is out of range, or a loss isn't one finite number.
    """
    if not isinstance(n, bool) and isinstance(n, (int, np.integer)) and not 1 <= n <= MAX_CHANNELS:
        raise ValueError(
            f"n is {n}; the theory lists all 2**n masks, for 1 <= n <= {MAX_CHANNELS}: take a "
            "narrower network"
        )
    masks = enumerate_masks(n)
    losses = np.empty(len(masks))
    for i, mask in enumerate(masks):
        value = np.asarray(loss(mask), dtype=np.float64)
        if value.size != 1 or not np.isfinite(value).all():
            raise ValueError(
                f"the loss of mask {mask.astype(int)} (number {i}) is {value}; one finite number "
                "is needed"
            )
        losses[i] = value.item()
    return losses


def mask_probabilities(keep_prob: ArrayLike) -> Array:
    """p(m|s) = prod_c s_c^m_c (1 - s_c)^(1 - m_c) of all 2^n masks.

    Paper: Sec. 4.1, Eq. (2), the distribution of the masks [eq2]

    Args:
        keep_prob: s, shape (n,), in [0, 1], n from 1 to 16.

    Returns:
        The probabilities, float64 (2^n,), in the order of ``enumerate_masks(n)``.

    Raises:
        ValueError: ``keep_prob`` has a wrong shape or leaves [0, 1].
    """
    s = _checked_size(checked_keep_prob(keep_prob))
    return product_over_masks(np.stack([1.0 - s, s], axis=1))


def expected_loss(losses: ArrayLike, keep_prob: ArrayLike) -> float:
    """Objective Phi(s) = E L(m).

    Paper: Sec. 4.1, Eq. (2), and Phi(s) of Sec. 4.2.2 [eq2]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    losses, s = checked_problem(losses, keep_prob)
    return float(mask_probabilities(s) @ losses)


def conditional_means(values: ArrayLike, keep_prob: ArrayLike) -> Array:
    """E[value(m) | m_j = b] of every channel j and b in {0, 1}.

    Only the other channels are averaged: it is defined for s_j in {0, 1} too, where one of the
    two values of m_j is never drawn.

    Paper: A.1, the expectation over m_-j in Eq. (7) [eq7]

    Args:
        values: one number for each of the 2^n masks.
        keep_prob: s, shape (n,), in [0, 1].

    Returns:
        float64 (n, 2); column b is for m_j = b.

    Raises:
        ValueError: wrong shapes or ranges, a value that is not finite.
    """
    values, s = checked_problem(values, keep_prob)
    factors = np.stack([1.0 - s, s], axis=1)
    means = np.empty((s.size, 2))
    for j in range(s.size):
        below, above = product_over_masks(factors[:j]), product_over_masks(factors[j + 1 :])
        split = values.reshape(above.size, 2, below.size)
        means[j] = above @ (split @ below)
    return means


def expected_loss_gradient(
    losses: ArrayLike, keep_prob: ArrayLike, precondition_power: float = 0.0
) -> Array:
    """H^alpha grad Phi(s), where dPhi/ds_j = E[L(m) | m_j = 1] - E[L(m) | m_j = 0].

    Phi is linear in each s_j, so this is exact, at s in {0, 1} as well. There the estimators'
    score is 0: for alpha > 0 so is H^alpha grad Phi, but at alpha = 0 a decided channel's
    gradient is what no estimator sees.

    Paper: Sec. 4.2.2, (PGE), left-hand side [pge], with Eq. (4) [eq4]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        precondition_power: alpha, in [0, 1]; 0 gives the plain gradient.

    Returns:
        float64 (n,).

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    means = conditional_means(losses, keep_prob)
    return preconditioner(keep_prob, precondition_power) * (means[:, 1] - means[:, 0])


def squared_difference(losses: ArrayLike, keep_prob: ArrayLike) -> float:
    """V(s) = E E (L(m) - L(m'))^2 of two independent masks, which is 2 Var L.

    Paper: A.1, Property 1, Eq. (6) [eq6]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    losses, s = checked_problem(losses, keep_prob)
    return 2.0 * float(mask_probabilities(s) @ (losses - expected_loss(losses, s)) ** 2)


def conditional_squared_difference(losses: ArrayLike, keep_prob: ArrayLike) -> Array:
    """E over m_-j and m' of (L(m) - L(m'))^2, for every channel j and m_j in {0, 1}.

    V(s) is their mean over m_j, for each j. At s_j in {0, 1} the column of the value that is never
    drawn is there too: the loss with channel j flipped, against losses as they are drawn.

    Paper: A.1, inside the maximum of Property 2, Eq. (7) [eq7]

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].

    Returns:
        float64 (n, 2); column b is for m_j = b.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    losses, s = checked_problem(losses, keep_prob)
    # E_m' (l - L(m'))^2 = (l - E L)^2 + Var L
    squares = (losses - expected_loss(losses, s)) ** 2
    return conditional_means(squares + mask_probabilities(s) @ squares, s)


def max_squared_difference(
    losses: ArrayLike, keep_prob: ArrayLike, possible_only: bool = False
) -> float:
    """Vmax(s) = max over j and m_j of E over m_-j and m' of (L(m) - L(m'))^2; never below V(s).

    Paper: A.1, Property 2, Eq. (7) [eq7]
    Differs: the paper takes s in (0, 1). At s_j in {0, 1} both values of m_j enter here as in its
        definition, or with ``possible_only`` the value that is drawn alone. The proof holds for
        either; the first also says what reviving or removing a decided channel would do.

    Args:
        losses: all 2^n losses.
        keep_prob: s, shape (n,), in [0, 1].
        possible_only: leave out values of m_j that are never drawn.

    Raises:
        ValueError: wrong shapes or ranges, a loss that is not finite.
    """
    by_value = conditional_squared_difference(losses, keep_prob)
    s = checked_keep_prob(keep_prob)
    possible = np.stack([s < 1.0, s > 0.0], axis=1)
    return float(by_value[possible].max() if possible_only else by_value.max())


def checked_problem(losses: ArrayLike, keep_prob: ArrayLike) -> tuple[Array, Array]:
    """Return losses (2^n,) and keep_prob (n,) as float64, or say what is wrong with them."""
    s = _checked_size(checked_keep_prob(keep_prob))
    array = np.asarray(losses, dtype=np.float64)
    if array.shape != (2**s.size,):
        raise ValueError(
            f"losses has shape {array.shape}, keep_prob {s.shape}; one loss for each of the "
            f"2**{s.size} = {2**s.size} masks is needed, as loss_table returns them"
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"losses[{int(np.argmin(finite))}] is {array[~finite][0]}; every loss must be finite"
        )
    return array, s


def _checked_size(s: Array) -> Array:
    """Return s, or say that its masks can't be listed."""
    if not 1 <= s.size <= MAX_CHANNELS:
        raise ValueError(
            f"keep_prob has {s.size} channels; the theory lists all 2**n masks, for "
            f"1 <= n <= {MAX_CHANNELS}: take a narrower network"
        )
    return s


def product_over_masks(factors: Array) -> Array:
    """prod_c factors[c, m_c] for all masks of the channels of (n, 2) factors, (2^n,)."""
    product = np.ones(1)
    for absent, present in factors:  # a later channel is a higher digit of the mask's number
        product = np.concatenate([absent * product, present * product])
    return product
