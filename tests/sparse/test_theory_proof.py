"""Theorem 1 line by line, unbiasedness and what breaks it, the symmetric form; a real network."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minicst.functional as F
from minicst.data import load_dataset
from minicst.models import build
from minicst.randomness import rng_for
from minicst.sparse.bias import antithetic_bias, mean_terms, repair_means
from minicst.sparse.estimators import vr_pge, vr_pge_symmetric
from minicst.sparse.liveness import repair
from minicst.sparse.masks import enumerate_masks, score_function
from minicst.sparse.moments import enumerated_moments, estimator_moments
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.proof import (
    ProofStep,
    bound_factor,
    proof_steps,
    symmetric_variance,
    variance_bound,
)
from minicst.sparse.rules import RULES
from minicst.sparse.subnetwork import cut
from minicst.sparse.theory import (
    expected_loss,
    expected_loss_gradient,
    loss_table,
    max_squared_difference,
    squared_difference,
)

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def random_problem(n, seed=0, offset=2.0):
    rng = np.random.default_rng([n, seed])
    return rng.normal(size=2**n) + offset, rng.uniform(0.03, 0.97, n)


@st.composite
def problems(draw, max_n=4, edges=False):
    n = draw(st.integers(1, max_n))
    number = st.floats(-10, 10, width=32)
    inside = st.floats(0.0078125, 0.9921875, width=32)
    entry = st.one_of(inside, st.sampled_from([0.0, 1.0, 0.5])) if edges else inside
    losses = draw(st.lists(number, min_size=2**n, max_size=2**n))
    return np.array(losses), np.array(draw(st.lists(entry, min_size=n, max_size=n)))


def chances(s):
    masks = enumerate_masks(s.size)
    return masks, np.where(masks, s, 1 - s).prod(axis=1)


# The bound


@SETTINGS
@given(problems(edges=True), st.floats(0, 1))
def test_the_bound_holds_for_every_alpha(problem, alpha):
    losses, s = problem
    moments = enumerated_moments("vr-pge", losses, s, alpha)
    bound = variance_bound(losses, s, alpha)
    room = 1e-10 * (1 + moments.second_moment.sum())
    assert moments.second_moment.sum() <= bound + room
    assert moments.total_variance <= bound + room
    # The values of m_j that are drawn would do.
    possible = max_squared_difference(losses, s, possible_only=True)
    factor = bound_factor(s, alpha)[(s > 0) & (s < 1)].sum()
    assert moments.second_moment.sum() <= factor * possible + room
    for_half = s.size * max_squared_difference(losses, s)
    if alpha >= 0.5:
        assert bound <= for_half * (1 + 1e-12)


def test_the_bound_is_reached():
    """One channel at 1/2: (L - L')^2 is the same for both values, and so is the score's square."""
    for alpha in (0.0, 0.5, 0.9):
        second = estimator_moments("vr-pge", [0.0, 1.0], [0.5], alpha).second_moment.sum()
        assert second == pytest.approx(variance_bound([0.0, 1.0], [0.5], alpha), rel=1e-14)


def test_the_bound_at_one_half_counts_channels():
    losses, s = random_problem(6)
    assert variance_bound(losses, s, 0.5) == 6 * max_squared_difference(losses, s)
    np.testing.assert_array_equal(bound_factor(s, 0.5), np.ones(6))


@SETTINGS
@given(st.floats(0.0009765625, 0.9990234375), st.floats(0, 1))
def test_the_factor_is_the_papers_and_the_mean_square_of_the_score(s, alpha):
    factor = bound_factor([s], alpha)[0]
    a = alpha
    in_paper = s ** (2 * a) * (1 - s) ** (2 * a - 1) + s ** (2 * a - 1) * (1 - s) ** (2 * a)
    assert factor == pytest.approx(in_paper, rel=1e-12)
    scores = score_function([[0], [1]], [s])[:, 0] * (s * (1 - s)) ** a
    assert factor == pytest.approx((1 - s) * scores[0] ** 2 + s * scores[1] ** 2, rel=1e-12)


@pytest.mark.parametrize("s", [1e-6, 0.02, 0.5, 0.97])
def test_the_factor_falls_with_alpha(s):
    alphas = np.linspace(0, 1, 41)
    factors = np.array([bound_factor([s], alpha)[0] for alpha in alphas])
    assert (np.diff(factors) < 0).all()
    step = 1e-5
    for alpha in (0.2, 0.5, 0.8):
        rise = bound_factor([s], alpha + step)[0] - bound_factor([s], alpha - step)[0]
        slope = 2 * math.log(s * (1 - s)) * bound_factor([s], alpha)[0]
        assert rise / (2 * step) == pytest.approx(slope, rel=1e-6)


def test_the_factor_at_decided_channels():
    """0^(2 alpha - 1): no slope to speak of, and no variance either."""
    decided = [0.0, 1.0]
    np.testing.assert_array_equal(bound_factor(decided, 0.49), [np.inf, np.inf])
    np.testing.assert_array_equal(bound_factor(decided, 0.5), [1, 1])
    np.testing.assert_array_equal(bound_factor(decided, 0.51), [0, 0])
    losses = np.array([0.0, 1.0, 2.0, 5.0])
    assert variance_bound(losses, decided, 0.2) == np.inf
    assert variance_bound(losses, decided, 0.9) == 0
    assert variance_bound(np.ones(4), decided, 0.2) == 0
    assert estimator_moments("vr-pge", losses, decided, 0.2).total_variance == 0


def test_below_one_half_it_blows_up_at_rare_channels():
    losses, s = random_problem(4)
    bounds = {
        alpha: [variance_bound(losses, np.r_[rare, s[1:]], alpha) for rare in (1e-3, 1e-6, 1e-9)]
        for alpha in (0.0, 0.25, 0.5, 0.75)
    }
    # Vmax hardly moves, the factor is s_0^(2 alpha - 1).
    assert bounds[0.0][1] / bounds[0.0][0] == pytest.approx(1000, rel=0.05)
    assert bounds[0.25][2] / bounds[0.25][1] == pytest.approx(1000**0.5, rel=0.05)
    assert bounds[0.5][2] == pytest.approx(bounds[0.5][1], rel=1e-3)
    assert bounds[0.75][2] == pytest.approx(bounds[0.75][1], rel=1e-2)
    # And so does the variance itself: at alpha = 0 the bound is no artefact.
    moments = [
        estimator_moments("vr-pge", losses, np.r_[rare, s[1:]], 0.0) for rare in (1e-3, 1e-6)
    ]
    assert moments[1].total_variance / moments[0].total_variance == pytest.approx(1000, rel=0.1)


def test_at_alpha_zero_the_factor_is_the_papers_sum():
    s = np.array([0.01, 0.3, 0.5, 0.99])
    np.testing.assert_allclose(bound_factor(s, 0.0), 1 / (1 - s) + 1 / s, rtol=1e-13)


def test_alpha_as_an_adaptive_step_size():
    """Mean square of a channel's step: the same everywhere at 1/2, smaller near 0 above it."""
    s = np.array([0.001, 0.5])
    assert bound_factor(s, 0.5)[0] == bound_factor(s, 0.5)[1]
    assert bound_factor(s, 0.9)[0] < bound_factor(s, 0.9)[1]
    assert bound_factor(s, 0.1)[0] > bound_factor(s, 0.1)[1]


# The proof


def sides_by_pairs(losses, s, alpha, j):
    """The lines of channel j as plain double sums over pairs of masks."""
    masks, p = chances(s)
    x, first, second, third = s[j], 0.0, 0.0, 0.0
    conditional, weight = [0.0, 0.0], [0.0, 0.0]
    for i, i_b in itertools.product(range(len(p)), repeat=2):
        square, m = (losses[i] - losses[i_b]) ** 2, float(masks[i, j])
        score = (m - x) / (x * (1 - x))
        first += p[i] * p[i_b] * square * ((x * (1 - x)) ** alpha * score) ** 2
        scaled = x ** (2 * alpha) * (1 - x) ** (2 * alpha) * (m - x) ** 2 / (x**2 * (1 - x) ** 2)
        second += p[i] * p[i_b] * square * scaled
        third += p[i] * p[i_b] * square * (x * (1 - x)) ** (2 * alpha - 2) * (m - x) ** 2
        conditional[int(m)] += p[i] * p[i_b] * square
        weight[int(m)] += p[i] * p[i_b]
    by_value = [c / w for c, w in zip(conditional, weight, strict=True)]
    factor = [(x * (1 - x)) ** (2 * alpha - 2) * (m - x) ** 2 for m in (0, 1)]
    fourth = sum(w * v * f for w, v, f in zip(weight, by_value, factor, strict=True))
    return [first, second, third, fourth], max(by_value)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [1, 3])
