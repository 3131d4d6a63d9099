"""Euclidean projection on the set of allowed keep probabilities, exactly, in O(n log n)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SPLIT = 2.0**27 + 1.0  # Dekker (1971): x times this leaves the upper 26 of 53 bits of x


def project_capped_simplex(
    z: ArrayLike,
    budget: float,
    lower: float = 0.0,
    upper: float = 1.0,
    weights: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Project z on {s: lower <= s_c <= upper, sum s <= budget}: the nearest point of the set.

    With weights w the constraint is sum_c w_c s_c <= budget: a channel of cost w_c.

    The answer is s = clip(z - v, lower, upper) with one multiplier v >= 0 for all channels.
    KKT conditions, necessary and sufficient: v >= 0; v (budget - sum s) = 0; z_c - s_c = v where
    lower < s_c < upper, z_c - s_c <= v where s_c = lower, z_c - s_c >= v where s_c = upper.

    If clip(z) keeps the budget, v = 0. Otherwise v is the root of sum clip(z - v) = budget, a
    piecewise-linear decreasing function of v with the 2n breakpoints z_c - lower and
    z_c - upper. They are sorted, the segment with the root is found, and the equation is solved
    there in closed form. All of it uses differences to one z_c next to the root, so that s is
    accurate for |z| of any size, also where v itself has no float64 close enough. Where several
    v give the same s (no entry strictly between the bounds), v is the smallest.

    With weights s = clip(z - v w, lower, upper), and v w_c stands for v in the conditions. The
    breakpoints are (z_c - lower) / w_c and (z_c - upper) / w_c, and the rest is the same. A channel
    of cost 0 is only clipped.

    Paper: Sec. 4.2.2, proj_S of Algorithm 1, line 6; ref. [50] Theorem 1 [projection]
    Differs: the paper has lower = 0, upper = 1; the released code bisects v until the sum is
        within 1e-3 of the budget.

    Args:
        z: the point, shape (n,), finite.
        budget: K >= 0, the largest allowed sum.
        lower: floor of every entry, n * lower <= budget (lower * sum w with weights).
        upper: ceiling of every entry, >= lower.
        weights: w, cost of every channel, shape (n,), 0 or in [1e-60, 1e60]; None: all 1.

    Returns:
        ``(keep_prob, multiplier)``: s, float64, shape (n,), and v as a float >= 0. The (weighted)
        sum of s is <= budget up to rounding; the bounds hold exactly. Where weights make v larger
        than any float64, it is inf.

    Raises:
        ValueError: ``z`` not 1-D or not finite, ``budget`` negative or NaN, bounds not finite
            or crossed, ``weights`` of another length or range, or an empty set
            (n * lower > budget).
    """
    z = _checked_point(z)
    if weights is not None:
        cost = _checked_weights(weights, z.size)
        _check_set("lower * sum(weights)", float(cost.sum()), budget, lower, upper)
        return _project_weighted(z, budget, lower, upper, cost)
    _check_set("n * lower", z.size, budget, lower, upper)
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


