"""Pooling against loops over windows."""

import numpy as np
import pytest

from minicst.backend import conv_output_size
from minicst.backend.pooling import NO_TAP

# h, w, kernel, stride, padding: tiling, odd sizes, gaps, overlaps, padding, one window
CASES = [
    (4, 6, 2, 2, 0),
    (5, 7, 2, 2, 0),
    (7, 5, 3, 2, 0),
    (7, 6, 3, 1, 0),
    (6, 7, 3, 2, 1),
    (5, 5, 3, 3, 1),
    (5, 6, 2, 1, 1),
    (8, 7, 2, 3, 0),
    (1, 1, 1, 1, 0),
    (1, 2, 2, 1, 1),
    (3, 3, 3, 3, 0),
    (9, 8, 5, 2, 2),
]


def windows(shape, kernel, stride, padding):
    """Yield (image, oy, ox, channel), [(tap, y, x) inside the image]."""
    n, h, w, c = shape
    oh, ow = (conv_output_size(size, kernel, stride, padding) for size in (h, w))
    for i, oy, ox, channel in np.ndindex(n, oh, ow, c):
        taps = []
        for tap, (ky, kx) in enumerate(np.ndindex(kernel, kernel)):
            y, x = oy * stride + ky - padding, ox * stride + kx - padding
            if 0 <= y < h and 0 <= x < w:
                taps.append((tap, y, x))
        yield (i, oy, ox, channel), taps


def out_shape(shape, kernel, stride, padding):
    n, h, w, c = shape
    return n, *(conv_output_size(size, kernel, stride, padding) for size in (h, w)), c


def values(rng, shape, ties):
    if ties:
        return rng.integers(0, 3, shape).astype(np.float64)
    return rng.normal(size=shape) - 5.0  # all negative: a padded zero would win


@pytest.mark.parametrize(("h", "w", "kernel", "stride", "padding"), CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_and_its_gradient(backend, rng, h, w, kernel, stride, padding, ties):
    x = values(rng, (2, h, w, 3), ties)
    g = rng.normal(size=out_shape(x.shape, kernel, stride, padding))
    want, want_tap, want_grad = np.zeros(g.shape), np.zeros(g.shape), np.zeros(x.shape)
    for at, taps in windows(x.shape, kernel, stride, padding):
        i, _, _, c = at
        tap, y, z = max(taps, key=lambda t: x[i, t[1], t[2], c])  # max keeps the first of equals
        want[at], want_tap[at] = x[i, y, z, c], tap
        want_grad[i, y, z, c] += g[at]
    out, tap = backend.max_pool2d(x, kernel, stride, padding)
    assert np.array_equal(out, want)
    assert np.array_equal(tap, want_tap)
    assert tap.dtype == np.uint8
    grad = backend.max_pool2d_backward(g, tap, x.shape, kernel, stride, padding)
    assert np.allclose(grad, want_grad, rtol=0, atol=1e-14)
    without, nothing = backend.max_pool2d(x, kernel, stride, padding, with_index=False)
    assert nothing is None
    assert np.array_equal(without, want)


@pytest.mark.parametrize(("h", "w", "kernel", "stride", "padding"), CASES)
def test_avg_pool_and_its_gradient(backend, rng, h, w, kernel, stride, padding):
    x = rng.normal(size=(2, h, w, 3))
    g = rng.normal(size=out_shape(x.shape, kernel, stride, padding))
    want, want_grad = np.zeros(g.shape), np.zeros(x.shape)
    for at, taps in windows(x.shape, kernel, stride, padding):
        i, _, _, c = at
        for _, y, z in taps:
            want[at] += x[i, y, z, c] / kernel**2
            want_grad[i, y, z, c] += g[at] / kernel**2
    out = backend.avg_pool2d(x, kernel, stride, padding)
    assert np.allclose(out, want, rtol=0, atol=1e-14)
    grad = backend.avg_pool2d_backward(g, x.shape, kernel, stride, padding)
    assert np.allclose(grad, want_grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", [2, 15])
def test_every_tap_of_a_window_can_win(backend, kernel):
    for tap, (y, x) in enumerate(np.ndindex(kernel, kernel)):
        image = np.zeros((1, kernel, kernel, 1), np.float32)
        image[0, y, x] = 1
        out, won = backend.max_pool2d(image, kernel, kernel)
        assert out.item() == 1
        assert won.item() == tap
        grad = backend.max_pool2d_backward(out, won, image.shape, kernel, kernel)
        assert np.array_equal(grad, image)


def test_a_padded_window_without_a_largest_value_has_no_winner(backend):
    for value in (-np.inf, np.nan):
        x = np.full((1, 2, 2, 1), value)
        out, tap = backend.max_pool2d(x, 3, 2, 1)
        assert np.array_equal(out.item(), value, equal_nan=True)
        assert tap.item() == NO_TAP
        assert not backend.max_pool2d_backward(np.ones_like(out), tap, x.shape, 3, 2, 1).any()


def test_pooling_of_views(backend, rng):
    x = rng.normal(size=(3, 4, 9, 8)).transpose(3, 2, 0, 1)[::2]
    g = rng.normal(size=(4, 4, 1, 4))[:, :, ::-1]
    copy, g_copy = x.copy(order="C"), g.copy(order="C")
    out, tap = backend.max_pool2d(x, 3, 2, 1)
    want, want_tap = backend.max_pool2d(copy, 3, 2, 1)
    assert np.array_equal(out, want)
    assert np.array_equal(tap, want_tap)
    assert np.array_equal(backend.avg_pool2d(x, 2, 2), backend.avg_pool2d(copy, 2, 2))
    assert np.array_equal(
        backend.avg_pool2d_backward(g, x.shape, 2, 2),
        backend.avg_pool2d_backward(g_copy, x.shape, 2, 2),
    )


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 4, 4, 0)])
def test_nothing_to_pool(backend, shape):
    x = np.zeros(shape, np.float32)
    out, tap = backend.max_pool2d(x, 2, 2)
    assert out.shape == (shape[0], 2, 2, shape[3])
    assert backend.max_pool2d_backward(out, tap, shape, 2, 2).shape == shape
    assert backend.avg_pool2d(x, 2, 2).shape == out.shape
    assert backend.avg_pool2d_backward(out, shape, 2, 2).shape == shape
