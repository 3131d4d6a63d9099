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

# Oracles. weights=None: all channels cost 1.


def costs(weights, n):
    return np.ones(n) if weights is None else np.asarray(weights, float)


def by_bisection(z, budget, lower=0.0, upper=1.0, weights=None):
    """200 halvings of the multiplier."""
    cost = costs(weights, len(z))
    if (cost * np.clip(z, lower, upper)).sum() <= budget:
        return np.clip(z, lower, upper), 0.0
    low, high = 0.0, float(np.max((np.asarray(z) - lower)[cost > 0] / cost[cost > 0]))
    for _ in range(200):
        middle = 0.5 * (low + high)
        if (cost * np.clip(z - middle * cost, lower, upper)).sum() > budget:
            low = middle
        else:
            high = middle
    return np.clip(z - high * cost, lower, upper), high


def by_active_sets(z, budget, lower=0.0, upper=1.0, weights=None):
    """Best feasible point over all 3^n choices of which entries sit on which bound."""
    cost = costs(weights, len(z))
    slack = 1e-12 * max(1.0, cost.max())
    best, best_distance = None, np.inf
    for state in itertools.product(["low", "free", "up"], repeat=len(z)):
        state = np.array(state)
        free = state == "free"
        s = np.where(state == "low", lower, np.where(state == "up", upper, z))
        candidates = [s]
        if (cost[free] > 0).any():
            # The sum holds with equality: a free entry moves in proportion to its cost.
            move = ((cost * s).sum() - budget) / (cost[free] ** 2).sum()
            candidates.append(s - np.where(free, move * cost, 0.0))
        for s in candidates:
            feasible = (s >= lower - 1e-12) & (s <= upper + 1e-12)
            if feasible.all() and (cost * s).sum() <= budget + slack:
                distance = ((s - z) ** 2).sum()
                if distance < best_distance:
                    best, best_distance = s, distance
    return best


def in_fractions(z, budget, lower=0.0, upper=1.0, weights=None):
    """The same root in exact rational arithmetic, by trying every segment between breakpoints."""
    cost = [Fraction(float(c)) for c in costs(weights, len(z))]
    z = [Fraction(float(x)) for x in z]
    budget, lower, upper = Fraction(budget), Fraction(lower), Fraction(upper)

    def clipped(v):
        return [min(max(x - v * c, lower), upper) for x, c in zip(z, cost, strict=True)]

    def spent(v):
        return sum(c * x for c, x in zip(cost, clipped(v), strict=True))

    if spent(Fraction(0)) <= budget:
        return clipped(Fraction(0)), Fraction(0)
    pairs = [(x, c) for x, c in zip(z, cost, strict=True) if c]
    points = {(x - bound) / c for x, c in pairs for bound in (lower, upper)} | {Fraction(0)}
    for left, right in itertools.pairwise(sorted(p for p in points if p >= 0)):
        spent_left, spent_right = spent(left), spent(right)
        if spent_left > budget >= spent_right:
            v = left + (right - left) * (spent_left - budget) / (spent_left - spent_right)
            return clipped(v), v
    raise AssertionError("no root")


def assert_kkt(z, s, v, budget, lower=0.0, upper=1.0, atol=1e-12, weights=None):
    """The conditions that single out the nearest point (necessary and sufficient)."""
    cost = costs(weights, len(z))
    assert isinstance(v, float)
    assert v >= 0.0
    assert (s >= lower).all()  # exactly
    assert (s <= upper).all()
    spent, slack = (cost * s).sum(), atol * max(1, cost.sum())
    assert spent <= budget + slack
    assert v == 0.0 or abs(spent - budget) <= slack
    gap = z - s
    free = (s > lower) & (s < upper)
    np.testing.assert_allclose(gap[free], (v * cost)[free], rtol=1e-13, atol=atol)
    assert (gap[s == lower] <= (v * cost)[s == lower] + atol).all() or lower == upper
    assert (gap[s == upper] >= (v * cost)[s == upper] - atol).all() or lower == upper


def rounding(budget, weights, n):
    """What s may be off where the budget is off by a rounding: eps K / w_c, and a bit."""
    cost = costs(weights, n)
    return 1e-13 + 4e-16 * budget / np.where(cost > 0, cost, np.inf)


