"""Mean and covariance of every estimator: plain loops, all joint draws, closed sums, and laws."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicst.sparse.estimators import arm
from minicst.sparse.masks import enumerate_masks, sample_antithetic_masks
from minicst.sparse.moments import Moments, enumerated_moments, estimator_moments
from minicst.sparse.rules import RULES
from minicst.sparse.theory import expected_loss_gradient, mask_probabilities

SETTINGS = settings(derandomize=True, deadline=None, max_examples=40, database=None)
ALPHAS = (0.0, 0.5, 0.8, 1.0)
BASELINE = 0.7


def random_problem(n, seed=0, offset=2.0):
    rng = np.random.default_rng([n, seed])
    return rng.normal(size=2**n) + offset, rng.uniform(0.03, 0.97, n)


def smooth_problem(n, seed=0):
    """A constant, small linear and pairwise parts: like a wide network."""
    rng = np.random.default_rng([n, seed, 7])
    m = enumerate_masks(n).astype(float)
    pairwise = rng.normal(size=(n, n)) * 0.02
    losses = 2 + m @ rng.normal(size=n) * 0.1 + np.einsum("ij,jk,ik->i", m, pairwise, m)
    return losses, rng.uniform(0.1, 0.9, n)


def assert_same(found, wanted, tolerance=1e-10):
    """Relative to the estimator's own size: the root of its largest second moment."""
    size = max(float(np.abs(wanted.second_moment).max()), 1e-200)
    assert np.abs(found.mean - wanted.mean).max() <= tolerance * math.sqrt(size)
    assert np.abs(found.covariance - wanted.covariance).max() <= tolerance * size


# The oracle: plain loops over every joint draw with the estimators' formulas written out. For ARM
# each U is integrated over its interval by polynomials.


def weighted_outcomes(estimator, losses, s, k):
    """Yield (probability, first (n,), second (n, n)) of score-like steps, before H^alpha."""
    n = s.size
    masks = [[i >> j & 1 for j in range(n)] for i in range(2**n)]
    variance = [x * (1 - x) for x in s]
    chance = [math.prod(x if b else 1 - x for b, x in zip(m, s, strict=True)) for m in masks]
    if estimator in ("disarm", "arm"):
        yield from antithetic_outcomes(estimator, losses, s)
        return
    k = {"vr-pge-multi": k, "pge": 1, "pge-moving-average": 1}.get(estimator, 2)
    for draw in itertools.product(range(2**n), repeat=k):
        loss = [losses[i] for i in draw]
        z = [[(masks[i][j] - s[j]) / variance[j] for j in range(n)] for i in draw]
        if estimator in ("vr-pge", "coin"):
            step = [(loss[0] - loss[1]) * x for x in z[0]]
        elif estimator == "vr-pge-symmetric":
            step = [(loss[0] - loss[1]) * (a - b) / 2 for a, b in zip(*z, strict=True)]
        elif estimator == "vr-pge-multi":
            rest = [loss[i] - (sum(loss) - loss[i]) / (k - 1) for i in range(k)]
            step = [sum(rest[i] * z[i][j] for i in range(k)) / k for j in range(n)]
        else:
            shift = BASELINE if estimator == "pge-moving-average" else 0
            step = [(loss[0] - shift) * x for x in z[0]]
        step = np.array(step)
        second = np.outer(step, step)
        if estimator == "coin":
            step = 0 * step  # the other side of the coin
        yield math.prod(chance[i] for i in draw), step, second


def antithetic_outcomes(estimator, losses, s):
    n = s.size
    intervals = [
        [(0, min(x, 1 - x)), (min(x, 1 - x), max(x, 1 - x)), (max(x, 1 - x), 1)] for x in s
    ]
    for box in itertools.product(*intervals):
        middle = [(low + high) / 2 for low, high in box]
        a = sum((u < x) << j for j, (u, x) in enumerate(zip(middle, s, strict=True)))
        b = sum((1 - u <= x) << j for j, (u, x) in enumerate(zip(middle, s, strict=True)))
        mean, square = np.zeros(n), np.zeros(n)
        for j, (low, high) in enumerate(box):
            v = s[j] * (1 - s[j])
            if high > low:
                mean[j] = 0.5 - (low + high) / 2
                square[j] = ((0.5 - low) ** 3 - (0.5 - high) ** 3) / (3 * (high - low)) / v**2
            if estimator == "disarm":
                mean[j] = ((a >> j & 1) - (b >> j & 1)) / 2 * max(s[j], 1 - s[j])
            mean[j] /= v
        if estimator == "disarm":
            square = mean**2
        difference = losses[a] - losses[b]
        second = np.outer(mean, mean)
        np.fill_diagonal(second, square)
        chance = math.prod(high - low for low, high in box)
        yield chance, difference * mean, difference**2 * second


