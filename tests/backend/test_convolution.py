"""Convolution and its gradients against loops, and as transposes of each other."""

import numpy as np
import pytest
from arrays import at_the_edge
from scipy.signal import correlate

from minicst.autograd.conv import conv2d_loop
from minicst.backend import conv_output_size, get_backend

# kernel (h, w), stride, padding; 2 + 2 // 2 pads more than a window needs, 4 x 2 isn't square
GEOMETRIES = [
    ((1, 1), 1, 0),
    ((1, 1), 2, 0),
    ((1, 1), 1, 1),
    ((3, 3), 1, 0),
    ((3, 3), 1, 1),
    ((3, 3), 1, 2),
    ((3, 3), 2, 1),
    ((3, 3), 3, 0),
    ((2, 2), 1, 2),
    ((2, 2), 2, 0),
    ((4, 2), 1, 1),
    ((4, 2), 3, 2),
    ((5, 5), 1, 2),
    ((5, 5), 2, 2),
    ((7, 6), 1, 0),
]
SIZES = [(1, 1, 1), (2, 1, 3), (1, 4, 1), (3, 2, 5)]  # n, c_in, c_out


def loop_gradients(x, weight, grad_out, stride, padding):
    """Gradients of sum(grad_out * conv2d(x, weight)), added up one output number at a time."""
    (_, h, w, _), (_, kh, kw, _) = x.shape, weight.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    grad_padded, grad_weight = np.zeros_like(padded), np.zeros_like(weight)
    for i, y, z, o in np.ndindex(grad_out.shape):
        rows = slice(y * stride, y * stride + kh)
        cols = slice(z * stride, z * stride + kw)
        grad_weight[o] += grad_out[i, y, z, o] * padded[i, rows, cols]
        grad_padded[i, rows, cols] += grad_out[i, y, z, o] * weight[o]
    return grad_padded[:, padding : padding + h, padding : padding + w], grad_weight


def draw(rng, kernel, stride, padding, size, dtype=np.float64):
    n, c_in, c_out = size
    h, w = 7, 6
    oh = conv_output_size(h, kernel[0], stride, padding)
    ow = conv_output_size(w, kernel[1], stride, padding)
    x = rng.normal(size=(n, h, w, c_in)).astype(dtype)
    weight = rng.normal(size=(c_out, *kernel, c_in)).astype(dtype)
    return x, weight, rng.normal(size=(n, oh, ow, c_out)).astype(dtype)


def assert_close(got, want, dtype):
    tolerance = {np.float64: 1e-13, np.float32: 2e-6}[dtype]
    assert got.dtype == dtype
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= tolerance * max(1, np.abs(want).max(initial=0))


# the oracle


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1), (3, 2)])
def test_the_loop_is_scipys_correlation(rng, stride, padding):
    x, weight = rng.normal(size=(2, 8, 7, 3)), rng.normal(size=(4, 3, 2, 3))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = conv2d_loop(x, weight, stride, padding)
    for i in range(2):
        for o in range(4):
            each = [correlate(padded[i, :, :, c], weight[o, :, :, c], "valid") for c in range(3)]
            want = np.sum(each, axis=0)[::stride, ::stride]
            assert np.allclose(out[i, :, :, o], want, rtol=0, atol=1e-13)


def test_the_loop_with_groups_is_a_loop_per_group(rng):
    x, weight = rng.normal(size=(2, 5, 5, 6)), rng.normal(size=(4, 3, 3, 3))
    both = [conv2d_loop(x[..., i * 3 : i * 3 + 3], weight[i * 2 : i * 2 + 2]) for i in (0, 1)]
    assert np.array_equal(conv2d_loop(x, weight, groups=2), np.concatenate(both, axis=-1))


