"""Every CUDA kernel, run on the CPU from its own text, against the NumPy backend.

Bit for bit where a kernel keeps NumPy's order of operations. Sums over rows are cut into segments
and have an order of their own: whole numbers, whose sums are exact in any order, show that every
row counts once; random ones are held to the bound that the order's rounding has.
"""

import re
from itertools import pairwise
from pathlib import Path

import kernel_emulation
import numpy as np
import pytest

from minicst.backend import Backend, Pattern, conv_output_size
from minicst.backend.cuda_kernels import BLOCK, kernel_options, kernel_text
from minicst.backend.pooling import NO_TAP

KERNELS = (
    *("add", "relu", "relu_backward", "sgd", "adam", "im2col", "col2im"),
    *("depthwise", "depthwise_grad_input", "depthwise_grad_weight", "depthwise_weight_sums"),
    *("bn_sums", "bn_statistics", "bn_fold", "bn_track", "scale_shift"),
    *("bn_backward_sums", "bn_backward_finish", "bn_backward_apply"),
    *("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward"),
    *("gather_block", "scatter_block", "cross_entropy"),
    *("sparse_linear", "sparse_linear_grad_input", "sparse_linear_grad_weight"),
)
MARGIN = 300  # numbers before and behind every array that no thread may use
REAL_SUMS = 32 + 2  # roundings of a sum: at most 32 numbers in REAL, each a product of a difference
ELEMENTS = [1, 255, 256, 257, 1000]

# n, h, w, c, kh, kw, stride, padding: odd sizes, gaps between windows, windows on padding alone
WINDOWS = [
    (2, 5, 7, 3, 3, 3, 1, 1),
    (1, 6, 5, 16, 3, 3, 2, 1),
    (3, 4, 4, 1, 1, 1, 1, 0),
    (2, 7, 6, 70, 5, 5, 2, 2),
    (1, 5, 5, 3, 1, 1, 2, 0),
    (2, 8, 7, 3, 3, 3, 2, 0),
    (1, 9, 4, 2, 5, 3, 1, 2),
    (1, 2, 3, 5, 1, 1, 3, 2),
    (1, 3, 3, 300, 3, 3, 1, 0),
    (2, 7, 5, 3, 2, 3, 4, 1),
    (1, 2, 75, 2, 3, 3, 1, 1),
]
# n, h, w, c, kernel, stride, padding
POOLS = [
    (2, 4, 6, 3, 2, 2, 0),
    (2, 5, 7, 16, 2, 2, 0),
    (1, 7, 5, 3, 3, 2, 0),
    (2, 6, 7, 3, 3, 2, 1),
    (1, 5, 5, 70, 3, 3, 1),
    (2, 5, 6, 1, 2, 1, 1),
    (1, 8, 7, 3, 2, 3, 0),
    (3, 1, 1, 2, 1, 1, 0),
    (1, 17, 16, 2, 15, 1, 7),
    (2, 9, 8, 3, 5, 2, 2),
]
SEGMENTS = [1, 3, 8, 21, 64]  # 64: more than rows


class Plain(Backend):
    """The readable operations of base.py on NumPy."""

    xp = np


PLAIN = Plain()


@pytest.fixture(params=["float32", "float64"])
def real(request):
    """The kernels' dtype."""
    return np.dtype(request.param)


@pytest.fixture(scope="module")
def compiler():
    """A C++ compiler, or the test is skipped."""
    if (reason := kernel_emulation.why_not()) is not None:
        pytest.skip(reason)
    return kernel_emulation.find_compiler()


@pytest.fixture(scope="module")
def modules(compiler):
    """The kernels, compiled for both dtypes."""
    return {
        name: kernel_emulation.Module(kernel_text(), kernel_options(name))
        for name in ("float32", "float64")
    }


