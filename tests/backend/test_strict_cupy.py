"""The stand-in for cupy refuses what CuPy refuses, counts what costs, and finds missing waits."""

import gc
import importlib
import sys

import kernel_emulation
import numpy as np
import pytest
import strict_cupy

needs_compiler = pytest.mark.skipif(
    kernel_emulation.why_not() is not None, reason=str(kernel_emulation.why_not())
)

KERNELS = """
#ifndef REAL
#define REAL float
#endif
extern "C" __global__ void axpy(
    const REAL* x, const REAL* y, REAL* out, long long n, double factor)
{
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = (REAL)factor * x[i] + (y ? y[i] : 0);
}
"""


@pytest.fixture
def xp():
    with strict_cupy.installed() as module:
        yield module


@pytest.fixture
def a(xp):
    """(2, 3) float32 numbers 0 ... 5."""
    return xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.fixture
def pool(xp):
    """The pool, which no array of an earlier test leaves meanwhile."""
    gc.collect()
    gc.disable()
    yield xp.get_default_memory_pool()
    gc.enable()


def pinned(numbers):
    array = strict_cupy.cupyx.empty_pinned(np.shape(numbers), np.asarray(numbers).dtype)
    array[...] = numbers
    return array


def zeros(n=4):
    return np.zeros(n, np.float32)


# It is imported in cupy's place


def test_installed_is_what_import_gives_and_leaves_nothing_behind():
    before = {name: sys.modules.get(name) for name in ("cupy", "cupyx", "cupy.cuda")}
    with strict_cupy.installed():
        assert importlib.import_module("cupy") is strict_cupy
        assert importlib.import_module("cupy.cuda") is strict_cupy.cuda
        assert importlib.import_module("cupyx") is strict_cupy.cupyx
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("cupy.functions")
    assert {name: sys.modules.get(name) for name in before} == before


@pytest.mark.parametrize("name", ["random", "scipy", "errstate", "linalg", "add_at", "cudnn"])
def test_what_is_not_there_raises(xp, name):
    with pytest.raises(AttributeError):
        getattr(xp, name)


# Host arrays and lists stay out


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, host: np.asarray(a),
        lambda a, host: np.array(a),
        lambda a, host: np.add(a, 1),
        lambda a, host: np.exp(a),
        lambda a, host: np.zeros_like(a),
        lambda a, host: np.concatenate([a, a]),
        lambda a, host: np.sum(a),
        lambda a, host: a + host,
        lambda a, host: host + a,
        lambda a, host: a * np.array(2.0),
        lambda a, host: np.array(2.0) * a,
        lambda a, host: a - [1.0, 2.0, 3.0],
        lambda a, host: a * [1.0, 2.0, 3.0],
        lambda a, host: a < host,
        lambda a, host: a == host,
        lambda a, host: host == a,
        lambda a, host: a == [1, 2, 3],
        lambda a, host: a @ host.T,
        lambda a, host: host.T @ a,
        lambda a, host: a.__iadd__(host),
        lambda a, host: host.__iadd__(a),
        lambda a, host: strict_cupy.maximum(a, host),
        lambda a, host: strict_cupy.add(a, 1, out=host),
        lambda a, host: strict_cupy.where(a > 0, host, 0.0),
        lambda a, host: strict_cupy.concatenate([a, host]),
        lambda a, host: strict_cupy.stack([host, host]),
        lambda a, host: strict_cupy.sum(host),
        lambda a, host: strict_cupy.sum([1.0, 2.0]),
        lambda a, host: strict_cupy.zeros_like(host),
        lambda a, host: strict_cupy.dot(a, host.T),
        lambda a, host: strict_cupy.asarray([a, a]),
    ],
)
def test_host_operands_raise_type_error(a, mix):
    with pytest.raises(TypeError):
        mix(a, np.ones((2, 3), np.float32))


def test_conversion_says_what_cupy_says(a):
    with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed"):
        np.asarray(a)
    assert not isinstance(a, np.ndarray)


@pytest.mark.parametrize(
    ("work", "dtype"),
    [
        (lambda a: a * 2.0, np.float32),
        (lambda a: 2 - a, np.float32),
        (lambda a: a * np.float32(2), np.float32),
        (lambda a: a * np.float64(2), np.float64),  # NEP 50: a NumPy scalar isn't weak
        (lambda a: np.float64(2) * a, np.float64),
        (lambda a: a > 1, np.bool_),
        (lambda a: a.sum() / 3, np.float32),
        (lambda a: a.sum() * a.astype(np.float64), np.float64),
        (lambda a: strict_cupy.where(a > 1, a, 0.0), np.float32),
        (lambda a: a.argmax(), np.int64),
        (lambda a: (a > 1).sum(), np.int64),
    ],
)
def test_numbers_are_operands_and_promote_as_in_numpy(a, work, dtype):
    result = work(a)
    assert type(result) is strict_cupy.ndarray
    assert result.dtype == dtype