# values


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_conv2d_and_its_gradients_equal_loops(backend, rng, kernel, stride, padding, size, dtype):
    x, weight, g = draw(rng, kernel, stride, padding, size, dtype)
    x64, weight64, g64 = (a.astype(np.float64) for a in (x, weight, g))
    out = backend.conv2d(x, weight, None, stride, padding)
    assert_close(out, conv2d_loop(x64, weight64, stride, padding), dtype)
    grad_x, grad_weight = loop_gradients(x64, weight64, g64, stride, padding)
    got_x = backend.conv2d_grad_input(g, weight, x.shape, stride, padding)
    assert_close(got_x, grad_x, dtype)
    got_weight = backend.conv2d_grad_weight(x, g, weight.shape, stride, padding)
    assert_close(got_weight, grad_weight, dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_gradients_are_the_transposes_of_conv2d(backend, rng, kernel, stride, padding, size):
    x, weight, g = draw(rng, kernel, stride, padding, size)
    dx, dw = rng.normal(size=x.shape), rng.normal(size=weight.shape)
    along_x = np.vdot(backend.conv2d(dx, weight, None, stride, padding), g)
    grad_x = backend.conv2d_grad_input(g, weight, x.shape, stride, padding)
    assert np.vdot(dx, grad_x) == pytest.approx(along_x, rel=1e-11, abs=1e-11)
    along_w = np.vdot(backend.conv2d(x, dw, None, stride, padding), g)
    grad_w = backend.conv2d_grad_weight(x, g, weight.shape, stride, padding)
    assert np.vdot(dw, grad_w) == pytest.approx(along_w, rel=1e-11, abs=1e-11)


# A GPU's two ways are one function: which one is taken is tested below, their numbers above.
@pytest.mark.cpu
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (5, 3)])
@pytest.mark.parametrize("size", SIZES)
def test_both_ways_to_the_input_gradient_agree(backend, rng, kernel, padding, size):
    x, weight, g = draw(rng, (kernel, kernel), 1, padding, size)
    want, _ = loop_gradients(x, weight, g, 1, padding)
    flip = backend._grad_input_by_flip(g, weight, x.shape[1:3], kernel - 1 - padding)
    col2im = backend._grad_input_by_col2im(g, weight, x.shape, 1, padding)
    assert_close(flip, want, np.float64)
    assert_close(col2im, want, np.float64)


@pytest.mark.cpu  # its rule, and a method of its own
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "c_out", "flips"),
    [
        ((3, 3), 1, 1, 4, True),
        ((3, 3), 1, 1, 40, False),  # 42 output pixels: turning 40 filters costs more
        ((3, 3), 2, 1, 4, False),
        ((2, 2), 1, 2, 4, False),  # would need negative padding
        ((4, 2), 1, 1, 4, False),  # would need 2 rows and 0 columns of padding
    ],
)
def test_the_flip_is_taken_where_it_pays(
    backend, rng, monkeypatch, kernel, stride, padding, c_out, flips
):
    taken = []
    flip = backend._grad_input_by_flip
    monkeypatch.setattr(
        backend, "_grad_input_by_flip", lambda *args: taken.append(1) or flip(*args)
    )
    x, weight, g = draw(rng, kernel, stride, padding, (1, 2, c_out))
    got = backend.conv2d_grad_input(g, weight, x.shape, stride, padding)
    assert bool(taken) == flips
    assert_close(got, loop_gradients(x, weight, g, stride, padding)[0], np.float64)


@pytest.mark.cpu  # on the stand-in, once
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "c_out", "launched"),
    [
        ((3, 3), 1, 1, 4, ["im2col"]),  # the flip: as many columns
        ((3, 3), 1, 0, 3, ["im2col"]),
        ((3, 3), 1, 1, 5, ["col2im"]),
        ((3, 3), 2, 1, 4, ["col2im"]),
        ((2, 2), 1, 2, 4, ["col2im"]),  # a flip would need negative padding
        ((4, 2), 1, 1, 4, ["col2im"]),  # a flip would need 2 rows and 0 columns of padding
        ((1, 1), 1, 0, 4, []),  # one product
    ],
)
def test_a_gpu_takes_the_way_with_fewer_columns(
    gpu, rng, monkeypatch, kernel, stride, padding, c_out, launched
):
    names, rows = [], gpu.launch_rows
    monkeypatch.setattr(
        gpu, "launch_rows", lambda name, *args: names.append(name) or rows(name, *args)
    )
    x, weight, g = draw(rng, kernel, stride, padding, (2, 4, c_out))
    got = at_the_edge(gpu).conv2d_grad_input(g, weight, x.shape, stride, padding)
    assert names == launched
    assert_close(got, loop_gradients(x, weight, g, stride, padding)[0], np.float64)


