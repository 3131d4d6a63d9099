"""Monte Carlo against sums over all masks, written out here; errors by z-scores and by repetition.

Bounds: with fixed seeds a test either always passes or never. |z| < 4.5 is broken by a right
program for one seed in 150,000, a factor 2, a sign or an off-by-one in a mean breaks it for all.
"""

import itertools
from functools import cache

import numpy as np
import pytest

from minicst.sparse.rules import RULES, Draws
from minicst.variance.monte_carlo import (
    FEWEST,
    Leaving,
    draw_pairs,
    draw_pool,
    gradient_moments,
    loss_moments,
)
from minicst.variance.vmax import (
    Flips,
    choose_entries,
    conditional_v,
    forced_flips,
    largest_v,
    rare_entries,
)

S = np.array([0.3, 0.5, 0.8, 0.2, 0.6])
N = S.size
MASKS = np.array(list(itertools.product([0, 1], repeat=N)))
P = np.prod(np.where(MASKS == 1, S, 1 - S), axis=1)
_rng = np.random.default_rng(11)
LOSSES = 3.0 + MASKS @ _rng.normal(size=N) * 0.3 + 0.15 * _rng.normal(size=len(MASKS))
SCORES = (MASKS - S) / (S * (1 - S))
BASELINE = 2.8
WORST_Z = 4.5


def loss(mask):
    return LOSSES[int("".join(str(int(bit)) for bit in mask), 2)]


def exact(rule, n_masks=3):
    """Mean and variance of an estimate at alpha = 0, by summing over everything it may draw."""
    if rule in ("arm", "disarm"):
        return exact_antithetic(rule)
    k = {"pge": 1, "pge-moving-average": 1, "vr-pge-multi": n_masks}.get(rule, 2)
    index = np.array(list(itertools.product(range(len(MASKS)), repeat=k)))
    p, losses, scores = P[index].prod(axis=1), LOSSES[index], SCORES[index]
    if rule == "pge":
        g = losses[:, 0, None] * scores[:, 0]
    elif rule == "pge-moving-average":
        g = (losses[:, 0, None] - BASELINE) * scores[:, 0]
    elif rule == "vr-pge":
        g = (losses[:, 0] - losses[:, 1])[:, None] * scores[:, 0]
    elif rule == "coin":
        g = (losses[:, 0] - losses[:, 1])[:, None] * scores[:, 0]
        return np.zeros(N), p @ g**2
    else:
        # The mean over i of (L_i - mean of the others) score_i.
        others = (losses.sum(axis=1, keepdims=True) - losses) / (k - 1)
        g = ((losses - others)[..., None] * scores).mean(axis=1)
    return p @ g, p @ (g - p @ g) ** 2


def exact_antithetic(rule):
    """U of each channel lies in one of three intervals, in which both masks are fixed."""
    pieces = []
    for s in S:
        edges = np.unique([0.0, s, 1 - s, 1.0])
        rows = []
        for low, high in itertools.pairwise(edges):
            middle, third = (low + high) / 2, (high**3 - low**3) / 3 / (high - low)
            m, other = middle < s, middle > 1 - s
            if rule == "arm":  # moments of 1/2 - U
                first, second = 0.5 - middle, 0.25 - middle + third
            else:
                first = (int(m) - int(other)) / 2 * max(s, 1 - s)
                second = first**2
            rows.append((high - low, m, other, first, second))
        pieces.append(rows)
    mean, square = np.zeros(N), np.zeros(N)
    for combination in itertools.product(*pieces):
        width, m, other, first, second = np.array(combination, float).T
        difference = loss(m) - loss(other)
        mean += width.prod() * difference * first / (S * (1 - S))
        square += width.prod() * difference**2 * second / (S * (1 - S)) ** 2
    return mean, square - mean**2


def exact_conditional():
    """V_jb, (2, n)."""
    table = np.zeros((2, N))
    for b, j in itertools.product(range(2), range(N)):
        at = MASKS[:, j] == b
        p = P[at] / P[at].sum()
        table[b, j] = p @ ((LOSSES[at, None] - LOSSES) ** 2 @ P)
    return table


V = P @ ((LOSSES[:, None] - LOSSES) ** 2 @ P)
V_JB = exact_conditional()