CASES = [
    ("uniform", lambda rng, n: rng.uniform(0, 1, n)),
    ("wide", lambda rng, n: rng.normal(0.5, 3.0, n)),
    ("ties", lambda rng, n: rng.integers(-2, 5, n) / 4),
    ("polarized", lambda rng, n: np.where(rng.random(n) < 0.4, 1.0, 0.0) + rng.normal(0, 1e-3, n)),
]
MACS = np.array([27 * 1024, 576 * 256, 576 * 1024, 64, 10]) * 1.0  # of filters, of all sizes
WEIGHTS = [
    ("no weights", lambda rng, n: None),
    ("equal", lambda rng, n: np.full(n, 3.7)),
    ("macs", lambda rng, n: rng.choice(MACS, n)),
    ("wide", lambda rng, n: 10.0 ** rng.uniform(-2, 2, n)),
    ("some are free", lambda rng, n: rng.choice([0.0, 1.0, 2.5], n)),
]
weighted = pytest.mark.parametrize(("kind", "weigh"), WEIGHTS, ids=[name for name, _ in WEIGHTS])
BOUNDS = [(0.0, 1.0), (0.005, 0.995), (0.1, 0.1), (0.2, 0.7)]


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize("rho", [0.2, 0.35, 0.5, 0.9])
@pytest.mark.parametrize(("name", "make"), CASES)
@weighted
def test_against_bisection(kind, weigh, name, make, rho, lower, upper):
    rng = np.random.default_rng(7)
    for n in (1, 2, 3, 17, 400):
        z, weights = make(rng, n), weigh(rng, n)
        cost = costs(weights, n)
        budget = rho * cost.sum()
        s, v = project_capped_simplex(z, budget, lower, upper, weights)
        expected, expected_v = by_bisection(z, budget, lower, upper, weights)
        off = rounding(budget, weights, n)
        assert_kkt(z, s, v, budget, lower, upper, max(1e-12, off.max()), weights)
        assert (abs(s - expected) <= 10 * off).all()
        free = (s > lower) & (s < upper) & (cost > 0)
        if free.any():  # else the multiplier isn't unique
            assert v == pytest.approx(expected_v, abs=1e-12, rel=1e-9)


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize(("name", "make"), CASES)
@weighted
def test_against_all_active_sets(kind, weigh, name, make, lower, upper):
    rng = np.random.default_rng(11)
    for n, rho in [*itertools.product(range(1, 6), (0.2, 0.3, 0.6)), (6, 0.3)]:
        z, weights = make(rng, n), weigh(rng, n)
        budget = rho * costs(weights, n).sum()
        s, _ = project_capped_simplex(z, budget, lower, upper, weights)
        expected = by_active_sets(z, budget, lower, upper, weights)
        cost = costs(weights, n)
        # A candidate may be infeasible by 1e-12 of the largest cost.
        slack = 2e-12 * max(1.0, cost.max()) / np.where(cost > 0, cost, np.inf)
        assert (abs(s - expected) <= 1e-11 + slack).all()