def test_each_line_against_pairs_of_masks(n, alpha):
    losses, s = random_problem(n)
    steps = proof_steps(losses, s, alpha)
    by_pairs = [sides_by_pairs(losses, s, alpha, j) for j in range(n)]
    largest = max(v for _, v in by_pairs)
    for j, (sides, _) in enumerate(by_pairs):
        found = [step.right[j] for step in steps[:4]]
        np.testing.assert_allclose(found, sides, rtol=1e-11)
        end = largest * (s[j] * (1 - s[j])) ** (2 * alpha - 1)
        np.testing.assert_allclose([step.right[j] for step in steps[4:8]], end, rtol=1e-11)
        assert steps[8].right[j] == pytest.approx(largest, rel=1e-12)


@SETTINGS
@given(problems(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99]))
def test_every_line_holds(problem, alpha):
    losses, s = problem
    steps = proof_steps(losses, s, alpha)
    assert [step.equation for step in steps] == [
        *("A.2", "8", "8", "8", "9", "10", "10", "11", "Thm. 1")
    ]
    assert [step.relation for step in steps] == [*("<=", "=", "=", "=", "<=", "=", "=", "<=", "<=")]
    for step in steps[:-1]:
        assert step.holds(), step
        left, right, slack = step.totals
        assert slack == pytest.approx(right - left, abs=1e-9 * (1 + abs(right)))
    for line, following in itertools.pairwise(steps[:7]):
        assert line.right is following.left
    # s (1 - s) < 1/4 turns the last line around below alpha = 1/2.
    vmax = max_squared_difference(losses, s)
    assert steps[-1].holds() == (alpha >= 0.5 or vmax == 0.0)
    assert steps[7].totals[1] == pytest.approx(variance_bound(losses, s, alpha), rel=1e-12)
    moments = estimator_moments("vr-pge", losses, s, alpha)
    assert steps[0].totals[0] == pytest.approx(moments.total_variance, rel=1e-12)
    squared_gradient = (expected_loss_gradient(losses, s, alpha) ** 2).sum()
    assert steps[0].totals[2] == pytest.approx(squared_gradient, rel=1e-9, abs=1e-9)


