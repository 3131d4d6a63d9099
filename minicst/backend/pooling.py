"""Pooling on the CPU, channels last, in chunks of images."""

from __future__ import annotations

import numpy as np

from minicst.backend.base import Backend, conv_output_size
from minicst.backend.chunks import STREAM_BYTES, split
from minicst.backend.pool import WorkerPool, Workspace

NO_TAP = 255  # kernels end at 15 x 15 = 225 taps


class PoolingOps(Backend):
    """Max and average pooling with their gradients."""

    pool: WorkerPool
    workspace: Workspace

    def max_pool2d(
        self, x: np.ndarray, kernel: int, stride: int, padding: int = 0, with_index: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Largest value of every window, and which tap it came from (the first of equals).

        Args:
            x: (n, h, w, c).
            kernel: side of the square window, at most 15.
            stride: step between windows.
            padding: border that never wins, less than kernel.
            with_index: also return the winning taps, which the backward pass needs.

        Returns:
            out (n, oh, ow, c) and tap = ky * kernel + kx, uint8, same shape (or None).
        """
        n, h, w, c = x.shape
        oh = conv_output_size(h, kernel, stride, padding)
        ow = conv_output_size(w, kernel, stride, padding)
        out = np.empty((n, oh, ow, c), x.dtype)
        tap = np.empty(out.shape, np.uint8) if with_index else None
        windows = list(_taps((h, w), (oh, ow), kernel, stride, padding))
        covers = padding == 0  # the first tap then reaches every window
        pairs = (kernel, stride, padding, h % 2, w % 2) == (2, 2, 0, 0, 0)

        def task(i: int) -> None:
            start, stop = chunks[i]
            best = out[start:stop]
            if pairs:
                self._pool_pairs(x[start:stop], best, None if tap is None else tap[start:stop])
                return
            if not covers:
                best.fill(-np.inf)
                if tap is not None:
                    tap[start:stop] = NO_TAP  # stays where all is -inf or nan
            for number, to, source in windows:
                value = x[start:stop][source]
                if covers and number == 0:
                    np.copyto(best, value)
                    if tap is not None:
                        tap[start:stop] = 0
                    continue
                if tap is not None:
                    greater = value > best[to]
                    np.copyto(tap[start:stop][to], np.uint8(number), where=greater)
                np.maximum(best[to], value, out=best[to])

        chunks = _image_chunks(x)
        self.pool.run(len(chunks), task, x.nbytes)
        return out, tap

    def _pool_pairs(self, x: np.ndarray, out: np.ndarray, tap: np.ndarray | None) -> None:
        """2x2 windows that tile x: the larger of each two columns, then of each two rows.

        The second half then runs in inner loops of a whole row, not of c numbers.
        """
        n, h, w, c = x.shape
        left, right = x[:, :, 0::2], x[:, :, 1::2]
        wider = self.workspace.get("wider", (n, h, w // 2, c), x.dtype)
        np.maximum(left, right, out=wider)
        rows = wider.reshape(n, h // 2, 2, w // 2 * c)
        upper, lower = rows[:, :, 0], rows[:, :, 1]
        np.maximum(upper, lower, out=out.reshape(upper.shape))
        if tap is not None:
            is_right = self.workspace.get("is_right", (n, h, w // 2, c), np.bool_)
            np.greater(right, left, out=is_right)
            columns = is_right.view(np.uint8).reshape(rows.shape)
            taps = tap.reshape(upper.shape)
            np.copyto(taps, columns[:, :, 0])
            is_lower = self.workspace.get("is_lower", upper.shape, np.bool_)
            np.greater(lower, upper, out=is_lower)
            np.add(columns[:, :, 1], 2, out=taps, where=is_lower)

    def max_pool2d_backward(
        self,
        grad_out: np.ndarray,
        tap: np.ndarray,
        x_shape: tuple[int, int, int, int],
        kernel: int,
        stride: int,
        padding: int = 0,
    ) -> np.ndarray:
        """Hand each window's gradient to the tap that won; overlapping windows add up."""
        _, h, w, _ = x_shape
        _, oh, ow, _ = grad_out.shape
        grad_x = np.empty(x_shape, grad_out.dtype)
        windows = list(_taps((h, w), (oh, ow), kernel, stride, padding))
        # Windows that tile x write each pixel exactly once, so nothing needs clearing or adding.
        tiles = kernel == stride and padding == 0 and (h, w) == (oh * kernel, ow * kernel)

        def task(i: int) -> None:
            start, stop = chunks[i]
            target = grad_x[start:stop]
            if not tiles:
                target.fill(0)
            for number, to, source in windows:
                g = grad_out[start:stop][to]
                won = tap[start:stop][to] == number
                if tiles:
                    np.multiply(g, won, out=target[source])
                else:
                    target[source] += g * won

        chunks = _image_chunks(grad_x)
        self.pool.run(len(chunks), task, grad_x.nbytes)
        return grad_x

    def avg_pool2d(self, x: np.ndarray, kernel: int, stride: int, padding: int = 0) -> np.ndarray:
        """Mean of every window; padded zeros count: out = sum of window / kernel^2."""
        n, h, w, c = x.shape
        oh = conv_output_size(h, kernel, stride, padding)
        ow = conv_output_size(w, kernel, stride, padding)
        out = np.zeros((n, oh, ow, c), x.dtype)
        windows = list(_taps((h, w), (oh, ow), kernel, stride, padding))

        def task(i: int) -> None:
            start, stop = chunks[i]
            total = out[start:stop]
            for _, to, source in windows:
                total[to] += x[start:stop][source]
            total *= 1.0 / kernel**2

        chunks = _image_chunks(x)
        self.pool.run(len(chunks), task, x.nbytes)
        return out

    def avg_pool2d_backward(
        self,
        grad_out: np.ndarray,
        x_shape: tuple[int, int, int, int],
        kernel: int,
        stride: int,
        padding: int = 0,
    ) -> np.ndarray:
        """Spread each window's gradient evenly over its pixels."""
        _, h, w, _ = x_shape
        _, oh, ow, _ = grad_out.shape
        grad_x = np.zeros(x_shape, grad_out.dtype)
        windows = list(_taps((h, w), (oh, ow), kernel, stride, padding))

        def task(i: int) -> None:
            start, stop = chunks[i]
            share = grad_out[start:stop] * (1.0 / kernel**2)
            for _, to, source in windows:
                grad_x[start:stop][source] += share[to]

        chunks = _image_chunks(grad_x)
        self.pool.run(len(chunks), task, grad_x.nbytes)
        return grad_x


Slices = tuple[slice, slice, slice]


def _taps(
    size: tuple[int, int], out_size: tuple[int, int], kernel: int, stride: int, padding: int
) -> list[tuple[int, Slices, Slices]]:
    """For each tap of the window: its number, the windows it reaches, the pixels it reads there."""
    ranges = []
    for axis in (0, 1):
        along = []
        for k in range(kernel):
            first = max(0, -((k - padding) // stride))  # smallest window with its pixel inside
            last = min(out_size[axis] - 1, (size[axis] - 1 + padding - k) // stride)
            pixel = first * stride + k - padding
            to = slice(first, last + 1)
            along.append((to, slice(pixel, pixel + (last - first) * stride + 1, stride)))
        ranges.append(along)
    images = slice(None)
    return [
        (ky * kernel + kx, (images, to_y, to_x), (images, from_y, from_x))
        for ky, (to_y, from_y) in enumerate(ranges[0])
        for kx, (to_x, from_x) in enumerate(ranges[1])
        if to_y.stop > to_y.start and to_x.stop > to_x.start
    ]


def _image_chunks(x: np.ndarray) -> tuple[tuple[int, int], ...]:
    n = x.shape[0]
    return split(n, STREAM_BYTES * n // max(x.nbytes, 1))