def draws_of(rule, pool, pairs, seed=0, n_masks=3):
    if RULES[rule].antithetic:
        return Draws(pairs.losses, pairs.masks, pairs.uniform)
    k = RULES[rule].masks_per_step(n_masks)
    coin = np.random.default_rng(seed).choice([-1.0, 1.0], len(pool.losses) // k)
    return Draws(
        pool.losses.reshape(-1, k), pool.masks.reshape(-1, k, N), baseline=BASELINE, coin=coin
    )


@pytest.fixture(scope="module")
def large():
    pool = draw_pool(loss, S, 12_000, 5, "pool")
    return pool, draw_pairs(loss, S, 6_000, 5, "pairs")


def test_the_pool_comes_from_its_key_and_holds_its_losses(large):
    pool, pairs = large
    again = draw_pool(loss, S, 7, 5, "pool")
    assert np.array_equal(again.masks, pool.masks[:7])
    assert not np.array_equal(draw_pool(loss, S, 7, 6, "pool").masks, again.masks)
    assert not np.array_equal(draw_pool(loss, S, 7, 5, "other").masks, again.masks)
    assert pool.losses[:9].tolist() == [loss(mask) for mask in pool.masks[:9]]
    assert pairs.losses[8].tolist() == [loss(mask) for mask in pairs.masks[8]]
    assert np.array_equal(pairs.masks[:, 0], pairs.uniform < S)
    assert np.array_equal(pairs.masks[:, 1], 1 - pairs.uniform <= S)


@pytest.mark.parametrize("rule", RULES)
def test_moments_of_every_estimator_are_those_of_all_masks(rule, large):
    mean, variance = exact(rule)
    draws = draws_of(rule, *large)
    found = gradient_moments(RULES[rule], draws, S, 1000)
    assert found.n_draws == len(draws.losses)
    z_mean = (found.mean - mean) / np.sqrt(found.variance.whole / found.n_draws)
    z_variance = (found.variance.whole - variance) / found.se
    assert np.abs(z_mean).max() < WORST_Z
    assert np.abs(z_variance).max() < WORST_Z
    # Two ways to the same error: by the fourth moment, and by leaving out blocks.
    np.testing.assert_allclose(found.variance.se, found.se, rtol=0.15)


def test_leaving_out_blocks_is_what_it_says():
    pool = draw_pool(loss, S, 24, 1, "small")
    draws = draws_of("vr-pge-symmetric", pool, None)
    found = gradient_moments(RULES["vr-pge-symmetric"], draws, S, 4)
    gradient = RULES["vr-pge-symmetric"].estimate(draws, S, 0.0)
    np.testing.assert_allclose(found.mean, gradient.mean(axis=0))
    np.testing.assert_allclose(found.variance.whole, gradient.var(axis=0, ddof=1))
    losses = loss_moments(pool.losses, 4)
    assert losses.mean.whole == pytest.approx(pool.losses.mean())
    for b in range(4):
        rest = np.delete(gradient, np.s_[3 * b : 3 * b + 3], axis=0)
        np.testing.assert_allclose(found.variance.without[b], rest.var(axis=0, ddof=1), rtol=1e-9)
        rest = np.delete(pool.losses, np.s_[6 * b : 6 * b + 6])
        pairs = [(x - y) ** 2 for x, y in itertools.permutations(rest, 2)]
        assert losses.v.without[b] == pytest.approx(np.mean(pairs))
        assert losses.square.without[b] == pytest.approx(np.mean(rest**2))
        assert losses.mean.without[b] == pytest.approx(np.mean(rest))
    weighted = found.at(np.arange(5.0))
    np.testing.assert_allclose(weighted.se, found.variance.se * np.arange(5.0))
    chosen = np.array([True, False, True, True, False])
    layer = found.at(np.arange(5.0)).mean_over(chosen)
    expected = (0 * found.variance.whole[0] + np.arange(5.0) @ (found.variance.whole * chosen)) / 3
    assert layer.whole == pytest.approx(expected)
    with pytest.raises(ValueError, match="12 draws in 5 blocks"):
        gradient_moments(RULES["vr-pge-symmetric"], draws, S, 5)


def test_jackknife_of_a_mean_is_the_textbook_error():
    x = np.random.default_rng(0).normal(size=40)
    without = np.array([np.delete(x, i).mean() for i in range(40)])
    found = Leaving(np.asarray(x.mean()), without).estimate()
    assert found.value == pytest.approx(x.mean())
    assert found.se == pytest.approx(x.std(ddof=1) / np.sqrt(40))


def test_another_alpha_scales_the_variance(large):
    rule = RULES["vr-pge"]
    draws = draws_of("vr-pge", *large)
    found = gradient_moments(rule, draws, S, 1000).at((S * (1 - S)) ** (2 * 0.75)).whole
    np.testing.assert_allclose(found, rule.estimate(draws, S, 0.75).var(axis=0, ddof=1))


@cache
def pools(n, size):
    return [draw_pool(loss, S, size, seed, "many") for seed in range(n)]


def repeated(statistic, n=400, size=80):
    """Values and errors of a statistic (pool -> value, se) over many small pools."""
    return np.array([statistic(pool) for pool in pools(n, size)]).T


def check_unbiased_and_errors(values, errors, exact_value, bias_allowed=0.0, rtol=0.2):
    spread = values.std(ddof=1)
    z = abs(values.mean() - exact_value) - bias_allowed
    assert z / (spread / np.sqrt(values.size)) < WORST_Z
    # Stated errors agree with the scatter over repetitions: rms, as errors scatter themselves.
    assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=rtol)


