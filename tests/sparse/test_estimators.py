"""Estimators against complete enumeration: every mask, every pair of masks, no sampling."""

import itertools
import math

import numpy as np
import pytest

from minicst.sparse.estimators import coin_flip, pge, preconditioner, vr_pge, vr_pge_symmetric

ALPHAS = [0.0, 0.5, 0.75, 1.0]
SIZES = [1, 2, 5, 8]


# The oracle: plain sums over all masks. Nothing below uses the functions under test.


def all_masks(n):
    return np.array(list(itertools.product([0, 1], repeat=n)))


def probabilities(masks, keep_prob):
    return np.array(
        [math.prod(s if m else 1 - s for m, s in zip(row, keep_prob, strict=True)) for row in masks]
    )


def true_gradient(losses, masks, keep_prob):
    """Gradient of Phi(s) = sum_m p(m|s) L(m): E[L | m_j = 1] - E[L | m_j = 0]."""
    gradient = []
    for j in range(keep_prob.size):
        others = np.delete(np.arange(keep_prob.size), j)
        p_others = probabilities(masks[:, others], keep_prob[others])
        sign = 2 * masks[:, j] - 1
        gradient.append(math.fsum(sign * p_others * losses))
    return np.array(gradient)


def target(losses, masks, keep_prob, alpha):
    scale = np.array([(s * (1 - s)) ** alpha for s in keep_prob])
    return scale * true_gradient(losses, masks, keep_prob)


def random_problem(n, kind, seed=0):
    """Masks, losses and keep probabilities of n channels."""
    rng = np.random.default_rng([seed, n])
    masks = all_masks(n)
    if kind == "random":
        losses = rng.normal(size=len(masks))
    else:  # a constant, a small linear part, small pairwise terms: like a wide network
        pairwise = rng.normal(size=(n, n)) * 0.02
        losses = 2.0 + masks @ rng.normal(size=n) * 0.1
        losses = losses + np.einsum("ki,ij,kj->k", masks, pairwise, masks)
    return masks, losses, rng.uniform(0.03, 0.97, n)


def pair_table(masks, losses, keep_prob):
    """All ordered pairs (m, m'): weights p(m) p(m'), losses, masks."""
    p = probabilities(masks, keep_prob)
    a, b = (i.ravel() for i in np.meshgrid(range(len(masks)), range(len(masks)), indexing="ij"))
    return p[a] * p[b], losses[a], losses[b], masks[a], masks[b]


def mean_and_variance(weight, estimates):
    """Mean vector and total variance (the sum over channels, as in A.2)."""
    mean = weight @ estimates
    return mean, float(weight @ ((estimates - mean) ** 2).sum(axis=1))


def assert_unbiased(estimator, n, kind, alpha):
    """Check E estimator(loss_a, loss_b, mask_a, mask_b, s, alpha) = H^alpha grad Phi."""
    masks, losses, keep_prob = random_problem(n, kind)
    weight, *pair = pair_table(masks, losses, keep_prob)
    mean = weight @ estimator(*pair, keep_prob, alpha)
    np.testing.assert_allclose(
        mean, target(losses, masks, keep_prob, alpha), rtol=1e-12, atol=1e-12
    )


def one_sided(loss_a, loss_b, mask_a, mask_b, keep_prob, alpha):
    return vr_pge(loss_a, loss_b, mask_a, keep_prob, alpha)


def plain(loss_a, loss_b, mask_a, mask_b, keep_prob, alpha):
    return pge(loss_a, mask_a, keep_prob, alpha)


ESTIMATORS = {"pge": plain, "vr_pge": one_sided, "vr_pge_symmetric": vr_pge_symmetric}


# Mean


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased_over_all_pairs_of_masks(name, n, kind, alpha):
    assert_unbiased(ESTIMATORS[name], n, kind, alpha)


