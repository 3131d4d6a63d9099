"""Several masks, antithetic pairs and moving averages against complete enumeration."""

import itertools
import math

import numpy as np
import pytest

from minicst.sparse.estimators import (
    arm,
    disarm,
    moving_average,
    pge,
    pge_moving_average,
    vr_pge,
    vr_pge_multi,
    vr_pge_symmetric,
)
from minicst.sparse.masks import AntitheticMask, sample_antithetic_masks
from minicst.sparse.rules import RULES, Draws, draw_masks

ALPHAS = [0.0, 0.5, 0.75, 1.0]


# The oracle: plain sums over all masks. Nothing below uses the functions under test.


def problem(n, seed=0):
    """All masks, their losses (any numbers), keep probabilities on both sides of 1/2."""
    rng = np.random.default_rng([seed, n])
    masks = np.array(list(itertools.product([0, 1], repeat=n)))
    keep_prob = rng.uniform(0.05, 0.95, n)
    keep_prob[0] = 0.5  # where antithetic masks are opposite
    return masks, rng.normal(size=len(masks)) + 2.0, keep_prob


def probability(mask, keep_prob):
    return math.prod(s if m else 1 - s for m, s in zip(mask, keep_prob, strict=True))


def target(masks, losses, keep_prob, alpha):
    """H^alpha grad Phi by the difference quotient of the multilinear Phi, which is exact."""

    def phi(s):
        return math.fsum(probability(m, s) * loss for m, loss in zip(masks, losses, strict=True))

    gradient = []
    for j, s in enumerate(keep_prob):
        up, down = keep_prob.copy(), keep_prob.copy()
        up[j], down[j] = 1.0, 0.0
        gradient.append((s * (1 - s)) ** alpha * (phi(up) - phi(down)))
    return np.array(gradient)


def antithetic_states(keep_prob):
    """All joint states of an antithetic pair: (probability, m, m~, U interval by channel)."""
    choices = []
    for s in keep_prob:
        low, high = min(s, 1 - s), max(s, 1 - s)
        same = int(s > 0.5)
        choices.append(
            [
                (low, 1, 0, (0.0, low)),
                (1 - high, 0, 1, (high, 1.0)),
                (high - low, same, same, (low, high)),
            ]
        )
    for state in itertools.product(*choices):
        p, mask_a, mask_b, interval = zip(*state, strict=True)
        if math.prod(p) > 0:
            yield math.prod(p), np.array(mask_a), np.array(mask_b), np.array(interval)


def loss_of(mask, losses):
    return losses[int("".join(str(int(m)) for m in mask), 2)]


