"""Products with a sparse matrix against loops over its entries, their memory and their count."""

import json
import tracemalloc

import numpy as np
import pytest
from arrays import at_the_edge, to_device

from minicst.autograd import Tensor, gradcheck
from minicst.backend import NumpyBackend, Pattern, get_backend, sparse_linear
from minicst.backend.sparse_linear import SparseLinearOps
from minicst.functional import sparse_linear as on_tape


class Generic(NumpyBackend):
    """What a device without operations of its own runs."""

    _entry_products = SparseLinearOps._entry_products


def backend_of(kind):
    """The device's own backend, on the CPU with one thread; or the generic one."""
    if kind == "generic":
        return Generic(1)
    backend = get_backend()
    return NumpyBackend(1) if backend.name == "numpy" else at_the_edge(backend)


# (n, c_out, c_in, keep rate): rows and columns without entries among them.
CASES = [(1, 1, 1, 1.0), (5, 7, 9, 0.5), (4, 12, 6, 0.15), (3, 6, 20, 1.0), (6, 9, 5, 0.02)]
cases = pytest.mark.parametrize("case", CASES, ids=str)
every_backend = pytest.mark.parametrize(
    "kind", ["own", pytest.param("generic", marks=pytest.mark.cpu)]
)


def sparse_case(case, dtype=np.float64):
    n, c_out, c_in, rate = case
    rng = np.random.default_rng(sum(case[:3]))
    mask = rng.random((c_out, c_in)) < rate
    if rate < 0.2:
        mask[0] = mask[:, 1] = False
        mask[1, 0] = True
    x, g = rng.normal(size=(n, c_in)), rng.normal(size=(n, c_out))
    values, bias = rng.normal(size=mask.sum()), rng.normal(size=c_out)
    return mask, *(array.astype(dtype) for array in (x, g, values, bias))


def by_loops(mask, x, g, values, bias):
    """Output, gradient of the input, gradient of the values: entry by entry."""
    out = np.tile(bias, (len(x), 1))
    grad_x, grad_values = np.zeros_like(x), np.zeros_like(values)
    k = 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                for i in range(len(x)):
                    out[i, row] += values[k] * x[i, column]
                    grad_x[i, column] += values[k] * g[i, row]
                    grad_values[k] += g[i, row] * x[i, column]
                k += 1
    return out, grad_x, grad_values


@every_backend
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
@cases
def test_against_loops(case, dtype, tolerance, kind):
    backend = backend_of(kind)
    mask, x, g, values, bias = sparse_case(case, dtype)
    pattern = Pattern.of_mask(mask)
    wanted = by_loops(mask, *(a.astype(np.float64) for a in (x, g, values, bias)))
    found = (
        backend.sparse_linear(x, values, pattern, bias),
        backend.sparse_linear_grad_input(g, values, pattern),
        backend.sparse_linear_grad_weight(x, g, pattern),
    )
    for array, oracle in zip(found, wanted, strict=True):
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        np.testing.assert_allclose(array, oracle, rtol=0, atol=tolerance * 10)
    plain = backend.sparse_linear(x, values, pattern)
    np.testing.assert_allclose(plain + bias, wanted[0], rtol=0, atol=tolerance * 10)


@every_backend
def test_gradient_at_live_entries_is_that_of_the_dense_matrix(kind):
    backend = backend_of(kind)
    rng = np.random.default_rng(3)
    mask = rng.random((40, 70)) < 0.3
    x, g = rng.normal(size=(16, 70)), rng.normal(size=(16, 40))
    found = backend.sparse_linear_grad_weight(x, g, Pattern.of_mask(mask))
    np.testing.assert_allclose(found, (g.T @ x)[mask], rtol=0, atol=1e-12)


@pytest.mark.cpu  # whose gradient is cut into chunks
@every_backend
@pytest.mark.parametrize("n_bytes", [1, 3 * 8 * 16, 1 << 30])
def test_chunks_change_nothing(monkeypatch, n_bytes, kind):
    """Pieces of one, of a few entries that don't divide a row, of everything."""
    backend = backend_of(kind)
    rng = np.random.default_rng(4)
    mask = rng.random((6, 50)) < 0.5
    x, g = rng.normal(size=(8, 50)), rng.normal(size=(8, 6))
    pattern = Pattern.of_mask(mask)
    monkeypatch.setattr(sparse_linear, "CHUNK_BYTES", n_bytes)
    found = backend.sparse_linear_grad_weight(x, g, pattern)
    np.testing.assert_allclose(found, (g.T @ x)[mask], rtol=0, atol=1e-12)


def test_meter_counts_live_weights_times_images():
    backend = backend_of("own")
    mask, x, g, values, bias = sparse_case((5, 7, 9, 0.5), np.float32)
    pattern, nnz = Pattern.of_mask(mask), int(mask.sum())
    meter = backend.meter
    meter.layer = "fc"
    with meter.in_phase("all"):
        backend.sparse_linear(x, values, pattern, bias)
        backend.sparse_linear_grad_weight(x, g, pattern)
        backend.sparse_linear_grad_input(g, values, pattern)
    passes = ("forward", "weight_gradient", "input_gradient")
    assert meter.by_layer("all") == {"fc": dict.fromkeys(passes, 5 * nnz)}
    places = 4 * (8 + nnz)  # row pointers and columns
    numbers = dict.fromkeys(passes, 4 * (5 * 9 + 5 * 7 + nnz) + places)
    assert {which: meter.bytes["all", "fc", which] for which in passes} == numbers