@pytest.mark.parametrize("seed", range(6))
@weighted
def test_against_a_general_solver(kind, weigh, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    z, lower, rho = rng.normal(0.4, 0.8, n), 0.02, rng.uniform(0.2, 0.7)
    weights = weigh(rng, n)
    if weights is not None:
        weights = weights / max(1.0, weights.max())  # the solver needs numbers near 1
    cost = costs(weights, n)
    budget = rho * cost.sum()
    solution = minimize(
        lambda s: 0.5 * ((s - z) ** 2).sum(),
        np.full(n, rho),
        jac=lambda s: s - z,
        bounds=[(lower, 1.0)] * n,
        constraints={"type": "ineq", "fun": lambda s: budget - cost @ s, "jac": lambda s: -cost},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success
    s, _ = project_capped_simplex(z, budget, lower, 1.0, weights)
    np.testing.assert_allclose(s, solution.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@weighted
def test_against_exact_fractions(kind, weigh, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 14))
    z = rng.normal(0.5, 1.0, n) * 10.0 ** rng.integers(-3, 4)
    budget = float(rng.uniform(0, n))
    weights = weigh(rng, n)
    if weights is not None:
        budget *= weights.mean()
    s, v = project_capped_simplex(z, budget, weights=weights)
    exact, exact_v = in_fractions(z, budget, weights=weights)
    off = rounding(budget, weights, n) if weights is not None else 1e-14
    assert (abs(s - [float(x) for x in exact]) <= off).all()
    if any(0 < x < 1 for x, c in zip(exact, costs(weights, n), strict=True) if c):
        rel = 1e-14 if weights is None else 1e-11
        assert v == pytest.approx(float(exact_v), rel=rel, abs=1e-14)


@pytest.mark.parametrize("scale", [1e9, 1e15, 1e17, 1e100, 1e300])
@pytest.mark.parametrize("aligned", [False, True])
def test_weighted_against_exact_fractions_where_z_is_huge(scale, aligned):
    """Aligned: z / w the same but for rounding, so that many channels meet at the root."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        n = int(rng.integers(1, 10))
        weights = rng.choice([1.0, 3.0, 7.0, 27.0, 5184.0, 0.1], n)
        z = rng.normal(0.5, 1.0, n) * (1.0 if aligned else scale)
        z += weights * scale * aligned
        budget = float(rng.uniform(0, 1) * weights.sum())
        s, _ = project_capped_simplex(z, budget, weights=weights)
        exact, _ = in_fractions(z, budget, weights=weights)
        assert (abs(s - [float(x) for x in exact]) <= rounding(budget, weights, n)).all()


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


def test_weights_by_hand():
    # (1 - 3 v) 3 + (0.5 - v) 1 = 1.5 at v = 0.2.
    s, v = project_capped_simplex([1.0, 0.5], 1.5, weights=[3.0, 1.0])
    np.testing.assert_allclose(s, [0.4, 0.3], rtol=1e-15)
    assert v == pytest.approx(0.2, rel=1e-15)
    assert s.dtype == np.float64
    # Equal entries: what costs twice as much loses twice as much.
    s, v = project_capped_simplex([0.75, 0.75], 1.0, weights=[1, 2])
    assert s.tolist() == [0.5, 0.25]
    assert v == 0.25
    # One at the ceiling, one at the floor, one between.
    s, v = project_capped_simplex([3.0, 1.0, 0.25], 2.25, weights=[1, 2, 4])
    np.testing.assert_allclose(s, [1.0, 0.625, 0.0], rtol=1e-15)
    assert v == pytest.approx(0.1875, rel=1e-15)


def test_channels_without_cost_are_only_clipped():
    s, v = project_capped_simplex([0.7, 0.9, 0.2, 5.0, -1.0], 0.5, weights=[0, 1, 1, 0, 0])
    assert s.tolist() == [0.7, 0.5, 0.0, 1.0, 0.0]
    assert v == pytest.approx(0.4)
    s, v = project_capped_simplex([0.7, 5.0], 0.0, 0.1, 0.9, weights=[0, 0])
    assert s.tolist() == [0.7, 0.9]
    assert v == 0.0


def test_equal_weights_are_a_smaller_budget():
    rng = np.random.default_rng(4)
    for cost in (1.0, 0.1, 3.0, 27648.0):
        z = rng.normal(0.4, 1.0, 50)
        wanted, wanted_v = project_capped_simplex(z, 15.0, 0.01, 0.99)
        s, v = project_capped_simplex(z, 15.0 * cost, 0.01, 0.99, np.full(50, cost))
        np.testing.assert_allclose(s, wanted, rtol=0, atol=1e-14)
        assert v == pytest.approx(wanted_v / cost, rel=1e-13)


@pytest.mark.parametrize("power", [-150, -3, 1, 20, 150])
def test_another_unit_of_cost_changes_no_bit(power):
    rng = np.random.default_rng(5)
    z, weights, unit = rng.normal(0.4, 1.0, 30), rng.uniform(0.5, 9.0, 30), 2.0**power
    s, v = project_capped_simplex(z, 40.0, weights=weights)
    other, other_v = project_capped_simplex(z, 40.0 * unit, weights=weights * unit)
    assert s.tobytes() == other.tobytes()
    assert v == other_v * unit


@weighted
def test_uniform_start_stays_with_weights(kind, weigh):
    for n, rho in [(10, 0.3), (784, 0.29), (4224, 0.087), (3, 1 / 3)]:
        weights = weigh(np.random.default_rng(n), n)
        z = np.full(n, rho)
        s, _ = project_capped_simplex(z, rho * costs(weights, n).sum(), weights=weights)
        np.testing.assert_allclose(s, z, rtol=1e-12)


def test_multiplier_is_never_negative_by_a_rounding():
    """Spent is above the budget by one rounding, and z / w + shift rounds to -3e-17 here."""
    s, v = project_capped_simplex([0.56] * 3, 0.56 * 6.1, weights=[0.1, 3.0, 3.0])
    np.testing.assert_allclose(s, 0.56, rtol=1e-15)
    assert 0.0 <= v < 1e-15


@pytest.mark.parametrize("seed", range(10))
def test_budget_at_a_breakpoint_of_a_costly_channel(seed):
    """Where only cheap channels are free, a rounding of the budget mustn't move costly ones."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        n = int(rng.integers(2, 8))
        z, weights = rng.normal(0.5, 1.0, n), rng.choice([0.001, 1.0, 5184.0], n)
        costly = int(np.argmax(weights))
        v = (z[costly] - rng.integers(0, 2)) / weights[costly]
        budget = float((weights * np.clip(z - v * weights, 0, 1)).sum())
        s, _ = project_capped_simplex(z, budget, weights=weights)
        exact, _ = in_fractions(z, budget, weights=weights)
        assert (abs(s - [float(x) for x in exact]) <= rounding(budget, weights, n)).all()


@pytest.mark.parametrize(
    ("z", "budget"),
    [
        ([0.10801194472882986, 1.0455273351229475], 0.00010801174304531613),
        ([0.21534186073589745, 0.7132363336414342], 0.00021534172315172814),
    ],
)
def test_a_rounding_that_costs_more_than_the_budget(z, budget):
    """The second reaches the floor at the root; 1e-10 left of it would cost 0.3 % of the budget."""
    weights = np.array([0.001, 5184.0])
    s, _ = project_capped_simplex(z, budget, weights=weights)
    assert (weights * s).sum() == pytest.approx(budget, rel=1e-14)
    exact, _ = in_fractions(z, budget, weights=weights)
    np.testing.assert_allclose(s, [float(x) for x in exact], rtol=0, atol=1e-15)


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


def test_a_point_inside_is_unchanged_with_weights_too():
    rng = np.random.default_rng(0)
    z, weights = rng.uniform(0, 0.5, 1000), rng.uniform(0, 5, 1000) + 0.1
    s, v = project_capped_simplex(z, 0.5 * weights.sum(), weights=weights)
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
        cost = np.arange(1.0, len(z) + 1)
        s, v = project_capped_simplex(z, 0, weights=cost)
        assert not s.any()
        assert v == max(0.0, *(z / cost))


@pytest.mark.parametrize("budget", [3, 3.5, 1e9, np.inf])
@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.5, 1, 2]])
def test_budget_of_everything(budget, weights):
    s, v = project_capped_simplex([9.0, 0.5, 1.0], budget, weights=weights)
    assert s.tolist() == [1.0, 0.5, 1.0]
    assert v == 0.0