def test_loss_moments_and_their_errors():
    for name, value in (("mean", P @ LOSSES), ("square", P @ LOSSES**2), ("v", V)):
        check_unbiased_and_errors(
            *repeated(
                lambda pool, name=name: getattr(loss_moments(pool.losses, 20), name).estimate()
            ),
            value,
        )


def test_errors_of_a_layers_mean_and_of_a_reduction():
    everywhere = np.ones(N, bool)

    def of(pool, which):
        rows = [
            gradient_moments(RULES[name], draws_of(name, pool, None), S, 20)
            .at(np.ones(N))
            .mean_over(everywhere)
            for name in ("pge", "vr-pge")
        ]
        return (rows[0] / rows[1] if which == "quotient" else rows[1]).estimate()

    mean = exact("vr-pge")[1].mean()
    # Channels share losses: errors added as if independent would be far too small.
    check_unbiased_and_errors(*repeated(lambda pool: of(pool, "mean")), mean)
    quotient = exact("pge")[1].mean() / mean
    # A quotient of noisy numbers is biased by its relative variance.
    values, errors = repeated(lambda pool: of(pool, "quotient"))
    check_unbiased_and_errors(values, errors, quotient, 0.1 * quotient, rtol=0.25)


def test_conditional_v_is_a_mean_over_pairs():
    pool = draw_pool(loss, S, 40, 3, "pairs")
    found = conditional_v(pool.masks, pool.losses, 10)
    for b, j in itertools.product(range(2), range(N)):
        rows = np.flatnonzero(pool.masks[:, j] == b)
        assert found.count[b, j] == rows.size
        pairs = [(pool.losses[i] - pool.losses[k]) ** 2 for i in rows for k in range(40) if k != i]
        if rows.size >= FEWEST:
            assert found.value[b, j] == pytest.approx(np.mean(pairs))
        else:
            assert np.isnan(found.value[b, j])
            assert np.isnan(found.se[b, j])


def test_errors_of_conditional_v_leave_out_blocks():
    pool = draw_pool(loss, S, 60, 3, "pairs")

    def by_pairs(masks, losses, b, j):
        squares = (losses[:, None] - losses) ** 2
        return (squares.sum(axis=1) / (losses.size - 1))[masks[:, j] == b].mean()

    found = conditional_v(pool.masks, pool.losses, 12)
    for b, j in ((0, 0), (1, 1), (1, 4)):
        left = [np.delete(np.arange(60), np.s_[5 * block : 5 * block + 5]) for block in range(12)]
        without = np.array([by_pairs(pool.masks[at], pool.losses[at], b, j) for at in left])
        expected = np.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum())
        assert found.se[b, j] == pytest.approx(expected)


