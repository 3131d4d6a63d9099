"""Projection on {lower <= s <= upper, sum s <= budget}: four independent oracles and KKT."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from minicst.sparse.projection import project_capped_simplex

SETTINGS = settings(derandomize=True, deadline=None, max_examples=200, database=None)

# Oracles


def by_bisection(z, budget, lower=0.0, upper=1.0):
    """200 halvings of the multiplier."""
    if np.clip(z, lower, upper).sum() <= budget:
        return np.clip(z, lower, upper), 0.0
    low, high = 0.0, float(np.max(z)) - lower
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.clip(z - middle, lower, upper).sum() > budget:
            low = middle
        else:
            high = middle
    return np.clip(z - high, lower, upper), high


def by_active_sets(z, budget, lower=0.0, upper=1.0):
    """Best feasible point over all 3^n choices of which entries sit on which bound."""
    best, best_distance = None, np.inf
    for state in itertools.product(["low", "free", "up"], repeat=len(z)):
        state = np.array(state)
        free = state == "free"
        s = np.where(state == "low", lower, np.where(state == "up", upper, z))
        candidates = [s]
        if free.any():
            # The sum holds with equality: all free entries move by the same amount.
            candidates.append(s - np.where(free, (s.sum() - budget) / free.sum(), 0.0))
        for s in candidates:
            feasible = (s >= lower - 1e-12) & (s <= upper + 1e-12)
            if feasible.all() and s.sum() <= budget + 1e-12:
                distance = ((s - z) ** 2).sum()
                if distance < best_distance:
                    best, best_distance = s, distance
    return best


def in_fractions(z, budget, lower=0.0, upper=1.0):
    """The same root in exact rational arithmetic, by trying every segment between breakpoints."""
    z = [Fraction(float(x)) for x in z]
    budget, lower, upper = Fraction(budget), Fraction(lower), Fraction(upper)

    def clipped(v):
        return [min(max(x - v, lower), upper) for x in z]

    if sum(clipped(Fraction(0))) <= budget:
        return clipped(Fraction(0)), Fraction(0)
    points = sorted({x - lower for x in z} | {x - upper for x in z} | {Fraction(0)})
    for left, right in itertools.pairwise(p for p in points if p >= 0):
        sum_left, sum_right = sum(clipped(left)), sum(clipped(right))
        if sum_left > budget >= sum_right:
            v = left + (right - left) * (sum_left - budget) / (sum_left - sum_right)
            return clipped(v), v
    raise AssertionError("no root")


def assert_kkt(z, s, v, budget, lower=0.0, upper=1.0, atol=1e-12):
    """The conditions that single out the nearest point (necessary and sufficient)."""
    assert isinstance(v, float)
    assert v >= 0.0
    assert (s >= lower).all()  # exactly
    assert (s <= upper).all()
    assert s.sum() <= budget + atol * max(1, len(z))
    assert v == 0.0 or abs(s.sum() - budget) <= atol * max(1, len(z))
    gap = z - s
    free = (s > lower) & (s < upper)
    np.testing.assert_allclose(gap[free], v, rtol=1e-13, atol=atol)
    assert (gap[s == lower] <= v + atol).all() or lower == upper
    assert (gap[s == upper] >= v - atol).all() or lower == upper


CASES = [
    ("uniform", lambda rng, n: rng.uniform(0, 1, n)),
    ("wide", lambda rng, n: rng.normal(0.5, 3.0, n)),
    ("ties", lambda rng, n: rng.integers(-2, 5, n) / 4),
    ("polarized", lambda rng, n: np.where(rng.random(n) < 0.4, 1.0, 0.0) + rng.normal(0, 1e-3, n)),
]
BOUNDS = [(0.0, 1.0), (0.005, 0.995), (0.1, 0.1), (0.2, 0.7)]


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize("rho", [0.2, 0.35, 0.5, 0.9])
@pytest.mark.parametrize(("name", "make"), CASES)
def test_against_bisection(name, make, rho, lower, upper):
    rng = np.random.default_rng(7)
    for n in (1, 2, 3, 17, 400):
        z = make(rng, n)
        s, v = project_capped_simplex(z, rho * n, lower, upper)
        assert_kkt(z, s, v, rho * n, lower, upper)
        expected, expected_v = by_bisection(z, rho * n, lower, upper)
        np.testing.assert_allclose(s, expected, rtol=0, atol=1e-12)
        if ((s > lower) & (s < upper)).any():  # else the multiplier isn't unique
            assert v == pytest.approx(expected_v, abs=1e-12)


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize(("name", "make"), CASES)
def test_against_all_active_sets(name, make, lower, upper):
    rng = np.random.default_rng(11)
    for n, rho in itertools.product(range(1, 6), (0.2, 0.3, 0.6)):
        z = make(rng, n)
        s, _ = project_capped_simplex(z, rho * n, lower, upper)
        np.testing.assert_allclose(s, by_active_sets(z, rho * n, lower, upper), rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_against_a_general_solver(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    z, budget, lower = rng.normal(0.4, 0.8, n), rng.uniform(0.2, 0.7) * n, 0.02
    solution = minimize(
        lambda s: 0.5 * ((s - z) ** 2).sum(),
        np.full(n, budget / n),
        jac=lambda s: s - z,
        bounds=[(lower, 1.0)] * n,
        constraints={"type": "ineq", "fun": lambda s: budget - s.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success
    s, _ = project_capped_simplex(z, budget, lower, 1.0)
    np.testing.assert_allclose(s, solution.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_against_exact_fractions(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 14))
    z = rng.normal(0.5, 1.0, n) * 10.0 ** rng.integers(-3, 4)
    budget = float(rng.uniform(0, n))
    s, v = project_capped_simplex(z, budget)
    exact, exact_v = in_fractions(z, budget)
    np.testing.assert_allclose(s, [float(x) for x in exact], rtol=0, atol=1e-14)
    if any(0 < x < 1 for x in exact):
        assert v == pytest.approx(float(exact_v), rel=1e-14, abs=1e-14)


# Cases by hand


def test_by_hand():
    # sum clip(z - v) = 1.5 at v = 0.5: 1 + 0.5 + 0.
    s, v = project_capped_simplex([2.0, 1.0, 0.3], 1.5)
    assert s.tolist() == [1.0, 0.5, 0.0]
    assert v == 0.5
    assert s.dtype == np.float64
    # All in the interior: everything moves by the same amount.
    s, v = project_capped_simplex([0.75, 0.5, 0.25], 0.75)
    assert s.tolist() == [0.5, 0.25, 0.0]
    assert v == 0.25


def test_uniform_start_of_algorithm_1_stays():
    for n, rho in [(10, 0.3), (784, 0.29), (4224, 0.087), (3, 1 / 3)]:
        z = np.full(n, rho)
        s, v = project_capped_simplex(z, rho * n)
        np.testing.assert_allclose(s, z, rtol=1e-14)
        assert v <= 1e-14


def test_a_point_inside_is_unchanged_bit_for_bit():
    z = np.random.default_rng(0).uniform(0, 0.5, 1000)
    s, v = project_capped_simplex(z, 500)
    assert s.tobytes() == z.tobytes()
    assert v == 0.0
    assert not np.shares_memory(s, z)


def test_too_small_a_sum_is_only_clipped():
    s, v = project_capped_simplex([-3.0, 0.2, 5.0], 2.0)
    assert s.tolist() == [0.0, 0.2, 1.0]
    assert v == 0.0


def test_budget_zero():
    for z in ([0.5, 0.2, 0.5], [-1.0, -2.0], [0.0, 0.0], [7.0]):
        s, v = project_capped_simplex(z, 0)
        assert not s.any()
        assert v == max(0.0, *z)


@pytest.mark.parametrize("budget", [3, 3.5, 1e9, np.inf])
def test_budget_of_everything(budget):
    s, v = project_capped_simplex([9.0, 0.5, 1.0], budget)
    assert s.tolist() == [1.0, 0.5, 1.0]
    assert v == 0.0


def test_ties_share():
    s, v = project_capped_simplex([0.9] * 4 + [0.1] * 3, 2.0)
    np.testing.assert_allclose(s, [0.5] * 4 + [0.0] * 3, rtol=1e-15)
    assert v == pytest.approx(0.4)
    s, _ = project_capped_simplex([1e6] * 8, 3.0)
    assert s.tolist() == [0.375] * 8


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_zero_and_all_one(value):
    s, v = project_capped_simplex(np.full(10, value), 4.0)
    np.testing.assert_allclose(s, 0.4 * value, rtol=1e-15)
    assert v == pytest.approx(0.6 * value)


def test_single_and_no_channel():
    assert project_capped_simplex([0.7], 0.25)[0].tolist() == [0.25]
    assert project_capped_simplex([0.7], 0.25)[1] == pytest.approx(0.45)
    s, v = project_capped_simplex([], 0.0)
    assert s.shape == (0,)
    assert v == 0.0


def test_plateau_where_no_channel_is_free():
    # Any v in [1, 2] gives the sum 1 and the same point; the smallest is returned.
    s, v = project_capped_simplex([3.0, 1.0], 1.0)
    assert s.tolist() == [1.0, 0.0]
    assert v == 1.0


def test_floor_takes_its_part_of_the_budget():
    z = np.array([5.0, 5.0, -5.0, -5.0])
    s, _ = project_capped_simplex(z, 1.0, lower=0.125)
    assert s.tolist() == [0.375, 0.375, 0.125, 0.125]
    # The floor uses all of the budget: one point is left.
    s, _ = project_capped_simplex(z, 0.5, lower=0.125)
    assert s.tolist() == [0.125] * 4


@pytest.mark.parametrize("rho", [0.1, 0.3, 0.7, 1.0])
def test_floor_equal_to_the_keep_rate_survives_rounding(rho):
    for n in (3, 7, 10, 784):
        s, _ = project_capped_simplex(np.linspace(-1, 2, n), rho * n, lower=rho)
        np.testing.assert_allclose(s, rho, rtol=1e-12)
    # Both bounds at once, and a budget below 3 * 0.1 by one rounding.
    assert 0.1 + 0.1 + 0.1 > 0.3
    s, _ = project_capped_simplex([0.3, 0.1, 0.9], 0.3, lower=0.1, upper=0.1)
    assert s.tolist() == [0.1] * 3


@pytest.mark.parametrize("scale", [1e3, 1e9, 1e15, 1e17, 1e100, 1e300, 1.7e308])
def test_huge_entries(scale):
    # Two far entries, one on each side, and an inner group around +scale or around 0.
    s, v = project_capped_simplex([scale, -scale, 0.4, 0.3], 1.5)
    np.testing.assert_allclose(s, [1.0, 0.0, 0.3, 0.2], rtol=1e-14)
    assert v == pytest.approx(0.1)
    s, v = project_capped_simplex([scale, scale, -scale, 0.9], 1.5)
    assert s.tolist() == [0.75, 0.75, 0.0, 0.0]
    assert v == pytest.approx(scale - 0.75)
    # Several at the ceiling: not even their sum is a float64 any more.
    s, v = project_capped_simplex([0.4, scale, scale, 0.3, scale], 3.5)
    np.testing.assert_allclose(s, [0.3, 1.0, 1.0, 0.2, 1.0], rtol=1e-14)
    assert v == pytest.approx(0.1)


@pytest.mark.parametrize("shift", [2.0**20, 2.0**40, 2.0**50])
def test_shifted_points_have_the_same_projection(shift):
    # Whole parts added without rounding; a plain clip(z - v) would lose up to all digits of s.
    z = np.array([0.75, 0.5, 0.25, 1.25, -0.75])
    s, v = project_capped_simplex(z + 1.0, 1.4)
    far, far_v = project_capped_simplex(z + 1.0 + shift, 1.4)
    np.testing.assert_allclose(far, s, rtol=0, atol=1e-15)
    assert far_v == pytest.approx(v + shift, rel=1e-15)


def test_a_million_channels():
    rng = np.random.default_rng(0)
    z = rng.normal(0.3, 0.5, 1_000_000)
    s, v = project_capped_simplex(z, 250_000.0, 0.001, 0.999)
    assert abs(s.sum() - 250_000) < 1e-7
    np.testing.assert_array_equal(s, np.clip(s, 0.001, 0.999))
    np.testing.assert_allclose(s, np.clip(z - v, 0.001, 0.999), rtol=0, atol=1e-14)


def test_input_is_left_alone():
    z = np.array([2.0, 1.0, 0.3])
    z.flags.writeable = False
    s, _ = project_capped_simplex(z, 1.5)
    assert not np.shares_memory(s, z)


def test_float32_points_are_projected_in_float64():
    z = np.array([0.9, 0.8, 0.7], np.float32)
    s, _ = project_capped_simplex(z, 1.0)
    assert s.dtype == np.float64
    assert s.sum() == pytest.approx(1.0, abs=1e-15)


# Laws

entry = st.one_of(
    st.floats(-3, 3),
    st.sampled_from([0.0, 1.0, 0.5, -1.0, 2.0]),
    st.floats(-1e12, 1e12),
)
points = st.lists(entry, min_size=1, max_size=30).map(np.array)


@st.composite
def problems(draw):
    z = draw(points)
    lower, upper = sorted([draw(st.floats(0, 1)), draw(st.floats(0, 1))])
    budget = z.size * (lower + draw(st.floats(0, 1)) * (1 - lower))
    return z, budget, lower, upper


@given(problems())
@SETTINGS
def test_law_kkt_and_idempotence(problem):
    z, budget, lower, upper = problem
    s, v = project_capped_simplex(z, budget, lower, upper)
    atol = 1e-12 + 4e-16 * float(np.abs(z).max())  # z - s is rounded at the size of z
    assert_kkt(z, s, v, budget, lower, upper, max(atol, 1e-12))
    assert s.sum() <= budget + 1e-14 * z.size
    again, again_v = project_capped_simplex(s, budget, lower, upper)
    np.testing.assert_allclose(again, s, rtol=0, atol=1e-13)
    assert again_v <= 1e-13


@given(problems())
@SETTINGS
def test_law_exact_arithmetic_agrees(problem):
    z, budget, lower, upper = problem
    if Fraction(lower) * z.size > Fraction(budget):  # empty by one rounding
        return
    s, _ = project_capped_simplex(z, budget, lower, upper)
    exact, _ = in_fractions(z, budget, lower, upper)
    np.testing.assert_allclose(s, [float(x) for x in exact], rtol=0, atol=1e-13)


@given(problems(), st.randoms(use_true_random=False))
@SETTINGS
def test_law_order_and_permutation(problem, random):
    z, budget, lower, upper = problem
    s, _ = project_capped_simplex(z, budget, lower, upper)
    order = np.argsort(z, kind="stable")
    assert (np.diff(s[order]) >= 0).all()
    shuffled = list(range(z.size))
    random.shuffle(shuffled)
    np.testing.assert_array_equal(
        project_capped_simplex(z[shuffled], budget, lower, upper)[0], s[shuffled]
    )


@given(problems(), st.integers(0, 2**32 - 1))
@SETTINGS
def test_law_projection_never_lengthens_a_distance(problem, seed):
    z, budget, lower, upper = problem
    other = np.random.default_rng(seed).normal(0.5, 1.0, z.size)
    s, _ = project_capped_simplex(z, budget, lower, upper)
    t, _ = project_capped_simplex(other, budget, lower, upper)
    before, after = np.linalg.norm(z - other), np.linalg.norm(s - t)
    assert after <= before * (1 + 1e-12) + 1e-12


# The checks see wrong projections.

WRONG = {
    "clip only": lambda z, budget: (np.clip(z, 0, 1), 0.0),
    "scaled": lambda z, budget: (np.clip(z, 0, 1) * budget / np.clip(z, 0, 1).sum(), 0.1),
    "released tolerance": lambda z, budget: (np.clip(z - 0.2005, 0, 1), 0.2005),
    "no ceiling": lambda z, budget: (np.maximum(z - 0.5, 0), 0.5),
}


@pytest.mark.parametrize("name", WRONG)
def test_kkt_check_rejects_wrong_projections(name):
    z, budget = np.array([1.6, 0.9, 0.5, 0.1]), 2.0
    right, v = project_capped_simplex(z, budget)
    np.testing.assert_allclose(right, [1.0, 0.7, 0.3, 0.0], atol=1e-15)
    assert_kkt(z, right, v, budget)
    wrong, wrong_v = WRONG[name](z, budget)
    with pytest.raises(AssertionError):
        assert_kkt(z, wrong, float(wrong_v), budget)


# Bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_point_must_be_finite(bad):
    with pytest.raises(ValueError, match=r"z\[1\] is (nan|-?inf); every entry must be finite"):
        project_capped_simplex([0.5, bad], 1.0)


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_point_must_be_a_vector(shape):
    with pytest.raises(ValueError, match="flat vector"):
        project_capped_simplex(np.zeros(shape), 1.0)


@pytest.mark.parametrize("budget", [-1.0, -1e-300, np.nan, -np.inf])
def test_budget_must_be_a_number_of_channels(budget):
    with pytest.raises(ValueError, match="budget is"):
        project_capped_simplex([0.5], budget)


@pytest.mark.parametrize(("lower", "upper"), [(0.6, 0.5), (np.nan, 1), (0, np.nan), (0, np.inf)])
def test_bounds_must_be_ordered_numbers(lower, upper):
    with pytest.raises(ValueError, match=r"lower is .* upper"):
        project_capped_simplex([0.5], 1.0, lower, upper)


def test_empty_set_is_an_error():
    with pytest.raises(ValueError, match=r"n \* lower = 0.6 exceeds budget = 0.5"):
        project_capped_simplex([0.5, 0.5, 0.5], 0.5, lower=0.2)
