"""Batch norm on the CPU, channels last, in chunks that stay in cache."""

from __future__ import annotations

import numpy as np

from minicst.backend.base import Backend
from minicst.backend.chunks import STREAM_BYTES, folded, split
from minicst.backend.pool import WorkerPool, Workspace


class NormalizationOps(Backend):
    """Statistics, scale-and-shift and the backward pass of batch norm."""

    pool: WorkerPool
    workspace: Workspace

    def batch_norm_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and (biased) variance of each channel over all other axes, in one read of x.

        Each chunk gives its mean and sum of squared deviations; chunks are combined by
        sum_i (M2_i + n_i (mean_i - mean)^2), which doesn't cancel as E[x^2] - E[x]^2 does.
        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm" (1979).

        Args:
            x: (..., c).

        Returns:
            mean (c,), variance (c,), dtype of x.
        """
        c = x.shape[-1]
        rows, r = folded(x)
        chunks = _stream_chunks(rows)
        count = np.array([(stop - start) * r for start, stop in chunks], float)[:, None]
        means = np.empty((len(chunks), c))
        squares = np.empty((len(chunks), c))

        def task(i: int) -> None:
            start, stop = chunks[i]
            block = rows[start:stop]
            ones = np.ones(stop - start, x.dtype)
            mean = (ones @ block).reshape(r, c).sum(axis=0, dtype=float) / count[i]
            deviation = self.workspace.get("stream", block.shape, x.dtype)
            np.subtract(block, np.tile(mean.astype(x.dtype), r), out=deviation)
            np.multiply(deviation, deviation, out=deviation)
            means[i] = mean
            squares[i] = (ones @ deviation).reshape(r, c).sum(axis=0, dtype=float)

        self.pool.run(len(chunks), task, x.nbytes)
        total = count.sum()
        mean = (means * count).sum(axis=0) / total
        variance = (squares + count * (means - mean) ** 2).sum(axis=0) / total
        return mean.astype(x.dtype), variance.astype(x.dtype)

    def scale_shift(
        self, x: np.ndarray, scale: np.ndarray, shift: np.ndarray, relu: bool = False
    ) -> np.ndarray:
        """Return x * scale + shift per channel, or max(that, 0) with relu.

        Args:
            x: (..., c).
            scale: (c,), dtype of x.
            shift: (c,), dtype of x.
            relu: clip at zero in the same pass.
        """
        rows, r = folded(x)
        out = np.empty(x.shape, x.dtype)  # C order, also where x is a transposed view
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
            grad_beta = sum g,   grad_gamma = sum g x^
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
        rows, r = folded(x)
        grad_rows = grad_out.reshape(rows.shape)
        out_rows = None if out is None else out.reshape(rows.shape)
        grad_x = np.empty(x.shape, x.dtype)
        grad_x_rows = grad_x.reshape(rows.shape)
        chunks = _stream_chunks(rows)
        sum_g = np.empty((len(chunks), c))
        sum_gx = np.empty((len(chunks), c))
        mean_r = np.tile(mean, r)

        def reduce(i: int) -> None:
            start, stop = chunks[i]
            g = grad_x_rows[start:stop]
            if out_rows is None:
                np.copyto(g, grad_rows[start:stop])
            else:
                positive = self.workspace.get("positive", g.shape, np.bool_)
                np.greater(out_rows[start:stop], 0, out=positive)
                np.multiply(grad_rows[start:stop], positive, out=g)
            work = self.workspace.get("stream", g.shape, x.dtype)
            np.subtract(rows[start:stop], mean_r, out=work)
            np.multiply(work, g, out=work)
            ones = np.ones(stop - start, x.dtype)
            sum_g[i] = (ones @ g).reshape(r, c).sum(axis=0, dtype=float)
            sum_gx[i] = (ones @ work).reshape(r, c).sum(axis=0, dtype=float)

        self.pool.run(len(chunks), reduce, x.nbytes)
        grad_beta = sum_g.sum(axis=0)
        grad_gamma = sum_gx.sum(axis=0) * inv_std
        n = max(x.size // c if c else 0, 1)
        scale = gamma * inv_std
        slope = np.tile((-scale * inv_std * grad_gamma / n).astype(x.dtype), r)
        offset = np.tile((-scale * grad_beta / n).astype(x.dtype), r)
        scale = np.tile(scale, r)

        def apply(i: int) -> None:
            start, stop = chunks[i]
            g = grad_x_rows[start:stop]
            np.multiply(g, scale, out=g)
            if training:
                work = self.workspace.get("stream", g.shape, x.dtype)
                np.subtract(rows[start:stop], mean_r, out=work)
                np.multiply(work, slope, out=work)
                np.add(work, offset, out=work)
                np.add(g, work, out=g)

        self.pool.run(len(chunks), apply, x.nbytes)
        return grad_x, grad_gamma.astype(x.dtype), grad_beta.astype(x.dtype)


def _stream_chunks(rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    bytes_per_row = max(rows.shape[1] * rows.itemsize, 1)
    return split(rows.shape[0], STREAM_BYTES // bytes_per_row)