@pytest.fixture
def launch(modules, real):
    """Launches a kernel as KernelOps does, and looks at what it touches.

    Arrays are handed over with margins of NaN: what reads there spoils its result, what writes
    there, or into an array that is only to be read, fails.
    """

    def run(name, threads, *arguments, block=None):
        """block: (across, down) with rows of threads, else BLOCK threads."""
        if not threads:
            return
        function = modules[real.name].get_function(name)
        copies = {id(a): Fenced(a) for a in arguments if isinstance(a, np.ndarray)}
        passed = [
            0 if a is None else copies[id(a)].inner if id(a) in copies else a for a in arguments
        ]
        block = (BLOCK,) if block is None else block
        function((-(-threads // block[-1]),), block, passed)
        written = {id(a) for a, p in zip(arguments, function.parameters, strict=True) if p.written}
        for array in arguments:
            if id(array) in copies:
                copies[id(array)].finish(array, id(array) in written)

    return run


class Fenced:
    """A copy of an array between margins."""

    def __init__(self, array):
        blank = np.nan if array.dtype.kind == "f" else 99
        self.whole = np.full(array.size + 2 * MARGIN, blank, array.dtype)
        self.inner = self.whole[MARGIN : MARGIN + array.size].reshape(array.shape)
        self.inner[...] = array
        self.before = self.whole.copy()

    def finish(self, array, written):
        if written:
            array[...] = self.inner
            self.before[MARGIN : MARGIN + array.size] = array.reshape(-1)
        assert np.array_equal(self.whole, self.before, equal_nan=array.dtype.kind == "f")


def blank(shape, dtype):
    """An array in which a number that nobody writes is seen."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 77, dtype)


def draw(rng, shape, dtype):
    return rng.normal(size=shape).astype(dtype)


def whole_numbers(rng, shape, dtype):
    """Small whole numbers: their sums of products are exact in float32 too."""
    return rng.integers(-4, 5, shape).astype(dtype)


def same(got, want):
    assert got.dtype == want.dtype
    return np.array_equal(got, want, equal_nan=got.dtype.kind == "f")


def sizes_of(case):
    """Shape of the result, and the sizes that a kernel takes."""
    n, h, w, c, kh, kw, stride, padding = case
    oh, ow = conv_output_size(h, kh, stride, padding), conv_output_size(w, kw, stride, padding)
    return (n, oh, ow, c), (h, w, c, oh, ow, kh, kw, stride, padding)


# ---- The text ---------------------------------------------------------------------------------


def test_the_kernels_are_these_and_all_are_tested():
    assert sorted(kernel_emulation.kernels_of(kernel_text())) == sorted(KERNELS)
    launched = set(re.findall(r'\blaunch\(\s*"(\w+)"', Path(__file__).read_text()))
    assert launched == set(KERNELS)


def test_the_text_keeps_its_rules():
    code = kernel_emulation.COMMENT.sub(" ", kernel_text())
    for word in ("__shared__", "__syncthreads", "__syncwarp", "atomic", "__shfl", "__ballot"):
        assert word not in code, f"{word} in kernels.cu: threads work for themselves"
    assert not re.search(r"#\s*include|\btemplate\b", code)
    assert not re.search(
        r"\b(int|unsigned(?! char)|size_t|short|(?<!long )long(?! long))\b", code
    ), "an index in kernels.cu that isn't long long"
    assert not re.search(r"\bfloat\b(?!\n)", code), "float in kernels.cu: REAL is meant"


def test_parameters_are_what_a_launch_can_pass():
    for name, parameters in kernel_emulation.kernels_of(kernel_text()).items():
        for p in parameters:
            types = (
                ("REAL", "double", "long long", "unsigned char")
                if p.pointer
                else (
                    "double",
                    "long long",
                )
            )
            assert p.type in types, f"{name}: {p}"


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_without_work_touches_nothing(modules, real, name):
    function = modules[real.name].get_function(name)
    nothing = [0.0 if p.type == "double" and not p.pointer else 0 for p in function.parameters]
    function((2,), (BLOCK,), nothing)  # every pointer is null


# ---- Elementwise and optimizers ---------------------------------------------------------------


def special(rng, n, dtype):
    """Random numbers with NaN, infinities and zeros of both signs between them."""
    x = draw(rng, n, dtype)
    for i, value in enumerate([np.nan, np.inf, -np.inf, 0.0, -0.0]):
        x[i + 1 :: 7] = value
    return x


@pytest.mark.parametrize("n", ELEMENTS)
@pytest.mark.parametrize("relu", [False, True])
def test_add(backend, launch, rng, real, n, relu):
    a, b = special(rng, n, real), rng.permutation(special(rng, n, real))
    out = blank(n, real)
    launch("add", n, a, b, out, n, int(relu))
    with np.errstate(invalid="ignore"):
        assert same(out, backend.add(a, b, relu))


@pytest.mark.parametrize("n", ELEMENTS)
def test_relu_and_its_gradient(backend, launch, rng, real, n):
    x, g = special(rng, n, real), rng.permutation(special(rng, n, real))
    out, grad_x = blank(n, real), blank(n, real)
    launch("relu", n, x, out, n)
    assert same(out, backend.relu(x))
    launch("relu_backward", n, g, out, grad_x, n)
    with np.errstate(invalid="ignore"):
        assert same(grad_x, backend.relu_backward(g, out))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4, 1.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(backend, launch, rng, real, momentum, weight_decay, nesterov):
    n = 1000
    weight, grad, velocity = (draw(rng, n, real) for _ in range(3))
    grad[3], grad[4], weight[5] = np.nan, -np.inf, np.inf
    velocity = None if momentum is None else velocity
    want, want_velocity = weight.copy(), None if velocity is None else velocity.copy()
    numbers = (0.07, momentum or 0.0, weight_decay)
    for _ in range(3):
        launch("sgd", n, weight, grad, velocity, n, *numbers, int(nesterov))
        with np.errstate(invalid="ignore"):
            backend.sgd_update(want, grad, want_velocity, *numbers, nesterov)
    assert same(weight, want)
    assert velocity is None or same(velocity, want_velocity)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2, 1.0])
def test_adam(backend, launch, rng, real, weight_decay):
    n, lr, b1, b2, eps = 1000, 12e-3, 0.9, 0.999, 1e-8
    weight, first, second = draw(rng, n, real), np.zeros(n, real), np.zeros(n, real)
    weight[5] = np.inf
    want = [weight.copy(), first.copy(), second.copy()]
    for step in range(1, 5):
        grad = draw(rng, n, real)
        numbers = (lr / (1 - b1**step), b1, b2, 1 - b2**step, eps, weight_decay)
        launch("adam", n, weight, grad, first, second, n, *numbers)
        with np.errstate(invalid="ignore"):
            backend.adam_update(want[0], grad, *want[1:], step, lr, (b1, b2), eps, weight_decay)
    for got, wanted in zip((weight, first, second), want, strict=True):
        assert same(got, wanted)


# ---- Convolution ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("block", [(32, 8), (4, 64), (1, 256)])
def test_im2col(launch, rng, real, case, block):
    n, h, w, c, kh, kw, stride, padding = case
    (_, oh, ow, _), sizes = sizes_of(case)
    x = special(rng, n * h * w * c, real).reshape(n, h, w, c)
    col = blank((n * oh * ow, kh * kw * c), real)
    runs = n * oh * ow * kh
    launch("im2col", runs, x, col, runs, *sizes, block=block)
    assert same(col, PLAIN.im2col(x, kh, kw, stride, padding))


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("block", [(32, 8), (4, 64), (1, 256)])
def test_col2im(launch, rng, real, case, block):
    n, h, w, c, kh, kw, stride, padding = case
    (_, oh, ow, _), sizes = sizes_of(case)
    col = draw(rng, (n * oh * ow, kh * kw * c), real)
    x = blank((n, h, w, c), real)
    launch("col2im", n * h * w, col, x, n * h * w, *sizes, block=block)
    assert same(x, PLAIN.col2im(col, x.shape, kh, kw, stride, padding))


# ---- Depthwise convolution --------------------------------------------------------------------


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_depthwise(launch, rng, real, case, with_bias):
    n, h, w, c, kh, kw, stride, padding = case
    shape, sizes = sizes_of(case)
    x, weight = draw(rng, (n, h, w, c), real), draw(rng, (c, kh, kw, 1), real)
    bias = draw(rng, c, real) if with_bias else None
    out = blank(shape, real)
    launch("depthwise", out.size, x, weight, bias, out, out.size, *sizes)
    assert same(out, PLAIN.depthwise_conv2d(x, weight, bias, stride, padding))


@pytest.mark.parametrize("case", WINDOWS)
def test_depthwise_grad_input(launch, rng, real, case):
    n, h, w, c, kh, kw, stride, padding = case
    shape, sizes = sizes_of(case)
    g, weight = draw(rng, shape, real), draw(rng, (c, kh, kw, 1), real)
    grad_x = blank((n, h, w, c), real)
    launch("depthwise_grad_input", grad_x.size, g, weight, grad_x, grad_x.size, *sizes)
    want = PLAIN.depthwise_conv2d_grad_input(g, weight, grad_x.shape, stride, padding)
    assert same(grad_x, want)


@pytest.mark.parametrize("case", WINDOWS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_depthwise_grad_weight(launch, rng, real, case, segments):
    n, h, w, c, kh, kw, stride, padding = case
    shape, sizes = sizes_of(case)
    for numbers in (whole_numbers, draw):
        x, g = numbers(rng, (n, h, w, c), real), numbers(rng, shape, real)
        partial, grad = blank((segments, kh * kw, c), float), blank((c, kh, kw, 1), real)
        launch("depthwise_grad_weight", partial.size, x, g, partial, n, *sizes, segments)
        launch("depthwise_weight_sums", c * kh * kw, partial, grad, c, kh * kw, segments)
        x, g = x.astype(float), g.astype(float)
        want = PLAIN.depthwise_conv2d_grad_weight(x, g, grad.shape, stride, padding)
        if numbers is whole_numbers:
            assert np.array_equal(grad, want)
        else:
            args = (np.abs(x), np.abs(g), grad.shape, stride, padding)
            most = PLAIN.depthwise_conv2d_grad_weight(*args)
            assert (np.abs(grad - want) <= REAL_SUMS * np.finfo(real).eps * most).all()


# ---- Batch norm -------------------------------------------------------------------------------

ROWS = [(1, 3), (7, 1), (40, 16), (203, 70), (300, 300)]


@pytest.mark.parametrize(("rows", "c"), ROWS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_bn_sums_of_whole_numbers_are_exact(launch, rng, real, rows, c, segments):
    x = whole_numbers(rng, (rows, c), real)
    partial = blank((segments, 2, c), float)
    launch("bn_sums", segments * c, x, partial, rows, c, segments)
    edges = [s * rows // segments for s in range(segments + 1)]
    for s, (first, last) in enumerate(pairwise(edges)):
        d = x[first:last] - x[0]
        assert np.array_equal(partial[s], [d.sum(axis=0), (d * d).sum(axis=0)])


@pytest.mark.parametrize(("rows", "c"), ROWS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_bn_statistics(launch, rng, real, rows, c, segments, offset):
    x = (rng.normal(size=(rows, c)) + offset).astype(real)
    mean, variance = statistics_of(launch, x, segments)
    exact = x.astype(np.longdouble)  # float64 itself would be off by more than the bound
    want_mean, want_variance = exact.mean(axis=0), exact.var(axis=0)
    d = exact - exact[0]
    eps = np.finfo(real).eps
    # Roundings of the sums of d and d^2, then of the result; mean of d squared: twice its own.
    bound = REAL_SUMS * eps * np.abs(d).mean(axis=0) + 2 * eps * np.abs(want_mean)
    assert (np.abs(mean - want_mean) <= bound).all()
    bound = (3 * REAL_SUMS + 4) * eps * (d * d).mean(axis=0)
    assert (np.abs(variance - want_variance) <= bound).all()
    assert (variance >= 0).all()


def statistics_of(launch, x, segments):
    rows, c = x.shape
    partial = blank((segments, 2, c), float)
    mean, variance = blank(c, x.dtype), blank(c, x.dtype)
    launch("bn_sums", segments * c, x, partial, rows, c, segments)
    launch("bn_statistics", c, partial, x, mean, variance, rows, c, segments)
    return mean, variance


def test_sums_of_many_rows_go_on_in_double(launch, real):
    rows, segments = 300_000, 2
    x = np.full((rows, 1), 0.1, real)
    x[0] = 0
    partial = blank((segments, 2, 1), float)
    launch("bn_sums", segments, x, partial, rows, 1, segments)
    exact = x.astype(float).reshape(segments, -1)
    want = np.stack([exact.sum(axis=1), (exact**2).sum(axis=1)], axis=1)
    # In float32 alone the roundings, which all go one way, would add up to 1e-3.
    assert np.allclose(partial[..., 0], want, rtol=REAL_SUMS * np.finfo(real).eps + 1e-12, atol=0)
    ones = np.ones_like(x)
    mean = np.zeros(1, real)
    launch("bn_backward_sums", segments, x, ones, None, mean, partial, rows, 1, segments)
    want[:, 1] = want[:, 0]
    assert np.allclose(partial[..., 0], want, rtol=REAL_SUMS * np.finfo(real).eps + 1e-12, atol=0)


def test_bn_statistics_of_a_constant_and_of_nan(launch, rng, real):
    x = draw(rng, (50, 3), real)
    x[:, 0] = 0.1
    x[7, 1] = np.nan
    mean, variance = statistics_of(launch, x, 3)
    assert (mean[0], variance[0]) == (real.type(0.1), 0)
    assert np.isnan([mean[1], variance[1]]).all()
    assert np.isfinite([mean[2], variance[2]]).all()


def test_bn_statistics_clip_a_variance_that_rounding_made_negative(launch, real):
    rows = 4
    partial = np.array([[[8.0], [15.9999]]])  # sum of d and of d^2: 2 on average, 4 at least
    mean, variance = blank(1, real), blank(1, real)
    launch("bn_statistics", 1, partial, np.ones((rows, 1), real), mean, variance, rows, 1, 1)
    assert (mean[0], variance[0]) == (3, 0)


@pytest.mark.parametrize("c", [1, 3, 70, 300])
def test_bn_fold(launch, rng, real, c):
    mean, gamma, beta = (draw(rng, c, real) for _ in range(3))
    variance = draw(rng, c, real) ** 2
    variance[0] = 0
    got = [blank(c, real) for _ in range(3)]
    launch("bn_fold", c, mean, variance, gamma, beta, *got, c, 1e-5)
    for one, want in zip(
        got, PLAIN.batch_norm_fold(mean, variance, gamma, beta, 1e-5), strict=True
    ):
        assert same(one, want)


@pytest.mark.parametrize("c", [1, 3, 70, 300])
@pytest.mark.parametrize("live", [False, True])
def test_bn_track(launch, rng, real, c, live):
    running, batch = ([draw(rng, c, real), draw(rng, c, real) ** 2] for _ in range(2))
    want = [array.copy() for array in running]
    mask = (rng.random(c) < 0.5).astype(real) if live else None
    n = 37
    for momentum in (0.1, 0.058, 0.187):  # the last two: 1 - momentum, taken in float32, differs
        launch("bn_track", c, *running, *batch, mask, c, momentum, n / (n - 1))
        PLAIN.batch_norm_track(tuple(want), tuple(batch), mask, momentum, n / (n - 1))
    for got, wanted in zip(running, want, strict=True):
        assert same(got, wanted)


# rows, c, rows of a step: one step, several, a rest; more than eight numbers a thread
STEPS = [(1, 1, 1), (5, 3, 5), (40, 16, 3), (203, 70, 4), (300, 7, 1), (64, 300, 8)]


@pytest.mark.parametrize(("rows", "c", "at_once"), STEPS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_scale_shift(backend, launch, rng, real, rows, c, at_once, relu, in_place):
    x = special(rng, rows * c, real).reshape(rows, c)
    scale, shift = draw(rng, c, real), draw(rng, c, real)
    with np.errstate(invalid="ignore"):
        want = backend.scale_shift(x, scale, shift, relu)
    out = x if in_place else blank(x.shape, real)
    step = at_once * c
    launch("scale_shift", step, x, scale, shift, out, x.size, c, step, int(relu))
    assert same(out, want)


@pytest.mark.parametrize(("rows", "c"), ROWS)
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("relu", [False, True])
def test_bn_backward_sums_of_whole_numbers_are_exact(launch, rng, real, rows, c, segments, relu):
    g, x, out = (whole_numbers(rng, (rows, c), real) for _ in range(3))
    mean = whole_numbers(rng, c, real)
    partial = blank((segments, 2, c), float)
    arrays = (g, x, out if relu else None, mean)
    launch("bn_backward_sums", segments * c, *arrays, partial, rows, c, segments)
    gated = g * (out > 0) if relu else g
    edges = [s * rows // segments for s in range(segments + 1)]
    for s, (first, last) in enumerate(pairwise(edges)):
        part = gated[first:last]
        want = [part.sum(axis=0), (part * (x[first:last] - mean)).sum(axis=0)]
        assert np.array_equal(partial[s], want)


@pytest.mark.parametrize("c", [1, 70, 300])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_bn_backward_finish(launch, rng, real, c, segments):
    rows = 129
    partial = rng.normal(size=(segments, 2, c)) + 2  # no cancelling: a relative bound holds
    inv_std, gamma = draw(rng, c, real) ** 2, draw(rng, c, real)
    got = [blank(c, real) for _ in range(5)]
    launch("bn_backward_finish", c, partial, inv_std, gamma, *got, rows, c, segments)
    inverse, factor = inv_std.astype(float), gamma.astype(float) * inv_std
    grad_beta, products = partial.sum(axis=0)
    grad_gamma = inverse * products
    slope, offset = -factor * inverse * grad_gamma / rows, -factor * grad_beta / rows
    eps = np.finfo(real).eps
    absolute = np.abs(partial).sum(axis=0)
    spread = (absolute / np.abs(partial.sum(axis=0))).max()
    for one, want in zip(got, (grad_gamma, grad_beta, factor, slope, offset), strict=True):
        assert np.allclose(one, want, rtol=eps + 1e-13 * spread, atol=0)


@pytest.mark.parametrize(("rows", "c", "at_once"), STEPS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_bn_backward_apply(launch, rng, real, rows, c, at_once, relu, training):
    g, x, out = (draw(rng, (rows, c), real) for _ in range(3))
    mean, scale, slope, offset = (draw(rng, c, real) for _ in range(4))
    grad_x = blank(x.shape, real)
    step = at_once * c
    arrays = (g, x, out if relu else None, mean, scale, slope, offset, grad_x)
    launch("bn_backward_apply", step, *arrays, x.size, c, step, int(training))
    want = (g * (out > 0) if relu else g) * scale
    if training:
        want = want + offset + (x - mean) * slope
    assert same(grad_x, want)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_backward_pass_of_batch_norm(backend, launch, rng, real, relu, training):
    rows, c, segments = 300, 16, 5
    x = (rng.normal(size=(rows, c)) * 2 + 3).astype(real)
    g, out, gamma = draw(rng, x.shape, real), draw(rng, x.shape, real), draw(rng, c, real)
    out = out if relu else None
    mean, variance = statistics_of(launch, x, segments)
    inv_std = 1 / np.sqrt(variance + real.type(1e-5))
    partial, grad_x = blank((segments, 2, c), float), blank(x.shape, real)
    grad_gamma, grad_beta, scale, slope, offset = (blank(c, real) for _ in range(5))
    reads = (g, x, out, mean)
    launch("bn_backward_sums", segments * c, *reads, partial, rows, c, segments)
    folded = (scale, slope, offset)
    arrays = (partial, inv_std, gamma, grad_gamma, grad_beta, *folded)
    launch("bn_backward_finish", c, *arrays, rows, c, segments)
    step = 8 * c
    launch("bn_backward_apply", step, *reads, *folded, grad_x, x.size, c, step, int(training))
    args = [a if a is None else a.astype(float) for a in (g, x, out, mean, inv_std, gamma)]
    want = backend.batch_norm_backward(*args, training)
    for got, wanted in zip((grad_x, grad_gamma, grad_beta), want, strict=True):
        # Some hundred roundings, as REAL_SUMS has it, of sums that cancel at most a hundredfold.
        assert np.abs(got - wanted).max() <= 100 * np.finfo(real).eps * np.abs(wanted).max()


# ---- Pooling ----------------------------------------------------------------------------------


def pooled(case):
    n, h, w, c, kernel, stride, padding = case
    shape, _ = sizes_of((n, h, w, c, kernel, kernel, stride, padding))
    return (n, h, w, c), shape, (h, w, c, *shape[1:3], kernel, stride, padding)


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("kind", ["ties", "negative", "special"])
def test_max_pool_and_its_gradient(backend, launch, rng, real, case, kind):
    x_shape, shape, sizes = pooled(case)
    kernel, stride, padding = case[4:]
    x = draw(rng, x_shape, real) - 5  # all negative: a padded zero would win
    if kind == "ties":
        x = rng.integers(0, 3, x_shape).astype(real)
    if kind == "special":
        x = rng.permutation(special(rng, x.size, real)).reshape(x_shape)
    with np.errstate(invalid="ignore"):
        want, want_tap = backend.max_pool2d(x, kernel, stride, padding)
    out, tap = blank(shape, real), blank(shape, np.uint8)
    launch("max_pool", out.size, x, out, tap, out.size, *sizes)
    assert same(out, want)
    assert same(tap, want_tap)
    without = blank(shape, real)
    launch("max_pool", out.size, x, without, None, out.size, *sizes)
    assert same(without, want)
    g, grad_x = draw(rng, shape, real), blank(x_shape, real)
    if kind == "special":
        g.reshape(-1)[::5] = np.inf
    with np.errstate(invalid="ignore"):
        want = backend.max_pool2d_backward(g, want_tap, x_shape, kernel, stride, padding)
    launch("max_pool_backward", grad_x.size, g, tap, grad_x, grad_x.size, *sizes)
    assert same(grad_x, want)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_a_padded_window_without_a_largest_value_has_no_winner(launch, real, value):
    x, out = np.full((1, 2, 2, 1), value, real), blank((1, 1, 1, 1), real)
    tap = blank(out.shape, np.uint8)
    launch("max_pool", 1, x, out, tap, 1, 2, 2, 1, 1, 1, 3, 2, 1)
    assert same(out, np.full_like(out, value))
    assert tap.item() == NO_TAP
    grad_x = blank(x.shape, real)
    launch("max_pool_backward", 4, np.ones_like(out), tap, grad_x, 4, 2, 2, 1, 1, 1, 3, 2, 1)
    assert not grad_x.any()


@pytest.mark.parametrize("case", POOLS)
def test_avg_pool_and_its_gradient(backend, launch, rng, real, case):
    x_shape, shape, sizes = pooled(case)
    kernel, stride, padding = case[4:]
    x, g = draw(rng, x_shape, real), draw(rng, shape, real)
    out, grad_x = blank(shape, real), blank(x_shape, real)
    launch("avg_pool", out.size, x, out, out.size, *sizes)
    assert same(out, backend.avg_pool2d(x, kernel, stride, padding))
    launch("avg_pool_backward", grad_x.size, g, grad_x, grad_x.size, *sizes)
    assert same(grad_x, backend.avg_pool2d_backward(g, x_shape, kernel, stride, padding))


# ---- Cut and paste ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3, 3, 5), (70, 1, 1, 33), (7, 40), (600,), (4, 5, 2, 1)])
@pytest.mark.parametrize("with_rows", [False, True])
@pytest.mark.parametrize("with_columns", [False, True])
@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_blocks_of_rows_and_columns(
    backend, launch, rng, real, shape, with_rows, with_columns, kept
):
    if len(shape) == 1 and with_columns:
        with_columns = False
    full = draw(rng, shape, real)
    rows = np.flatnonzero(rng.random(shape[0]) < kept) if with_rows else None
    columns = np.flatnonzero(rng.random(shape[-1]) < kept) if with_columns else None
    full_columns = shape[-1] if len(shape) > 1 else 1
    n_columns = full_columns if columns is None else columns.size
    taps = int(np.prod(shape[1:-1]))
    n_rows = shape[0] if rows is None else rows.size
    entries = backend.entries(shape, rows, columns)
    small = blank((n_rows, taps, n_columns), real)
    sizes = (small.size, taps, n_columns, full_columns)
    launch("gather_block", small.size, full, rows, columns, small, *sizes)
    want = blank(small.shape, real)
    if small.size:
        backend.gather(full, entries, want)
    assert same(small, want)
    small = draw(rng, small.shape, real)
    want = full.copy()
    launch("scatter_block", small.size, full, rows, columns, small, *sizes)
    if small.size:
        backend.scatter(want, entries, small)
    assert same(full, want)


# ---- Loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 2), (300, 10), (7, 1000), (3, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_cross_entropy(launch, rng, real, n, k, smoothing, size):
    logits, labels = draw(rng, (n, k), real) * real.type(size), rng.integers(0, k, n)
    loss, residual = blank(n, float), blank((n, k), float)
    launch("cross_entropy", n, logits, labels, loss, residual, n, k, smoothing)
    want, want_residual = PLAIN.cross_entropy(logits, labels, smoothing)
    # exp and log of two libraries, and sums of k numbers in two orders
    assert loss.sum() / n == pytest.approx(float(want), rel=1e-12, abs=1e-13)
    assert np.allclose(residual, want_residual, rtol=1e-12, atol=1e-14)


def test_cross_entropy_of_rows_with_nan(launch, rng, real):
    logits, labels = draw(rng, (4, 5), real), np.array([0, 4, 2, 1])
    logits[1, 0], logits[2, 4] = np.nan, np.nan
    loss, residual = blank(4, float), np.zeros((4, 5))
    launch("cross_entropy", 4, logits, labels, loss, residual, 4, 5, 0.0)
    assert np.array_equal(np.isnan(loss), [False, True, True, False])
    assert np.array_equal(np.isnan(residual).all(axis=1), [False, True, True, False])


# ---- Sparse linear layers ---------------------------------------------------------------------


@pytest.mark.parametrize(("n", "c_in", "c_out"), [(1, 1, 1), (5, 70, 33), (64, 16, 3), (3, 300, 7)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_linear_and_its_gradients(backend, launch, rng, real, n, c_in, c_out, density):
    pattern = Pattern.of_mask(rng.random((c_out, c_in)) < density)
    pointers, rows, columns = (
        a.astype(np.int64) for a in (pattern.pointers, pattern.rows, pattern.columns)
    )
    x, g = draw(rng, (n, c_in), real), draw(rng, (n, c_out), real)
    values, bias = draw(rng, pattern.size, real), draw(rng, c_out, real)
    wide = [a.astype(float) for a in (x, g, values, bias)]

    def close(got, want):  # sums in double: rounded once, to REAL, but for their own roundings
        return np.allclose(got, want, rtol=np.finfo(real).eps, atol=1e-12)

    for one, wide_one in ((bias, wide[3]), (None, None)):
        out = blank((n, c_out), real)
        arrays = (x, values, pointers, columns, one, out)
        launch("sparse_linear", out.size, *arrays, n, c_in, c_out)
        assert close(out, backend.sparse_linear(wide[0], wide[2], pattern, wide_one))

    order = np.argsort(columns, kind="stable")
    by_column = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=c_in))])
    grad_x = blank((n, c_in), real)
    arrays = (g, values, by_column, rows[order], order, grad_x)
    launch("sparse_linear_grad_input", grad_x.size, *arrays, n, c_in, c_out)
    assert close(grad_x, backend.sparse_linear_grad_input(wide[1], wide[2], pattern))

    grad = blank(pattern.size, real)
    sizes = (n, c_in, c_out, pattern.size)
    launch("sparse_linear_grad_weight", pattern.size, x, g, rows, columns, grad, *sizes)
    assert close(grad, backend.sparse_linear_grad_weight(wide[0], wide[1], pattern))


# ---- The emulation itself ---------------------------------------------------------------------

TEXT = """
// extern "C" __global__ void commented(long long n) {}
extern "C" __global__ void where(
    const REAL* __restrict__ x, REAL* out, long long n, double factor
) {
    long long i = ((long long)blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y
        + threadIdx.y * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * (REAL)factor + i;
}
"""


@pytest.fixture(scope="module")
def where(compiler):
    return kernel_emulation.Module(TEXT, ("--fmad=false", "-DREAL=double")).get_function("where")


def test_every_thread_of_a_grid_runs_once(where):
    x, out = np.ones(24), np.zeros(24)
    where((2, 3), (1, 4), [x, out, 24, 0.5])
    assert np.array_equal(out, 0.5 + np.arange(24))


def test_arguments_that_a_gpu_would_misread_are_refused(where):
    x, out = np.ones(4), np.zeros(4)
    good = [x, out, 4, 1.0]
    where((1,), (4,), good)
    for place, bad, said in (
        (0, x.astype(np.float32), "x is double*, got an array of float32"),
        (0, np.ones((4, 4))[:, 0], "not C-contiguous"),
        (0, [1.0], "x is double*, got list"),
        (1, 5, "out is double*, got int 5"),
        (2, 4.0, "n is long long, got float 4.0"),
        (2, np.int32(4), "n is long long, got int32"),
        (2, True, "n is long long, got bool"),
        (3, 1, "factor is double, got int 1"),
        (3, np.float32(1), "factor is double, got float32"),
    ):
        arguments = [*good[:place], bad, *good[place + 1 :]]
        with pytest.raises(TypeError, match=f"kernel where: .*{re.escape(said)}"):
            where((1,), (4,), arguments)
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-only"):
        where((1,), (4,), good)
    with pytest.raises(TypeError, match="takes 4 arguments, got 3"):
        where((1,), (4,), good[:3])


def test_grids_that_a_gpu_refuses_are_refused(where):
    arguments = [np.ones(4), np.zeros(4), 4, 1.0]
    for grid, block in (((0,), (4,)), ((1,), (0,)), ((1,), (2048,)), ((), (4,))):
        with pytest.raises(ValueError, match="kernel where"):
            where(grid, block, arguments)


@pytest.mark.usefixtures("compiler")
def test_texts_and_names_that_do_not_fit():
    assert list(kernel_emulation.kernels_of(TEXT)) == ["where"]
    with pytest.raises(KeyError, match="no kernel here"):
        kernel_emulation.Module(TEXT, ("-DREAL=double",)).get_function("here")
    with pytest.raises(kernel_emulation.CompileError, match="blockIndex"):
        kernel_emulation.Module(TEXT.replace("blockIdx", "blockIndex"), ("-DREAL=float",))
    with pytest.raises(ValueError, match="use_fast_math"):
        kernel_emulation.Module(TEXT, ("--use_fast_math",))
    with pytest.raises(ValueError, match="half"):
        kernel_emulation.Module(TEXT, ("-DREAL=half",))
