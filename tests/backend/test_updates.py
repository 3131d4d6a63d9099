"""ReLU and the optimizers' updates against plain formulas and numbers computed by hand."""

import numpy as np
import pytest
from arrays import host, to_device

from minicst.autograd import Parameter

SIZE = 150_001  # several chunks of 256 kB, the last one short


def close(got, want, dtype):
    return np.allclose(got, want, rtol=0, atol=2e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 5e-2])
def test_sgd_follows_its_formula(backend, rng, dtype, momentum, nesterov, decay):
    w, g, v = (rng.normal(size=SIZE).astype(dtype) for _ in range(3))
    g_before = g.copy()
    w64, g64, v64 = (a.astype(np.float64) for a in (w, g, v))
    g64 = g64 + decay * w64
    v64 = momentum * v64 + g64
    step = g64 if momentum == 0 else g64 + momentum * v64 if nesterov else v64
    backend.sgd_update(w, g, v if momentum else None, 0.1, momentum, decay, nesterov)
    assert close(w, w64 - 0.1 * step, dtype)
    if momentum:
        assert close(v, v64, dtype)
    assert np.array_equal(g, g_before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [0.0, 5e-2])
def test_adam_follows_its_formula(backend, rng, dtype, decay):
    w, g, m = (rng.normal(size=SIZE).astype(dtype) for _ in range(3))
    v = rng.uniform(0.5, 2, SIZE).astype(dtype)
    g_before = g.copy()
    w64, g64, m64, v64 = (a.astype(np.float64) for a in (w, g, m, v))
    g64 = g64 + decay * w64
    m64 = 0.8 * m64 + 0.2 * g64
    v64 = 0.95 * v64 + 0.05 * g64**2
    w64 = w64 - 0.01 * (m64 / (1 - 0.8**4)) / (np.sqrt(v64 / (1 - 0.95**4)) + 1e-3)
    backend.adam_update(w, g, m, v, 4, 0.01, (0.8, 0.95), 1e-3, decay)
    assert close(m, m64, dtype)
    assert close(v, v64, dtype)
    assert close(w, w64, dtype)
    assert np.array_equal(g, g_before)


def test_sgd_by_hand(backend):
    w, v, g = np.array([1.0]), np.array([0.0]), np.array([0.5])
    backend.sgd_update(w, g, v, 0.1, 0.9, 0.1, False)  # g + decay w = 0.6
    assert w.item() == pytest.approx(0.94, abs=1e-15)
    backend.sgd_update(w, g, v, 0.1, 0.9, 0.1, False)  # v = 0.54 + 0.594
    assert v.item() == pytest.approx(1.134, abs=1e-15)
    assert w.item() == pytest.approx(0.8266, abs=1e-15)
    w, v = np.array([1.0]), np.array([0.0])
    backend.sgd_update(w, g, v, 0.1, 0.9, 0.1, True)  # 0.6 + 0.9 * 0.6
    assert w.item() == pytest.approx(0.886, abs=1e-15)


def test_adam_by_hand(backend):
    w, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    backend.adam_update(w, np.array([0.5]), m, v, 1, 0.1, (0.9, 0.999), 0.0, 0.0)
    assert w.item() == pytest.approx(0.9, abs=1e-12)  # the first step is lr sign(g)
    backend.adam_update(w, np.array([-0.5]), m, v, 2, 0.1, (0.9, 0.999), 0.0, 0.0)
    # m^ = (0.9 * 0.05 - 0.05) / 0.19 = -1/38, v^ = 0.25: + 0.1 (1/38) / 0.5
    assert w.item() == pytest.approx(0.9 + 0.2 / 38, abs=1e-12)


def layouts():
    yield "fortran", lambda a: np.asfortranarray(a)
    yield "sliced", lambda a: np.repeat(a, 2, axis=1)[:, ::2]