def test_oracle_gradient_against_finite_difference():
    masks, losses, keep_prob = random_problem(5, "random")
    step = 1e-6
    for j, slope in enumerate(true_gradient(losses, masks, keep_prob)):
        shift = step * np.eye(5)[j]
        up = probabilities(masks, keep_prob + shift) @ losses
        down = probabilities(masks, keep_prob - shift) @ losses
        assert (up - down) / (2 * step) == pytest.approx(slope, abs=1e-9)


def test_baseline_term_vanishes():
    # Eq. (13): the part of vr_pge that carries L(m') has mean zero.
    masks, losses, keep_prob = random_problem(6, "random")
    weight, _, loss_b, mask_a, _ = pair_table(masks, losses, keep_prob)
    baseline = vr_pge(np.zeros_like(loss_b), loss_b, mask_a, keep_prob)
    np.testing.assert_allclose(weight @ baseline, 0.0, atol=1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_coin_flip_has_mean_zero_over_the_coin(alpha):
    masks, losses, keep_prob = random_problem(5, "smooth")
    weight, loss_a, loss_b, mask_a, _ = pair_table(masks, losses, keep_prob)
    ones = np.ones_like(loss_a)
    head = coin_flip(loss_a, loss_b, mask_a, keep_prob, ones, alpha)
    tail = coin_flip(loss_a, loss_b, mask_a, keep_prob, -ones, alpha)
    assert np.array_equal(head, -tail)  # exactly, pair by pair
    # The step sizes are those of vr_pge, pair by pair.
    assert np.array_equal(np.abs(head), np.abs(vr_pge(loss_a, loss_b, mask_a, keep_prob, alpha)))
    assert (weight @ np.abs(head)).min() > 1e-4  # and there are steps at all


def test_coin_that_knows_the_sign_is_vr_pge():
    masks, losses, keep_prob = random_problem(4, "random")
    _, loss_a, loss_b, mask_a, _ = pair_table(masks, losses, keep_prob)
    sign = np.where(loss_a >= loss_b, 1.0, -1.0)
    np.testing.assert_array_equal(
        coin_flip(loss_a, loss_b, mask_a, keep_prob, sign),
        vr_pge(loss_a, loss_b, mask_a, keep_prob),
    )


def test_symmetric_is_the_mean_of_the_two_one_sided():
    masks, losses, keep_prob = random_problem(6, "random")
    _, loss_a, loss_b, mask_a, mask_b = pair_table(masks, losses, keep_prob)
    both = 0.5 * (
        vr_pge(loss_a, loss_b, mask_a, keep_prob) + vr_pge(loss_b, loss_a, mask_b, keep_prob)
    )
    np.testing.assert_allclose(
        vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, keep_prob), both, rtol=1e-12, atol=1e-13
    )


# Formulas by hand


def test_values_by_hand():
    # s (1 - s) = 0.16 at s = 0.2 and 0.25 at s = 0.5; L - L' = 3.
    keep_prob, mask_a, mask_b = [0.2, 0.5], [1, 0], [0, 0]
    np.testing.assert_allclose(vr_pge(5.0, 2.0, mask_a, keep_prob, 0.0), [15.0, -6.0])
    np.testing.assert_allclose(vr_pge(5.0, 2.0, mask_a, keep_prob), [6.0, -3.0])
    np.testing.assert_allclose(vr_pge(5.0, 2.0, mask_a, keep_prob, 1.0), [2.4, -1.5])
    np.testing.assert_allclose(pge(5.0, mask_a, keep_prob), [25.0, -10.0])
    np.testing.assert_allclose(vr_pge_symmetric(5, 2, mask_a, mask_b, keep_prob), [3.75, 0.0])
    np.testing.assert_allclose(coin_flip(2.0, 5.0, mask_a, keep_prob, 1), [6.0, -3.0])
    np.testing.assert_allclose(coin_flip(2.0, 5.0, mask_a, keep_prob, -1), [-6.0, 3.0])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_preconditioner_by_hand(alpha):
    keep_prob = [0.0, 0.1, 0.5, 1.0]
    expected = [(s * (1 - s)) ** alpha for s in keep_prob]
    np.testing.assert_allclose(preconditioner(keep_prob, alpha), expected, rtol=1e-15)