def test_a_line_that_does_not_hold_is_seen():
    one, two = np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-8])
    assert ProofStep("8", "", "=", one, one).holds()
    assert not ProofStep("8", "", "=", one, two).holds()
    assert ProofStep("9", "", "<=", one, two).holds()
    assert not ProofStep("9", "", "<=", two, one).holds()
    np.testing.assert_array_equal(ProofStep("9", "", "<=", two, one).slack, one - two)


def test_the_theorem_takes_open_probabilities_only():
    for s in ([0.5, 0.0], [0.5, 1.0], [0.5, 1e-200]):
        with pytest.raises(ValueError, match=r"keep_prob\[1\] is .* Theorem 1 takes s in \(0, 1\)"):
            proof_steps(np.zeros(4), s)
    assert all(step.holds() for step in proof_steps([0.0, 1.0], [1e-90], 0.5))


def test_the_proof_of_sixteen_channels():
    losses, s = random_problem(16)
    steps = proof_steps(losses, s)
    assert all(step.holds() for step in steps)
    assert steps[-1].totals[1] == pytest.approx(16 * max_squared_difference(losses, s))


# Unbiasedness


@SETTINGS
@given(problems(edges=True), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_term_of_the_second_mask_vanishes(problem, alpha):
    losses, s = problem
    terms = mean_terms(losses, s, alpha)
    variance = np.where((s > 0) & (s < 1), s * (1 - s), 1)
    size = np.abs(losses).max() * variance ** (alpha - 1)
    assert (np.abs(terms.baseline) <= 1e-15 * size).all()
    target = terms.gradient
    if alpha == 0:  # what no estimator sees
        target = np.where((s > 0) & (s < 1), target, 0)
    assert (np.abs(terms.policy_gradient - target) <= 1e-13 * (size + 1e-300)).all()
    # The gradient itself, by plain sums over masks.
    masks, _ = chances(s)
    for j in range(s.size):
        others = np.where(masks, s, 1 - s)
        others[:, j] = np.where(masks[:, j], 1, -1)
        scale = (s[j] * (1 - s[j])) ** alpha
        wanted = scale * (others.prod(axis=1) * losses).sum()
        assert terms.gradient[j] == pytest.approx(wanted, abs=1e-13 * (1 + np.abs(losses).max()))


def test_the_baseline_of_dependent_masks_does_not_vanish():
    """Antithetic pairs fed to the plain formulas, called as they are, in all 3^n states."""
    for n, alpha in ((1, 0.5), (4, 0.5), (4, 0.0)):
        losses, s = random_problem(n)
        one_sided, symmetric = np.zeros(n), np.zeros(n)
        total = 0.0
        for state in itertools.product(range(3), repeat=n):
            q = np.minimum(s, 1 - s)
            p = np.prod([(q[j], q[j], 1 - 2 * q[j])[k] for j, k in enumerate(state)])
            mask_a = np.array([(1, 0, s[j] > 0.5)[k] for j, k in enumerate(state)])
            mask_b = np.array([(0, 1, s[j] > 0.5)[k] for j, k in enumerate(state)])
            loss_a, loss_b = (losses[m @ (1 << np.arange(n))] for m in (mask_a, mask_b))
            one_sided += p * vr_pge(loss_a, loss_b, mask_a, s, alpha)
            symmetric += p * vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, s, alpha)
            total += p
        assert total == pytest.approx(1)
        gradient = expected_loss_gradient(losses, s, alpha)
        bias = antithetic_bias(losses, s, alpha)
        np.testing.assert_allclose(one_sided - gradient, bias, atol=1e-12)
        np.testing.assert_allclose(symmetric - gradient, bias, atol=1e-12)
        assert np.abs(bias).max() > 0.02 * np.abs(gradient).max()