def test_ties_share():
    s, v = project_capped_simplex([0.9] * 4 + [0.1] * 3, 2.0)
    np.testing.assert_allclose(s, [0.5] * 4 + [0.0] * 3, rtol=1e-15)
    assert v == pytest.approx(0.4)
    s, _ = project_capped_simplex([1e6] * 8, 3.0)
    assert s.tolist() == [0.375] * 8
    s, _ = project_capped_simplex([1e6] * 8, 6.0, weights=[2] * 8)
    assert s.tolist() == [0.375] * 8
    # Four breakpoints meet at v = 1, and no entry is strictly between the bounds.
    s, v = project_capped_simplex([2.0, 3.0, 1.0, 2.0], 3.0, weights=[1, 2, 1, 2])
    assert s.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert v == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_zero_and_all_one(value):
    s, v = project_capped_simplex(np.full(10, value), 4.0)
    np.testing.assert_allclose(s, 0.4 * value, rtol=1e-15)
    assert v == pytest.approx(0.6 * value)
    weights = np.arange(1.0, 11.0)  # 1 - v w, at the floor for the costliest: none here
    s, v = project_capped_simplex(np.full(10, value), 49.5, weights=weights)
    np.testing.assert_allclose(s, value * (1 - weights * (55 - 49.5) / 385), rtol=1e-15)
    assert v == pytest.approx(value * (55 - 49.5) / 385)


