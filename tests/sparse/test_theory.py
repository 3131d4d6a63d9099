"""Problems of 2^n losses: Phi, its gradient, V and Vmax against plain loops and exact fractions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicst.sparse.masks import enumerate_masks, log_probability
from minicst.sparse.theory import (
    MAX_CHANNELS,
    conditional_means,
    conditional_squared_difference,
    expected_loss,
    expected_loss_gradient,
    loss_table,
    mask_probabilities,
    max_squared_difference,
    squared_difference,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=80, database=None)

# Oracles: plain loops in exact arithmetic. Nothing below uses the functions under test.


def numbered_masks(n):
    """[(number, mask)]: mask[j] is the binary digit j of its number."""
    return [(i, [i >> j & 1 for j in range(n)]) for i in range(2**n)]


def probability(mask, s):
    return math.prod((x if m else 1 - x for m, x in zip(mask, s, strict=True)), start=Fraction(1))


def fractions(values):
    return [Fraction(float(value)) for value in values]


def phi(losses, s):
    return sum(probability(m, s) * losses[i] for i, m in numbered_masks(len(s)))


def squared_differences_by_pairs(losses, s):
    """(V, {(j, b): conditional}), both from all ordered pairs of masks."""
    n, total, by_value = len(s), Fraction(0), {}
    for (i, mask), (i_b, mask_b) in itertools.product(numbered_masks(n), repeat=2):
        square = (losses[i] - losses[i_b]) ** 2 * probability(mask_b, s)
        total += probability(mask, s) * square
        for j in range(n):
            others = probability(mask[:j] + mask[j + 1 :], s[:j] + s[j + 1 :])
            by_value[j, mask[j]] = by_value.get((j, mask[j]), 0) + others * square
    return total, by_value


@st.composite
def problems(draw, max_n=4, edges=True):
    n = draw(st.integers(1, max_n))
    number = st.floats(-10, 10, width=32)
    inside = st.floats(0.0078125, 0.9921875, width=32)
    entry = st.one_of(inside, st.sampled_from([0.0, 1.0, 0.5])) if edges else inside
    losses = draw(st.lists(number, min_size=2**n, max_size=2**n))
    return np.array(losses), np.array(draw(st.lists(entry, min_size=n, max_size=n)))


@SETTINGS
@given(problems())
def test_phi_and_its_gradient(problem):
    losses, s = problem
    exact_losses, exact_s = fractions(losses), fractions(s)
    assert expected_loss(losses, s) == pytest.approx(float(phi(exact_losses, exact_s)), abs=1e-13)
    for alpha in (0.0, 0.5, 1.0):
        gradient = expected_loss_gradient(losses, s, alpha)
        for j in range(s.size):
            # Phi is linear in s_j, so its slope is a difference over the whole of [0, 1].
            ends = [phi(exact_losses, [*exact_s[:j], b, *exact_s[j + 1 :]]) for b in (0, 1)]
            scale = (s[j] * (1 - s[j])) ** alpha
            assert gradient[j] == pytest.approx(scale * float(ends[1] - ends[0]), abs=1e-12)


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    losses, s = rng.normal(size=64), rng.uniform(0.1, 0.9, 6)
    step = 1e-3 * np.eye(6)  # any step will do: Phi is linear in each s_j
    slopes = [(expected_loss(losses, s + h) - expected_loss(losses, s - h)) / 2e-3 for h in step]
    np.testing.assert_allclose(expected_loss_gradient(losses, s), slopes, atol=1e-11)


@SETTINGS
@given(problems(max_n=3))
def test_v_and_vmax(problem):
    losses, s = problem
    total, by_value = squared_differences_by_pairs(fractions(losses), fractions(s))
    close = {"rel": 1e-12, "abs": 1e-12}
    assert squared_difference(losses, s) == pytest.approx(float(total), **close)
    conditional = conditional_squared_difference(losses, s)
    for (j, value), wanted in by_value.items():
        assert conditional[j, value] == pytest.approx(float(wanted), **close)
    wanted = max(by_value.values())
    assert max_squared_difference(losses, s) == pytest.approx(float(wanted), **close)
    possible = max(v for (j, b), v in by_value.items() if s[j] != 1 - b)
    found = max_squared_difference(losses, s, possible_only=True)
    assert found == pytest.approx(float(possible), **close)


@SETTINGS
@given(problems())
def test_v_is_twice_the_variance_and_the_mean_over_each_channel(problem):
    losses, s = problem
    p, v = mask_probabilities(s), squared_difference(losses, s)
    variance = p @ losses**2 - (p @ losses) ** 2
    assert v == pytest.approx(2 * variance, abs=1e-11)
    conditional = conditional_squared_difference(losses, s)
    np.testing.assert_allclose((1 - s) * conditional[:, 0] + s * conditional[:, 1], v, atol=1e-11)
    # A mean is never above the maximum: Vmax >= V, also over the possible values alone.
    assert max_squared_difference(losses, s) >= v * (1 - 1e-12)
    assert max_squared_difference(losses, s, possible_only=True) >= v * (1 - 1e-12)


def test_a_decided_channel_counts_in_vmax_unless_left_out():
    losses = np.array([0.0, 0.0, 5.0, 5.0])  # L(m) = 5 m_1, and channel 1 is never on
    s = np.array([0.5, 0.0])
    assert squared_difference(losses, s) == 0
    assert max_squared_difference(losses, s, possible_only=True) == 0
    assert max_squared_difference(losses, s) == 25
    np.testing.assert_array_equal(expected_loss_gradient(losses, s), [0, 5])
    np.testing.assert_array_equal(expected_loss_gradient(losses, s, 0.5), [0, 0])


@pytest.mark.parametrize("n", [1, 3, 7])
def test_mask_probabilities_follow_the_order_of_the_masks(n):
    s = np.random.default_rng(n).uniform(0.05, 0.95, n)
    wanted = np.exp(log_probability(enumerate_masks(n), s))
    np.testing.assert_allclose(mask_probabilities(s), wanted, rtol=1e-13)
    assert mask_probabilities(np.zeros(n))[0] == 1
    assert mask_probabilities(np.ones(n))[-1] == 1


def test_conditional_means_of_a_known_function():
    n = 5
    s = np.linspace(0.1, 0.9, n)
    weight = np.arange(1.0, n + 1)
    means = conditional_means(enumerate_masks(n) @ weight, s)
    for value in (0, 1):
        np.testing.assert_allclose(means[:, value], weight @ s + weight * (value - s), rtol=1e-13)


def test_largest_problem():
    rng = np.random.default_rng(1)
    s, weight = rng.uniform(size=MAX_CHANNELS), rng.normal(size=MAX_CHANNELS)
    losses = 3 + enumerate_masks(MAX_CHANNELS) @ weight
    assert expected_loss(losses, s) == pytest.approx(3 + weight @ s, rel=1e-12)
    np.testing.assert_allclose(expected_loss_gradient(losses, s), weight, atol=1e-10)
    wanted = 2 * (weight**2 * s * (1 - s)).sum()
    assert squared_difference(losses, s) == pytest.approx(wanted, rel=1e-11)


def test_loss_table_evaluates_every_mask_in_order():
    seen = []

    def loss(mask):
        seen.append(mask.copy())
        value = np.float32(mask @ [1, 10, 100])
        mask[:] = False  # a function may use its mask up
        return value

    np.testing.assert_array_equal(loss_table(loss, 3), [0, 1, 10, 11, 100, 101, 110, 111])
    np.testing.assert_array_equal(seen, enumerate_masks(3))
    assert seen[0].dtype == bool


def test_loss_table_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"n is 17; .* n <= 16"):
        loss_table(lambda mask: 0.0, 17)
    with pytest.raises(ValueError, match="n is 0"):
        loss_table(lambda mask: 0.0, 0)
    with pytest.raises(TypeError, match=r"n is 2\.0"):
        loss_table(lambda mask: 0.0, 2.0)
    with pytest.raises(ValueError, match=r"mask \[1 1\] \(number 3\) is nan"):
        loss_table(lambda mask: math.nan if mask.all() else 1.0, 2)
    with pytest.raises(ValueError, match="one finite number"):
        loss_table(lambda mask: np.zeros(2), 2)


@pytest.mark.parametrize(
    ("losses", "keep_prob", "match"),
    [
        (np.zeros(4), np.full(3, 0.5), r"losses has shape \(4,\), .* 2\*\*3 = 8"),
        (np.zeros((2, 2)), np.full(2, 0.5), "losses has shape"),
        ([0, 1, np.inf, 0], np.full(2, 0.5), r"losses\[2\] is inf"),
        (np.zeros(4), [0.5, 1.5], r"keep_prob\[1\] is 1\.5"),
        (np.zeros(1), [], "0 channels"),
        (np.zeros(4), np.full(17, 0.5), "17 channels"),
    ],
)
@pytest.mark.parametrize(
    "function", [expected_loss, expected_loss_gradient, squared_difference, max_squared_difference]
)
def test_bad_problems(function, losses, keep_prob, match):
    with pytest.raises(ValueError, match=match):
        function(losses, keep_prob)


def test_alpha_out_of_range():
    with pytest.raises(ValueError, match="alpha must be in"):
        expected_loss_gradient(np.zeros(4), np.full(2, 0.5), 1.5)