def test_bias_is_added_to_every_pixel(backend, rng):
    x, weight, _ = draw(rng, (3, 3), 1, 1, (2, 3, 4))
    bias = rng.normal(size=4)
    want = conv2d_loop(x, weight, 1, 1) + bias
    assert_close(backend.conv2d(x, weight, bias, 1, 1), want, np.float64)


@pytest.mark.parametrize("c_out", [8, 24])  # both ways to a GPU's input gradient
def test_several_chunks_and_partial_sums(device, backend, rng, monkeypatch, c_out):
    # 590 kB of columns an image: chunks of 3 in the forward pass, 3 products per partial sum
    if device != "cpu":  # which has a workspace for all of them
        monkeypatch.setattr(get_backend(), "workspace_bytes", 2 << 20)
    x = rng.normal(size=(32, 32, 32, 16)).astype(np.float32)
    weight = rng.normal(size=(c_out, 3, 3, 16)).astype(np.float32)
    g = rng.normal(size=(32, 32, 32, c_out)).astype(np.float32)
    col = backend.im2col(x.astype(np.float64), 3, 3, 1, 1)
    out = col @ weight.reshape(c_out, -1).T.astype(np.float64)
    got = backend.conv2d(x, weight, None, 1, 1)
    assert np.abs(got.reshape(-1, c_out) - out).max() < 1e-5 * np.abs(out).max()
    grad_w = g.reshape(-1, c_out).T.astype(np.float64) @ col
    got = backend.conv2d_grad_weight(x, g, weight.shape, 1, 1)
    assert np.abs(got.reshape(c_out, -1) - grad_w).max() < 1e-5 * np.abs(grad_w).max()
    grad_col = g.reshape(-1, c_out).astype(np.float64) @ weight.reshape(c_out, -1)
    grad_x = backend.col2im(grad_col, x.shape, 3, 3, 1, 1)
    got = backend.conv2d_grad_input(g, weight, x.shape, 1, 1)
    assert np.abs(got - grad_x).max() < 1e-5 * np.abs(grad_x).max()


def test_a_large_weight_is_summed_in_two_parts(backend, rng):
    x = rng.normal(size=(5, 4, 4, 256)).astype(np.float32)
    g = rng.normal(size=(5, 4, 4, 128)).astype(np.float32)
    col = backend.im2col(x.astype(np.float64), 3, 3, 1, 1)
    want = g.reshape(-1, 128).T.astype(np.float64) @ col
    got = backend.conv2d_grad_weight(x, g, (128, 3, 3, 256), 1, 1)  # 1.2 MB
    assert np.abs(got.reshape(128, -1) - want).max() < 1e-5 * np.abs(want).max()


# edges


@pytest.mark.parametrize("size", [(0, 2, 3), (2, 0, 3), (2, 2, 0), (0, 0, 0)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((1, 1), 1, 0), ((3, 3), 1, 1)])
def test_no_image_or_no_channel_gives_zeros_or_nothing(
    device, backend, rng, kernel, stride, padding, size
):
    x, weight, g = draw(rng, kernel, stride, padding, size)
    out = backend.conv2d(x, weight, None, stride, padding)
    assert out.shape == g.shape
    assert not out.any()
    grad_x = backend.conv2d_grad_input(g, weight, x.shape, stride, padding)
    assert grad_x.shape == x.shape
    assert not grad_x.any()
    if device == "cpu":
        by_flip = backend._grad_input_by_flip(g, weight, x.shape[1:3], kernel[0] - 1 - padding)
        assert np.array_equal(by_flip, grad_x)
    grad_weight = backend.conv2d_grad_weight(x, g, weight.shape, stride, padding)
    assert grad_weight.shape == weight.shape
    assert not grad_weight.any()