def test_numbers_are_right(xp, a):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal((3 - a / 2).get(), 3 - host / 2)
    np.testing.assert_array_equal((a**2 // 3 % 2).get(), host**2 // 3 % 2)
    np.testing.assert_array_equal((-a).get(), -host)
    np.testing.assert_array_equal(((a > 1) & ~(a > 4)).get(), (host > 1) & ~(host > 4))
    np.testing.assert_array_equal((a @ a.T).get(), host @ host.T)
    np.testing.assert_array_equal(xp.maximum(a, 2.0).get(), np.maximum(host, 2))
    np.testing.assert_array_equal(xp.concatenate([a, a], axis=1).get(), np.hstack([host, host]))
    a += 1
    a *= a
    np.testing.assert_array_equal(a.get(), (host + 1) ** 2)


def test_in_place_casts_the_same_kind_only(xp):
    whole = xp.ones(3, xp.int64)
    with pytest.raises(TypeError):
        whole += 0.5
    narrow = xp.ones(3, xp.float32)
    narrow += xp.ones(3, xp.float64)
    assert narrow.dtype == np.float32


def test_a_gpu_never_warns(xp):
    assert np.isnan(float(xp.log(xp.asarray(-1.0))))
    assert np.isinf(float(xp.ones(()) / xp.zeros(())))


# What isn't a scalar, and what it costs to look


@pytest.mark.parametrize(
    "work",
    [
        lambda a: a.sum(),
        lambda a: a.max(),
        lambda a: a[1, 2],
        lambda a: a.mean(),
        lambda a: a.any(),
    ],
)
def test_reductions_and_single_numbers_are_0d_arrays(a, work):
    result = work(a)
    assert type(result) is strict_cupy.ndarray
    assert result.shape == ()
    assert not np.isscalar(result)
    with pytest.raises(TypeError):
        iter(result)


@pytest.mark.parametrize(
    "read",
    [
        float,
        int,
        bool,
        str,
        repr,
        lambda s: s.item(),
        lambda s: s.tolist(),
        lambda s: s.get(),
        lambda s: f"{s}",
        strict_cupy.asnumpy,
    ],
)
def test_every_read_counts_a_copy_and_a_wait(xp, read):
    number = xp.asarray(np.float64(5.0))
    xp.counts.reset()
    read(number)
    assert (xp.counts.d2h_calls, xp.counts.d2h_bytes, xp.counts.synchronisations) == (1, 8, 1)
    assert xp.counts.h2d_calls == 0


def test_reads_give_the_number(xp):
    number = xp.asarray(np.float32(2.5))
    assert float(number) == number.item() == number.tolist() == 2.5
    assert int(number) == 2
    assert bool(number)
    with pytest.raises(TypeError):
        [10, 20, 30][xp.asarray(1)]
    with pytest.raises(ValueError, match="ambiguous"):
        bool(xp.ones(2))
    with pytest.raises(ValueError, match="size 1"):
        xp.ones(2).item()


def test_uploads_are_counted_and_numbers_on_the_device_are_not(xp):
    host = np.zeros((3, 4), np.float64)
    with xp.recording() as log:
        device = xp.asarray(host)
        xp.asarray(host, dtype=xp.float32)  # cast on the host: half the bytes
        xp.array([1, 2, 3])
        xp.asarray(3.0)
        xp.full((2, 2), 0.5)
        xp.zeros(3), xp.ones(3), xp.empty(3), xp.arange(3)
        assert xp.asarray(device) is device
        device.astype(xp.float32)
    assert [(entry.shape, entry.bytes) for entry in log.h2d] == [
        ((3, 4), 96),
        ((3, 4), 48),
        ((3,), 24),
        ((), 8),
    ]
    assert [entry.dtype for entry in log.h2d][:2] == [np.float64, np.float32]
    assert (xp.counts.h2d_calls, xp.counts.h2d_bytes) == (4, 96 + 48 + 24 + 8)
    assert (log.d2h, log.synchronisations) == ([], 0)


def test_recording_ends_with_the_block(xp, a):
    with xp.recording() as outer:
        a.get()
        with xp.recording() as inner:
            a.get()
    a.get()
    assert (len(outer.d2h), len(inner.d2h)) == (2, 1)
    assert outer.d2h[0] == ("d2h", (2, 3), np.dtype(np.float32), 24)


def test_set_and_get_copy_into_place(xp, a):
    host = np.full((2, 3), 7, np.float32)
    a.set(host)
    host[...] = 0  # CuPy has taken the numbers out of pageable memory by now
    out = np.empty((2, 3), np.float32)
    assert a.get(out=out) is out
    np.testing.assert_array_equal(out, np.full((2, 3), 7))
    out[...] = 1
    np.testing.assert_array_equal(a.get(), np.full((2, 3), 7))


@pytest.mark.parametrize(
    ("host", "error"),
    [
        (np.zeros((2, 3), np.float64), TypeError),
        (np.zeros((3, 2), np.float32), ValueError),
        (np.zeros((2, 6), np.float32)[:, ::2], ValueError),
        (np.zeros((3, 2), np.float32).T, ValueError),
        ([[0.0] * 3] * 2, TypeError),
    ],
)
def test_set_takes_one_shape_dtype_and_order(a, host, error):
    with pytest.raises(error):
        a.set(host)


def test_set_needs_contiguous_memory(a):
    with pytest.raises(RuntimeError, match="non-contiguous"):
        a[:, ::2].set(np.zeros((2, 2), np.float32))
    a[1].set(zeros(3))
    np.testing.assert_array_equal(a.get(), [[0, 1, 2], [0, 0, 0]])


# Indexing


def test_fills_take_numbers_and_device_arrays_only(xp, a):
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        a[...] = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        a.fill(np.ones(3))
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        a[0] = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for copyto"):
        xp.copyto(a, np.ones((2, 3), np.float32))
    a[0] = 8
    a[1, :2] = np.float64(9)
    a[:, 2] = xp.asarray([1.5, 2.5])
    np.testing.assert_array_equal(a.get(), [[8, 8, 1.5], [9, 9, 2.5]])


@pytest.mark.parametrize(
    "index",
    [
        np.array([0, 1]),
        [0, 1],
        (slice(None), [0, 1]),
        (slice(None), np.array([0])),
        np.array([True, False]),
    ],
)
def test_index_on_the_host_is_refused(a, index):
    with pytest.raises(TypeError, match="upload it first"):
        a[index]
    with pytest.raises(TypeError, match="upload it first"):
        a[index] = 0.0


@pytest.mark.parametrize(
    "work",
    [
        lambda a: a[a > 1],
        lambda a: a.__setitem__(a > 1, 0.0),
        lambda a: strict_cupy.nonzero(a),
        lambda a: strict_cupy.unique(a),
        lambda a: strict_cupy.where(a > 1),
        lambda a: strict_cupy.flatnonzero(a),
    ],
)
def test_sizes_that_depend_on_data_are_refused(a, work):
    with pytest.raises(TypeError, match="depends on data"):
        work(a)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        (1, 2),
        (Ellipsis, 1),
        (slice(None), slice(None, None, -1)),
        (None, 1, slice(0, 2)),
        np.int64(1),
        (),
        Ellipsis,
    ],
)
def test_plain_indices_are_views(xp, a, index):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    xp.counts.reset()
    view = a[index]
    assert xp.counts.launches == 0
    np.testing.assert_array_equal(view.get(), host[index])
    assert view.base is a
    view += 10
    host[index] += 10
    np.testing.assert_array_equal(a.get(), host)