def _project_weighted(
    z: NDArray[np.float64], budget: float, lower: float, upper: float, weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """project_capped_simplex with the constraint sum w s <= budget."""
    keep_prob = np.clip(z, lower, upper)
    if (weights * keep_prob).sum() <= budget:
        return keep_prob, 0.0
    costly = weights > 0.0
    # With costs of 1 and more no breakpoint overflows. A power of two, so nothing is rounded.
    unit = 2.0 ** np.floor(np.log2(weights[costly].min()))
    z, cost = z[costly], weights[costly] / unit
    room = budget / unit - lower * cost.sum()
    with np.errstate(over="ignore"):  # z of +-1e308 differ by inf: clipped like any other
        _, _, nearest = _solve(z, cost, room, lower, upper)
        # That was right up to the rounding of z and v w. With z seen from a channel next to the
        # root it is right to the last digits; where z is huge, that takes a second channel.
        for _ in range(2):
            seen_from = nearest
            offset = _offset(z, cost, seen_from)
            inside, root, nearest = _solve(offset, cost, room, lower, upper)
            # Another one is better only if the root is far from this one, in its units.
            if abs(root) * cost[nearest] <= 4.0 * max(abs(lower), abs(upper)):
                break
        keep_prob[costly] = inside
        return keep_prob, max(0.0, float((z[seen_from] / cost[seen_from] + root) / unit))


def _solve(
    z: NDArray[np.float64], cost: NDArray[np.float64], room: float, lower: float, upper: float
) -> tuple[NDArray[np.float64], float, int]:
    """Find v with sum w (clip(z - v w) - lower) = room; return the clip, v and a channel near it.

    Between two neighboring breakpoints the sum is linear in v, with the root at
    (sum_free w (z - lower) + sum_at_upper w (upper - lower) - room) / sum_free w^2.

    The channel is the costliest whose own breakpoints enclose the upper end of that segment: while
    v goes from its z / w to the root, no free channel moves by more than the bounds allow.
    """
    width = upper - lower
    from_upper, to_lower = (z - upper) / cost, (z - lower) / cost
    points = np.unique(np.concatenate([from_upper, to_lower]))
    low, high = 0, points.size - 1
    while low < high:
        middle = (low + high) // 2
        # Summed anew each time: a difference of prefix sums would drown in one huge entry. From
        # to_lower, not z: an entry is at lower for sure where v reaches that, however rounded.
        excess = (cost * np.clip((to_lower - points[middle]) * cost, 0.0, width)).sum()
        if excess <= room:
            high = middle
        else:
            low = middle + 1
    left, right = points[max(0, low - 1)], points[low]
    enclosing = (from_upper <= right) & (right <= to_lower)
    nearest = int(np.argmax(np.where(enclosing, cost, 0.0)))

    at_upper, free = right <= from_upper, (from_upper <= left) & (right <= to_lower)
    root = right  # of a huge z both breakpoints may round to this one, and none is free
    if free.any():
        excess = (cost[free] * (z[free] - lower)).sum() + width * cost[at_upper].sum() - room
        root = excess / (cost[free] ** 2).sum()
    # Only the free ones move with v: where they are cheap, a rounding of the room is large in v.
    inside = np.where(at_upper, upper, lower)
    inside[free] = np.clip(z[free] - root * cost[free], lower, upper)
    return inside, root, nearest


def _offset(z: NDArray[np.float64], cost: NDArray[np.float64], pivot: int) -> NDArray[np.float64]:
    """Return z - w z_p / w_p, as exact as its own size allows, also where both terms are huge.

    The products of z w_p - z_p w are kept as two floats each (Dekker 1971), on mantissas, so that
    nothing overflows on the way. Entries too far away for a float64 are -inf.
    """
    (z_part, z_power), (w_part, w_power) = np.frexp(z), np.frexp(cost)
    high, low = _product(z_part, w_part[pivot])
    high_p, low_p = _product(w_part, z_part[pivot])
    power = z_power[pivot] + w_power - w_power[pivot]
    difference = np.ldexp(high, z_power) - np.ldexp(high_p, power)
    difference += np.ldexp(low, z_power) - np.ldexp(low_p, power)
    return difference / w_part[pivot]


def _product(x: NDArray[np.float64], y: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x y rounded, and the rounding error, exactly."""
    x_high, y_high = _SPLIT * x - (_SPLIT * x - x), _SPLIT * y - (_SPLIT * y - y)
    x_low, y_low = x - x_high, y - y_high
    high = x * y
    return high, ((x_high * y_high - high) + x_high * y_low + x_low * y_high) + x_low * y_low


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


def _checked_weights(weights: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return ``weights`` as a float64 vector of n costs, or say what is wrong with it."""
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(
            f"weights has shape {array.shape}; one cost for each of the {n} entries of z is needed"
        )
    fits = (array == 0.0) | ((array >= 1e-60) & (array <= 1e60))
    if not fits.all():
        channel = int(np.argmin(fits))
        raise ValueError(
            f"weights[{channel}] is {array[channel]}; every cost must be 0 or lie in 1e-60..1e60, "
            "choose another unit"
        )
    return array


def _check_set(floor_name: str, total: float, budget: float, lower: float, upper: float) -> None:
    """Raise ValueError where no s satisfies the constraints or a constraint is no number."""
    if not budget >= 0.0:
        raise ValueError(
            f"budget is {budget!r}; a number of channels (a cost with weights) >= 0 is needed"
        )
    if not (np.isfinite(lower) and np.isfinite(upper) and lower <= upper):
        raise ValueError(
            f"lower is {lower!r}, upper {upper!r}; finite bounds with lower <= upper are needed"
        )
    # n * lower and budget = rho * n are both rounded: allow for it.
    if total * lower > budget * (1.0 + 1e-12):
        raise ValueError(
            f"{floor_name} = {total * lower:g} exceeds budget = {budget:g}: no keep_prob satisfies "
            "both; lower the floor or raise the budget"
        )