def test_defaults_are_the_papers():
    masks, losses, keep_prob = random_problem(3, "random")
    _, *pair = pair_table(masks, losses, keep_prob)
    loss_a, loss_b, mask_a, mask_b = pair
    half = 0.5
    for default, explicit in [
        (pge(loss_a, mask_a, keep_prob), pge(loss_a, mask_a, keep_prob, 0.0)),
        (one_sided(*pair, keep_prob, half), vr_pge(loss_a, loss_b, mask_a, keep_prob)),
        (
            vr_pge_symmetric(*pair, keep_prob),
            vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, keep_prob, half),
        ),
    ]:
        assert default.tobytes() == explicit.tobytes()


# Variance


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_variance_order(seed, alpha):
    masks, losses, keep_prob = random_problem(7, "smooth", seed)
    losses = losses + 10.0
    weight, *pair = pair_table(masks, losses, keep_prob)
    variance = {
        name: mean_and_variance(weight, estimator(*pair, keep_prob, alpha))[1]
        for name, estimator in ESTIMATORS.items()
    }
    assert variance["vr_pge_symmetric"] <= variance["vr_pge"]
    assert 100 * variance["vr_pge"] < variance["pge"]


@pytest.mark.parametrize("n", [1, 3, 6])
def test_symmetric_never_has_more_variance(n):
    for seed in range(5):
        masks, losses, keep_prob = random_problem(n, "random", seed)
        weight, *pair = pair_table(masks, losses, keep_prob)
        _, one = mean_and_variance(weight, one_sided(*pair, keep_prob, 0.5))
        _, two = mean_and_variance(weight, vr_pge_symmetric(*pair, keep_prob, 0.5))
        assert two <= one * (1 + 1e-12)


def test_symmetric_has_about_half_the_variance_on_a_smooth_loss():
    masks, losses, keep_prob = random_problem(7, "smooth")
    weight, *pair = pair_table(masks, losses, keep_prob)
    _, one = mean_and_variance(weight, one_sided(*pair, keep_prob, 0.5))
    _, two = mean_and_variance(weight, vr_pge_symmetric(*pair, keep_prob, 0.5))
    assert 1.7 < one / two < 2.0


def test_pge_variance_formula():
    # Sec. 4.2.2: E L^2 |grad ln p|^2 - |grad Phi|^2, the score written as 1/s and -1/(1 - s).
    masks, losses, keep_prob = random_problem(6, "random")
    p = probabilities(masks, keep_prob)
    score = np.where(masks == 1, 1 / keep_prob, -1 / (1 - keep_prob))
    gradient = true_gradient(losses, masks, keep_prob)
    expected = p @ (losses**2 * (score**2).sum(axis=1)) - (gradient**2).sum()
    _, variance = mean_and_variance(p, pge(losses, masks, keep_prob))
    assert variance == pytest.approx(expected, rel=1e-12)


def test_constant_loss_gives_variance_to_pge_only():
    masks, losses, keep_prob = random_problem(4, "random")
    weight, *pair = pair_table(masks, np.full_like(losses, 7.0), keep_prob)
    assert not one_sided(*pair, keep_prob, 0.5).any()
    assert not vr_pge_symmetric(*pair, keep_prob, 0.5).any()
    assert mean_and_variance(weight, plain(*pair, keep_prob, 0.5))[1] > 100


def test_second_moment_identity():
    # E[(m - s)^2] / (s (1 - s)) = 1: at alpha = 1/2 each channel of pge(1, m) has it.
    keep_prob = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
    masks = all_masks(5)
    steps = pge(np.ones(len(masks)), masks, keep_prob, 0.5)
    second_moment = probabilities(masks, keep_prob) @ steps**2
    np.testing.assert_allclose(second_moment, 1.0, rtol=1e-12)


# The checker itself: wrong estimators must fail it.

