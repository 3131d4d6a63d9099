"""Depthwise convolution on the CPU: every channel has one filter of its own.

    out = sum_{ky, kx} x shifted by (ky, kx) * w[:, ky, kx]

A product of matrices would have one column here, so there is no im2col: einsum multiplies and adds
every tap to a run of numbers in one inner loop, on a band of rows that stays in the cache of one
core. A run is several pixels of c channels, against filters repeated as often: NumPy pays per inner
loop, and 32 channels alone are too few (measured at 112 x 112 x 32: 4 times slower).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from minicst.backend.base import Backend, conv_output_size
from minicst.backend.chunks import split
from minicst.backend.pool import WorkerPool, Workspace

# What a band reads and writes. On one thread .5 to 2 MB measured alike; on two, at stride 2, bands
# of .5 MB were half as fast: threads wait for the interpreter lock between short calls.
BAND_BYTES = 2 << 20
MIN_BANDS = 4  # so that two to four threads share even a small batch evenly
RUN = 2048  # numbers of a run (measured: 1024 and 2048 alike, 256 and whole wide rows slower)

Band = tuple[slice, int, int]  # images, first row, last row + 1


class DepthwiseOps(Backend):
    """depthwise_conv2d and its two gradients, band by band; formulas stand in base.py."""

    pool: WorkerPool
    workspace: Workspace

    def depthwise_conv2d(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """out[n, y, x, c] = b[c] + sum_{ky, kx} x[n, y s + ky - p, x s + kx - p, c] w[c, ky, kx].

        Args:
            x: (n, h, w, c).
            weight: (c, kh, kw, 1), same dtype.
            bias: (c,) or None.
            stride: step between windows.
            padding: zeros on each side.

        Returns:
            (n, oh, ow, c), dtype of x.

        Raises:
            ValueError: if the kernel is larger than the padded input.
        """
        n, h, w, c = x.shape
        _, kh, kw, _ = weight.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        out = np.empty((n, oh, ow, c), x.dtype)
        run = _pixels_of_a_run(ow, c)
        # By phase kx % stride: its taps read neighbouring columns of the band.
        phases = [_taps(weight[:, :, phase::stride], run) for phase in range(min(stride, kw))]
        long_bias = None if bias is None else np.tile(bias, run)
        bands = _bands(n, oh, (stride * w + ow) * c * x.itemsize)

        def task(i: int) -> None:
            images, first, last = bands[i]
            rows = (first * stride - padding, (last - 1) * stride - padding + kh)
            columns = (-padding, (ow - 1) * stride - padding + kw)
            band = self._band(x[images], rows, columns, stride, len(phases))
            runs = out[images, first:last].reshape(-1, last - first, ow // run, run * c)
            for phase, taps in enumerate(phases):
                windows = _windows(band, runs.shape, taps.shape, stride, (0, phase, 0))
                if phase == 0:
                    np.einsum("nyxabk,abk->nyxk", windows, taps, out=runs)
                else:
                    more = self.workspace.get("depthwise", runs.shape, x.dtype)
                    np.einsum("nyxabk,abk->nyxk", windows, taps, out=more)
                    np.add(runs, more, out=runs)
            if long_bias is not None:
                np.add(runs, long_bias, out=runs)

        macs = out.size * kh * kw
        self.pool.run(len(bands), task, macs * x.itemsize)
        self.meter.record("forward", macs, x.nbytes + weight.nbytes + out.nbytes)
        return out

    def depthwise_conv2d_grad_weight(
        self,
        x: np.ndarray,
        grad_out: np.ndarray,
        weight_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """grad_weight[c, ky, kx] = sum_{n, y, x} x[n, y s + ky - p, x s + kx - p, c] g[n, y, x, c].

        Each band gives its own sum, and the sums are added in their order.

        Args:
            x: (n, h, w, c).
            grad_out: (n, oh, ow, c).
            weight_shape: (c, kh, kw, 1).
            stride: as in the forward pass.
            padding: as in the forward pass.

        Returns:
            weight_shape, dtype of x.
        """
        c, kh, kw, _ = weight_shape
        n, oh, ow, _ = grad_out.shape
        run = _pixels_of_a_run(ow, c)
        bands = _bands(n, oh, (stride * x.shape[2] + ow) * c * x.itemsize)
        partial = np.zeros((len(bands), kh, kw, c), x.dtype)

        def task(i: int) -> None:
            images, first, last = bands[i]
            rows = (first * stride - padding, (last - 1) * stride - padding + kh)
            columns = (-padding, (ow - 1) * stride - padding + kw)
            band = self._band(x[images], rows, columns, stride, min(stride, kw))
            g = grad_out[images, first:last].reshape(-1, last - first, ow // run, run * c)
            for kx in range(kw):  # NumPy's buffers can't hold all sums at once, and it slows down
                at = (0, kx % stride, kx // stride)
                windows = _windows(band, g.shape, (kh, 1, run * c), stride, at)[:, :, :, :, 0]
                sums = self.workspace.get("depthwise", (kh, run * c), x.dtype)
                np.einsum("nyxak,nyxk->ak", windows, g, out=sums)
                np.sum(sums.reshape(kh, run, c), axis=1, out=partial[i, :, kx])

        macs = grad_out.size * kh * kw
        self.pool.run(len(bands), task, macs * x.itemsize)
        grad = partial.sum(axis=0).transpose(2, 0, 1).reshape(weight_shape)  # copy, (c, kh, kw, 1)
        self.meter.record("weight_gradient", macs, x.nbytes + grad_out.nbytes + grad.nbytes)
        return grad

    def depthwise_conv2d_grad_input(
        self,
        grad_out: np.ndarray,
        weight: np.ndarray,
        x_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """grad_x, the transpose of depthwise_conv2d in x: itself convolutions, of stride 1.

        With s the stride, row s q + a and column s r + b of the padded grad_x are

            sum_{i, j} g[n, q - i, r - j, c] w[c, s i + a, s j + b]

        so each of the s s pairs (a, b) is a convolution of g with every s-th tap, turned round.

        Args:
            grad_out: (n, oh, ow, c).
            weight: (c, kh, kw, 1).
            x_shape: (n, h, w, c).
            stride: as in the forward pass.
            padding: as in the forward pass.

        Returns:
            x_shape, dtype of grad_out.
        """
        n, h, w, c = x_shape
        _, kh, kw, _ = weight.shape
        grad_x = np.empty(x_shape, grad_out.dtype)
        top, bottom = padding // stride, (padding + h - 1) // stride + 1  # range of q
        left, right = padding // stride, (padding + w - 1) // stride + 1  # range of r
        reach_y, reach_x = (kh - 1) // stride, (kw - 1) // stride  # largest i and j
        width = right - left
        run = _pixels_of_a_run(width, c)
        turned = [
            (a, b, _taps(weight[:, a::stride, b::stride][:, ::-1, ::-1], run))
            for a in range(stride)
            for b in range(stride)
        ]
        bands = _bands(n, bottom - top, 2 * width * c * grad_out.itemsize)

        def task(i: int) -> None:
            images, first, last = bands[i]
            first, last = first + top, last + top
            rows = (first - reach_y, last)
            band = self._band(grad_out[images], rows, (left - reach_x, right), 1, 1)
            target = grad_x[images]
            shape = (target.shape[0], last - first, width // run, run * c)
            for a, b, taps in turned:
                qs, to_y = _inside(first, last, stride, a - padding, h)
                rs, to_x = _inside(left, right, stride, b - padding, w)
                if not taps.size:  # the stride skips these pixels
                    target[:, to_y, to_x] = 0
                    continue
                at = (reach_y - taps.shape[0] + 1, 0, reach_x - taps.shape[1] + 1)
                windows = _windows(band, shape, taps.shape, 1, at)
                if stride == 1:
                    np.einsum("nyxabk,abk->nyxk", windows, taps, out=target[:, to_y].reshape(shape))
                else:
                    part = self.workspace.get("depthwise", shape, grad_x.dtype)
                    np.einsum("nyxabk,abk->nyxk", windows, taps, out=part)
                    part = part.reshape(-1, last - first, width, c)
                    target[:, to_y, to_x] = part[:, qs, rs]

        macs = grad_out.size * kh * kw
        self.pool.run(len(bands), task, macs * grad_out.itemsize)
        n_bytes = grad_out.nbytes + weight.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", macs, n_bytes)
        return grad_x

    def _band(
        self,
        x: np.ndarray,
        rows: tuple[int, int],
        columns: tuple[int, int],
        stride: int,
        phases: int,
    ) -> np.ndarray:
        """Rows and columns of x, zeros outside of it, in this thread's workspace.

        Columns are sorted by phase, so that windows side by side read numbers side by side:
        band[n, y, phase, q] = x[n, rows[0] + y, columns[0] + q stride + phase]

        Returns:
            (n, rows[1] - rows[0], phases, columns of one phase, c).
        """
        n, h, w, c = x.shape
        width = -((columns[0] - columns[1]) // stride)  # ceil
        shape = (n, rows[1] - rows[0], phases, width, c)
        band = self.workspace.get("band", shape, x.dtype)
        band.fill(0)
        ys, from_y = _inside(0, shape[1], 1, rows[0], h)
        for phase in range(phases):
            qs, from_x = _inside(0, width, stride, columns[0] + phase, w)
            band[:, ys, phase, qs] = x[:, from_y, from_x]
        return band


def _inside(first: int, last: int, step: int, start: int, size: int) -> tuple[slice, slice]:
    """Those i in range(first, last) with 0 <= i step + start < size, and where these pixels are.

    Returns:
        The slice of positions in range(first, last), and that of pixels.
    """
    low = max(first, -(start // step))
    high = max(low, min(last, -((start - size) // step)))
    pixel = low * step + start
    pixels = slice(pixel, pixel + (high - low) * step, step) if high > low else slice(0, 0)
    return slice(low - first, high - first), pixels


def _taps(weight: np.ndarray, run: int) -> np.ndarray:
    """(c, kh, kw, 1) as (kh, kw, run c): each tap's numbers, repeated for every pixel of a run."""
    # Contiguous first: tile would keep the order of memory where run is 1.
    return np.tile(np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0)), run)


