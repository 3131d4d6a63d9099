"""Batch norm, pooling, loss and sparse linear layers on the GPU.

The formulas stand where the CPU backend defines them (normalization.py, pooling.py, base.py,
sparse_linear.py). Nothing here reads a number back.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from minicst.backend.base import Array, conv_output_size
from minicst.backend.cuda_kernels import KernelOps
from minicst.backend.cupy_convolution import segment_count
from minicst.backend.sparse_linear import Pattern

STREAM_THREADS = 1 << 18  # of a pass over all numbers: each thread keeps to one channel

Shape4 = tuple[int, int, int, int]


class CupyLayerOps(KernelOps):
    """Batch norm, pooling, cross-entropy and sparse linear layers, in kernels of their own."""

    def __init__(self, cupy: Any) -> None:
        super().__init__(cupy)
        self._patterns: WeakKeyDictionary[Pattern, tuple[Array, ...]] = WeakKeyDictionary()

    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        """Mean and (biased) variance of each channel, in one read of x (..., c).

        Sums of d = x - (the channel's first number) and of d^2: var = E[d^2] - E[d]^2, which
        doesn't cancel where the mean is far from zero.
        """
        x = self.contiguous(x)
        c = x.shape[-1]
        mean, variance = self.xp.zeros(c, x.dtype), self.xp.zeros(c, x.dtype)
        if not x.size:
            return mean, variance
        rows = x.size // c
        segments = segment_count(rows, c)
        partial = self.xp.empty((segments, 2, c), self.xp.float64)
        self.launch("bn_sums", x.dtype, segments * c, x, partial, rows, c, segments)
        arrays = (partial, x, mean, variance)
        self.launch("bn_statistics", x.dtype, c, *arrays, rows, c, segments)
        return mean, variance

    def batch_norm_fold(
        self, mean: Array, variance: Array, gamma: Array, beta: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        """1 / sqrt(variance + eps), scale and shift in one launch, see Backend's."""
        c = mean.size
        inv_std, scale, shift = (self.xp.empty(c, mean.dtype) for _ in range(3))
        arrays = (mean, variance, gamma, beta, inv_std, scale, shift)
        self.launch("bn_fold", mean.dtype, c, *arrays, c, float(eps))
        return inv_std, scale, shift

    def batch_norm_track(
        self,
        running: tuple[Array, Array],
        batch: tuple[Array, Array],
        live: Array | None,
        momentum: float,
        unbiased: float,
    ) -> None:
        """Move both running statistics in one launch, see Backend's."""
        c, dtype = running[0].size, running[0].dtype
        numbers = (c, float(momentum), float(unbiased))
        self.launch("bn_track", dtype, c, *running, *batch, live, *numbers)

    def scale_shift(
        self, x: Array, scale: Array, shift: Array, relu: bool = False, in_place: bool = False
    ) -> Array:
        """Return x * scale + shift per channel, or max(that, 0), see NumpyBackend's."""
        x = self.contiguous(x)
        out = x if in_place else self.xp.empty(x.shape, x.dtype)
        c = x.shape[-1]
        step = _step(x)
        arrays = (x, scale, shift, out)
        self.launch("scale_shift", x.dtype, step, *arrays, x.size, c, step, int(relu))
        return out

    def batch_norm_backward(
        self,
        grad_out: Array,
        x: Array,
        out: Array | None,
        mean: Array,
        inv_std: Array,
        gamma: Array,
        training: bool,
    ) -> tuple[Array, Array, Array]:
        """Gradients of x, gamma and beta, through ReLU if `out` is given, see NumpyBackend's."""
        x, grad_out = self.contiguous(x), self.contiguous(grad_out)
        c, dtype, xp = x.shape[-1], x.dtype, self.xp
        rows = x.size // max(c, 1)
        grad_gamma, grad_beta = xp.zeros(c, dtype), xp.zeros(c, dtype)
        grad_x = xp.empty(x.shape, dtype)
        if not x.size:
            return grad_x, grad_gamma, grad_beta
        segments = segment_count(rows, c)
        partial = xp.empty((segments, 2, c), xp.float64)
        reads = (grad_out, x, out, mean)
        self.launch("bn_backward_sums", dtype, segments * c, *reads, partial, rows, c, segments)
        folded = tuple(xp.empty(c, dtype) for _ in range(3))  # scale, slope, offset
        arrays = (partial, inv_std, gamma, grad_gamma, grad_beta, *folded)
        self.launch("bn_backward_finish", dtype, c, *arrays, rows, c, segments)
        step = _step(x)
        numbers = (x.size, c, step, int(training))
        self.launch("bn_backward_apply", dtype, step, *reads, *folded, grad_x, *numbers)
        return grad_x, grad_gamma, grad_beta

    def max_pool2d(
        self, x: Array, kernel: int, stride: int, padding: int = 0, with_index: bool = True
    ) -> tuple[Array, Array | None]:
        """Largest value of every window and the tap it came from, see NumpyBackend's."""
        out, sizes = self._windows(x, kernel, stride, padding)
        tap = self.xp.empty(out.shape, self.xp.uint8) if with_index else None
        x = self.contiguous(x)
        self.launch("max_pool", x.dtype, out.size, x, out, tap, out.size, *sizes)
        return out, tap

    def max_pool2d_backward(
        self,
        grad_out: Array,
        tap: Array,
        x_shape: Shape4,
        kernel: int,
        stride: int,
        padding: int = 0,
    ) -> Array:
        """Hand each window's gradient to the tap that won, see NumpyBackend's."""
        grad_x, sizes = self._pixels(grad_out, x_shape, kernel, stride, padding)
        arrays = (self.contiguous(grad_out), tap, grad_x)
        self.launch("max_pool_backward", grad_x.dtype, grad_x.size, *arrays, grad_x.size, *sizes)
        return grad_x

    def avg_pool2d(self, x: Array, kernel: int, stride: int, padding: int = 0) -> Array:
        """Mean of every window; padded zeros count."""
        out, sizes = self._windows(x, kernel, stride, padding)
        self.launch("avg_pool", x.dtype, out.size, self.contiguous(x), out, out.size, *sizes)
        return out

    def avg_pool2d_backward(
        self, grad_out: Array, x_shape: Shape4, kernel: int, stride: int, padding: int = 0
    ) -> Array:
        """Spread each window's gradient evenly over its pixels."""
        grad_x, sizes = self._pixels(grad_out, x_shape, kernel, stride, padding)
        arrays = (self.contiguous(grad_out), grad_x)
        self.launch("avg_pool_backward", grad_x.dtype, grad_x.size, *arrays, grad_x.size, *sizes)
        return grad_x

    def cross_entropy(
        self, logits: Array, labels: Array, label_smoothing: float
    ) -> tuple[Array, Array]:
        """Mean loss and softmax - target in float64, see Backend's."""
        logits = self.contiguous(logits)
        n, k = logits.shape
        losses, residual = self.xp.empty(n, np.float64), self.xp.empty((n, k), np.float64)
        arrays = (logits, labels, losses, residual)
        self.launch("cross_entropy", logits.dtype, n, *arrays, n, k, float(label_smoothing))
        return losses.sum() / n, residual

    def sparse_linear(
        self, x: Array, values: Array, pattern: Pattern, bias: Array | None = None
    ) -> Array:
        """Return x S^T + b over live entries only, see SparseLinearOps."""
        c_out, c_in = pattern.shape
        n = x.shape[0]
        pointers, _, columns, *_ = self._on_device(pattern)
        out = self.xp.empty((n, c_out), x.dtype)
        arrays = (self.contiguous(x), values, pointers, columns, bias, out)
        self.launch("sparse_linear", x.dtype, out.size, *arrays, n, c_in, c_out)
        n_bytes = x.nbytes + values.nbytes + pattern.nbytes + out.nbytes
        self.meter.record("forward", n * pattern.size, n_bytes)
        return out

    def sparse_linear_grad_weight(self, x: Array, grad_out: Array, pattern: Pattern) -> Array:
        """grad[k] = sum_n grad_out[n, row_k] x[n, column_k], see SparseLinearOps."""
        c_out, c_in = pattern.shape
        n = x.shape[0]
        _, rows, columns, *_ = self._on_device(pattern)
        grad = self.xp.empty(pattern.size, x.dtype)
        arrays = (self.contiguous(x), self.contiguous(grad_out), rows, columns, grad)
        sizes = (n, c_in, c_out, pattern.size)
        self.launch("sparse_linear_grad_weight", x.dtype, pattern.size, *arrays, *sizes)
        n_bytes = x.nbytes + grad_out.nbytes + pattern.nbytes + grad.nbytes
        self.meter.record("weight_gradient", n * pattern.size, n_bytes)
        return grad

    def sparse_linear_grad_input(self, grad_out: Array, values: Array, pattern: Pattern) -> Array:
        """grad_x = grad_out S over live entries only, see SparseLinearOps."""
        c_out, c_in = pattern.shape
        n = grad_out.shape[0]
        *_, pointers, rows, order = self._on_device(pattern)
        grad_x = self.xp.empty((n, c_in), grad_out.dtype)
        arrays = (self.contiguous(grad_out), values, pointers, rows, order, grad_x)
        self.launch("sparse_linear_grad_input", grad_x.dtype, grad_x.size, *arrays, n, c_in, c_out)
        n_bytes = grad_out.nbytes + values.nbytes + pattern.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", n * pattern.size, n_bytes)
        return grad_x

    def _windows(
        self, x: Array, kernel: int, stride: int, padding: int
    ) -> tuple[Array, tuple[int, ...]]:
        """An array for the result of pooling, and the sizes that its kernels take."""
        n, h, w, c = x.shape
        oh = conv_output_size(h, kernel, stride, padding)
        ow = conv_output_size(w, kernel, stride, padding)
        out = self.xp.empty((n, oh, ow, c), x.dtype)
        return out, (h, w, c, oh, ow, kernel, stride, padding)

    def _pixels(
        self, grad_out: Array, x_shape: Shape4, kernel: int, stride: int, padding: int
    ) -> tuple[Array, tuple[int, ...]]:
        """The same for the backward pass."""
        _, h, w, c = x_shape
        _, oh, ow, _ = grad_out.shape
        grad_x = self.xp.empty(x_shape, grad_out.dtype)
        return grad_x, (h, w, c, oh, ow, kernel, stride, padding)

    def _on_device(self, pattern: Pattern) -> tuple[Array, ...]:
        """Pointers, rows, columns of the entries; by column: pointers, rows, places in values."""
        if pattern not in self._patterns:
            order = np.argsort(pattern.columns, kind="stable")
            counts = np.bincount(pattern.columns, minlength=pattern.shape[1])
            by_column = np.concatenate([[0], np.cumsum(counts)])
            by_row = [pattern.pointers, pattern.rows, pattern.columns]
            self._patterns[pattern] = tuple(
                self.indices([*by_row, by_column, pattern.rows[order], order])
            )
        return self._patterns[pattern]


def _step(x: Array) -> int:
    """Threads of a pass over x, a multiple of its channels."""
    c = max(x.shape[-1], 1)
    return c * min(max(STREAM_THREADS // c, 1), x.size // c)
