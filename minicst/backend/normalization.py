"""Batch norm on the CPU, channels last, in chunks that stay in cache.

These passes are bound by memory and, with two threads, by the interpreter, whose lock each NumPy
call asks for. So there are few calls, and sums of products are taken by einsum, which writes no
product to memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicst.backend.base import Backend
from minicst.backend.chunks import STREAM_BYTES, folded, split
from minicst.backend.pool import WorkerPool, Workspace

# E[x^2] - mean^2 loses the digits of mean^2 / var: from this ratio on, x - mean is formed first. In
# float64, which is for proofs, it always is.
FAR_FROM_ZERO = 16.0


class NormalizationOps(Backend):
    """Statistics, scale-and-shift and the backward pass of batch norm."""

    pool: WorkerPool
    workspace: Workspace

    def batch_norm_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and (biased) variance of each channel over all other axes, in one read of x.

        var = E[x^2] - mean^2, chunks added up in float64. Where a channel's mean^2 exceeds
        FAR_FROM_ZERO var that would cancel: a second read then takes E[(x - mean)^2].

        Args:
            x: (..., c).

        Returns:
            mean (c,), variance (c,), dtype of x.
        """
        c = x.shape[-1]
        n = max(x.size // c if c else 0, 1)
        rows, r = folded(x)

        def read(block: np.ndarray, total: np.ndarray, squares: np.ndarray) -> None:
            _sum_rows(block, total)
            np.einsum("ij,ij->j", block, block, out=squares)

        def read_centred(block: np.ndarray, total: np.ndarray, squares: np.ndarray) -> None:
            deviation = self._centred(block, mean_r)
            _sum_rows(deviation, total)
            _sum_rows(np.multiply(deviation, deviation, out=deviation), squares)

        with np.errstate(over="ignore", invalid="ignore"):  # whoever looks at the loss reports it
            mean, square = self._sums(rows, c, read) / n
            variance = np.maximum(square - mean**2, 0.0)
            if _any_far(mean, variance, x.dtype):
                mean_r = np.tile(mean.astype(x.dtype), r)
                rest, square = self._sums(rows, c, read_centred) / n
                variance = np.maximum(square - rest**2, 0.0)  # rest: what the rounded mean left
        return mean.astype(x.dtype), variance.astype(x.dtype)

    def scale_shift(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        shift: np.ndarray,
        relu: bool = False,
        in_place: bool = False,
    ) -> np.ndarray:
        """Return x * scale + shift per channel, or max(that, 0) with relu.

        Args:
            x: (..., c).
            scale: (c,), dtype of x.
            shift: (c,), dtype of x.
            relu: clip at zero in the same pass.
            in_place: x, contiguous, is no longer needed: its memory takes the result.
        """
        rows, r = folded(x)
        out = x if in_place else np.empty(x.shape, x.dtype)  # C order, also where x is transposed
        out_rows = out.reshape(rows.shape)
        scale, shift = np.tile(scale, r), np.tile(shift, r)
        chunks = _stream_chunks(rows)

        def task(i: int) -> None:
            start, stop = chunks[i]
            block = out_rows[start:stop]
            np.multiply(rows[start:stop], scale, out=block)
            np.add(block, shift, out=block)
            if relu:
                np.maximum(block, 0, out=block)

        self.pool.run(len(chunks), task, x.nbytes)
        return out

    def batch_norm_backward(
        self,
        grad_out: np.ndarray,
        x: np.ndarray,
        out: np.ndarray | None,
        mean: np.ndarray,
        inv_std: np.ndarray,
        gamma: np.ndarray,
        training: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gradients of gamma (x - mean) inv_std + beta, then of ReLU if `out` is given.

        With x^ = (x - mean) inv_std and g = grad_out (out > 0 where `out` is given):
            grad_beta = sum g,   grad_gamma = sum g x^ = inv_std (sum g x - mean sum g)
            training: grad_x = gamma inv_std (g - grad_beta / N - x^ grad_gamma / N)
            else:     grad_x = gamma inv_std g     (mean and variance are constants)

        Args:
            grad_out: (..., c).
            x: input of the forward pass.
            out: output of the forward pass if ReLU was applied in it, else None.
            mean: (c,).
            inv_std: (c,), 1 / sqrt(variance + eps).
            gamma: (c,).
            training: whether mean and inv_std came from x.

        Returns:
            grad_x (..., c), grad_gamma (c,), grad_beta (c,), dtype of x.
        """
        c = x.shape[-1]
        n = max(x.size // c if c else 0, 1)
        rows, r = folded(x)
        grad_rows = grad_out.reshape(rows.shape)
        out_rows = None if out is None else out.reshape(rows.shape)
        grad_x = np.empty(x.shape, x.dtype)
        grad_x_rows = grad_x.reshape(rows.shape)
        chunks = _stream_chunks(rows)
        sums = np.empty((len(chunks), 2, r * c), x.dtype)
        variance = 1.0 / np.maximum(inv_std, 1e-18) ** 2
        mean_r = np.tile(mean, r) if _any_far(mean, variance, x.dtype) else None

        def gated(start: int, stop: int) -> np.ndarray:
            """g: a view of grad_out, or where ReLU took part, written into grad_x."""
            if out_rows is None:
                return grad_rows[start:stop]
            g = grad_x_rows[start:stop]
            positive = self.workspace.get("positive", g.shape, np.bool_)
            np.greater(out_rows[start:stop], 0, out=positive)
            np.copyto(g, positive)  # multiplying by a bool array itself takes half as long again
            np.multiply(g, grad_rows[start:stop], out=g)
            return g

        def reduce(i: int) -> None:
            start, stop = chunks[i]
            g = gated(start, stop)
            _sum_rows(g, sums[i, 0])
            if mean_r is None:
                np.einsum("ij,ij->j", g, rows[start:stop], out=sums[i, 1])
            else:
                work = self._centred(rows[start:stop], mean_r)
                _sum_rows(np.multiply(work, g, out=work), sums[i, 1])

        self.pool.run(len(chunks), reduce, x.nbytes)
        grad_beta, grad_gamma = sums.sum(axis=0, dtype=float).reshape(2, r, c).sum(axis=1)
        if mean_r is None:
            grad_gamma = grad_gamma - mean * grad_beta
        grad_gamma = grad_gamma * inv_std
        scale = gamma * inv_std
        slope = -scale * inv_std * grad_gamma / n
        offset = -scale * grad_beta / n
        if mean_r is None:
            offset = offset - slope * mean
        scale, slope, offset = (np.tile(v.astype(x.dtype), r) for v in (scale, slope, offset))

        def apply(i: int) -> None:
            start, stop = chunks[i]
            g = grad_x_rows[start:stop]
            np.multiply(g if out_rows is not None else grad_rows[start:stop], scale, out=g)
            if training:
                block = rows[start:stop]
                work = self.workspace.get("stream", g.shape, x.dtype)
                if mean_r is not None:
                    block = self._centred(block, mean_r)
                np.multiply(block, slope, out=work)
                np.add(g, offset, out=g)
                np.add(g, work, out=g)

        self.pool.run(len(chunks), apply, x.nbytes)
        return grad_x, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)

    def _centred(self, block: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Return block - mean in this thread's workspace."""
        out = self.workspace.get("stream", block.shape, block.dtype)
        return np.subtract(block, mean, out=out)

    def _sums(
        self,
        rows: np.ndarray,
        c: int,
        read: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
    ) -> np.ndarray:
        """Two sums over all rows that read(block, first, second) takes of a chunk: (2, c)."""
        chunks = _stream_chunks(rows)
        sums = np.empty((len(chunks), 2, rows.shape[1]), rows.dtype)

        def task(i: int) -> None:
            start, stop = chunks[i]
            read(rows[start:stop], sums[i, 0], sums[i, 1])

        self.pool.run(len(chunks), task, rows.nbytes)
        folds = rows.shape[1] // max(c, 1)
        return np.asarray(sums.sum(axis=0, dtype=float).reshape(2, folds, c).sum(axis=1))


def _sum_rows(block: np.ndarray, out: np.ndarray) -> None:
    """Write the sum over the first axis, as a product: twice as fast as numpy.sum."""
    np.matmul(np.ones(block.shape[0], block.dtype), block, out=out)


def _any_far(mean: np.ndarray, variance: np.ndarray, dtype: np.dtype) -> bool:
    return dtype == np.float64 or bool((mean**2 > FAR_FROM_ZERO * variance).any())


def _stream_chunks(rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    bytes_per_row = max(rows.shape[1] * rows.itemsize, 1)
    return split(rows.shape[0], STREAM_BYTES // bytes_per_row)