def _windows(
    band: np.ndarray,
    runs: tuple[int, ...],
    taps: tuple[int, ...],
    stride: int,
    at: tuple[int, int, int],
) -> np.ndarray:
    """A view of the band: for every run and every tap, the numbers that they multiply.

    Args:
        band: (n, rows, phases, columns, c), contiguous.
        runs: (n, rows, runs in a row, k) of the result.
        taps: (kh, kw, k).
        stride: step between rows of windows.
        at: row, phase and column of the first window.

    Returns:
        (n, rows, runs in a row, kh, kw, k).
    """
    c, size = band.shape[-1], band.itemsize
    pixel = c * size
    phase = band.shape[3] * pixel
    row = band.shape[2] * phase
    image = band.shape[1] * row
    n, rows, in_a_row, k = runs
    return np.ndarray(  # as_strided does the same, slowly and holding the interpreter lock
        (n, rows, in_a_row, *taps),
        band.dtype,
        buffer=band,
        offset=at[0] * row + at[1] * phase + at[2] * pixel,
        strides=(image, stride * row, k * size, row, pixel, size),
    )


@lru_cache(maxsize=4096)
def _pixels_of_a_run(width: int, c: int) -> int:
    """The divisor of `width` that brings a run, so many pixels of c channels, closest to RUN."""
    divisors = [r for r in range(1, width + 1) if width % r == 0]
    return min(divisors, key=lambda r: abs(math.log(r * max(c, 1) / RUN)))


@lru_cache(maxsize=4096)
def _bands(n: int, rows: int, bytes_per_row: int) -> tuple[Band, ...]:
    """Cut n images of so many rows into bands of some whole images, or some rows of one image."""
    if not n * bytes_per_row:
        return ()
    in_an_image = split(rows, BAND_BYTES // bytes_per_row, -(-MIN_BANDS // n))
    one_image = len(in_an_image) > 1
    size = 1 if one_image else BAND_BYTES // (rows * bytes_per_row)
    return tuple(
        (slice(start, stop), first, last)
        for start, stop in split(n, size, MIN_BANDS)
        for first, last in in_an_image
    )