def looped_moments(estimator, losses, s, alpha, k=2):
    mean, second = np.zeros(s.size), np.zeros((s.size, s.size))
    for chance, first_part, second_part in weighted_outcomes(estimator, losses, s, k):
        mean += chance * first_part
        second += chance * second_part
    h = np.array([(x * (1 - x)) ** alpha for x in s])
    return Moments(h * mean, np.outer(h, h) * (second - np.outer(mean, mean)))


CASES = [(name, 2) for name in RULES] + [("vr-pge-multi", 3)]


@pytest.mark.parametrize(("estimator", "k"), CASES)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_both_ways_equal_plain_loops(estimator, k, alpha):
    for n in (1, 3):
        losses, s = random_problem(n)
        s[0] = 0.5
        wanted = looped_moments(estimator, losses, s, alpha, k)
        options = {"n_masks": k, "baseline": BASELINE}
        assert_same(enumerated_moments(estimator, losses, s, alpha, **options), wanted, 1e-12)
        assert_same(estimator_moments(estimator, losses, s, alpha, **options), wanted, 1e-12)


@st.composite
def problems(draw, max_n=4, edges=True):
    n = draw(st.integers(1, max_n))
    number = st.floats(-10, 10, width=32)
    inside = st.floats(0.0078125, 0.9921875, width=32)
    entry = st.one_of(inside, st.sampled_from([0.0, 1.0, 0.5])) if edges else inside
    losses = draw(st.lists(number, min_size=2**n, max_size=2**n))
    s = draw(st.lists(entry, min_size=n, max_size=n))
    return np.array(losses), np.array(s), draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99, 1.0]))


@SETTINGS
@given(problems(), st.sampled_from(sorted(RULES)), st.floats(-5, 5))
def test_closed_moments_equal_all_joint_draws(problem, estimator, baseline):
    losses, s, alpha = problem
    for k in (2, 3) if estimator == "vr-pge-multi" else (2,):
        options = {"n_masks": k, "baseline": baseline}
        closed = estimator_moments(estimator, losses, s, alpha, **options)
        assert_same(closed, enumerated_moments(estimator, losses, s, alpha, **options))


@pytest.mark.parametrize("estimator", RULES)
@pytest.mark.parametrize("n", [7, 8])
def test_closed_moments_equal_all_joint_draws_of_more_channels(estimator, n):
    losses, s = random_problem(n)
    closed = estimator_moments(estimator, losses, s, baseline=BASELINE)
    assert_same(closed, enumerated_moments(estimator, losses, s, baseline=BASELINE))


@pytest.mark.parametrize("estimator", ["vr-pge-symmetric", "disarm", "arm"])
def test_ten_channels(estimator):
    losses, s = random_problem(10)
    s[3] = 0.0
    assert_same(estimator_moments(estimator, losses, s), enumerated_moments(estimator, losses, s))


def test_many_masks():
    losses, s = random_problem(2)
    for k in (4, 5):
        closed = estimator_moments("vr-pge-multi", losses, s, n_masks=k)
        assert_same(closed, enumerated_moments("vr-pge-multi", losses, s, n_masks=k))


def test_sixteen_channels_of_a_sum():
    """L = sum w z: every moment by hand, in the space of the channels."""
    n = 16
    rng = np.random.default_rng(3)
    s, w = rng.uniform(0.1, 0.9, n), rng.normal(size=n)
    v = s * (1 - s)
    losses = 5 + ((enumerate_masks(n) - s) / np.sqrt(v)) @ w
    # E L^2 z_i z_j: 2 w_i w_j off the diagonal; on it |w|^2 + w_i^2 (E z^4 - 1).
    fourth = (1 - 3 * v) / v
    square = 2 * np.outer(w, w)
    np.fill_diagonal(square, w @ w + w**2 * (fourth - 1))
    one_sided = square + (w @ w) * np.eye(n) - np.outer(w, w)
    found = estimator_moments("vr-pge", losses, s)
    np.testing.assert_allclose(found.mean, w, atol=1e-11)
    np.testing.assert_allclose(found.covariance, one_sided, atol=1e-9)
    for estimator in RULES:
        moments = estimator_moments(estimator, losses, s)
        np.testing.assert_allclose(moments.mean, 0 if estimator == "coin" else w, atol=1e-10)


@pytest.mark.parametrize("estimator", RULES)
def test_channels_next_to_decided(estimator):
    losses, _ = random_problem(3)
    for s in ([1e-20, 0.3, 0.7], [1e-8, 1 - 1e-6, 0.5]):
        for alpha in (0.0, 0.5):
            closed = estimator_moments(estimator, losses, s, alpha)
            drawn = enumerated_moments(estimator, losses, s, alpha)
            size = np.sqrt(np.outer(drawn.second_moment, drawn.second_moment))
            assert (np.abs(closed.covariance - drawn.covariance) <= 1e-10 * size).all()