def test_the_bias_of_an_antithetic_pair_in_numbers():
    np.testing.assert_allclose(antithetic_bias([0.0, 3.0], [0.5], 0.0), [3.0])  # twice too long
    np.testing.assert_allclose(antithetic_bias([0.0, 3.0], [0.2], 0.0), [0.75])
    np.testing.assert_array_equal(antithetic_bias([0.0, 3.0], [1.0], 0.5), [0.0])


def two_groups():
    """Channels 0, 1 and 2, 3 are groups; of an empty one the most probable channel is kept."""
    losses = np.array([9, 9, 9, 9, 9, 3, 2, 1.5, 9, 2.5, 1, 0.7, 9, 2, 0.9, 0.5])
    s = np.array([0.3, 0.2, 0.25, 0.4])
    used = enumerate_masks(4)
    used[~used[:, :2].any(axis=1), 0] = True
    used[~used[:, 2:].any(axis=1), 3] = True
    return losses, s, used


def repaired_by_pairs(losses, s, used, alpha, which):
    """E (L(r(m)) - L(r(m'))) H^a score by a double sum, the score written out."""
    masks, p = chances(s)
    scored = used if which == "used" else masks
    total = np.zeros(s.size)
    for i, i_b in itertools.product(range(len(p)), repeat=2):
        a, b = (used[k] @ (1 << np.arange(s.size)) for k in (i, i_b))
        step = (scored[i] - s) / (s * (1 - s)) ** (1 - alpha)
        total += p[i] * p[i_b] * (losses[a] - losses[b]) * step
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_drawn_mask_belongs_in_the_score(alpha):
    losses, s, used = two_groups()
    means = repair_means(losses, used, s, alpha)
    for which in ("drawn", "used"):
        wanted = repaired_by_pairs(losses, s, used, alpha, which)
        np.testing.assert_allclose(getattr(means, which), wanted, atol=1e-13)
    # The gradient of E L(repair(m)) with the repair as a fixed table.
    masks, _ = chances(s)
    for j in range(4):
        factor = np.where(masks, s, 1 - s)
        factor[:, j] = np.where(masks[:, j], 1, -1)
        repaired = losses[used @ (1 << np.arange(4))]
        slope = (factor.prod(axis=1) * repaired).sum() * (s[j] * (1 - s[j])) ** alpha
        assert means.gradient[j] == pytest.approx(slope, abs=1e-13)
    np.testing.assert_allclose(means.drawn, means.gradient, atol=1e-13)
    bias = means.used - means.gradient
    # It is in the channels that repair switches on, and nowhere else.
    np.testing.assert_allclose(bias[[1, 2]], 0, atol=1e-13)
    assert np.abs(bias[[0, 3]]).min() > 0.3 * np.abs(means.gradient[[0, 3]]).min()
    # The loss falls with channel 0, and the used mask's score says that it rises.
    assert means.gradient[0] < 0 < means.used[0]