def test_single_and_no_channel():
    assert project_capped_simplex([0.7], 0.25)[0].tolist() == [0.25]
    assert project_capped_simplex([0.7], 0.25)[1] == pytest.approx(0.45)
    s, v = project_capped_simplex([], 0.0)
    assert s.shape == (0,)
    assert v == 0.0
    assert project_capped_simplex([0.7], 0.5, weights=[2])[0].tolist() == [0.25]
    assert project_capped_simplex([0.7], 0.5, weights=[2])[1] == pytest.approx(0.225)
    assert project_capped_simplex([], 0.0, weights=[])[0].shape == (0,)


def test_plateau_where_no_channel_is_free():
    # Any v in [1, 2] gives the sum 1 and the same point; the smallest is returned.
    s, v = project_capped_simplex([3.0, 1.0], 1.0)
    assert s.tolist() == [1.0, 0.0]
    assert v == 1.0
    s, v = project_capped_simplex([5.0, 1.0], 2.0, weights=[2.0, 1.0])  # also [1, 2]
    assert s.tolist() == [1.0, 0.0]
    assert v == 1.0


def test_floor_takes_its_part_of_the_budget():
    z = np.array([5.0, 5.0, -5.0, -5.0])
    s, _ = project_capped_simplex(z, 1.0, lower=0.125)
    assert s.tolist() == [0.375, 0.375, 0.125, 0.125]
    # The floor uses all of the budget: one point is left.
    s, _ = project_capped_simplex(z, 0.5, lower=0.125)
    assert s.tolist() == [0.125] * 4
    # The floor costs 1 of 1.5, and the cheaper one of two equal entries gets the rest.
    s, v = project_capped_simplex(z, 1.5, lower=0.125, weights=[1, 3, 1, 3])
    assert s.tolist() == [0.625, 0.125, 0.125, 0.125]
    assert v == 4.375
    s, _ = project_capped_simplex(z, 1.0, lower=0.125, weights=[1, 3, 1, 3])
    assert s.tolist() == [0.125] * 4


@pytest.mark.parametrize("rho", [0.1, 0.3, 0.7, 1.0])
def test_floor_equal_to_the_keep_rate_survives_rounding(rho):
    for n in (3, 7, 10, 784):
        s, _ = project_capped_simplex(np.linspace(-1, 2, n), rho * n, lower=rho)
        np.testing.assert_allclose(s, rho, rtol=1e-12)
        weights = np.random.default_rng(n).choice(MACS, n)
        s, _ = project_capped_simplex(
            np.linspace(-1, 2, n), rho * weights.sum(), lower=rho, weights=weights
        )
        np.testing.assert_allclose(s, rho, rtol=1e-12, atol=1e-15 * weights.sum())
    # Both bounds at once, and a budget below 3 * 0.1 by one rounding.
    assert 0.1 + 0.1 + 0.1 > 0.3
    for weights in (None, [1, 1, 1]):
        s, _ = project_capped_simplex([0.3, 0.1, 0.9], 0.3, 0.1, 0.1, weights)
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