def test_too_few_masks_measure_nothing():
    masks = np.zeros((40, 3), bool)
    masks[:4, 0] = masks[:5, 1] = masks[:, 2] = True
    found = conditional_v(masks, np.arange(40.0), 10)
    assert np.isnan(found.value).tolist() == [[False, False, True], [True, False, False]]
    assert found.count.tolist() == [[36, 35, 0], [4, 5, 40]]


def test_conditional_v_and_its_errors():
    def of(pool, b, j):
        found = conditional_v(pool.masks, pool.losses, 50)
        return found.value[b, j], found.se[b, j]

    for b, j in ((0, 0), (1, 1), (0, 4)):
        values, errors = repeated(lambda pool, b=b, j=j: of(pool, b, j), n=200, size=200)
        check_unbiased_and_errors(values, errors, V_JB[b, j], bias_allowed=V / 200)


def test_forced_flips_and_their_errors():
    entries, rows = np.array([[3, 1], [2, 0], [1, 1]]), np.arange(40)

    def of(pool, e):
        flips = forced_flips(loss, pool, entries, np.zeros(3, int), rows)
        v = loss_moments(pool.losses, 100).v.estimate()
        value, se = flips.values(v.value, v.se, np.ones(40, bool))
        return value[e], se[e]

    for e, (j, b) in enumerate(entries):
        values, errors = repeated(lambda pool, e=e: of(pool, e), n=200, size=200)
        # V and the changes come from the same masks; their errors are added as if they didn't.
        check_unbiased_and_errors(values, errors, V_JB[b, j], rtol=0.3)


def test_forced_flips_by_hand():
    pool = draw_pool(loss, S, 12, 3, "flips")
    entries, rows = np.array([[0, 1], [2, 0]]), np.array([0, 5, 6])
    flips = forced_flips(loss, pool, entries, np.array([0, 1]), rows)
    for (j, b), changes in zip(entries, flips.changes, strict=True):
        for row, change in zip(rows, changes, strict=True):
            flipped = pool.masks[row].copy()
            flipped[j] = b
            others = [pool.losses[k] for k in range(12) if k != row]
            after = np.mean([(loss(flipped) - other) ** 2 for other in others])
            before = np.mean([(pool.losses[row] - other) ** 2 for other in others])
            assert change == pytest.approx(after - before, abs=1e-12)
    value, se = flips.values(2.0, 0.3, np.array([True, False, True]))
    two = flips.changes[:, [0, 2]]
    np.testing.assert_allclose(value, 2.0 + two.mean(axis=1))
    half_difference = np.abs(two[:, 0] - two[:, 1]) / 2
    np.testing.assert_allclose(se, np.hypot(0.3, half_difference))


def test_rare_entries_by_hand():
    masks = np.zeros((20, 5), bool)
    masks[:, 0] = True  # never 0
    masks[[0, 1, 2, 3, 4, 10, 11, 12, 13, 14], 1] = True  # 5 of 10 in each half
    masks[[0, 1, 2, 3, 4, 10, 11, 12, 13], 2] = True  # 5 and 4
    keep_prob = np.array([0.9, 0.5, 0.5, 0.0, 1.0])
    masks[:, 4] = True
    rare = rare_entries(masks, keep_prob)
    # m_3 = 1 and m_4 = 0 are impossible, and so not rare.
    assert rare.tolist() == [[True, False, False, False, False], [False, False, True, False, False]]


