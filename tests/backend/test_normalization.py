"""Batch norm on raw arrays against formulas in float64."""

import numpy as np
import pytest

EPS32 = np.finfo(np.float32).eps
SHAPES = [(1, 1), (5, 3), (7, 5, 3, 1), (4, 6, 5, 24), (3, 1500), (40, 16, 16, 64), (2, 3, 3, 1025)]
# A GPU's parts of a sum: 22 of different length; 6, of more channels than a block has threads.
SHAPES += [(5, 13, 11, 7), (8, 5, 5, 300)]


def per_channel(x):
    return x.reshape(-1, x.shape[-1]).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_equal_mean_and_var(backend, rng, shape, dtype):
    x = (3 + 2 * rng.normal(size=shape)).astype(dtype)
    mean, variance = backend.batch_norm_statistics(x)
    near = 64 * np.finfo(dtype).eps  # the sums of the oracle round as well
    assert mean.dtype == variance.dtype == dtype
    assert np.allclose(mean, per_channel(x).mean(axis=0), rtol=near, atol=near)
    assert np.allclose(variance, per_channel(x).var(axis=0), rtol=near, atol=near)


@pytest.mark.parametrize("std", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("c", [1, 3, 64])
def test_a_large_mean_does_not_cancel_the_variance(backend, rng, c, std):
    x = (1e4 + std * rng.normal(size=(64, 16, 16, c))).astype(np.float32)
    mean, variance = backend.batch_norm_statistics(x)
    true_mean, true_var = per_channel(x).mean(axis=0), per_channel(x).var(axis=0)
    # A float32 near 1e4 is spaced by 1e4 eps. An error d of the mean adds d^2 to the variance;
    # E[x^2] - E[x]^2 in float32 would be off by 1e8 eps, more than the variance itself.
    assert np.abs(mean - true_mean).max() < 2 * 1e4 * EPS32
    assert np.abs(variance - true_var).max() < 1e-5 * true_var.max() + (2 * 1e4 * EPS32) ** 2


def test_one_value_per_channel_has_variance_zero(backend):
    mean, variance = backend.batch_norm_statistics(np.array([[1.5, -2.0]], np.float32))
    assert mean.tolist() == [1.5, -2.0]
    assert variance.tolist() == [0.0, 0.0]


def test_no_channels(backend):
    mean, variance = backend.batch_norm_statistics(np.zeros((2, 3, 3, 0), np.float32))
    assert mean.shape == variance.shape == (0,)
    none = np.zeros(0, np.float32)
    x = np.zeros((2, 3, 3, 0), np.float32)
    assert backend.scale_shift(x, none, none).shape == x.shape
    grads = backend.batch_norm_backward(x, x, None, none, none, none, True)
    assert [g.shape for g in grads] == [x.shape, (0,), (0,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
def test_scale_shift(backend, rng, shape, relu):
    c = shape[-1]
    x, scale, shift = rng.normal(size=shape), rng.normal(size=c), rng.normal(size=c)
    want = x * scale + shift
    got = backend.scale_shift(x, scale, shift, relu)
    assert np.array_equal(got, np.maximum(want, 0) if relu else want)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_backward_equals_the_formula(backend, rng, shape, dtype, relu, training):
    c = shape[-1]
    x, g = rng.normal(1, 2, size=shape), rng.normal(size=shape)
    gamma, beta = rng.uniform(0.5, 1.5, c), rng.normal(size=c)
    mean, variance = x.reshape(-1, c).mean(axis=0), x.reshape(-1, c).var(axis=0)
    inv_std = 1 / np.sqrt(variance + 1e-5)
    normal = (x - mean) * inv_std
    out = np.maximum(gamma * normal + beta, 0)
    live = g * (out > 0) if relu else g
    axes = tuple(range(x.ndim - 1))
    want_x = live * gamma * inv_std
    if training:
        want_x = want_x - want_x.mean(axis=axes) - normal * (want_x * normal).mean(axis=axes)
    want = want_x, (live * normal).sum(axis=axes), live.sum(axis=axes)
    x, g, out, mean, inv_std, gamma = (a.astype(dtype) for a in (x, g, out, mean, inv_std, gamma))
    got = backend.batch_norm_backward(g, x, out if relu else None, mean, inv_std, gamma, training)
    tolerance = 2e-5 if dtype == np.float32 else 1e-12
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        assert np.abs(a - b).max() < tolerance * max(1, np.abs(b).max())


def test_a_transposed_view_is_normalized_like_its_copy(backend, rng):
    x = rng.normal(size=(4, 6, 5, 3)).transpose(0, 3, 1, 2)
    g = rng.normal(size=(4, 6, 5, 3)).transpose(0, 3, 1, 2)
    copy, g_copy = x.copy(order="C"), g.copy(order="C")
    for a, b in zip(
        backend.batch_norm_statistics(x), backend.batch_norm_statistics(copy), strict=True
    ):
        assert np.array_equal(a, b)
    scale, shift = rng.normal(size=5), rng.normal(size=5)
    out = backend.scale_shift(x, scale, shift, True)
    assert np.array_equal(out, backend.scale_shift(copy, scale, shift, True))
    got = backend.batch_norm_backward(g, x, out, shift, scale, scale, True)
    want = backend.batch_norm_backward(g_copy, copy, out, shift, scale, scale, True)
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("mean_of_x", [0.0, 3.9, 4.1, 100.0])  # 16 variances: |mean| = 4
def test_statistics_on_both_sides_of_far_from_zero(backend, rng, mean_of_x):
    x = (mean_of_x + rng.normal(size=(64, 16, 16, 24))).astype(np.float32)
    mean, variance = backend.batch_norm_statistics(x)
    assert np.abs(mean - per_channel(x).mean(axis=0)).max() < 2 * EPS32 * max(1, mean_of_x)
    assert np.abs(variance - per_channel(x).var(axis=0)).max() < 32 * EPS32


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("mean_of_x", [3.9, 100.0])
def test_backward_far_from_zero(backend, rng, mean_of_x, relu):
    x = (mean_of_x + rng.normal(size=(32, 8, 8, 5))).astype(np.float32)
    g = (0.5 + rng.normal(size=x.shape)).astype(np.float32)
    wide, g_wide = x.astype(np.float64), g.astype(np.float64)
    mean, inv_std = per_channel(x).mean(axis=0), 1 / per_channel(x).std(axis=0)
    gamma = rng.uniform(0.5, 1.5, 5)
    normal = (wide - mean) * inv_std
    out = np.maximum(gamma * normal, 0)
    live = g_wide * (out > 0) if relu else g_wide
    want = live * gamma * inv_std
    want = want - want.mean(axis=(0, 1, 2)) - normal * (want * normal).mean(axis=(0, 1, 2))
    mean, inv_std, gamma, out = (a.astype(np.float32) for a in (mean, inv_std, gamma, out))
    got = backend.batch_norm_backward(g, x, out if relu else None, mean, inv_std, gamma, True)
    # The float32 mean itself is off by up to mean eps.
    near = 20 * EPS32 * max(1, mean_of_x)
    assert np.abs(got[0] - want).max() < near
    assert np.abs(got[1] - (live * normal).sum(axis=(0, 1, 2))).max() < near * x.size / 5
    assert np.abs(got[2] - live.sum(axis=(0, 1, 2))).max() < 1e-5 * x.size / 5


def test_scale_shift_in_place_takes_the_memory_of_x(backend, rng):
    x = rng.normal(size=(5, 6, 6, 7)).astype(np.float32)
    scale, shift = (rng.normal(size=7).astype(np.float32) for _ in range(2))
    want = backend.scale_shift(x, scale, shift, True)
    got = backend.scale_shift(x, scale, shift, True, in_place=True)
    assert got is x
    assert np.array_equal(got, want)