MUTANTS = {
    "sign flipped": lambda la, lb, ma, mb, s, alpha: -vr_pge(la, lb, ma, s, alpha),
    "losses exchanged": lambda la, lb, ma, mb, s, alpha: vr_pge(lb, la, ma, s, alpha),
    "mask of the other loss": lambda la, lb, ma, mb, s, alpha: vr_pge(la, lb, mb, s, alpha),
    "H forgotten": lambda la, lb, ma, mb, s, alpha: vr_pge(la, lb, ma, s, 0.0),
    "score forgotten": lambda la, lb, ma, mb, s, alpha: (la - lb)[:, None] * (ma - s),
    "twice": lambda la, lb, ma, mb, s, alpha: 2 * vr_pge(la, lb, ma, s, alpha),
    "half forgotten": lambda la, lb, ma, mb, s, alpha: (
        2 * vr_pge_symmetric(la, lb, ma, mb, s, alpha)
    ),
    "score not centered": lambda la, lb, ma, mb, s, alpha: (
        la[:, None] * ma * (s * (1 - s)) ** (alpha - 1)
    ),
    "coin": lambda la, lb, ma, mb, s, alpha: coin_flip(
        la, lb, ma, s, np.where(np.arange(len(la)) % 2, 1.0, -1.0), alpha
    ),
}


@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("name", MUTANTS)
def test_checker_rejects_wrong_estimators(name, kind):
    with pytest.raises(AssertionError):
        assert_unbiased(MUTANTS[name], 5, kind, 0.5)


def antithetic_table(masks, losses, keep_prob):
    """All pairs m = 1[U < s], m' = 1[1 - U < s] with their exact joint probabilities."""
    both = np.maximum(0.0, 2 * keep_prob - 1)
    neither = np.maximum(0.0, 1 - 2 * keep_prob)
    joint = np.stack([np.stack([neither, keep_prob - both]), np.stack([keep_prob - both, both])])
    _, loss_a, loss_b, mask_a, mask_b = pair_table(masks, losses, keep_prob)
    weight = joint[mask_a, mask_b, np.arange(keep_prob.size)].prod(axis=1)
    return weight, loss_a, loss_b, mask_a, mask_b


def test_antithetic_pair_makes_vr_pge_biased():
    masks, losses, keep_prob = random_problem(5, "smooth")
    weight, loss_a, loss_b, mask_a, _ = antithetic_table(masks, losses, keep_prob)
    # The marginal of m is right (so pge is unbiased), but L(m') is no longer independent of m.
    assert weight.sum() == pytest.approx(1.0, abs=1e-13)
    expected = target(losses, masks, keep_prob, 0.5)
    np.testing.assert_allclose(weight @ pge(loss_a, mask_a, keep_prob, 0.5), expected, atol=1e-12)
    bias = weight @ vr_pge(loss_a, loss_b, mask_a, keep_prob) - expected
    assert np.abs(bias).max() > 1e-2


# Rows of draws


@pytest.mark.parametrize("alpha", ALPHAS)
def test_rows_equal_single_draws_bit_for_bit(alpha):
    rng = np.random.default_rng(2)
    s = rng.uniform(0, 1, 33)
    s[:2] = 0.0, 1.0
    mask_a, mask_b = rng.random((19, 33)) < s, rng.random((19, 33)) < s
    loss_a, loss_b = rng.normal(size=19), rng.normal(size=19)
    coin = rng.choice([-1, 1], 19)
    rows = [
        pge(loss_a, mask_a, s, alpha),
        vr_pge(loss_a, loss_b, mask_a, s, alpha),
        vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, s, alpha),
        coin_flip(loss_a, loss_b, mask_a, s, coin, alpha),
    ]
    for row in rows:
        assert row.shape == (19, 33)
        assert row.dtype == np.float64
    for k in range(19):
        la, lb, ma, mb = float(loss_a[k]), float(loss_b[k]), mask_a[k], mask_b[k]
        single = [
            pge(la, ma, s, alpha),
            vr_pge(la, lb, ma, s, alpha),
            vr_pge_symmetric(la, lb, ma, mb, s, alpha),
            coin_flip(la, lb, ma, s, int(coin[k]), alpha),
        ]
        for row, one in zip(rows, single, strict=True):
            assert one.shape == (33,)
            assert row[k].tobytes() == one.tobytes()