def test_chosen_entries_are_rare_and_of_every_stratum():
    keep_prob = np.repeat([1e-5, 5e-4, 5e-3, 5e-2, 0.5, 0.995], 10)
    rare = np.stack([keep_prob > 0.9, keep_prob < 0.4])
    entries, strata = choose_entries(keep_prob, rare, 4, np.random.default_rng(0))
    j, b = entries.T
    assert rare[b, j].all()
    assert np.bincount(strata, minlength=5).tolist() == [4, 4, 4, 4, 0]
    assert len({tuple(entry) for entry in entries}) == len(entries)
    probability = np.where(b == 1, keep_prob[j], 1 - keep_prob[j])
    edges = np.array([0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert ((edges[strata] < probability) & (probability <= edges[strata + 1])).all()
    assert (b == 0).any()
    # A stratum with fewer is taken whole.
    entries, _ = choose_entries(keep_prob, rare & (keep_prob < 1e-4), 99, np.random.default_rng(0))
    assert entries.tolist() == [[j, 1] for j in range(10)]


def test_largest_v_brackets_the_maximum():
    vmax = V_JB.max()

    def of(pool):
        found = largest_v(pool, S, 100)
        return found.split.value, found.naive.value

    split, naive = repeated(of, n=200, size=200)
    error = naive.std(ddof=1) / np.sqrt(200)
    assert naive.mean() > vmax - 2 * error
    assert split.mean() < vmax + 2 * error
    assert split.mean() > V
    one = largest_v(draw_pool(loss, S, 20_000, 1, "many"), S, 100)
    top = np.unravel_index(V_JB.argmax(), V_JB.shape)
    assert (one.kept, one.channel) == top
    assert one.probability == pytest.approx(S[top[1]] if top[0] else 1 - S[top[1]])
    assert abs(one.split.value - vmax) < WORST_Z * one.split.se
    assert abs(one.naive.value - vmax) < WORST_Z * one.naive.se
    assert (one.n_pool, one.n_flipped, one.n_unmeasured, one.n_impossible) == (10, 0, 0, 0)


def test_largest_v_chooses_on_one_half_and_values_on_the_other():
    pool = draw_pool(loss, S, 160, 8, "halves")
    first, second = (conditional_v(pool.masks[h], pool.losses[h], 20) for h in np.s_[:80, 80:])
    a = np.unravel_index(np.nanargmax(first.value), first.value.shape)
    b = np.unravel_index(np.nanargmax(second.value), second.value.shape)
    found = largest_v(pool, S, 40)
    assert found.split.value == pytest.approx((second.value[a] + first.value[b]) / 2)
    assert found.split.se == pytest.approx(np.hypot(second.se[a], first.se[b]) / 2)
    assert found.naive.value == np.nanmax(conditional_v(pool.masks, pool.losses, 40).value)


def test_largest_v_sees_what_forced_flips_see():
    """A channel that is hardly ever dropped, and whose absence costs much."""
    s = np.array([0.5, 0.5, 0.999, 0.0])

    def costly(mask):
        return float(mask[0]) * 0.1 + float(mask[1]) * 0.1 + (0.0 if mask[2] else 5.0)

    pool = draw_pool(costly, s, 80, 0, "costly")
    assert pool.masks[:, 2].all()
    rare = rare_entries(pool.masks, s)
    assert np.argwhere(rare).tolist() == [[0, 2]]
    unseen = largest_v(pool, s, 20)
    assert unseen.naive.value < 0.03
    assert (unseen.n_unmeasured, unseen.n_impossible) == (1, 1)
    entries, strata = choose_entries(s, rare, 3, np.random.default_rng(0))
    rows = np.array([0, 1, 2, 40, 41, 42])
    flips = forced_flips(costly, pool, entries, strata, rows)
    found = largest_v(pool, s, 20, flips)
    assert (found.channel, found.kept) == (2, 0)
    assert found.probability == pytest.approx(0.001)
    assert (found.n_flipped, found.n_unmeasured) == (1, 0)
    for estimate in (found.naive, found.split):
        assert estimate.value == pytest.approx(25.0, rel=0.1)


def test_decided_channels_leave_v_and_vmax_zero():
    s = np.array([0.0, 1.0, 1.0])
    pool = draw_pool(lambda mask: 2.5, s, 40, 0, "decided")
    found = largest_v(
        pool, s, 10, Flips(np.zeros((0, 2), int), np.zeros(0, int), np.zeros((0, 4)), np.arange(4))
    )
    assert found.naive == found.split == (0.0, 0.0)
    assert (found.n_pool, found.n_impossible) == (3, 3)
    moments = loss_moments(pool.losses, 10)
    assert moments.v.estimate() == (0.0, 0.0)
    gradient = gradient_moments(
        RULES["pge"], Draws(pool.losses[:, None], pool.masks[:, None]), s, 10
    )
    assert not gradient.variance.whole.any()


def test_a_pool_that_measures_nothing_says_so():
    pool = draw_pool(loss, S, 8, 0, "few")
    with pytest.raises(ValueError, match="8 masks measure no entry"):
        largest_v(pool, S, 4)