@pytest.mark.cpu  # tracemalloc sees the host's memory
@every_backend
def test_no_matrix_is_ever_dense(kind):
    """2000 x 3000 would be 24 MB; operands and 1 % live entries take far less."""
    backend = backend_of(kind)
    rng = np.random.default_rng(5)
    c_out, c_in, n = 2000, 3000, 16
    mask = np.zeros((c_out, c_in), bool)
    mask.reshape(-1)[rng.choice(mask.size, mask.size // 100, replace=False)] = True
    pattern = Pattern.of_mask(mask)
    x = rng.normal(size=(n, c_in)).astype(np.float32)
    g = rng.normal(size=(n, c_out)).astype(np.float32)
    values = np.ones(pattern.size, np.float32)
    backend.sparse_linear(x, values, pattern)  # imports
    tracemalloc.start()
    backend.sparse_linear(x, values, pattern)
    backend.sparse_linear_grad_input(g, values, pattern)
    backend.sparse_linear_grad_weight(x, g, pattern)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Transposed operands and results, indices as take wants them, a chunk of gathered operands.
    operands = 2 * (x.nbytes + g.nbytes) + 8 * 3 * pattern.size
    assert (
        peak < operands + 2 * sparse_linear.CHUNK_BYTES < c_out * c_in
    )  # bytes of even a bool matrix


@pytest.mark.cpu  # its threads
def test_threads_change_no_bit():
    mask, x, g, values, bias = sparse_case((64, 50, 60, 0.3), np.float32)
    pattern = Pattern.of_mask(mask)
    found = []
    for threads in (1, 3):
        backend = NumpyBackend(threads)
        found.append([
            backend.sparse_linear(x, values, pattern, bias),
            backend.sparse_linear_grad_input(g, values, pattern),
            backend.sparse_linear_grad_weight(x, g, pattern),
        ])  # fmt: skip
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, three)


# Pattern


@cases
def test_pattern_holds_the_places_row_by_row(case):
    mask = sparse_case(case)[0]
    pattern = Pattern.of_mask(mask)
    places = [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1]) if mask[r, c]]
    assert list(zip(pattern.rows.tolist(), pattern.columns.tolist(), strict=True)) == places
    assert (pattern.size, pattern.shape) == (len(places), mask.shape)
    starts = [sum(r < row for r, _ in places) for row in range(mask.shape[0] + 1)]
    assert pattern.pointers.tolist() == starts
    np.testing.assert_array_equal(pattern.mask(), mask)


@cases
def test_pattern_as_plain_data(case):
    mask = sparse_case(case)[0]
    text = json.loads(json.dumps(Pattern.of_mask(mask).text()))
    np.testing.assert_array_equal(Pattern.of_text(mask.shape, text).mask(), mask)
    n_bytes = (mask.size + 7) // 8
    assert len(text) == 4 * ((n_bytes + 2) // 3)  # base64: four letters for three bytes


def test_damaged_patterns():
    with pytest.raises(ValueError, match="no base64"):
        Pattern.of_text((2, 3), "?")
    with pytest.raises(ValueError, match="pattern of 1 bytes: a 4x5 matrix has 3, a bit for each"):
        Pattern.of_text((4, 5), Pattern.of_mask(np.ones((2, 3), bool)).text())


# On the tape


@pytest.mark.parametrize("bias", [False, True])
@cases
def test_gradients_by_differences(case, bias):
    mask, x, _, values, b = sparse_case(case)
    pattern = Pattern.of_mask(mask)
    inputs = [Tensor(array, requires_grad=True) for array in (x, values, b)[: 2 + bias]]
    gradcheck(lambda x, v, *b: on_tape(x, v, pattern, *b), *inputs)


def test_only_what_is_needed_is_computed(backend):
    mask, x, g, values, _ = sparse_case((5, 7, 9, 0.5))
    pattern = Pattern.of_mask(mask)
    backend.meter.layer = "fc"
    out = on_tape(Tensor(x), Tensor(values, requires_grad=True), pattern)
    out.backward(to_device(g))
    nnz = int(mask.sum())
    wanted = {"forward": 5 * nnz, "weight_gradient": 5 * nnz, "input_gradient": 0}
    assert backend.meter.by_layer("") == {"fc": wanted}


def test_shapes_and_dtypes_that_do_not_fit():
    pattern = Pattern.of_mask(np.ones((2, 3), bool))
    x, values = Tensor(np.ones((4, 3))), Tensor(np.ones(6))
    with pytest.raises(ValueError, match=r"6 entries of a 2x3 matrix .* \(4, 2\) and \(6,\)"):
        on_tape(Tensor(np.ones((4, 2))), values, pattern)
    with pytest.raises(ValueError, match=r"got shapes \(4, 3\) and \(5,\)"):
        on_tape(x, Tensor(np.ones(5)), pattern)
    with pytest.raises(ValueError, match=r"bias of shape \(3,\) for 2 outputs"):
        on_tape(x, values, pattern, Tensor(np.ones(3)))
    with pytest.raises(TypeError, match="float64 and float32"):
        on_tape(x, Tensor(np.ones(6, np.float32)), pattern)
