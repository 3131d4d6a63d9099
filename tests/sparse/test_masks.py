"""Masks: law of the draws, score function, log-probability, enumeration, top-K."""

import itertools
import math

import numpy as np
import pytest

from minicst.sparse.masks import (
    enumerate_masks,
    log_probability,
    sample_mask,
    score_function,
    top_k_mask,
)

S = np.array([0.1, 0.5, 0.83, 0.97])


def product_probability(mask, keep_prob):
    """p(m|s) by multiplication, in plain Python."""
    return math.prod(s if m else 1.0 - s for m, s in zip(mask, keep_prob, strict=True))


# sample_mask


def test_sample_is_uniform_below_keep_prob():
    mask = sample_mask(S, np.random.default_rng(3))
    uniform = np.random.default_rng(3).random(4)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [u < s for u, s in zip(uniform, S, strict=True)]


def test_sample_frequencies_within_their_standard_error():
    rng = np.random.default_rng(0)
    n_draws = 20_000
    draws = np.array([sample_mask(S, rng) for _ in range(n_draws)], dtype=float)
    error = np.sqrt(S * (1 - S) / n_draws)
    assert (np.abs(draws.mean(axis=0) - S) < 4.5 * error).all()
    # Independent entries: each covariance is 0 to its own standard error.
    centered = draws - S
    covariance = centered.T @ centered / n_draws
    bound = 4.5 * np.sqrt(np.outer(S * (1 - S), S * (1 - S)) / n_draws)
    off_diagonal = ~np.eye(4, dtype=bool)
    assert (np.abs(covariance) < bound)[off_diagonal].all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_sample_at_zero_and_one_is_certain(uniform):
    class Extreme(np.random.Generator):
        """Draws the smallest or the largest number that a generator can return."""

        def random(self, size):
            return np.full(size, uniform)

    mask = sample_mask([0.0, 1.0, 0.0, 1.0], Extreme(np.random.PCG64(0)))
    assert mask.tolist() == [False, True, False, True]


@pytest.mark.parametrize("bad", [np.nan, -1e-9, 1.0 + 1e-9, np.inf])
def test_sample_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match=r"keep_prob\[1\] is .*\[0, 1\].*project"):
        sample_mask([0.5, bad], np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_sample_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"flat vector \(n,\)"):
        sample_mask(np.full(shape, 0.5), np.random.default_rng(0))


@pytest.mark.parametrize("rng", [0, None, np.random.RandomState(0)])
def test_sample_refuses_other_sources_of_chance(rng):
    with pytest.raises(TypeError, match="default_rng"):
        sample_mask(S, rng)


# score_function


def test_score_is_the_derivative_of_log_probability():
    # ln p(m|s) is ln s or ln(1 - s) per channel: derivatives 1/s and -1/(1 - s).
    for mask in itertools.product([0, 1], repeat=4):
        expected = [1 / s if m else -1 / (1 - s) for m, s in zip(mask, S, strict=True)]
        np.testing.assert_allclose(score_function(mask, S), expected, rtol=1e-14)


def test_score_against_finite_difference_of_log_probability():
    mask, step = np.array([1, 0, 0, 1]), 1e-6
    for channel in range(4):
        up, down = S.copy(), S.copy()
        up[channel] += step
        down[channel] -= step
        slope = (log_probability(mask, up) - log_probability(mask, down)) / (2 * step)
        assert score_function(mask, S)[channel] == pytest.approx(slope, rel=1e-7)


def test_score_mean_is_zero_and_second_moment_identity():
    masks = list(itertools.product([0, 1], repeat=4))
    weight = np.array([product_probability(m, S) for m in masks])
    score = score_function(masks, S)
    np.testing.assert_allclose(weight @ score, 0.0, atol=1e-14)
    # E[(m - s)^2] / (s (1 - s)) = 1, that is E[score^2] = 1 / (s (1 - s)).
    np.testing.assert_allclose((weight @ score**2) * S * (1 - S), 1.0, rtol=1e-13)


def test_score_of_rows_equals_single_draws_bit_for_bit():
    masks = np.random.default_rng(1).random((37, 4)) < S
    rows = score_function(masks, S)
    assert rows.shape == (37, 4)
    assert rows.dtype == np.float64
    for row, mask in zip(rows, masks, strict=True):
        assert row.tobytes() == score_function(mask, S).tobytes()


def test_score_at_zero_and_one():
    keep_prob = np.array([0.0, 1.0, 0.25])
    assert score_function([0, 1, 1], keep_prob).tolist() == [0.0, 0.0, 4.0]
    assert score_function([[0, 1, 1], [0, 1, 0]], keep_prob)[:, :2].tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("function", [score_function, log_probability])
@pytest.mark.parametrize(("mask", "channel"), [([1, 1, 0], 0), ([0, 0, 0], 1)])
def test_impossible_draw_is_an_error(function, mask, channel):
    keep_prob = np.array([0.0, 1.0, 0.25])
    with pytest.raises(ValueError, match=rf"keep_prob\[{channel}\] = [01]: such a mask can't"):
        function(mask, keep_prob)
    with pytest.raises(ValueError, match=rf"keep_prob\[{channel}\]"):
        function([[0, 1, 1], mask], keep_prob)


@pytest.mark.parametrize("s", [1e-300, 1e-17, 2.0**-53, 1 - 2.0**-53])
def test_score_next_to_zero_and_one(s):
    assert score_function([1], [s])[0] == pytest.approx(1 / s, rel=1e-14)
    assert score_function([0], [s])[0] == pytest.approx(-1 / (1 - s), rel=1e-14)


