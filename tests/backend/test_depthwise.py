"""Depthwise convolution against the loop that defines it, and its gradients as transposes."""

import tracemalloc

import numpy as np
import pytest
from arrays import at_the_edge
from hypothesis import given, settings
from hypothesis import strategies as st

from minicst.autograd.conv import conv2d_loop
from minicst.backend import depthwise as depthwise_module
from minicst.backend import get_backend
from minicst.backend.base import Backend, conv_output_size

THREADS = (1, 2, 3, 5)


@st.composite
def geometries(draw):
    """Shape of x, kernel, stride, padding: whatever fits, strides beyond the kernel too."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    size = [draw(st.integers(max(1, k - 2 * padding), 9)) for k in kernel]
    n, c = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    return (n, *size, c), kernel, stride, padding


def numbers(shape, kernel, stride, padding, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    n, h, w, c = shape
    oh = conv_output_size(h, kernel[0], stride, padding)
    ow = conv_output_size(w, kernel[1], stride, padding)
    shapes = shape, (c, *kernel, 1), (n, oh, ow, c)
    return tuple(rng.normal(size=s).astype(dtype) for s in shapes)


def loop_gradients(x, weight, g, stride, padding):
    """Gradients of sum(g * depthwise(x, weight)), added up one output number at a time."""
    (_, h, w, _), (_, kh, kw, _) = x.shape, weight.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    grad_padded, grad_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i, y, z, c in np.ndindex(g.shape):
        rows = slice(y * stride, y * stride + kh)
        cols = slice(z * stride, z * stride + kw)
        grad_weight[c, :, :, 0] += g[i, y, z, c] * padded[i, rows, cols, c]
        grad_padded[i, rows, cols, c] += g[i, y, z, c] * weight[c, :, :, 0]
    return grad_padded[:, padding : padding + h, padding : padding + w], grad_weight


def three_passes(backend, x, weight, g, stride, padding, bias=None, of=None):
    backend = backend if of is None else at_the_edge(get_backend(), of)
    return (
        backend.depthwise_conv2d(x, weight, bias, stride, padding),
        backend.depthwise_conv2d_grad_weight(x, g, weight.shape, stride, padding),
        backend.depthwise_conv2d_grad_input(g, weight, x.shape, stride, padding),
    )


def assert_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0))


# values


@pytest.mark.parametrize("of", [None, Backend])  # the device's, and the plain one of every backend
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@settings(deadline=None, max_examples=60)
@given(geometry=geometries(), band_bytes=st.sampled_from([1, 400, 1 << 20]))
def test_all_three_passes_are_the_loops(of, dtype, geometry, band_bytes):
    shape, kernel, stride, padding = geometry
    x, weight, g = numbers(shape, kernel, stride, padding, dtype)
    bias = np.arange(1.0, 1 + shape[-1]).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depthwise_module, "BAND_BYTES", band_bytes)
        depthwise_module._bands.cache_clear()
        got = three_passes(at_the_edge(get_backend()), x, weight, g, stride, padding, bias, of)
    depthwise_module._bands.cache_clear()
    assert all(a.dtype == dtype for a in got)
    x, weight, g = (a.astype(np.float64) for a in (x, weight, g))
    out = conv2d_loop(x, weight, stride, padding, shape[-1]) + bias
    grad_x, grad_weight = loop_gradients(x, weight, g, stride, padding)
    assert_close(got, (out, grad_weight, grad_x), 1e-12 if dtype == np.float64 else 1e-5)


@settings(deadline=None, max_examples=60)
@given(geometry=geometries())
def test_gradients_are_the_transposes(geometry):
    _, _, stride, padding = geometry
    x, weight, g = numbers(*geometry)
    out, grad_weight, grad_x = three_passes(
        at_the_edge(get_backend()), x, weight, g, stride, padding
    )
    along = np.vdot(out, g)
    assert np.vdot(x, grad_x) == pytest.approx(along, rel=1e-10, abs=1e-10)
    assert np.vdot(weight, grad_weight) == pytest.approx(along, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2, 112, 112, 32), 1), ((3, 57, 56, 37), 2), ((2, 14, 14, 512), 1), ((5, 7, 7, 1024), 2)],
)
def test_shapes_of_mobilenet_in_float32(backend, shape, stride):
    x, weight, g = numbers(shape, (3, 3), stride, 1, np.float32)
    got = three_passes(backend, x, weight, g, stride, 1)
    x, weight, g = (a.astype(np.float64) for a in (x, weight, g))
    # the plain version: against the loops above
    assert_close(got, three_passes(backend, x, weight, g, stride, 1, of=Backend), 1e-5)


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 5, 5, 0), (0, 5, 5, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_image_or_no_channel(backend, shape, stride):
    x, weight, g = numbers(shape, (3, 3), stride, 1)
    out, grad_weight, grad_x = three_passes(backend, x, weight, g, stride, 1)
    assert (out.shape, grad_weight.shape, grad_x.shape) == (g.shape, weight.shape, x.shape)
    assert not grad_weight.any()


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("layout", ["fortran", "sliced", "reversed"])
def test_any_memory_layout_and_inputs_left_alone(backend, layout, stride):
    arrays = numbers((3, 9, 8, 4), (3, 2), stride, 1)
    want = three_passes(backend, *arrays, stride, 1)

    def strange(a):
        if layout == "fortran":
            return np.asfortranarray(a)
        if layout == "sliced":
            return np.repeat(np.repeat(a, 2, axis=0), 2, axis=-1)[::2, :, :, ::2]
        return np.ascontiguousarray(a[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]

    others = [strange(a) for a in arrays]
    assert_close(three_passes(backend, *others, stride, 1), want)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def test_a_window_that_does_not_fit_says_so(backend):
    with pytest.raises(ValueError, match=r"window of 5 does not fit into 2 \+ 2 \* 1 pixels"):
        backend.depthwise_conv2d(np.zeros((1, 2, 2, 1)), np.zeros((1, 5, 5, 1)), None, 1, 1)


# how it is cut, on the CPU


@pytest.mark.cpu
@pytest.mark.parametrize("run", [1, 2])
def test_taps_of_a_run_lie_side_by_side(run):
    weight = np.arange(24.0).reshape(4, 3, 2, 1)
    taps = depthwise_module._taps(weight, run)
    assert taps.shape == (3, 2, run * 4)
    assert taps.flags.c_contiguous  # ten times slower otherwise, with the same numbers
    for i in range(run * 4):
        assert np.array_equal(taps[:, :, i], weight[i % 4, :, :, 0])


@pytest.mark.cpu
@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 200), st.integers(1, 1 << 22))
def test_bands_cover_every_row_once(n, rows, bytes_per_row):
    bands = depthwise_module._bands(n, rows, bytes_per_row)
    covered = np.zeros((n, rows), int)
    for images, first, last in bands:
        covered[images, first:last] += 1
        size = (images.stop - images.start) * (last - first)
        assert size * bytes_per_row <= depthwise_module.BAND_BYTES or size == 1
    assert (covered == 1).all()
    assert len(bands) >= min(4, n * rows)


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("width", "c", "pixels"), [(112, 32, 56), (14, 512, 7), (7, 1024, 1), (53, 37, 53), (5, 0, 5)]
)
def test_pixels_of_a_run_divide_the_row(width, c, pixels):
    assert depthwise_module._pixels_of_a_run(width, c) == pixels


# threads, meter, memory


@pytest.mark.cpu  # its threads
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [((5, 40, 40, 64), 1), ((5, 41, 40, 37), 2), ((1, 64, 64, 33), 1), ((9, 7, 7, 256), 3)],
)
def test_same_bits_on_any_number_of_threads(backend, monkeypatch, shape, stride, dtype):
    monkeypatch.setattr("minicst.backend.pool.INLINE_BYTES", 0)
    arrays = numbers(shape, (3, 3), stride, 1, dtype)
    results, tasks = [], []
    for threads in THREADS:
        backend.set_threads(threads)
        run = backend.pool.run
        watched = lambda n, *rest, run=run: (tasks.append(n), run(n, *rest))  # noqa: E731
        monkeypatch.setattr(backend.pool, "run", watched)
        results.append([a.tobytes() for a in three_passes(backend, *arrays, stride, 1)])
    assert min(tasks) >= 4
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("of", [None, Backend])
@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 4), (4, 2)])
def test_the_meter_counts_every_tap_padding_included(backend, of, stride, side):
    x, weight, g = numbers((2, 8, 8, 5), (3, 3), stride, 1, np.float32)
    three_passes(backend, x, weight, g, stride, 1, of=of)
    macs = 2 * side * side * 5 * 9
    n_bytes = 4 * (2 * 64 * 5 + 2 * side * side * 5 + 5 * 9)
    keys = [("", "", which) for which in ("forward", "weight_gradient", "input_gradient")]
    assert backend.meter.macs == dict.fromkeys(keys, macs)
    assert backend.meter.bytes == dict.fromkeys(keys, n_bytes)


@pytest.mark.cpu  # tracemalloc sees the host's memory
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_of_the_size_of_all_windows_is_allocated(backend, stride):
    x, weight, g = numbers((8, 56, 56, 64), (3, 3), stride, 1, np.float32)
    three_passes(backend, x, weight, g, stride, 1)  # fills the workspaces
    for function, args, result in [
        (backend.depthwise_conv2d, (x, weight, None, stride, 1), g.nbytes),
        (backend.depthwise_conv2d_grad_weight, (x, g, weight.shape, stride, 1), weight.nbytes),
        (backend.depthwise_conv2d_grad_input, (g, weight, x.shape, stride, 1), x.nbytes),
    ]:
        tracemalloc.start()
        function(*args)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + (2 << 20), f"{function.__name__}: {peak} bytes"