def test_float32_losses_and_masks_are_computed_in_float64():
    s = np.array([0.3, 0.6])
    loss_a, loss_b = np.float32(1.1), np.float32(1.0)
    expected = vr_pge(float(loss_a), float(loss_b), [True, False], s)
    got = vr_pge(loss_a, loss_b, np.array([1, 0], np.float32), s)
    assert got.dtype == np.float64
    assert got.tobytes() == expected.tobytes()


# Edges


def every_estimator(mask_a, mask_b, keep_prob, alpha, loss_a=3.0, loss_b=1.0, coin=1.0):
    yield pge(loss_a, mask_a, keep_prob, alpha)
    yield vr_pge(loss_a, loss_b, mask_a, keep_prob, alpha)
    yield vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, keep_prob, alpha)
    yield coin_flip(loss_a, loss_b, mask_a, keep_prob, coin, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_certain_channels_get_exactly_zero(alpha):
    s = np.array([0.0, 1.0, 0.5])
    for estimate in every_estimator([0, 1, 1], [0, 1, 0], s, alpha):
        assert estimate[0] == 0.0
        assert estimate[1] == 0.0
        assert estimate[2] > 0.0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("mask", "channel"), [([1, 1, 1], 0), ([0, 0, 1], 1)])
def test_impossible_draws_are_errors(mask, channel, alpha):
    s, good = np.array([0.0, 1.0, 0.5]), [0, 1, 0]
    message = rf"disagrees with keep_prob\[{channel}\]"
    with pytest.raises(ValueError, match="mask " + message):
        pge(3.0, mask, s, alpha)
    with pytest.raises(ValueError, match="mask_a " + message):
        vr_pge(3.0, 1.0, mask, s, alpha)
    with pytest.raises(ValueError, match="mask_a " + message):
        vr_pge_symmetric(3.0, 1.0, mask, good, s, alpha)
    with pytest.raises(ValueError, match="mask_b " + message):
        vr_pge_symmetric(3.0, 1.0, good, mask, s, alpha)
    with pytest.raises(ValueError, match="mask_b " + message):  # equal masks, both impossible
        vr_pge_symmetric([3.0, 1.0], [1.0, 1.0], [good, good], [good, mask], s, alpha)
    with pytest.raises(ValueError, match="mask_a " + message):
        coin_flip(3.0, 1.0, mask, s, 1, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("s", [1e-300, 1e-17, 2.0**-53, 1 - 2.0**-53])
def test_next_to_zero_and_one_nothing_overflows(s, alpha):
    kept = (1 - s) ** alpha * s ** (alpha - 1)
    pruned = -(s**alpha) * (1 - s) ** (alpha - 1)
    np.testing.assert_allclose(vr_pge(2.0, 1.0, [1], [s], alpha), [kept], rtol=1e-12)
    np.testing.assert_allclose(vr_pge(2.0, 1.0, [0], [s], alpha), [pruned], rtol=1e-12)
    assert vr_pge_symmetric(2.0, 1.0, [0], [0], [s], alpha)[0] == 0.0


def test_inputs_are_left_alone():
    s, mask = np.array([0.3, 0.6]), np.array([1.0, 0.0])
    s.flags.writeable = mask.flags.writeable = False
    for estimate in every_estimator(mask, mask, s, 0.5):
        assert not np.shares_memory(estimate, mask)


# Bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_losses_must_be_finite(bad):
    s, mask = [0.5, 0.5], [1, 0]
    with pytest.raises(ValueError, match=r"^loss is (nan|-?inf), not finite"):
        pge(bad, mask, s)
    for name, pair in [("loss_a", (bad, 1.0)), ("loss_b", (1.0, bad))]:
        message = rf"^{name} is (nan|-?inf), not finite"
        with pytest.raises(ValueError, match=message):
            vr_pge(*pair, mask, s)
        with pytest.raises(ValueError, match=message):
            vr_pge_symmetric(*pair, mask, mask, s)
        with pytest.raises(ValueError, match=message):
            coin_flip(*pair, mask, s, 1)
    with pytest.raises(ValueError, match="loss_b is"):
        vr_pge([1.0, 1.0], [1.0, bad], [mask, mask], s)


@pytest.mark.parametrize(
    ("loss", "mask"),
    [([1.0], [1, 0]), (1.0, [[1, 0]]), ([1.0, 2.0, 3.0], [[1, 0], [0, 0]]), ([[1.0]], [[1, 0]])],
)
def test_one_loss_per_draw(loss, mask):
    n_draws = np.shape(mask)[:-1]
    good = np.ones(n_draws)
    with pytest.raises(ValueError, match=r"loss has shape .* one number per draw"):
        pge(loss, mask, [0.5, 0.5])
    with pytest.raises(ValueError, match="loss_a has shape"):
        vr_pge(loss, good, mask, [0.5, 0.5])
    with pytest.raises(ValueError, match="loss_b has shape"):
        vr_pge(good, loss, mask, [0.5, 0.5])
    with pytest.raises(ValueError, match="coin has shape"):
        coin_flip(good, good, mask, [0.5, 0.5], loss)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 1, 2)])