@pytest.mark.parametrize("function", [score_function, log_probability])
@pytest.mark.parametrize("mask", [[0, 1, 2, 1], [0.5, 0, 0, 0], [np.nan, 0, 1, 0], [-1, 0, 0, 0]])
def test_mask_must_be_zeros_and_ones(function, mask):
    with pytest.raises(ValueError, match="other than 0 and 1"):
        function(mask, S)


@pytest.mark.parametrize("function", [score_function, log_probability])
@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (1, 2, 4), (0,)])
def test_mask_shape_must_fit(function, shape):
    with pytest.raises(ValueError, match=r"mask has shape .* keep_prob \(4,\)"):
        function(np.zeros(shape, dtype=bool), S)


@pytest.mark.parametrize("function", [score_function, log_probability])
def test_keep_prob_must_be_a_vector_of_probabilities(function):
    with pytest.raises(ValueError, match=r"keep_prob\[0\] is nan"):
        function([0], [np.nan])
    with pytest.raises(ValueError, match="flat vector"):
        function([[0]], [[0.5]])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.float32, np.float64])
def test_any_kind_of_zero_and_one_is_a_mask(dtype):
    mask = np.array([1, 0, 0, 1])
    assert score_function(mask.astype(dtype), S).tobytes() == score_function(mask, S).tobytes()


# log_probability


def test_log_probability_is_the_log_of_the_product():
    masks = list(itertools.product([0, 1], repeat=4))
    expected = [math.log(product_probability(m, S)) for m in masks]
    np.testing.assert_allclose(log_probability(masks, S), expected, rtol=1e-14)
    assert log_probability(masks[5], S).shape == ()
    assert log_probability(masks[5], S) == log_probability(masks, S)[5]


def test_probabilities_sum_to_one():
    assert np.exp(log_probability(enumerate_masks(4), S)).sum() == pytest.approx(1.0, abs=1e-14)


def test_log_probability_at_zero_and_one_adds_nothing():
    assert log_probability([0, 1], [0.0, 1.0]) == 0.0
    assert log_probability([0, 1, 1], [0.0, 1.0, 0.25]) == math.log(0.25)


# enumerate_masks


@pytest.mark.parametrize("n", [0, 1, 2, 5, 9])
def test_enumeration_lists_every_mask_once(n):
    masks = enumerate_masks(n)
    assert masks.shape == (2**n, n)
    assert masks.dtype == np.bool_
    listed = set(map(tuple, masks.astype(int).tolist()))
    assert listed == set(itertools.product([0, 1], repeat=n))


def test_enumeration_rows_are_binary_digits():
    for number, mask in enumerate(enumerate_masks(6)):
        assert sum(2**c for c in range(6) if mask[c]) == number


def test_enumeration_has_a_limit():
    assert enumerate_masks(20).sum() == 20 * 2**19
    with pytest.raises(ValueError, match=r"n is 21; .*sample_mask"):
        enumerate_masks(21)
    with pytest.raises(ValueError, match="n is -1"):
        enumerate_masks(-1)


@pytest.mark.parametrize("n", [3.0, "3", True, None])
def test_enumeration_needs_an_integer(n):
    with pytest.raises(TypeError, match="whole number"):
        enumerate_masks(n)


# top_k_mask


def test_top_k_keeps_the_most_probable():
    assert top_k_mask([0.2, 0.9, 0.1, 0.5], 2).tolist() == [False, True, False, True]
    assert top_k_mask([0.2, 0.9, 0.1, 0.5], 2.7).tolist() == [False, True, False, True]


def test_top_k_ties_go_to_the_lower_index():
    assert top_k_mask([0.5] * 40, 17).tolist() == [True] * 17 + [False] * 23
    assert top_k_mask([0.3, 0.5, 0.3, 0.5, 0.3], 3).tolist() == [True, True, False, True, False]


def test_top_k_against_a_sorted_list():
    keep_prob = np.random.default_rng(5).integers(0, 6, 60) / 5
    for budget in (0, 1, 13, 59, 60, 61, 1e9):
        best = sorted(range(60), key=lambda c: (-keep_prob[c], c))[: int(budget)]
        assert set(np.flatnonzero(top_k_mask(keep_prob, budget))) == set(best)


def test_top_k_forgives_rounding_of_the_budget():
    assert 0.29 * 100 < 29
    assert top_k_mask(np.full(100, 0.29), 0.29 * 100).sum() == 29
    assert top_k_mask(np.full(100, 0.29), 28.9999).sum() == 28


@pytest.mark.parametrize("budget", [-1, -1e-6, np.nan, np.inf])
def test_top_k_refuses_budgets(budget):
    with pytest.raises(ValueError, match="budget is"):
        top_k_mask(S, budget)


def test_top_k_refuses_bad_keep_prob():
    with pytest.raises(ValueError, match=r"keep_prob\[0\] is nan"):
        top_k_mask([np.nan], 1)
    with pytest.raises(ValueError, match="flat vector"):
        top_k_mask([[0.5]], 1)


def test_inputs_are_left_alone():
    keep_prob, mask = S.copy(), np.array([True, False, True, True])
    keep_prob.flags.writeable = mask.flags.writeable = False
    sample_mask(keep_prob, np.random.default_rng(0))
    score_function(mask, keep_prob)
    log_probability(mask, keep_prob)
    top_k_mask(keep_prob, 2)