@pytest.mark.parametrize("scale", [1e3, 1e9, 1e15, 1e17, 1e100, 1e300, 1.7e308])
def test_huge_entries_with_weights(scale):
    s, v = project_capped_simplex([scale, -scale, 0.4, 0.3], 3.5, weights=[3, 5, 1, 2])
    np.testing.assert_allclose(s, [1.0, 0.0, 0.3, 0.1], rtol=2e-14)
    assert v == pytest.approx(0.1)
    # All three have z / w = scale / 4: s = t w with t (1 + 4 + 16) = 1.75.
    z = np.array([0.25, 0.5, 1.0]) * scale
    s, v = project_capped_simplex(z, 1.75, weights=[1, 2, 4])
    np.testing.assert_allclose(s, [1 / 12, 1 / 6, 1 / 3], rtol=1e-14)
    assert v == pytest.approx(scale / 4 - 1 / 12)
    s, v = project_capped_simplex([0.4, scale, scale, 0.3, scale], 7.0, weights=[2, 3, 1, 1, 2])
    np.testing.assert_allclose(s, [0.36, 1.0, 1.0, 0.28, 1.0], rtol=1e-14)  # 1.1 - 5 v = 1
    assert v == pytest.approx(0.02)


@pytest.mark.parametrize("weights", [[1e60, 1e-60, 1.0], [1e-60, 1e-60, 1e-60], [0.0, 1e60, 1e60]])
@pytest.mark.parametrize("scale", [1.0, 1e9, 1.7e308])
def test_extreme_weights(weights, scale):
    rng = np.random.default_rng(0)
    for _ in range(20):
        z = rng.normal(0.5, 1.0, 3) * min(scale, 1e307)
        budget = float(rng.uniform(0, 1) * sum(weights))
        s, v = project_capped_simplex(z, budget, weights=weights)
        exact, _ = in_fractions(z, budget, weights=weights)
        assert (abs(s - [float(x) for x in exact]) <= rounding(budget, weights, 3)).all()
        assert v >= 0.0  # inf where z / w is beyond float64


@pytest.mark.parametrize("power", [20, 40, 48])
def test_shifted_points_have_the_same_projection_with_weights(power):
    """0.5 - 3 t and 0.25 - 7 t with v = 2^power + t; z + shift w is exact here."""
    z = np.array([0.5, 0.25]) + np.array([3.0, 7.0]) * 2.0**power
    s, v = project_capped_simplex(z, 2.67, weights=[3.0, 7.0])
    np.testing.assert_allclose(s, [0.47, 0.18], rtol=0, atol=1e-15)
    assert v == pytest.approx(2.0**power + 0.01, rel=1e-15)


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


def test_a_million_channels_with_weights():
    rng = np.random.default_rng(0)
    z, weights = rng.normal(0.3, 0.5, 1_000_000), rng.choice(MACS, 1_000_000)
    budget = 0.25 * weights.sum()
    s, v = project_capped_simplex(z, budget, 0.001, 0.999, weights)
    assert (weights * s).sum() == pytest.approx(budget, rel=1e-13)
    np.testing.assert_array_equal(s, np.clip(s, 0.001, 0.999))
    np.testing.assert_allclose(s, np.clip(z - v * weights, 0.001, 0.999), rtol=0, atol=1e-12)


def test_input_is_left_alone():
    z, weights = np.array([2.0, 1.0, 0.3]), np.array([2.0, 0.0, 1.0])
    z.flags.writeable = weights.flags.writeable = False
    for given_weights in (None, weights):
        s, _ = project_capped_simplex(z, 1.5, weights=given_weights)
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


cost = st.one_of(st.floats(0.01, 100), st.sampled_from([0.0, 1.0, 2.0, 27648.0, 1e-3]))


@st.composite
def weighted_problems(draw):
    z, budget, lower, upper = draw(problems())
    weights = np.array(draw(st.lists(cost, min_size=z.size, max_size=z.size)))
    return z, budget / z.size * float(weights.sum()), lower, upper, weights


def empty_by_a_rounding(problem):
    z, budget, lower, _, weights = problem
    exact = sum(Fraction(float(c)) for c in costs(weights, z.size))
    return Fraction(lower) * exact > Fraction(budget)


@given(weighted_problems())
@SETTINGS
def test_law_exact_arithmetic_agrees_with_weights(problem):
    z, budget, lower, upper, weights = problem
    s, v = project_capped_simplex(*problem)
    assert ((s >= lower) & (s <= upper)).all()
    assert v >= 0.0
    assert (weights * s).sum() <= budget * (1 + 1e-14 * z.size)
    if not empty_by_a_rounding(problem):
        exact, _ = in_fractions(*problem)
        off = rounding(budget, weights, z.size)
        assert (abs(s - [float(x) for x in exact]) <= off).all()