def test_device_indices_pick_as_numpys_and_wrap(xp, a):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    columns = xp.asarray(np.array([2, 0, 2]))
    np.testing.assert_array_equal(a[:, columns].get(), host[:, [2, 0, 2]])
    np.testing.assert_array_equal(a[..., columns].get(), host[:, [2, 0, 2]])
    rows = xp.asarray(np.array([1, 0, 1]))
    np.testing.assert_array_equal(a[rows, columns].get(), host[[1, 0, 1], [2, 0, 2]])
    np.testing.assert_array_equal(a[None, rows].get(), host[None, [1, 0, 1]])
    wild = xp.asarray(np.array([3, -1, 7]))  # on a GPU: 0, 2, 1
    np.testing.assert_array_equal(a[:, wild].get(), host[:, [0, 2, 1]])
    np.testing.assert_array_equal(xp.take(a, wild, axis=1).get(), host[:, [0, 2, 1]])
    a[0, wild] = xp.asarray(np.array([10, 11, 12], np.float32))
    np.testing.assert_array_equal(a[0].get(), [10, 12, 11])
    deep = np.arange(24).reshape(2, 3, 4)
    device = xp.asarray(deep)
    np.testing.assert_array_equal(device[..., wild].get(), deep[..., [3, 3, 3]])
    np.testing.assert_array_equal(device[None, :, wild].get(), deep[None, :, [0, 2, 1]])
    np.testing.assert_array_equal(device[wild].get(), deep[[1, 1, 1]])
    with pytest.raises(IndexError):
        a[5]
    with pytest.raises(IndexError):
        a[xp.asarray(1.0)]


