"""Every hot operation of the backend, on the device and on the reference, from the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from minicst.backend import Backend, Pattern
from minicst.backend.base import Array
from minicst.randomness import rng_for
from minicst.selftest.check import DTYPES, Pair, Result, Tolerance, checked

PART = "operations"
EXACT = Tolerance(
    0.0,
    "bit for bit: each number is computed by the same operations in the same order",
)
ROUNDING = {
    "float64": Tolerance(1e-10, "sums are taken in another order"),
    "float32": Tolerance(1e-5, "sums are taken in another order"),
}
TF32 = Tolerance(1e-3, "TF32 rounds the operands of products to 10 bits of mantissa")


class Draw:
    """Draws an operation's operands on the host and puts them on a backend.

    Args:
        backend: where the operation runs.
        dtype: of its arrays.
        name: of the operation: keys the numbers, so that each backend gets the same ones.
    """

    def __init__(self, backend: Backend, dtype: str, name: str) -> None:
        self.backend = backend
        self.dtype = np.dtype(dtype)
        self.rng = rng_for(0, "selftest", name)

    def normal(self, *shape: int) -> Array:
        """Standard normal numbers."""
        return self.backend.asarray(self.rng.standard_normal(shape).astype(self.dtype))

    def positive(self, *shape: int) -> Array:
        """Numbers in [0.5, 1.5)."""
        return self.backend.asarray(self.rng.uniform(0.5, 1.5, shape).astype(self.dtype))

    def channels(self, c: int, kept: int) -> np.ndarray:
        """Numbers of `kept` channels of c, ascending, on the host."""
        return np.sort(self.rng.permutation(c)[:kept])

    def index(self, *channels: np.ndarray) -> list[Array]:
        """Channel numbers on the backend."""
        return self.backend.indices(channels)


Operands = Callable[[Draw], Iterator[Array]]


@dataclass(frozen=True)
class Operation:
    """An operation of the backend, under its own name.

    Attributes:
        name: of the method.
        results: draws operands and yields what the operation gives.
        exact: whether it has to be equal bit for bit.
        product: whether it is a product, which --precision rules.
    """

    name: str
    results: Operands
    exact: bool
    product: bool

    def tolerance(self, dtype: str, precision: str) -> Tolerance:
        """Largest error that passes."""
        if self.exact:
            return EXACT
        if self.product and precision == "tf32" and dtype == "float32":
            return TF32
        return ROUNDING[dtype]


OPERATIONS: list[Operation] = []


def _operation(exact: bool = False, product: bool = False) -> Callable[[Operands], Operands]:
    def listed(results: Operands) -> Operands:
        OPERATIONS.append(Operation(results.__name__.removeprefix("_"), results, exact, product))
        return results

    return listed


def check_operations(
    device: Backend,
    reference: Backend,
    precision: str = "float32",
    operations: Iterable[Operation] = (),
) -> list[Result]:
    """Compare operations; one that both backends take from the same function is left out.

    Args:
        device: what is tested.
        reference: what it is tested against.
        precision: that the device is set to.
        operations: by default all of them.
    """
    return [
        checked(
            PART,
            operation.name,
            dtype,
            operation.tolerance(dtype, precision),
            partial(_pairs, operation, dtype, device, reference),
        )
        for operation in operations or OPERATIONS
        if not _same_function(operation.name, device, reference)
        for dtype in DTYPES
    ]


def _same_function(name: str, device: Backend, reference: Backend) -> bool:
    own = getattr(device, name)
    return getattr(own, "__func__", own) is getattr(type(reference), name)


def _pairs(operation: Operation, dtype: str, device: Backend, reference: Backend) -> Iterator[Pair]:
    both = (
        operation.results(Draw(backend, dtype, operation.name)) for backend in (device, reference)
    )
    for actual, wanted in zip(*both, strict=True):
        yield device.to_numpy(actual), reference.to_numpy(wanted)


# Each function below draws operands and yields what the operation that it is named after gives.
# Kernels, strides, paddings and channel counts are uneven, so that no two sizes can be mixed up.
# Convolutions have columns of more than 1 MB, so that they run in chunks with that workspace.

WINDOWS = ((3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 2, 2))  # kernel, stride, padding


@_operation(product=True)
def _conv2d(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in WINDOWS:
        x, weight, bias = d.normal(10, 17, 16, 20), d.normal(24, kernel, kernel, 20), d.normal(24)
        yield d.backend.conv2d(x, weight, bias, stride, padding)
        yield d.backend.conv2d(x, weight, None, stride, padding)


@_operation(product=True)
def _conv2d_grad_weight(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in WINDOWS:
        oh, ow = (1 + (size + 2 * padding - kernel) // stride for size in (17, 16))
        x, g = d.normal(10, 17, 16, 20), d.normal(10, oh, ow, 24)
        yield d.backend.conv2d_grad_weight(x, g, (24, kernel, kernel, 20), stride, padding)


@_operation(product=True)
def _conv2d_grad_input(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in WINDOWS:
        oh, ow = (1 + (size + 2 * padding - kernel) // stride for size in (17, 16))
        for c_in, c_out in ((20, 12), (12, 20)):
            g, weight = d.normal(10, oh, ow, c_out), d.normal(c_out, kernel, kernel, c_in)
            yield d.backend.conv2d_grad_input(g, weight, (10, 17, 16, c_in), stride, padding)


@_operation(exact=True)
def _im2col(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in WINDOWS:
        yield d.backend.im2col(d.normal(3, 9, 8, 7), kernel, kernel, stride, padding)
    yield d.backend.im2col(d.normal(2, 9, 8, 40), 2, 3, 1, 1)


@_operation(exact=True)
def _col2im(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in WINDOWS:
        oh, ow = (1 + (size + 2 * padding - kernel) // stride for size in (9, 8))
        col = d.normal(3 * oh * ow, kernel * kernel * 7)
        yield d.backend.col2im(col, (3, 9, 8, 7), kernel, kernel, stride, padding)


@_operation()
def _depthwise_conv2d(d: Draw) -> Iterator[Array]:
    for stride in (1, 2):
        x, weight, bias = d.normal(4, 11, 10, 37), d.normal(37, 3, 3, 1), d.normal(37)
        yield d.backend.depthwise_conv2d(x, weight, bias, stride, 1)
        yield d.backend.depthwise_conv2d(x, weight, None, stride, 0)


@_operation()
def _depthwise_conv2d_grad_weight(d: Draw) -> Iterator[Array]:
    for stride, oh, ow in ((1, 11, 10), (2, 6, 5)):
        x, g = d.normal(4, 11, 10, 37), d.normal(4, oh, ow, 37)
        yield d.backend.depthwise_conv2d_grad_weight(x, g, (37, 3, 3, 1), stride, 1)


@_operation()
def _depthwise_conv2d_grad_input(d: Draw) -> Iterator[Array]:
    for stride, oh, ow in ((1, 11, 10), (2, 6, 5)):
        g, weight = d.normal(4, oh, ow, 37), d.normal(37, 3, 3, 1)
        yield d.backend.depthwise_conv2d_grad_input(g, weight, (4, 11, 10, 37), stride, 1)


@_operation()
def _batch_norm_statistics(d: Draw) -> Iterator[Array]:
    for offset in (0.0, 100.0):  # far from zero, E[x^2] - E[x]^2 cancels
        x = d.normal(8, 14, 13, 21) + offset
        yield from d.backend.batch_norm_statistics(x)


@_operation(exact=True)
def _batch_norm_fold(d: Draw) -> Iterator[Array]:
    mean, variance, gamma, beta = d.normal(300), d.positive(300), d.positive(300), d.normal(300)
    yield from d.backend.batch_norm_fold(mean, variance, gamma, beta, 1e-5)


@_operation(exact=True)
def _batch_norm_track(d: Draw) -> Iterator[Array]:
    for masked in (False, True):
        live = d.backend.asarray((d.rng.random(300) < 0.5).astype(d.dtype)) if masked else None
        running = d.normal(300), d.positive(300)
        batch = d.normal(300), d.positive(300)
        d.backend.batch_norm_track(running, batch, live, 0.1, 1000 / 999)
        yield from running


@_operation(exact=True)
def _scale_shift(d: Draw) -> Iterator[Array]:
    for relu in (False, True):
        x, scale, shift = d.normal(8, 7, 9, 21), d.normal(21), d.normal(21)
        yield d.backend.scale_shift(x, scale, shift, relu)
        yield d.backend.scale_shift(x, scale, shift, relu, in_place=True)
        yield x


@_operation()
def _batch_norm_backward(d: Draw) -> Iterator[Array]:
    for relu in (False, True):
        for training in (False, True):
            g, x, out = d.normal(8, 14, 13, 21), d.normal(8, 14, 13, 21), d.normal(8, 14, 13, 21)
            mean, inv_std, gamma = d.normal(21) * 0.1, d.positive(21), d.positive(21)
            read = out if relu else None
            yield from d.backend.batch_norm_backward(g, x, read, mean, inv_std, gamma, training)


POOLS = ((2, 2, 0), (3, 2, 1), (3, 1, 1))  # kernel, stride, padding


def _pooled(size: int, kernel: int, stride: int, padding: int) -> int:
    return 1 + (size + 2 * padding - kernel) // stride


@_operation(exact=True)
def _max_pool2d(d: Draw) -> Iterator[Array]:
    for pool in POOLS:
        yield from d.backend.max_pool2d(d.normal(4, 12, 10, 19), *pool)
        steps = d.backend.asarray(d.rng.integers(0, 3, (4, 12, 10, 19)).astype(d.dtype))
        yield from d.backend.max_pool2d(steps, *pool)  # ties: the first of equals wins


@_operation(exact=True)
def _max_pool2d_backward(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in POOLS:
        shape = 4, *(_pooled(size, kernel, stride, padding) for size in (13, 12)), 19
        inner = d.rng.integers(0, kernel**2, shape).astype(np.uint8)
        if padding:  # the middle tap is never on the padding
            inner[:] = kernel**2 // 2
            inner[:, 1:-1, 1:-1] = d.rng.integers(0, kernel**2, inner[:, 1:-1, 1:-1].shape)
        g, tap = d.normal(*shape), d.backend.asarray(inner)
        yield d.backend.max_pool2d_backward(g, tap, (4, 13, 12, 19), kernel, stride, padding)


@_operation(exact=True)
def _avg_pool2d(d: Draw) -> Iterator[Array]:
    for pool in (*POOLS, (12, 12, 0)):
        yield d.backend.avg_pool2d(d.normal(4, 13, 12, 19), *pool)


@_operation(exact=True)
def _avg_pool2d_backward(d: Draw) -> Iterator[Array]:
    for kernel, stride, padding in (*POOLS, (12, 12, 0)):
        oh, ow = (_pooled(size, kernel, stride, padding) for size in (13, 12))
        g = d.normal(4, oh, ow, 19)
        yield d.backend.avg_pool2d_backward(g, (4, 13, 12, 19), kernel, stride, padding)


def _pattern(d: Draw) -> Pattern:
    return Pattern.of_mask(d.rng.random((31, 45)) < 0.3)


@_operation()
def _sparse_linear(d: Draw) -> Iterator[Array]:
    pattern = _pattern(d)
    x, values, bias = d.normal(26, 45), d.normal(pattern.size), d.normal(31)
    yield d.backend.sparse_linear(x, values, pattern, bias)
    yield d.backend.sparse_linear(x, values, pattern)


@_operation()
def _sparse_linear_grad_weight(d: Draw) -> Iterator[Array]:
    yield d.backend.sparse_linear_grad_weight(d.normal(26, 45), d.normal(26, 31), _pattern(d))


@_operation()
def _sparse_linear_grad_input(d: Draw) -> Iterator[Array]:
    pattern = _pattern(d)
    g, values = d.normal(26, 31), d.normal(pattern.size)
    yield d.backend.sparse_linear_grad_input(g, values, pattern)


@_operation(exact=True)
def _add(d: Draw) -> Iterator[Array]:
    for relu in (False, True):
        yield d.backend.add(d.normal(5, 7, 9, 11), d.normal(5, 7, 9, 11), relu)


@_operation(exact=True)
def _relu(d: Draw) -> Iterator[Array]:
    x = d.normal(5, 7, 9, 11)
    x[0, 0, 0, 0] = float("nan")  # a loss that diverges must show
    yield d.backend.relu(x)


@_operation(exact=True)
def _relu_backward(d: Draw) -> Iterator[Array]:
    yield d.backend.relu_backward(d.normal(5, 7, 9, 11), d.normal(5, 7, 9, 11))


@_operation(exact=True)
def _sgd_update(d: Draw) -> Iterator[Array]:
    for momentum, decay, nesterov in ((0.0, 0.0, False), (0.9, 5e-4, False), (0.9, 5e-4, True)):
        weight, grad = d.normal(1000), d.normal(1000)
        velocity = d.normal(1000) if momentum else None
        d.backend.sgd_update(weight, grad, velocity, 0.1, momentum, decay, nesterov)
        yield weight
        if velocity is not None:
            yield velocity


@_operation(exact=True)
def _adam_update(d: Draw) -> Iterator[Array]:
    for step, decay in ((1, 0.0), (7, 5e-4)):
        weight, grad, first, second = (
            d.normal(1000),
            d.normal(1000),
            d.normal(1000),
            d.positive(1000),
        )
        d.backend.adam_update(weight, grad, first, second, step, 1e-3, (0.9, 0.999), 1e-8, decay)
        yield from (weight, first, second)


SHAPES = ((23,), (23, 17), (23, 3, 3, 17))


def _blocks(d: Draw) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Any]]:
    """Shapes of full and small arrays, and the entries; all rows or columns too."""
    for shape in SHAPES:
        kept = d.channels(23, 9), d.channels(shape[-1], 6)
        for some_rows, some_columns in ((True, True), (True, False), (False, True)):
            if len(shape) == 1 and some_columns:
                continue
            rows, columns = d.index(*kept)
            small = (9 if some_rows else 23, *shape[1:-1])
            small += ((6 if some_columns else 17),) if len(shape) > 1 else ()
            at = rows if some_rows else None, columns if some_columns else None
            yield shape, small, d.backend.entries(shape, *at)


@_operation(exact=True)
def _gather(d: Draw) -> Iterator[Array]:
    for shape, small_shape, entries in _blocks(d):
        full, small = d.normal(*shape), d.normal(*small_shape)
        d.backend.gather(full, entries, small)
        yield small


@_operation(exact=True)
def _scatter(d: Draw) -> Iterator[Array]:
    for shape, small_shape, entries in _blocks(d):
        full, small = d.normal(*shape), d.normal(*small_shape)
        d.backend.scatter(full, entries, small)
        yield full


@_operation(exact=True)
def _take_channels(d: Draw) -> Iterator[Array]:
    (index,) = d.index(d.channels(23, 9))
    yield d.backend.take_channels(d.normal(5, 6, 7, 23), index)


@_operation(exact=True)
def _place_channels(d: Draw) -> Iterator[Array]:
    (index,) = d.index(d.channels(23, 9))
    yield d.backend.place_channels(d.normal(5, 6, 7, 9), index, 23)


@_operation()
def _cross_entropy(d: Draw) -> Iterator[Array]:
    for smoothing in (0.0, 0.1):
        labels = d.backend.asarray(d.rng.integers(0, 10, 50))
        yield from d.backend.cross_entropy(d.normal(50, 10) * 5, labels, smoothing)
