"""Euclidean projection on the set of allowed keep probabilities, exactly, in O(n log n)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def project_capped_simplex(
    z: ArrayLike, budget: float, lower: float = 0.0, upper: float = 1.0
) -> tuple[NDArray[np.float64], float]:
    """Project z on {s: lower <= s_c <= upper, sum s <= budget}: the nearest point of the set.

    The answer is s = clip(z - v, lower, upper) with one multiplier v >= 0 for all channels.
    KKT conditions, necessary and sufficient: v >= 0; v (budget - sum s) = 0; z_c - s_c = v where
    lower < s_c < upper, z_c - s_c <= v where s_c = lower, z_c - s_c >= v where s_c = upper.

    If clip(z) keeps the budget, v = 0. Otherwise v is the root of sum clip(z - v) = budget, a
    piecewise-linear decreasing function of v with the 2n breakpoints z_c - lower and
    z_c - upper. They are sorted, the segment with the root is found, and the equation is solved
    there in closed form. All of it uses differences to one z_c next to the root, so that s is
    accurate for |z| of any size, also where v itself has no float64 close enough. Where several
    v give the same s (no entry strictly between the bounds), v is the smallest.

    Paper: Sec. 4.2.2, proj_S of Algorithm 1, line 6; ref. [50] Theorem 1 [projection]
    Differs: the paper has lower = 0, upper = 1; the released code bisects v until the sum is
        within 1e-3 of the budget.

    Args:
        z: the point, shape (n,), finite.
        budget: K >= 0, the largest allowed sum.
        lower: floor of every entry, n * lower <= budget.
        upper: ceiling of every entry, >= lower.

    Returns:
        ``(keep_prob, multiplier)``: s, float64, shape (n,), and v as a float >= 0. The sum of s
        is <= budget up to rounding; the bounds hold exactly.

    Raises:
        ValueError: ``z`` not 1-D or not finite, ``budget`` negative or NaN, bounds not finite
            or crossed, or an empty set (n * lower > budget).
    """
    z = _checked_point(z)
    _check_set(z.size, budget, lower, upper)
    clipped = np.clip(z, lower, upper)
    if clipped.sum() <= budget:
        return clipped, 0.0
    room, width = budget - z.size * lower, upper - lower
    with np.errstate(over="ignore"):  # z of +-1e308 differ by inf: clipped like any other
        ascending = np.sort(z)
        first = _first_above_lower(ascending, room, width)
        pivot = ascending[first]
        lift = _lift(ascending[first:] - pivot, room, width)
        keep_prob = np.clip((z - pivot) + (lift + lower), lower, upper)
    return keep_prob, max(0.0, float(pivot - (lift + lower)))


def _first_above_lower(ascending: NDArray[np.float64], room: float, width: float) -> int:
    """Index in sorted z of the smallest entry that the projection leaves at or above lower.

    At v = z_j - lower the sum exceeds n * lower by sum_{c > j} min(z_c - z_j, width). That
    falls as z_j grows; wanted is the first z_j where it fits in the room. The root v then lies
    between z_j - upper and z_j - lower.
    """
    low, high = 0, ascending.size - 1
    while low < high:
        middle = (low + high) // 2
        # Summed anew each time: a difference of prefix sums would drown in one huge entry.
        excess = np.minimum(ascending[middle:] - ascending[middle], width).sum()
        if excess <= room:
            high = middle
        else:
            low = middle + 1
    return low


def _lift(offset: NDArray[np.float64], room: float, width: float) -> float:
    """Solve sum_i min(offset_i + t, width) = room for t; offset ascending from offset_0 = 0.

    Entry i reaches the ceiling at t = width - offset_i, where the sum is
    sum_{q < i} offset_q - i offset_i + width * size: falling in i, so entry i is at the ceiling
    if and only if that fits in the room.
    """
    # Offsets of width and more are at the ceiling for every t >= 0.
    inner = offset[: np.searchsorted(offset, width)]
    sum_before = np.cumsum(inner) - inner
    sum_at_ceiling = sum_before - np.arange(inner.size) * inner + width * offset.size
    # Entry 0 is below the ceiling, else clip(z) had kept the budget; max() is for rounding.
    n_inner = max(1, int(np.count_nonzero(sum_at_ceiling > room)))
    # Summed anew over the entries found: the prefix sums only had to find them.
    return float((room - width * (offset.size - n_inner) - offset[:n_inner].sum()) / n_inner)


def _checked_point(z: ArrayLike) -> NDArray[np.float64]:
    """Return ``z`` as a finite float64 vector, or say what is wrong with it."""
    array = np.asarray(z, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"z has shape {array.shape}; one flat vector (n,) is needed, "
            "concatenate the channel groups"
        )
    finite = np.isfinite(array)
    if not finite.all():
        channel = int(np.argmin(finite))
        raise ValueError(
            f"z[{channel}] is {array[channel]}; every entry must be finite, "
            "look at the step size and at the gradient of keep_prob"
        )
    return array


def _check_set(n: int, budget: float, lower: float, upper: float) -> None:
    """Raise ValueError where no s satisfies the constraints or a constraint is no number."""
    if not budget >= 0.0:
        raise ValueError(f"budget is {budget!r}; a number of channels >= 0 is needed")
    if not (np.isfinite(lower) and np.isfinite(upper) and lower <= upper):
        raise ValueError(
            f"lower is {lower!r}, upper {upper!r}; finite bounds with lower <= upper are needed"
        )
    # n * lower and budget = rho * n are both rounded: allow for it.
    if n * lower > budget * (1.0 + 1e-12):
        raise ValueError(
            f"n * lower = {n * lower:g} exceeds budget = {budget:g}: no keep_prob satisfies both; "
            "lower the floor or raise the budget"
        )