@pytest.mark.parametrize("pair", [[0, 0], [0, 3], [-1, 2]])
def test_an_index_that_writes_twice_is_refused(xp, a, pair):
    columns = xp.asarray(np.array(pair))
    with pytest.raises(ValueError, match="twice"):
        a[:, columns] = 1.0
    with pytest.raises(ValueError, match="twice"):
        a[:, columns] += 1.0


# Views and memory


def test_layout_is_known_without_a_read(xp, a):
    xp.counts.reset()
    assert (a.shape, a.ndim, a.size, a.nbytes, a.itemsize) == ((2, 3), 2, 6, 24, 4)
    assert (a.strides, len(a), a.dtype) == ((12, 4), 2, np.float32)
    assert a.flags.c_contiguous
    assert not a.flags.f_contiguous
    assert a.T.flags.f_contiguous
    assert not a.T.flags["C_CONTIGUOUS"]
    assert not a[:, 1:].flags.forc
    assert a[:, 1:].data.ptr == a.data.ptr + 4
    assert a.base is None
    assert a.T[1:].base is a
    assert (xp.counts.d2h_calls, xp.counts.launches) == (0, 0)


def test_views_share_memory_and_copies_do_not(xp, a):
    for view in (a.reshape(3, 2), a.ravel(), a.T, a.transpose(1, 0), a.swapaxes(0, 1)):
        assert xp.shares_memory(view, a)
    for view in (a[None].squeeze(), xp.expand_dims(a, 0), xp.moveaxis(a, 0, 1), *xp.split(a, 2)):
        assert xp.shares_memory(view, a)
    assert a.view(xp.int32).dtype == np.int32
    assert xp.shares_memory(a.view(xp.int32), a)
    assert xp.ascontiguousarray(a) is a
    assert a.astype(xp.float32, copy=False) is a
    assert xp.asarray(a, order="C") is xp.array(a, copy=False) is a
    assert xp.asarray(a.T).base is a
    assert xp.asarray(a, order="F").flags.f_contiguous
    for copy in (xp.asarray(a.T, order="C"), xp.array(a), xp.asarray(a, dtype=xp.float64)):
        assert not xp.shares_memory(copy, a)
        assert copy.flags.c_contiguous
    for copy in (a.copy(), a.astype(xp.float32), a.T.reshape(6), xp.ascontiguousarray(a.T), a + 0):
        assert not xp.shares_memory(copy, a)
        assert copy.base is None
        assert copy.flags.owndata
        assert copy.flags.c_contiguous
    assert not xp.shares_memory(a, np.zeros(3))


def test_results_are_in_c_order_where_numpy_keeps_the_order(xp, a):
    assert (a.T + a.T).flags.c_contiguous
    assert not (np.ones((2, 3)).T + 1).flags.c_contiguous
    assert xp.empty_like(a.T).flags.f_contiguous
    assert a.T.astype(xp.float64).flags.f_contiguous  # its order is "K"
    assert a.T.copy().flags.c_contiguous  # its order is "C"
    assert xp.asarray(np.ones((2, 3)).T).flags.f_contiguous


def test_empty_memory_is_not_zero(xp):
    assert np.isnan(xp.empty(3, xp.float32).get()).all()
    assert np.isnan(xp.empty(8, xp.uint8).view(xp.float32).get()).all()
    assert (xp.empty(3, xp.int64).get() != 0).all()
    assert np.isnan(strict_cupy.cupyx.empty_pinned(3)).all()
    assert (strict_cupy.cupyx.zeros_pinned((2, 2), np.int32) == 0).all()


def test_a_broadcast_view_cannot_be_written(xp, a):
    wide = xp.broadcast_to(a, (4, 2, 3))
    assert wide.shape == (4, 2, 3)
    with pytest.raises(ValueError, match="read-only"):
        wide += 1


def test_memory_is_counted_while_an_array_or_a_view_lives(xp, pool):
    before = pool.used_bytes()
    array = xp.zeros(1000, xp.float32)
    assert pool.used_bytes() - before == 4096  # 4000, rounded up to 512
    view = array[10:20]
    del array
    assert pool.used_bytes() - before == 4096
    del view
    assert pool.used_bytes() == before
    assert pool.total_bytes() >= before + 4096
    pool.free_all_blocks()
    assert pool.total_bytes() == before


def test_too_much_memory_raises(xp, pool):
    xp.rules.memory_limit = pool.used_bytes() + 8192
    kept = xp.zeros(1024, xp.float32)
    with pytest.raises(xp.cuda.memory.OutOfMemoryError, match="Out of memory") as error:
        xp.zeros(1025, xp.float32)
    assert isinstance(error.value, MemoryError)
    del kept
    xp.zeros(1025, xp.float32)
    xp.rules.memory_limit = pool.used_bytes() + 512
    xp.zeros(128, xp.float32)  # just fits
    xp.rules.memory_limit = None
    pool.set_limit(size=pool.used_bytes() + 512)
    assert pool.get_limit() == pool.used_bytes() + 512
    with pytest.raises(MemoryError):
        xp.zeros(1025, xp.float32)
    pool.set_limit(size=0)
    xp.zeros(1025, xp.float32)