def test_without_empty_groups_both_scores_are_the_same():
    losses, s = random_problem(3)
    means = repair_means(losses, enumerate_masks(3), s)
    np.testing.assert_array_equal(means.drawn, means.used)
    np.testing.assert_allclose(means.gradient, expected_loss_gradient(losses, s, 0.5), atol=0)


def test_a_repaired_mask_that_cannot_be_drawn_has_no_score():
    losses, s, used = two_groups()
    s = np.array([0.0, 0.2, 0.25, 0.4])
    with pytest.raises(ValueError, match=r"keep_prob\[0\] = 0: such a mask can't have been drawn"):
        repair_means(losses, used, s)
    with pytest.raises(ValueError, match=r"masks_used has shape \(4, 4\)"):
        repair_means(losses, used[:4], s)


def test_clipping_changes_which_s_can_be_reached_and_not_the_bias():
    losses, _ = random_problem(4)
    eps, z = 0.1, np.array([-0.3, 0.02, 0.6, 1.4])
    clipped, _ = project_capped_simplex(z, 1.6, lower=eps, upper=1 - eps)
    free, _ = project_capped_simplex(z, 1.6)
    assert free.min() == 0
    assert clipped.min() == eps
    for at in (clipped, free):
        for estimator in ("vr-pge", "vr-pge-symmetric", "disarm"):
            mean = enumerated_moments(estimator, losses, at).mean
            np.testing.assert_allclose(mean, expected_loss_gradient(losses, at, 0.5), atol=1e-13)
    # With the free s channel 0 is decided and gets no gradient any more; at eps it does.
    assert expected_loss_gradient(losses, free, 0.5)[0] == 0
    assert abs(expected_loss_gradient(losses, clipped, 0.5)[0]) > 1e-3


# The symmetric form


def mirrored_by_pairs(losses, s, alpha):
    """(variance, covariance with its mirror) of the one-sided form, over all pairs of masks."""
    masks, p = chances(s)
    drawn = p > 0
    losses, masks, p = losses[drawn], masks[drawn], p[drawn]
    i, i_b = np.divmod(np.arange(len(p) ** 2), len(p))
    weight = p[i] * p[i_b]
    here = vr_pge(losses[i], losses[i_b], masks[i], s, alpha)
    mirror = vr_pge(losses[i_b], losses[i], masks[i_b], s, alpha)
    mean = weight @ here
    assert weight @ mirror == pytest.approx(mean, abs=1e-10)
    return (
        float(weight @ ((here - mean) ** 2).sum(axis=1)),
        float(weight @ ((here - mean) * (mirror - mean)).sum(axis=1)),
    )


@SETTINGS
@given(problems(edges=True), st.sampled_from([0.0, 0.5, 0.9]))
def test_symmetric_variance(problem, alpha):
    losses, s = problem
    found = symmetric_variance(losses, s, alpha)
    variance, covariance = mirrored_by_pairs(losses, s, alpha)
    close = {"abs": 1e-10 * (1 + variance), "rel": 1e-10}
    assert found.one_sided == pytest.approx(variance, **close)
    assert found.mirror_covariance == pytest.approx(covariance, **close)
    assert found.symmetric == pytest.approx((variance + covariance) / 2, **close)
    direct = enumerated_moments("vr-pge-symmetric", losses, s, alpha).total_variance
    assert found.symmetric == pytest.approx(direct, **close)
    # What the covariance is: the squared gradient (of channels that aren't decided).
    gradient = np.where((s > 0) & (s < 1), expected_loss_gradient(losses, s, alpha), 0)
    assert covariance == pytest.approx(gradient @ gradient, **close)
    if variance > 1e-6:
        assert 0.5 - 1e-9 <= found.ratio <= 1 + 1e-9