@given(weighted_problems())
@SETTINGS
def test_law_kkt_and_idempotence_with_weights(problem):
    z, budget, lower, upper, weights = problem
    s, v = project_capped_simplex(*problem)
    off = float(rounding(budget, weights, z.size).max())
    atol = 10 * off + 1e-15 * float(np.abs(z).max())  # z - s is rounded at the size of z
    assert_kkt(z, s, v, budget, lower, upper, atol, weights)
    again, _ = project_capped_simplex(s, budget, lower, upper, weights)
    np.testing.assert_allclose(again, s, rtol=0, atol=10 * off)


@given(weighted_problems(), st.integers(0, 2**32 - 1))
@SETTINGS
def test_law_no_longer_distance_and_any_order_with_weights(problem, seed):
    z, budget, lower, upper, weights = problem
    rng = np.random.default_rng(seed)
    other = rng.normal(0.5, 1.0, z.size)
    s, _ = project_capped_simplex(*problem)
    t, _ = project_capped_simplex(other, budget, lower, upper, weights)
    off = float(rounding(budget, weights, z.size).max()) * z.size
    assert np.linalg.norm(s - t) <= np.linalg.norm(z - other) * (1 + 1e-12) + 10 * off
    order = rng.permutation(z.size)
    shuffled, _ = project_capped_simplex(z[order], budget, lower, upper, weights[order])
    np.testing.assert_allclose(shuffled, s[order], rtol=0, atol=10 * off)


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


WRONG_WEIGHTED = {
    "clip only": lambda z, w: (np.clip(z, 0, 1), 0.0),
    "no weights in the shift": lambda z, w: (np.clip(z - 0.37, 0, 1), 0.37),
    "weights divide": lambda z, w: (np.clip(z - 0.53 / w, 0, 1), 0.53),
    "half of the multiplier": lambda z, w: (np.clip(z - 0.2 * w, 0, 1), 0.1),
    "free channels shifted": lambda z, w: (np.array([0.8, 0.5, 0.1, 0.1]), 0.2),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTED)
def test_kkt_check_rejects_wrong_weighted_projections(name):
    z, weights = np.array([1.0, 0.9, 0.5, 0.3]), np.array([1.0, 2.0, 2.0, 0.0])
    budget = 2.0  # 1 - v + 2 (0.9 - 2 v) + 2 (0.5 - 2 v) = 3.8 - 9 v
    right, v = project_capped_simplex(z, budget, weights=weights)
    np.testing.assert_allclose(right, [0.8, 0.5, 0.1, 0.3], atol=1e-15)
    assert_kkt(z, right, v, budget, weights=weights)
    with np.errstate(divide="ignore"):
        wrong, wrong_v = WRONG_WEIGHTED[name](z, weights)
    with pytest.raises(AssertionError):
        assert_kkt(z, wrong, float(wrong_v), budget, weights=weights)


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


@pytest.mark.parametrize("weights", [[1.0], [1.0] * 4, [[1.0, 1.0, 1.0]], 1.0, []])
def test_weights_must_be_one_cost_a_channel(weights):
    with pytest.raises(
        ValueError, match=r"weights has shape .* for each of the 3 entries"
    ) as caught:
        project_capped_simplex([0.5, 0.5, 0.5], 1.0, weights=weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, -np.inf, 0.9e-60, 1.1e60])
def test_weights_must_be_costs(bad):
    with pytest.raises(ValueError, match=r"weights\[1\] is .*; every cost must be 0 or") as caught:
        project_capped_simplex([0.5, 0.5], 1.0, weights=[1.0, bad])
    assert "\n" not in str(caught.value)


def test_empty_weighted_set_is_an_error():
    message = r"lower \* sum\(weights\) = 2 exceeds budget = 1.5: .* lower the floor or raise"
    with pytest.raises(ValueError, match=message) as caught:
        project_capped_simplex([0.5, 0.5], 1.5, lower=0.2, weights=[3.0, 7.0])
    assert "\n" not in str(caught.value)
    for budget in (-1.0, np.nan):
        with pytest.raises(ValueError, match="budget is"):
            project_capped_simplex([0.5], budget, weights=[1.0])