# Means


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("k", [2, 3])
def test_multi_is_unbiased_over_all_tuples_of_masks(k, n, alpha):
    masks, losses, keep_prob = problem(n)
    p = np.array([probability(m, keep_prob) for m in masks])
    tuples = np.array(list(itertools.product(range(len(masks)), repeat=k)))
    weight = p[tuples].prod(axis=1)
    estimates = vr_pge_multi(losses[tuples], masks[tuples], keep_prob, alpha)
    expected = target(masks, losses, keep_prob, alpha)
    np.testing.assert_allclose(weight @ estimates, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_antithetic_estimators_are_unbiased(n, alpha):
    masks, losses, keep_prob = problem(n)
    by_disarm, by_arm = np.zeros(n), np.zeros(n)
    for p, mask_a, mask_b, interval in antithetic_states(keep_prob):
        pair = loss_of(mask_a, losses), loss_of(mask_b, losses)
        by_disarm += p * disarm(*pair, mask_a, mask_b, keep_prob, alpha)
        # ARM is linear in U: its mean over an interval is its value in the middle.
        by_arm += p * arm(*pair, interval.mean(axis=1), keep_prob, alpha)
    expected = target(masks, losses, keep_prob, alpha)
    np.testing.assert_allclose(by_disarm, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(by_arm, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("baseline", [-3.0, 0.0, 1.9])
def test_moving_average_is_unbiased_for_any_baseline(baseline, alpha):
    masks, losses, keep_prob = problem(5)
    p = np.array([probability(m, keep_prob) for m in masks])
    mean = p @ pge_moving_average(losses, baseline, masks, keep_prob, alpha)
    np.testing.assert_allclose(mean, target(masks, losses, keep_prob, alpha), atol=1e-12)


MUTANTS = {
    "half forgotten": lambda la, lb, ma, mb, s: 2 * disarm(la, lb, ma, mb, s, 0.5),
    "sign": lambda la, lb, ma, mb, s: disarm(lb, la, ma, mb, s, 0.5),
    "no maximum": lambda la, lb, ma, mb, s: (la - lb) * (ma - mb) / 2 * (s * (1 - s)) ** -0.5,
    "minimum": lambda la, lb, ma, mb, s: (
        (la - lb) * (ma - mb) / 2 * np.minimum(s, 1 - s) * (s * (1 - s)) ** -0.5
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_enumeration_rejects_wrong_antithetic_formulas(name):
    masks, losses, keep_prob = problem(4)
    mean = sum(
        p * MUTANTS[name](loss_of(a, losses), loss_of(b, losses), a, b, keep_prob)
        for p, a, b, _ in antithetic_states(keep_prob)
    )
    assert np.abs(mean - target(masks, losses, keep_prob, 0.5)).max() > 1e-2


# Forms that must agree


def test_two_masks_are_the_symmetric_form():
    rng = np.random.default_rng(0)
    s = rng.uniform(0.1, 0.9, 6)
    masks, losses = rng.random((9, 2, 6)) < s, rng.normal(size=(9, 2))
    np.testing.assert_allclose(
        vr_pge_multi(losses, masks, s),
        vr_pge_symmetric(losses[:, 0], losses[:, 1], masks[:, 0], masks[:, 1], s),
        rtol=1e-12,
        atol=1e-14,
    )


def test_many_masks_are_the_mean_over_all_pairs():
    rng = np.random.default_rng(1)
    s = rng.uniform(0.1, 0.9, 6)
    masks, losses = rng.random((5, 6)) < s, rng.normal(size=5)
    pairs = list(itertools.combinations(range(5), 2))
    mean = np.mean(
        [vr_pge_symmetric(losses[i], losses[j], masks[i], masks[j], s) for i, j in pairs], axis=0
    )
    np.testing.assert_allclose(vr_pge_multi(losses, masks, s), mean, rtol=1e-12, atol=1e-14)


def test_values_by_hand():
    s = [0.2, 0.8]
    # (5 - 2) (1 - 0) / 2 * .8 / .16 and the other way round, then times .16^alpha.
    np.testing.assert_allclose(disarm(5.0, 2.0, [1, 0], [0, 1], s, 0.0), [7.5, -7.5])
    np.testing.assert_allclose(disarm(5.0, 2.0, [1, 0], [0, 1], s), [3.0, -3.0])
    np.testing.assert_allclose(disarm(5.0, 2.0, [1, 1], [0, 1], s), [3.0, 0.0])
    np.testing.assert_allclose(arm(5.0, 2.0, [0.1, 0.6], s, 0.0), [7.5, -1.875])
    np.testing.assert_allclose(pge_moving_average(5.0, 2.0, [1, 0], s), [6.0, -6.0])
    # losses 1, 2, 6: mean 3; (-2 * .8 - 1 * -.2 + 3 * .8) / 2 / .16 at alpha = 0
    np.testing.assert_allclose(
        vr_pge_multi([1.0, 2.0, 6.0], [[1], [0], [1]], [0.2], 0.0), [0.5 / 0.16]
    )


def test_a_constant_loss_moves_nothing():
    rng = np.random.default_rng(0)
    s = rng.uniform(0.1, 0.9, 7)
    mask_a, mask_b, uniform = sample_antithetic_masks(s, rng)
    assert not disarm(7.0, 7.0, mask_a, mask_b, s).any()
    assert not arm(7.0, 7.0, uniform, s).any()
    assert not pge_moving_average(7.0, 7.0, mask_a, s).any()
    assert not vr_pge_multi([7.0] * 3, rng.random((3, 7)) < s, s).any()


def test_certain_channels_get_exactly_zero():
    s = np.array([0.0, 1.0, 0.5])
    masks = np.array([[0, 1, 1], [0, 1, 0]])
    for estimate in (
        disarm(3.0, 1.0, *masks, s),
        arm(3.0, 1.0, [0.7, 0.3, 0.2], s),
        vr_pge_multi([3.0, 1.0], masks, s),
        pge_moving_average(3.0, 1.0, masks[0], s),
    ):
        assert estimate[0] == estimate[1] == 0.0
        assert estimate[2] > 0.0


# Antithetic masks


def test_antithetic_masks_are_draws_that_exclude_each_other():
    rng = np.random.default_rng(0)
    s = np.array([0.0, 0.2, 0.5, 0.7, 1.0])
    pairs = [sample_antithetic_masks(s, rng)[:2] for _ in range(4000)]
    a, b = (np.array(half, dtype=float) for half in zip(*pairs, strict=True))
    error = 5 * np.sqrt(s * (1 - s) / len(a))
    assert (np.abs(a.mean(axis=0) - s) <= error).all()
    assert (np.abs(b.mean(axis=0) - s) <= error).all()
    assert not (a * b)[:, s < 0.5].any()
    assert ((a + b)[:, s > 0.5] > 0).all()
    assert ((a + b)[:, s == 0.5] == 1).all()


@pytest.mark.parametrize("slot", [0, 1])
def test_estimators_with_an_independent_baseline_refuse_antithetic_masks(slot):
    s = np.full(4, 0.4)
    mask_a, mask_b, _ = sample_antithetic_masks(s, np.random.default_rng(0))
    assert isinstance(mask_a, AntitheticMask)
    assert isinstance(mask_a[:2], AntitheticMask)
    plain = np.asarray(mask_a)
    assert not isinstance(plain, AntitheticMask)
    with pytest.raises(ValueError, match="antithetic pair, and this estimator is biased"):
        vr_pge(1.0, 2.0, mask_a, s)
    masks = [plain, plain]
    masks[slot] = mask_b
    with pytest.raises(ValueError, match="use disarm or arm"):
        vr_pge_symmetric(1.0, 2.0, *masks, s)
    both = np.stack([mask_a, mask_b])
    with pytest.raises(ValueError, match="masks is one half of an antithetic pair"):
        vr_pge_multi([1.0, 2.0], both.view(AntitheticMask), s)
    assert pge(1.0, mask_a, s).shape == (4,)  # each half alone is a draw from p(m|s)
    assert disarm(1.0, 2.0, mask_a, mask_b, s).shape == (4,)


@pytest.mark.parametrize(
    ("masks", "channel"), [([[1, 1], [1, 1]], 0), ([[0, 0], [0, 0]], 1), ([[0, 1], [1, 0]], None)]
)
def test_disarm_refuses_pairs_that_cannot_be_antithetic(masks, channel):
    s = [0.3, 0.7]
    if channel is None:
        assert disarm(1.0, 2.0, *masks, s).all()
        return
    with pytest.raises(ValueError, match=f"channel {channel} with keep_prob"):
        disarm(1.0, 2.0, *masks, s)


def test_bad_shapes_and_numbers_are_named():
    s = [0.3, 0.7]
    with pytest.raises(ValueError, match="two or more masks"):
        vr_pge_multi([1.0], [[1, 0]], s)
    with pytest.raises(ValueError, match="two or more masks"):
        vr_pge_multi([1.0, 2.0], [1, 0], s)
    with pytest.raises(ValueError, match="one loss for each mask"):
        vr_pge_multi([1.0, 2.0, 3.0], [[1, 0], [0, 0]], s)
    with pytest.raises(ValueError, match=r"losses is nan, not finite"):
        vr_pge_multi([1.0, np.nan], [[1, 0], [0, 0]], s)
    with pytest.raises(ValueError, match="uniform has shape"):
        arm(1.0, 2.0, [0.1], s)
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        arm(1.0, 2.0, [0.1, 1.0], s)
    with pytest.raises(ValueError, match="baseline is inf"):
        pge_moving_average(1.0, np.inf, [1, 0], s)
    with pytest.raises(ValueError, match="the masks come in pairs"):
        disarm(1.0, 2.0, [1, 0], [[1, 0]], s)


def test_moving_average_of_losses():
    assert moving_average(None, 3.0) == 3.0
    assert moving_average(2.0, 4.0, 0.75) == 2.5
    with pytest.raises(ValueError, match=r"decay is 1.0"):
        moving_average(2.0, 4.0, 1.0)


# The table of rules


@pytest.mark.parametrize("name", RULES)
def test_every_rule_estimates_rows_as_single_draws(name):
    rule = RULES[name]
    s = np.random.default_rng(0).uniform(0.1, 0.9, 6)
    k = rule.masks_per_step(3)
    assert k == (3 if rule.n_masks == 0 else rule.n_masks)
    rows = []
    for i in range(5):
        masks, uniform = draw_masks(rule, s, [np.random.default_rng([i, j]) for j in range(k)])
        assert masks.shape == (k, 6)
        assert (uniform is not None) == rule.antithetic
        losses = np.random.default_rng(i).normal(size=k)
        rows.append((losses, masks, uniform))
    losses, masks, uniform = zip(*rows, strict=True)
    stacked = Draws(
        np.stack(losses),
        np.stack(masks),
        np.stack(uniform) if rule.antithetic else None,
        0.3,
        np.ones(5),
    )
    together = rule.estimate(stacked, s, 0.5)
    assert together.shape == (5, 6)
    for i in range(5):
        single = Draws(losses[i], masks[i], uniform[i], 0.3, 1.0)
        np.testing.assert_allclose(rule.estimate(single, s, 0.5), together[i], rtol=1e-13)


def test_independent_masks_come_one_from_each_generator():
    s = np.full(8, 0.5)
    rngs = [np.random.default_rng(i) for i in range(3)]
    masks, _ = draw_masks(RULES["vr-pge-multi"], s, rngs)
    for i in range(3):
        assert np.array_equal(masks[i], np.random.default_rng(i).random(8) < s)


def test_rules_say_what_they_lack():
    draws = Draws(np.array([1.0, 2.0]), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="uniform numbers"):
        RULES["arm"].estimate(draws, np.array([0.5, 0.5]), 0.5)
    with pytest.raises(ValueError, match="needs a coin"):
        RULES["coin"].estimate(draws, np.array([0.5, 0.5]), 0.5)
    # No average yet: no update.
    assert not RULES["pge-moving-average"].estimate(draws, np.array([0.5, 0.5]), 0.5).any()