def strange(array, how):
    """An array of the same values in another memory layout."""
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "sliced":
        wide = np.zeros([2 * size for size in array.shape])
        wide[tuple(slice(None, None, 2) for _ in array.shape)] = array
        return wide[tuple(slice(None, None, 2) for _ in array.shape)]
    if how == "reversed":
        return np.ascontiguousarray(array[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]
    same = np.zeros(array.shape[:3])[..., None]  # numpy calls it contiguous; last stride is 0
    same[...] = array
    assert same.flags.c_contiguous
    assert same.strides[-1] == 0
    return same


@pytest.mark.parametrize("size", [(2, 3, 4), (2, 4, 3)])  # both ways to a GPU's input gradient
@pytest.mark.parametrize("how", ["fortran", "sliced", "reversed", "new axis"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_any_memory_layout_gives_the_same_numbers(backend, rng, kernel, stride, padding, how, size):
    size = (2, 1, 1) if how == "new axis" else size
    x, weight, g = draw(rng, kernel, stride, padding, size)
    want = [
        backend.conv2d(x, weight, None, stride, padding),
        backend.conv2d_grad_weight(x, g, weight.shape, stride, padding),
        backend.conv2d_grad_input(g, weight, x.shape, stride, padding),
    ]
    x, weight, g = (strange(a, how) for a in (x, weight, g))
    got = [
        backend.conv2d(x, weight, None, stride, padding),
        backend.conv2d_grad_weight(x, g, weight.shape, stride, padding),
        backend.conv2d_grad_input(g, weight, x.shape, stride, padding),
    ]
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, np.float64)


def test_inputs_are_left_alone(backend, rng):
    x, weight, g = draw(rng, (3, 3), 1, 1, (2, 3, 4))
    before = [a.copy() for a in (x, weight, g)]
    backend.conv2d(x, weight, None, 1, 1)
    backend.conv2d_grad_weight(x, g, weight.shape, 1, 1)
    backend.conv2d_grad_input(g, weight, x.shape, 1, 1)
    for array, was in zip((x, weight, g), before, strict=True):
        assert np.array_equal(array, was)


# im2col


@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_im2col_lays_out_windows_as_documented(backend, rng, kernel, stride, padding):
    x, _, g = draw(rng, kernel, stride, padding, (2, 3, 1))
    (kh, kw), (n, h, w, c), (oh, ow) = kernel, x.shape, g.shape[1:3]
    col = backend.im2col(x, kh, kw, stride, padding)
    assert col.shape == (n * oh * ow, kh * kw * c)
    col = col.reshape(n, oh, ow, kh, kw, c)
    for i, oy, ox, ky, kx in np.ndindex(col.shape[:5]):
        y, z = oy * stride + ky - padding, ox * stride + kx - padding
        inside = 0 <= y < h and 0 <= z < w
        assert np.array_equal(col[i, oy, ox, ky, kx], x[i, y, z] if inside else np.zeros(c))


@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_col2im_is_the_transpose_of_im2col(backend, rng, kernel, stride, padding):
    x, _, _ = draw(rng, kernel, stride, padding, (2, 3, 1))
    image = backend.im2col(x, *kernel, stride, padding)
    col = rng.normal(size=image.shape)
    back = backend.col2im(col, x.shape, *kernel, stride, padding)
    assert back.shape == x.shape
    assert np.vdot(col, image) == pytest.approx(np.vdot(back, x), rel=1e-12, abs=1e-12)


def test_col2im_counts_the_windows_that_cover_a_pixel(backend):
    ones = np.ones((9, 4))  # 3 x 3 windows of 2 x 2 on 4 x 4 pixels
    covered = backend.col2im(ones, (1, 4, 4, 1), 2, 2)[0, :, :, 0]
    assert covered.tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]


# geometry


def test_output_size():
    assert conv_output_size(32, 3, 1, 1) == 32
    assert conv_output_size(32, 3, 2, 1) == 16
    assert conv_output_size(7, 2, 2, 0) == 3
    assert conv_output_size(3, 3, 5, 0) == 1


def test_a_window_that_does_not_fit_says_so(backend):
    with pytest.raises(ValueError, match=r"window of 5 does not fit into 2 \+ 2 \* 1 pixels"):
        backend.conv2d(np.zeros((1, 2, 2, 1)), np.zeros((1, 5, 5, 1)), None, 1, 1)