@pytest.mark.parametrize("estimator", RULES)
def test_decided_channels_give_nothing(estimator):
    losses, _ = random_problem(3)
    s = np.array([0.0, 0.3, 1.0])
    for alpha in ALPHAS:
        moments = estimator_moments(estimator, losses, s, alpha)
        for j in (0, 2):
            assert moments.mean[j] == 0
            assert not moments.covariance[j].any()
        # The rest is a problem of one channel, losses of m = (0, ., 1).
        alone = estimator_moments(estimator, losses[[4, 6]], s[1:2], alpha)
        assert moments.mean[1] == pytest.approx(alone.mean[0], rel=1e-12)
        assert moments.covariance[1, 1] == pytest.approx(alone.covariance[0, 0], rel=1e-11)


# Laws


@SETTINGS
@given(problems(edges=False))
def test_all_but_the_coin_are_unbiased(problem):
    losses, s, alpha = problem
    target = expected_loss_gradient(losses, s, alpha)
    for estimator, rule in RULES.items():
        mean = estimator_moments(estimator, losses, s, alpha, n_masks=3, baseline=1.5).mean
        wanted = target if rule.informed else 0
        np.testing.assert_allclose(mean, wanted, atol=1e-11)


def test_at_alpha_zero_a_decided_channel_has_a_gradient_that_no_estimator_sees():
    losses = np.array([0.0, 3.0])
    assert expected_loss_gradient(losses, [1.0], 0.0) == 3
    assert estimator_moments("pge", losses, [1.0], 0.0).mean == 0
    assert expected_loss_gradient(losses, [1.0], 0.5) == 0


BASELINED = ("vr-pge", "vr-pge-symmetric", "vr-pge-multi", "arm", "disarm", "coin")


@SETTINGS
@given(problems(), st.sampled_from(BASELINED), st.floats(-100, 100))
def test_a_constant_in_the_loss_changes_nothing(problem, estimator, constant):
    losses, s, alpha = problem
    before = estimator_moments(estimator, losses, s, alpha, n_masks=3)
    after = estimator_moments(estimator, losses + constant, s, alpha, n_masks=3)
    scale = (s * (1 - s) + (s * (1 - s) == 0)) ** (alpha - 1)
    allowed = 1e-12 * (abs(constant) + np.abs(losses).max() + 1e-300)
    assert (np.abs(after.mean - before.mean) <= allowed * scale).all()
    size = allowed * (np.ptp(losses) + allowed) * np.outer(scale, scale) * 10
    assert (np.abs(after.covariance - before.covariance) <= size).all()


def test_a_constant_in_the_loss_is_what_pge_suffers_from():
    losses, s = smooth_problem(5)
    vr_pge = estimator_moments("vr-pge", losses, s).total_variance
    pge = estimator_moments("pge", losses, s).total_variance
    far = estimator_moments("pge", losses + 100, s).total_variance
    assert pge > 50 * vr_pge
    # E (L + c)^2 z^2 = E L^2 z^2 + 2 c E L z^2 + c^2 n
    p, z = mask_probabilities(s), (enumerate_masks(5) - s) / np.sqrt(s * (1 - s))
    cross = (p * losses) @ (z**2).sum(axis=1)
    assert far - pge == pytest.approx(200 * cross + 100**2 * 5, rel=1e-10)


def test_the_variance_of_pge_in_the_papers_words():
    """E L(m)^2 |grad ln p|^2 - |grad Phi|^2, by loops."""
    losses, s = random_problem(4)
    second = 0.0
    for i in range(16):
        mask = np.array([i >> j & 1 for j in range(4)])
        score = (mask - s) / (s * (1 - s))
        second += np.prod(np.where(mask, s, 1 - s)) * losses[i] ** 2 * (score @ score)
    gradient = expected_loss_gradient(losses, s)
    found = estimator_moments("pge", losses, s, 0.0).total_variance
    assert found == pytest.approx(second - gradient @ gradient, rel=1e-12)


@SETTINGS
@given(problems(), st.sampled_from(sorted(RULES)), st.floats(0.125, 8))
def test_variance_scales_with_the_square_of_the_loss(problem, estimator, factor):
    losses, s, alpha = problem
    options = {"n_masks": 4}
    before = estimator_moments(estimator, losses, s, alpha, baseline=0.5, **options)
    scaled = estimator_moments(
        estimator, -factor * losses, s, alpha, baseline=-factor * 0.5, **options
    )
    size = 1e-12 * (1 + np.abs(before.second_moment).max()) * factor**2
    np.testing.assert_allclose(scaled.covariance, factor**2 * before.covariance, atol=size)
    np.testing.assert_allclose(scaled.mean, -factor * before.mean, atol=math.sqrt(size) * 1e-5)