# Parameters and optimizer state are in C order, see below: a GPU's kernels take no other.
@pytest.mark.cpu
@pytest.mark.parametrize(("name", "layout"), list(layouts()))
def test_updates_reach_weights_of_any_memory_layout(backend, rng, name, layout):
    start, g = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    for strange in ((0,), (1,), (2,), (0, 1, 2)):
        arrays = [start.copy(), g.copy(), np.zeros((6, 5))]
        for i in strange:
            arrays[i] = layout(arrays[i])
        w, g_like, v = arrays
        backend.sgd_update(w, g_like, v, 0.1, 0.9, 0.0, False)
        assert np.allclose(w, start - 0.1 * g, rtol=0, atol=1e-15)
        assert np.array_equal(v, g)


def test_relu_and_its_gradient(backend, rng):
    x, g = rng.normal(size=(9, 90, 90)), rng.normal(size=(9, 90, 90))
    x[:, 0] = 0.0
    out = backend.relu(x)
    assert np.array_equal(out, np.where(x > 0, x, 0))
    assert np.array_equal(backend.relu_backward(g, out), np.where(x > 0, g, 0))
    view, g_view = x.transpose(2, 0, 1), g.transpose(2, 0, 1)
    assert np.array_equal(backend.relu(view), np.where(view > 0, view, 0))
    want = np.where(view > 0, g_view, 0)
    assert np.array_equal(backend.relu_backward(g_view, backend.relu(view)), want)
    assert np.array_equal(backend.relu_backward(g_view, view), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "layout"), [("c", np.ascontiguousarray), *layouts()])
def test_take_and_place_channels(backend, rng, name, layout, dtype):
    x = layout(rng.normal(size=(2, 3, 4, 6)).astype(dtype))
    index = np.array([4, 0, 5])
    taken = backend.take_channels(x, index)
    assert np.array_equal(taken, x[..., index])
    want = np.zeros((2, 3, 4, 8), dtype)
    want[..., np.array([7, 0, 3, 1, 2, 5])] = x
    placed = backend.place_channels(x, np.array([7, 0, 3, 1, 2, 5]), 8)
    assert np.array_equal(placed, want)
    assert taken.dtype == placed.dtype == dtype


@pytest.mark.parametrize("columns", [None, [0, 2, 3]], ids=["all columns", "some"])
@pytest.mark.parametrize("rows", [None, [1, 2, 5]], ids=["all rows", "some"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 4), (6,)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gather_and_scatter_a_block(backend, rng, shape, rows, columns, dtype):
    full = rng.normal(size=shape).astype(dtype)
    columns = None if len(shape) == 1 else columns
    keep = [np.arange(size) for size in shape]
    keep[0] = keep[0] if rows is None else np.array(rows)
    keep[-1] = keep[-1] if columns is None else np.array(columns)
    at = np.ix_(*keep)
    index = [None if which is None else np.array(which) for which in (rows, columns)]
    entries = backend.entries(shape, *index)
    small, want = np.zeros(full[at].shape, dtype), full.copy()
    backend.gather(full, entries, small)
    assert np.array_equal(small, full[at])
    assert np.array_equal(full, want)
    want[at] = rng.normal(size=small.shape)
    backend.scatter(full, entries, want[at])
    assert np.array_equal(full, want)


@pytest.mark.cpu  # whose entries are flat positions
def test_gather_and_scatter_by_flat_position(backend):
    array = np.arange(12.0).reshape(3, 4)
    index = np.array([[11, 0, 5], [6, 7, 1]])
    out = np.zeros((2, 3))
    backend.gather(array, index.reshape(-1), out)
    assert np.array_equal(out, index)
    backend.scatter(array, index.reshape(-1), -out)
    want = np.arange(12.0)
    want[index.reshape(-1)] *= -1
    assert np.array_equal(array.reshape(-1), want)
    super_class = super(type(backend), backend)  # the form that other backends inherit
    again = np.zeros((2, 3))
    super_class.gather(array, index.reshape(-1), again)
    assert np.array_equal(again, -out)


def test_parameters_are_in_c_order(rng):
    data = rng.normal(size=(4, 3)).T
    parameter = Parameter(data)
    assert parameter.data.flags.c_contiguous
    assert np.array_equal(host(parameter), data)
    assert Parameter(np.array(1.0)).shape == ()
    kept = to_device(np.ones((2, 3)))
    assert Parameter(kept).data is kept