# Products


def test_batched_products_and_einsum_are_refused(xp, a):
    with pytest.raises(ValueError, match="batched"):
        xp.matmul(a[None], a.T[None])
    with pytest.raises(ValueError, match="batched"):
        a[None] @ a.T
    with pytest.raises(ValueError, match="2-D"):
        xp.dot(a[None], a.T)
    with pytest.raises(TypeError, match="no einsum"):
        xp.einsum("ij,kj->ik", a, a)
    xp.rules.allow_einsum = True
    np.testing.assert_array_equal(xp.einsum("ij,kj->ik", a, a).get(), (a @ a.T).get())


@pytest.mark.parametrize("product", ["dot", "matmul"])
def test_products_write_into_out(xp, a, product):
    function = getattr(xp, product)
    out = xp.empty((2, 2), xp.float32)
    assert function(a, a.T, out=out) is out
    np.testing.assert_array_equal(out.get(), [[5, 14], [14, 50]])
    for bad in (xp.empty((2, 2)), xp.empty((2, 2), xp.float32).T, xp.empty((2, 4), "f4")[:, ::2]):
        with pytest.raises(ValueError, match="out must be"):
            function(a, a.T, out=bad)
    with pytest.raises(ValueError, match="shape"):
        function(a, a.T, out=xp.empty((2, 3), xp.float32))


def test_a_product_of_column_slices_counts_the_copy_that_cupy_makes(xp, a):
    a @ a.T
    assert xp.counts.operand_copies == 0
    a[:, :2] @ a[:, :2].T
    assert xp.counts.operand_copies == 2


def test_launches_are_counted_by_name(xp, a):
    with xp.recording() as log:
        xp.maximum(a + 1, 0.0)
        a @ a.T
        a[...] = 1
        a.sum()
        a.T[0]
        xp.empty(3)
    assert log.launches == ["add", "maximum", "matmul", "setitem", "sum"]


# Kernels


@pytest.fixture
def axpy(xp):
    return xp.RawModule(code=KERNELS, options=("-DREAL=float",)).get_function("axpy")


@needs_compiler
def test_a_kernel_runs_its_own_text(xp, axpy):
    x, out = xp.arange(5, dtype=xp.float32), xp.empty(5, xp.float32)
    with xp.recording() as log:
        axpy((2,), (4,), (x, x, out, 5, 2.0))
    np.testing.assert_array_equal(out.get(), [0, 3, 6, 9, 12])
    axpy((2,), (4,), (x, 0, out, 5, 2.0))  # a null pointer
    np.testing.assert_array_equal(out.get(), [0, 2, 4, 6, 8])
    assert log.launches == ["axpy"]
    kernel = xp.RawKernel(KERNELS, "axpy", ("-DREAL=double",))
    wide = xp.ones(3, xp.float64)
    kernel((1,), (32,), (wide, wide, wide, 3, 0.5))
    np.testing.assert_array_equal(wide.get(), [1.5] * 3)


@needs_compiler
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({0: np.zeros(5, np.float32)}, TypeError),
        ({0: [0.0] * 5}, TypeError),
        ({1: None}, TypeError),
        ({1: 7}, TypeError),
        ({1: 0.0}, TypeError),
        ({3: 5.0}, TypeError),  # a double's bits, read as an integer
        ({3: True}, TypeError),
        ({3: np.int32(5)}, TypeError),
        ({4: 2}, TypeError),
        ({4: np.float32(2)}, TypeError),
        ({0: "float64"}, TypeError),
        ({0: "strided"}, ValueError),
        ({2: "broadcast"}, (TypeError, ValueError)),
    ],
)
def test_arguments_that_a_gpu_would_misread_raise(xp, axpy, change, error):
    x = xp.ones(5, xp.float32)
    special = {
        "float64": xp.ones(5),
        "strided": xp.ones(10, xp.float32)[::2],
        "broadcast": xp.broadcast_to(xp.ones(1, xp.float32), (1,)),
    }
    arguments = [x, x, xp.empty(5, xp.float32), 5, 2.0]
    for place, value in change.items():
        arguments[place] = special[value] if isinstance(value, str) else value
    with pytest.raises(error):
        axpy((1,), (32,), tuple(arguments))