def test_mask_shape_must_fit(shape):
    mask = np.zeros(shape)
    with pytest.raises(ValueError, match=r"mask has shape .* keep_prob \(2,\)"):
        pge(1.0, mask, [0.5, 0.5])
    with pytest.raises(ValueError, match="mask_a has shape"):
        vr_pge(1.0, 1.0, mask, [0.5, 0.5])
    with pytest.raises(ValueError, match="mask_b has shape"):
        vr_pge_symmetric(1.0, 1.0, [0, 0], mask, [0.5, 0.5])


def test_masks_come_in_pairs():
    with pytest.raises(ValueError, match=r"mask_a has shape \(1, 2\), mask_b \(2, 2\)"):
        vr_pge_symmetric([1.0], [1.0, 2.0], np.zeros((1, 2)), np.zeros((2, 2)), [0.5, 0.5])


@pytest.mark.parametrize("mask", [[0, 2], [np.nan, 1], [0.5, 0.5]])
def test_mask_must_be_zeros_and_ones(mask):
    with pytest.raises(ValueError, match="mask_a has entries other than 0 and 1"):
        vr_pge(1.0, 0.0, mask, [0.5, 0.5])


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1])
def test_keep_prob_must_be_probabilities(bad):
    with pytest.raises(ValueError, match=r"keep_prob\[1\] is"):
        vr_pge(1.0, 0.0, [0, 0], [0.5, bad])
    with pytest.raises(ValueError, match=r"keep_prob\[1\] is"):
        preconditioner([0.5, bad], 0.5)
    with pytest.raises(ValueError, match="flat vector"):
        preconditioner([[0.5]], 0.5)


@pytest.mark.parametrize("alpha", [-1e-9, 1.0 + 1e-9, np.nan, np.inf])
def test_precondition_power_has_a_range(alpha):
    with pytest.raises(ValueError, match="precondition_power is"):
        preconditioner([0.5], alpha)
    for function in (pge, vr_pge, vr_pge_symmetric, coin_flip):
        arguments = {
            pge: (1.0, [1]),
            vr_pge: (1.0, 0.0, [1]),
            vr_pge_symmetric: (1.0, 0.0, [1], [0]),
            coin_flip: (1.0, 0.0, [1]),
        }[function]
        extra = {"coin": 1} if function is coin_flip else {}
        with pytest.raises(ValueError, match="precondition_power is"):
            function(*arguments, keep_prob=[0.5], precondition_power=alpha, **extra)


@pytest.mark.parametrize("coin", [0, 0.5, 2])
def test_coin_is_plus_or_minus_one(coin):
    with pytest.raises(ValueError, match="coin has entries other than"):
        coin_flip(1.0, 0.0, [1], [0.5], coin)