def test_how_much_symmetry_saves():
    """Half or a little less of the variance goes; the extremes are known."""
    rng = np.random.default_rng(5)
    ratios = {"smooth": [], "rough": []}
    for _ in range(200):
        n = int(rng.integers(3, 9))
        s, masks = rng.uniform(0.05, 0.95, n), enumerate_masks(n)
        smooth = 2 + masks @ rng.normal(size=n)
        for kind, losses in (("smooth", smooth), ("rough", rng.normal(size=2**n))):
            ratios[kind].append(symmetric_variance(losses, s).ratio)
    assert min(ratios["rough"]) > 0.5
    assert min(ratios["smooth"]) > 0.51
    assert max(ratios["rough"] + ratios["smooth"]) < 0.75
    # A loss in which the gradient is all there is to see: one channel at 1/2, nothing is saved.
    assert symmetric_variance([0.0, 1.0], [0.5]).ratio == pytest.approx(1.0)
    # One without a gradient: exactly half.
    assert symmetric_variance([0.0, 1.0, 1.0, 0.0], [0.5, 0.5]).ratio == 0.5
    assert symmetric_variance(np.ones(4), [0.5, 0.5]).ratio == 1.0  # nothing varies


# A real network


@pytest.fixture(scope="module")
def network_problem():
    """Two hidden layers of four neurons on 64 digits: the losses of all 256 cut networks."""
    network = build("mlp", 10, in_channels=1, width=0.0625, image_size=8, seed=3)
    data = load_dataset("digits")
    images = (data.train_images[:64] / data.max_value).astype(np.float32)
    keep_prob = rng_for(0, "test", "theory").uniform(0.3, 0.8, network.n_maskable)

    def loss(mask):
        used, _ = repair(network, mask, keep_prob)
        logits = cut(network, used)(images, training=True, track=False)
        return F.cross_entropy(logits, data.train_labels[:64]).item()

    return network, keep_prob, loss


def test_a_real_network(network_problem):
    network, s, loss = network_problem
    assert network.n_maskable == 8
    before = {name: array.copy() for name, array in network.state().items()}
    losses = loss_table(loss, 8)
    for name, array in network.state().items():  # cut networks leave the full one alone
        np.testing.assert_array_equal(array, before[name])
    assert len(np.unique(losses)) == 15 * 15  # empty layers are repaired
    target = expected_loss_gradient(losses, s, 0.5)
    for estimator in RULES:
        closed = estimator_moments(estimator, losses, s)
        drawn = enumerated_moments(estimator, losses, s)
        size = np.abs(drawn.second_moment).max()
        np.testing.assert_allclose(closed.covariance, drawn.covariance, atol=1e-10 * size)
        wanted = target if RULES[estimator].informed else 0
        np.testing.assert_allclose(drawn.mean, wanted, atol=1e-10 * math.sqrt(size))
    assert all(step.holds() for step in proof_steps(losses, s))
    # What the paper measures on ResNet-32: V and Vmax are close and far below E L^2.
    v, vmax = squared_difference(losses, s), max_squared_difference(losses, s)
    second = expected_loss(losses**2, s)
    assert v <= vmax < 0.5 * second
    variance = {name: estimator_moments(name, losses, s).total_variance for name in RULES}
    assert variance["vr-pge-symmetric"] < 0.8 * variance["vr-pge"]
    assert variance["vr-pge"] < 0.2 * variance["pge"]


def test_repair_of_a_real_network(network_problem):
    network, s, loss = network_problem
    losses = loss_table(loss, 8)
    used = np.array([repair(network, mask, s)[0] for mask in enumerate_masks(8)])
    means = repair_means(losses, used, s)
    np.testing.assert_allclose(means.gradient, expected_loss_gradient(losses, s, 0.5), atol=0)
    np.testing.assert_allclose(means.drawn, means.gradient, atol=1e-13)
    assert np.abs(means.used - means.gradient).max() > 1e-3 * np.abs(means.gradient).max()