@needs_compiler
@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0,), (32,)),
        ((1,), (0,)),
        ((1,), (2048,)),
        ((1,), (64, 32)),
        ((1,), (1, 1, 65)),
        ((2**31,), (32,)),
        ((1, 65536), (32,)),
        ((1, 1, 65536), (32,)),
        ((1.0,), (32,)),
        ((np.int64(1),), (32,)),
        (1, (32,)),
        ((1, 1, 1, 1), (32,)),
    ],
)
def test_grids_and_blocks_have_limits(xp, axpy, grid, block):
    x = xp.ones(5, xp.float32)
    with pytest.raises(ValueError, match=r"grid|block"):
        axpy(grid, block, (x, x, x, 0, 2.0))


@needs_compiler
def test_kernels_are_called_as_cupy_wants_it(xp, axpy):
    x = xp.ones(5, xp.float32)
    for wrong in ([x, x, x, 5, 2.0], (x, x, x, 5)):
        with pytest.raises(TypeError):
            axpy((1,), (32,), wrong)
    with pytest.raises(RuntimeError, match="not found: ax"):
        xp.RawModule(code=KERNELS).get_function("ax")
    with pytest.raises(TypeError, match="tuple"):
        xp.RawModule(code=KERNELS, options=["-DREAL=float"])
    with pytest.raises(TypeError):
        xp.RawModule(KERNELS, ("-DREAL=float",))  # CuPy takes the options by name


@pytest.mark.parametrize("name", ["ElementwiseKernel", "ReductionKernel", "fuse"])
def test_other_kernels_are_refused(xp, name):
    with pytest.raises(TypeError, match="only RawModule kernels"):
        getattr(xp, name)("T x", "T y", "y = x", "f")


# Device


def test_one_device(xp):
    runtime = xp.cuda.runtime
    assert xp.cuda.is_available()
    assert runtime.getDeviceCount() == 1
    assert isinstance(runtime.getDeviceProperties(0)["name"], bytes)
    assert runtime.runtimeGetVersion() >= 12000
    assert runtime.driverGetVersion() >= 12000
    with xp.cuda.Device(0) as device:
        assert int(device.compute_capability) >= 80
        free, total = device.mem_info
        assert 0 < free <= total
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        xp.cuda.Device(1)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        runtime.getDeviceProperties(1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda xp: xp.cuda.Device().synchronize(),
        lambda xp: xp.cuda.runtime.deviceSynchronize(),
        lambda xp: xp.cuda.get_current_stream().synchronize(),
        lambda xp: xp.cuda.Stream.null.synchronize(),
        lambda xp: xp.cuda.Stream.null.record().synchronize(),
    ],
)
def test_explicit_waits_are_counted(xp, wait):
    wait(xp)
    assert xp.counts.synchronisations == 1


def test_the_precision_of_products_is_kept(xp):
    types = xp._core._routines_linalg
    assert xp._core.get_compute_type(xp.float32) == types.COMPUTE_TYPE_DEFAULT
    xp._core.set_compute_type(xp.float32, types.COMPUTE_TYPE_TF32)
    assert xp._core.get_compute_type(np.dtype("f4")) == 7
    assert xp._core.get_compute_type(xp.float64) == types.COMPUTE_TYPE_DEFAULT
    with pytest.raises(ValueError, match="compute type"):
        xp._core.set_compute_type(xp.float32, 99)
    xp.reset()
    assert xp._core.get_compute_type(xp.float32) == types.COMPUTE_TYPE_DEFAULT


# Streams


@pytest.fixture
def copy_stream(xp):
    return xp.cuda.Stream(non_blocking=True)


def test_streams_nest(xp, copy_stream):
    null = xp.cuda.Stream.null
    other = xp.cuda.Stream(non_blocking=True)
    assert xp.cuda.get_current_stream() is null
    with copy_stream:
        assert xp.cuda.get_current_stream() is copy_stream
        with other:
            assert xp.cuda.get_current_stream() is other
        assert xp.cuda.get_current_stream() is copy_stream
    assert xp.cuda.get_current_stream() is null
    other.use()
    assert xp.cuda.get_current_stream() is other


def test_asynchronous_copies_need_pinned_memory(xp, copy_stream):
    a = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    with pytest.raises(ValueError, match="pinned"):
        a.set(zeros(), stream=copy_stream)
    with pytest.raises(ValueError, match="pinned"):
        a.get(out=zeros(), stream=copy_stream, blocking=False)
    with pytest.raises(ValueError, match="pinned"):
        a.get(blocking=False)
    a.set(pinned(zeros()), stream=copy_stream)
    a.set(pinned(zeros(8))[4:], stream=copy_stream)  # a part of pinned memory is pinned
    a.get(out=pinned(zeros()), stream=copy_stream, blocking=False)


