"""The numbers of a frame against sums written out over four masks and sixteen pairs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from minicst.explore.problem import (
    MASK_NAMES,
    State,
    ellipse_of,
    frame,
    mask_number,
)

MASKS = [(0, 0), (1, 0), (0, 1), (1, 1)]


def random_state(seed):
    rng = np.random.default_rng(seed)
    return State(
        keep_prob=tuple(rng.uniform(0.02, 0.98, 2).tolist()),
        precondition_power=float(rng.choice([0.0, 0.3, 0.5, 1.0])),
        keep_prob_lr=float(rng.uniform(0.05, 1.0)),
        budget=float(rng.uniform(0.2, 2.0)),
        losses=tuple(rng.uniform(0.0, 3.0, 4).tolist()),
        level=float(rng.uniform(0.0, 5.0)),
        drawn=tuple(rng.integers(0, 4, 2).tolist()),
    )


def probability(mask, s):
    return np.prod([p if bit else 1.0 - p for bit, p in zip(mask, s, strict=True)])


def score(mask, s):
    """d ln p(m|s) / ds, case by case: 1/s where m = 1, -1/(1 - s) where m = 0."""
    return np.array([1.0 / p if bit else -1.0 / (1.0 - p) for bit, p in zip(mask, s, strict=True)])


def moments(values, weights):
    mean = sum(w * v for w, v in zip(weights, values, strict=True))
    pairs = zip(weights, values, strict=True)
    return mean, sum(w * np.outer(v - mean, v - mean) for w, v in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_a_frame_is_what_sums_over_all_masks_give(seed):
    state = random_state(seed)
    shown, s = frame(state), np.array(state.keep_prob)
    losses = [loss + state.level for loss in state.losses]
    p = [probability(mask, s) for mask in MASKS]
    h = np.array([(x * (1.0 - x)) ** state.precondition_power for x in s])
    np.testing.assert_allclose(shown.losses, losses)
    np.testing.assert_allclose(shown.mask_probability, p)
    np.testing.assert_allclose(shown.preconditioner, h)
    np.testing.assert_allclose(shown.score, [score(mask, s) for mask in MASKS])
    phi = sum(a * b for a, b in zip(p, losses, strict=True))
    assert shown.expected_loss == pytest.approx(phi)

    pairs = list(itertools.product(range(4), range(4)))
    weights = [p[a] * p[b] for a, b in pairs]
    one_sided = [(losses[a] - losses[b]) * h * score(MASKS[a], s) for a, b in pairs]
    symmetric = [
        (losses[a] - losses[b]) * h * (score(MASKS[a], s) - score(MASKS[b], s)) / 2.0
        for a, b in pairs
    ]
    plain = [losses[a] * h * score(MASKS[a], s) for a in range(4)]
    np.testing.assert_allclose(shown.pair_probability.reshape(16), weights)
    np.testing.assert_allclose(shown.estimates.reshape(16, 2), one_sided, atol=1e-12)
    np.testing.assert_allclose(shown.pge_estimates, plain)
    for name, values, chance in (
        ("vr-pge", one_sided, weights),
        ("vr-pge-symmetric", symmetric, weights),
        ("pge", plain, p),
    ):
        mean, covariance = moments(values, chance)
        spread = shown.spreads[name]
        np.testing.assert_allclose(spread.moments.mean, mean, atol=1e-10)
        np.testing.assert_allclose(spread.moments.covariance, covariance, atol=1e-9)
        np.testing.assert_allclose(shown.gradient, mean, atol=1e-10)
        assert spread.total_variance == pytest.approx(np.trace(covariance))
    assert shown.ratio == pytest.approx(
        np.trace(moments(plain, p)[1]) / np.trace(moments(one_sided, weights)[1])
    )
    assert shown.spreads["vr-pge"].total_variance <= shown.bound

    a, b = state.drawn
    assert (shown.loss_a, shown.loss_b) == (shown.losses[a], shown.losses[b])
    z = s - state.keep_prob_lr * one_sided[4 * a + b]
    np.testing.assert_allclose(shown.z, z, atol=1e-12)
    np.testing.assert_allclose(shown.mean_step, s - state.keep_prob_lr * shown.gradient)
    v, new = shown.multiplier, shown.projected
    np.testing.assert_allclose(new, np.clip(z - v, 0.0, 1.0), atol=1e-12)
    assert v >= 0.0
    assert new.sum() <= state.budget + 1e-12
    assert v == 0.0 or new.sum() == pytest.approx(state.budget)


def test_the_projection_is_the_nearest_feasible_point():
    shown = frame(State(drawn=(3, 0), keep_prob_lr=0.9, budget=1.3))
    line = np.linspace(0.0, 1.0, 401)
    points = np.array([(x, y) for x in line for y in line if x + y <= 1.3])
    distance = np.linalg.norm(points - shown.z, axis=1)
    nearest = points[distance.argmin()]
    assert shown.multiplier > 0.0
    np.testing.assert_allclose(shown.projected, nearest, atol=0.004)


def test_a_level_moves_pge_alone():
    low, high = frame(State()), frame(State(level=8.0))
    for name in ("vr-pge", "vr-pge-symmetric"):
        before, after = low.spreads[name], high.spreads[name]
        np.testing.assert_allclose(after.moments.covariance, before.moments.covariance)
    assert high.spreads["pge"].total_variance > 60.0 * low.spreads["pge"].total_variance
    np.testing.assert_allclose(high.gradient, low.gradient)
    np.testing.assert_allclose(high.estimates, low.estimates)
    assert high.view == low.view


def test_what_the_page_suggests_to_try():
    border = replace(State(), keep_prob=(0.02, 0.6), precondition_power=0.0)
    assert frame(border).ratio < 1.0  # VR-PGE varies more: the rare mask's own loss is small
    assert frame(replace(border, level=2.0)).ratio > 1.0
    tamed = frame(replace(border, precondition_power=0.5))
    assert tamed.bound < frame(border).bound / 20.0
    stopped = frame(replace(border, precondition_power=1.0))
    assert abs(stopped.gradient[0]) < abs(tamed.gradient[0]) / 5.0
    assert frame(State(budget=0.6)).multiplier > frame(State()).multiplier > 0.0
    equal = frame(State(losses=(2.0, 0.5, 1.0, 1.0), level=8.0))
    assert not equal.estimate.any()
    assert np.abs(equal.pge_estimates[3]).min() > 1.0
    agree = State(drawn=(1, 0))
    assert frame(agree).estimate[1] != 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_ellipse_is_one_standard_deviation(seed):
    root = np.random.default_rng(seed).standard_normal((2, 2))
    covariance = root @ root.T
    ellipse = ellipse_of(covariance)
    angle = np.radians(ellipse.angle)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    assert ellipse.major >= ellipse.minor
    assert -90.0 <= ellipse.angle <= 90.0
    for turn in np.linspace(0.0, 2.0 * np.pi, 7):
        point = ellipse.major * np.cos(turn) * along + ellipse.minor * np.sin(turn) * across
        assert point @ np.linalg.solve(covariance, point) == pytest.approx(1.0)
    assert along @ covariance @ along == pytest.approx(ellipse.major**2)


def test_no_variance_at_all():
    shown = frame(State(losses=(1.0, 1.0, 1.0, 1.0)))
    assert shown.spreads["vr-pge"].total_variance == 0.0
    assert shown.bound == 0.0
    assert np.isnan(shown.ratio)
    assert shown.spreads["pge"].total_variance > 0.0


def test_masks_by_name():
    assert [mask_number(name, "--pair") for name in MASK_NAMES] == [0, 1, 2, 3]
    assert mask_number("10", "--pair") == 1
    with pytest.raises(ValueError, match=r"--pair 12: .* 00, 10, 01, 11"):
        mask_number("12", "--pair")