@SETTINGS
@given(problems())
def test_order_of_the_variances(problem):
    losses, s, alpha = problem

    def variances(estimator, **options):
        return np.diagonal(estimator_moments(estimator, losses, s, alpha, **options).covariance)

    room = 1e-10 * (1 + np.abs(variances("coin")).max())
    assert (variances("vr-pge-symmetric") <= variances("vr-pge") + room).all()
    assert (variances("disarm") <= variances("arm") + room).all()
    assert (variances("vr-pge") <= variances("coin") + room).all()
    # With k masks the variance falls at least as fast as 1/k, never below that of the best fixed
    # baseline of k masks: PGE with b = E L.
    by_k = np.array([k * variances("vr-pge-multi", n_masks=k) for k in range(2, 9)])
    assert (np.diff(by_k, axis=0) <= room).all()
    mean = float(mask_probabilities(s) @ losses)
    assert (by_k >= variances("pge-moving-average", baseline=mean) - room).all()
    np.testing.assert_allclose(by_k[0] / 2, variances("vr-pge-symmetric"), atol=room)


def test_arm_alone_diverges_at_one_half():
    """(1/2 - U)/(s (1 - s)) moves a channel that both masks lack: at alpha = 1/2 as 1/s_j."""
    losses, s = random_problem(4)
    rare = [1e-2, 1e-4, 1e-6]
    second = {
        estimator: [
            estimator_moments(estimator, losses, np.r_[p, s[1:]]).second_moment[0] for p in rare
        ]
        for estimator in RULES
    }
    growth = np.array(second["arm"][1:]) / second["arm"][:-1]
    np.testing.assert_allclose(growth, 100, rtol=0.1)
    for estimator in set(RULES) - {"arm"}:
        assert second[estimator][2] == pytest.approx(second[estimator][1], rel=0.02)


def test_neither_pair_is_always_the_better_one():
    """Antithetic or independent masks: it depends on the loss and on s."""

    def ratio(losses, s):
        return (
            estimator_moments("disarm", losses, s).total_variance
            / estimator_moments("vr-pge-symmetric", losses, s).total_variance
        )

    # A sum at s = 1/2: the pair doubles the signal, and its common part is gone.
    m = enumerate_masks(4).astype(float)
    assert ratio(m @ np.ones(4), np.full(4, 0.5)) == pytest.approx(0.75)
    # One channel that matters at 1/2, three rare ones that don't. Antithetic: (L - L~)^2 = 1
    # always, so 3 (1 - q) / 2 + (1/4 - 1/4). Independent: 1 half of the time, so 4 / 4.
    assert ratio(m[:, 0], np.array([0.5, 0.05, 0.05, 0.05])) == pytest.approx(1.425)


def test_the_antithetic_states_are_those_that_are_sampled():
    """Samples of the sampler: mean within five of their own standard errors."""
    losses, s = random_problem(3)
    rng = np.random.default_rng(0)
    powers = 1 << np.arange(3)
    draws = []
    for _ in range(4000):
        mask_a, mask_b, uniform = sample_antithetic_masks(s, rng)
        draws.append(arm(losses[mask_a @ powers], losses[mask_b @ powers], uniform, s))
    draws = np.array(draws)
    moments = enumerated_moments("arm", losses, s)
    error = draws.std(axis=0) / math.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - moments.mean) <= 5 * error).all()
    squares = draws**2
    error = squares.std(axis=0) / math.sqrt(len(draws))
    assert (np.abs(squares.mean(axis=0) - moments.second_moment) <= 5 * error).all()


def test_bad_options():
    losses, s = random_problem(2)
    for function in (estimator_moments, enumerated_moments):
        with pytest.raises(ValueError, match="unknown estimator 'vrpge'; choose one of vr-pge"):
            function("vrpge", losses, s)
        with pytest.raises(ValueError, match="n_masks is 1"):
            function("vr-pge-multi", losses, s, n_masks=1)
        with pytest.raises(ValueError, match="baseline is nan"):
            function("pge-moving-average", losses, s, baseline=math.nan)
        with pytest.raises(ValueError, match="alpha must be in"):
            function("pge", losses, s, 2.0)
        with pytest.raises(ValueError, match="losses has shape"):
            function("pge", losses[:2], s)
    losses, s = random_problem(12)
    with pytest.raises(ValueError, match="more than 4194304 to enumerate"):
        enumerated_moments("vr-pge", losses, s)
    with pytest.raises(ValueError, match="joint states of 12 channels"):
        enumerated_moments("arm", losses, s)