def test_a_copy_is_there_after_the_wait(xp, copy_stream):
    a = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    source = pinned(np.arange(4, dtype=np.float32))
    xp.counts.reset()
    a.set(source, stream=copy_stream)
    xp.cuda.get_current_stream().wait_event(copy_stream.record())
    total = a.sum()
    assert xp.counts.synchronisations == 0
    assert float(total) == 6


@pytest.mark.parametrize(
    "use",
    [
        lambda a: a.sum(),
        lambda a: a.get(),
        lambda a: a[2:] + 1,
        lambda a: a[::-1][3:] + 1,
        lambda a: strict_cupy.dot(strict_cupy.ones(4, np.float32), a),
        lambda a: strict_cupy.where(strict_cupy.ones(4, np.bool_), 0.0, a),
        lambda a: strict_cupy.take(a, strict_cupy.zeros(1, np.int64)),
        lambda a: strict_cupy.copyto(strict_cupy.ones(4, np.float32), a),
        lambda a: a.fill(1),
        lambda a: a.__iadd__(1),
        lambda a: a.set(zeros()),
        lambda a: strict_cupy.concatenate([a, a]),
    ],
)
def test_use_of_a_copy_without_a_wait_raises(xp, copy_stream, use):
    a = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    event = copy_stream.record()  # too early: before the copy
    a.set(pinned(zeros()), stream=copy_stream)
    xp.cuda.get_current_stream().wait_event(event)
    with pytest.raises(strict_cupy.RaceError, match="wait for it"):
        use(a)


def test_a_copy_over_what_is_still_read_raises(xp, copy_stream):
    a = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a.sum()  # may still run when the copy starts
    with pytest.raises(strict_cupy.RaceError, match="writes what stream 0 read"):
        a.set(pinned(zeros()), stream=copy_stream)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a.set(pinned(zeros()), stream=copy_stream)


def test_two_streams_may_read_one_array_and_write_apart(xp, copy_stream):
    a = xp.zeros(8, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a[:4].set(pinned(zeros()), stream=copy_stream)
    a[4:].sum()
    with copy_stream:
        a[:4].sum()
        a[4:].sum()
    with pytest.raises(strict_cupy.RaceError):
        a[3:].sum()
    with pytest.raises(strict_cupy.RaceError):
        a[::-1][2:5].sum()  # numbers 5, 4, 3
    a[::-1][:4].sum()


@needs_compiler
def test_kernels_take_part(xp, axpy, copy_stream):
    x, out = xp.zeros(4, xp.float32), xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    with copy_stream:
        axpy((1,), (4,), (x, x, out, 4, 1.0))
    x.sum()  # const: both only read
    with pytest.raises(strict_cupy.RaceError):
        out.sum()
    copy_stream.synchronize()
    out.sum()


@pytest.mark.parametrize(
    "wait",
    [
        lambda xp, stream, event: stream.synchronize(),
        lambda xp, stream, event: event.synchronize(),
        lambda xp, stream, event: xp.cuda.Device().synchronize(),
        lambda xp, stream, event: xp.cuda.runtime.deviceSynchronize(),
    ],
)
def test_the_host_sees_a_copy_after_it_waited_and_not_before(xp, copy_stream, wait):
    a = xp.ones(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    out = pinned(zeros())
    a.get(out=out, stream=copy_stream, blocking=False)
    event = copy_stream.record()
    assert not event.done
    assert (out == 0).all()
    wait(xp, copy_stream, event)
    assert event.done
    assert (out == 1).all()
    a.fill(2)  # the host waited, so what it launches now comes later
    assert xp.counts.synchronisations == 1


def test_a_pinned_source_changed_too_early_changes_the_copy(xp, copy_stream):
    a = xp.empty(4, xp.float32)
    source = pinned(np.ones(4, np.float32))
    a.set(source, stream=copy_stream)
    source[...] = 2  # before the copy was waited for
    copy_stream.synchronize()
    np.testing.assert_array_equal(a.get(), [2, 2, 2, 2])
    source[...] = 3
    np.testing.assert_array_equal(a.get(), [2, 2, 2, 2])
    source[...] = 4
    b = xp.asarray(source)  # asynchronous too: CuPy copies from pinned memory directly
    source[...] = 5
    np.testing.assert_array_equal(b.get(), [5, 5, 5, 5])


def test_an_event_waits_for_what_came_before_it_only(xp, copy_stream):
    a, b = xp.empty(4, xp.float32), xp.empty(4, xp.float32)
    first, second = pinned(np.ones(4, np.float32)), pinned(np.ones(4, np.float32))
    a.set(first, stream=copy_stream)
    event = copy_stream.record()
    b.set(second, stream=copy_stream)
    xp.cuda.Stream.null.wait_event(event)
    assert float(a.sum()) == 4
    second[...] = 2  # that copy may still be under way
    copy_stream.synchronize()
    assert float(b.sum()) == 8


def test_order_passes_on_from_stream_to_stream(xp):
    first, second = xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)
    a = xp.empty(4, xp.float32)
    a.set(pinned(np.ones(4, np.float32)), stream=first)
    second.wait_event(first.record())
    event = second.record()
    xp.cuda.Stream.null.wait_event(event)
    np.testing.assert_array_equal(a.get(), [1, 1, 1, 1])


def test_plain_streams_wait_for_the_null_stream_and_it_for_them(xp):
    stream = xp.cuda.Stream()
    a = xp.zeros(4, xp.float32)
    a.set(pinned(np.ones(4, np.float32)), stream=stream)
    assert float(a.sum()) == 4


def test_an_event_that_was_never_recorded_is_no_reason_to_wait(xp, copy_stream):
    a = xp.empty(4, xp.float32)
    a.set(pinned(zeros()), stream=copy_stream)
    xp.cuda.Stream.null.wait_event(xp.cuda.Event())
    with pytest.raises(strict_cupy.RaceError):
        a.sum()


def test_times_between_events_need_a_wait(xp):
    start, end = xp.cuda.Event(), xp.cuda.Event()
    with pytest.raises(RuntimeError, match="InvalidResourceHandle"):
        xp.cuda.get_elapsed_time(start, end)
    start.record()
    xp.zeros(3)
    end.record()
    with pytest.raises(RuntimeError, match="NotReady"):
        xp.cuda.get_elapsed_time(start, end)
    end.synchronize()
    assert xp.cuda.get_elapsed_time(start, end) >= 0
    assert xp.cuda.get_elapsed_time(end, start) <= 0


def test_reset_forgets_streams(xp, copy_stream):
    a = xp.empty(4, xp.float32)
    a.set(pinned(zeros()), stream=copy_stream)
    xp.reset()
    a.fill(1)
    later = xp.cuda.Stream(non_blocking=True)
    later.wait_event(xp.cuda.Stream.null.record())
    a.set(pinned(zeros()), stream=later)
    assert xp.counts.launches == 1


def test_memory_comes_from_the_allocator_in_use(xp, pool):
    sizes = []

    def allocate(size):
        sizes.append(size)
        return pool.malloc(size)

    before = pool.used_bytes()
    with xp.cuda.using_allocator(allocate):
        kept = xp.zeros(100, xp.float32)
        kept + 1
    xp.zeros(7)
    assert sizes == [400, 400]
    assert pool.used_bytes() == before + 512
    assert xp.counts.peak_bytes == before + 1024


def test_a_stream_from_before_a_reset_works_on(xp, copy_stream):
    a = xp.empty(4, xp.float32)
    a.set(pinned(np.ones(4, np.float32)), stream=copy_stream)
    xp.reset()
    np.testing.assert_array_equal(a.get(), np.ones(4))
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a.fill(1)
    with pytest.raises(strict_cupy.RaceError):
        a.set(pinned(zeros()), stream=copy_stream)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a.set(pinned(zeros()), stream=copy_stream)
    xp.cuda.Device().synchronize()
    np.testing.assert_array_equal(a.get(), zeros())


def test_memory_that_another_stream_may_still_use_is_not_given_out_again(xp, copy_stream):
    a = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    a.set(pinned(zeros()), stream=copy_stream)
    del a  # the copy may still be under way, and the next array gets its memory
    with pytest.raises(strict_cupy.RaceError, match="may still use"):
        xp.empty(4, xp.float32)
    b = xp.zeros(4, xp.float32)
    copy_stream.wait_event(xp.cuda.Stream.null.record())
    b.set(pinned(zeros()), stream=copy_stream)
    event = copy_stream.record()
    del b
    xp.cuda.get_current_stream().wait_event(event)
    xp.empty(4, xp.float32)


def test_memory_goes_back_to_the_stream_on_which_it_was_taken(xp, copy_stream):
    with copy_stream:
        a = xp.empty(4, xp.float32)
        a.set(pinned(zeros()))
    xp.cuda.Stream.null.wait_event(copy_stream.record())
    a.sum()
    del a
    xp.empty(4, xp.float32)  # of other memory
    with pytest.raises(strict_cupy.RaceError, match="may still use"), copy_stream:
        xp.empty(4, xp.float32)
    xp.cuda.Device().synchronize()
    with copy_stream:
        xp.empty(4, xp.float32)


def test_plain_streams_need_no_event_for_memory(xp):
    stream = xp.cuda.Stream()
    with stream:
        a = xp.zeros(4, xp.float32)
    a.sum()
    del a
    with stream:
        xp.zeros(4, xp.float32)
