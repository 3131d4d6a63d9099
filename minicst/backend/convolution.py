"""Convolution on the CPU: im2col in chunks of images, shared out over the threads.

    out = im2col(x) @ W.T          with W = weight.reshape(c_out, kh kw c_in)
    grad_weight = grad_out.T @ im2col(x)
    grad_x = col2im(grad_out @ W), or for stride 1 a convolution with the flipped kernel

The columns of a chunk stay in the cache of one core; nothing of size n oh ow kh kw c is allocated.
"""

from __future__ import annotations

import numpy as np

from minicst.backend.base import Backend, conv_output_size
from minicst.backend.chunks import COLUMN_BYTES, split
from minicst.backend.pool import WorkerPool, Workspace
from minicst.backend.products import row_product, sum_product

MIN_CHUNKS = 4  # so that two to four threads share even a small batch evenly
SHORT_RUN = 8  # numbers; grey images give runs of 3
BIG_WEIGHT_BYTES = 1 << 20  # from here on, partial sums of grad_weight cost more than they gain


class ConvolutionOps(Backend):
    """conv2d and its two gradients, for groups = 1 (the tape splits groups)."""

    pool: WorkerPool
    workspace: Workspace

    def conv2d(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """out[n, y, x, o] = sum_{ky, kx, c} x[n, y s + ky - p, x s + kx - p, c] w[o, ky, kx, c].

        Args:
            x: (n, h, w, c_in).
            weight: (c_out, kh, kw, c_in), same dtype.
            bias: (c_out,) or None.
            stride: step between windows.
            padding: zeros on each side.

        Returns:
            (n, oh, ow, c_out), dtype of x.
        """
        n, h, w, c_in = x.shape
        c_out, kh, kw, _ = weight.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        k = kh * kw * c_in
        out = np.empty((n, oh, ow, c_out), x.dtype)
        w_matrix = np.ascontiguousarray(weight.reshape(c_out, k).T)  # (k, c_out)
        chunks = _image_chunks(n, oh * ow * k * x.itemsize, weight.nbytes)

        def task(i: int) -> None:
            start, stop = chunks[i]
            col = self._columns(x[start:stop], kh, kw, stride, padding, oh, ow)
            rows = out[start:stop].reshape(col.shape[0], c_out)  # ((stop - start) oh ow, c_out)
            row_product(col, w_matrix, rows)
            if bias is not None:
                np.add(rows, bias, out=rows)

        self.pool.run(len(chunks), task)
        self.meter.record("forward", n * oh * ow * k * c_out, x.nbytes + weight.nbytes + out.nbytes)
        return out

    def conv2d_grad_weight(
        self,
        x: np.ndarray,
        grad_out: np.ndarray,
        weight_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """grad_weight = grad_out.T @ im2col(x), summed over a fixed number of parts of the batch.

        Args:
            x: (n, h, w, c_in).
            grad_out: (n, oh, ow, c_out).
            weight_shape: (c_out, kh, kw, c_in).
            stride: as in the forward pass.
            padding: as in the forward pass.

        Returns:
            weight_shape, dtype of x.
        """
        c_out, kh, kw, c_in = weight_shape
        n, oh, ow, _ = grad_out.shape
        k = kh * kw * c_in
        weight_bytes = c_out * k * x.itemsize
        parts = split(n, n, 2 if weight_bytes >= BIG_WEIGHT_BYTES else MIN_CHUNKS)
        # A product adds weight_bytes of traffic however few its rows, so its columns match that.
        images = max(1, max(COLUMN_BYTES, 2 * weight_bytes) // max(oh * ow * k * x.itemsize, 1))
        grad = np.empty((c_out, k), x.dtype)  # its own array: a view would keep all sums alive
        sums = (grad, *np.empty((len(parts) - 1, c_out, k), x.dtype))

        def task(i: int) -> None:
            first, last = parts[i]
            for start, stop in split(last - first, images):
                a, b = first + start, first + stop
                col = self._columns(x[a:b], kh, kw, stride, padding, oh, ow)
                g = grad_out[a:b].reshape(col.shape[0], c_out)  # ((b - a) oh ow, c_out)
                if start == 0:
                    sum_product(g, col, sums[i])
                else:
                    product = self.workspace.get("grad_weight", (c_out, k), x.dtype)
                    sum_product(g, col, product)
                    np.add(sums[i], product, out=sums[i])

        self.pool.run(len(parts), task)
        for part in sums[1:]:  # in their order: the same bits for any number of threads
            grad += part
        n_bytes = x.nbytes + grad_out.nbytes + grad.nbytes
        self.meter.record("weight_gradient", n * oh * ow * k * c_out, n_bytes)
        return grad.reshape(weight_shape)

    def conv2d_grad_input(
        self,
        grad_out: np.ndarray,
        weight: np.ndarray,
        x_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """grad_x = col2im(grad_out @ W), the transpose of conv2d in x.

        Args:
            grad_out: (n, oh, ow, c_out).
            weight: (c_out, kh, kw, c_in).
            x_shape: (n, h, w, c_in).
            stride: as in the forward pass.
            padding: as in the forward pass.

        Returns:
            x_shape, dtype of grad_out.
        """
        n, h, w, c_in = x_shape
        c_out, kh, kw, _ = weight.shape
        _, oh, ow, _ = grad_out.shape
        flip_pays = n * oh * ow > 2 * c_out  # else turning the weight costs more than it saves
        if stride == 1 and flip_pays and 0 <= kh - 1 - padding == kw - 1 - padding:
            grad_x = self._grad_input_by_flip(grad_out, weight, (h, w), kh - 1 - padding)
        else:
            grad_x = self._grad_input_by_col2im(grad_out, weight, x_shape, stride, padding)
        n_bytes = grad_out.nbytes + weight.nbytes + grad_x.nbytes
        macs = n * oh * ow * kh * kw * c_in * c_out
        self.meter.record("input_gradient", macs, n_bytes)
        return grad_x

    def _grad_input_by_flip(
        self, grad_out: np.ndarray, weight: np.ndarray, size: tuple[int, int], padding: int
    ) -> np.ndarray:
        """Stride 1: grad_x = conv2d(grad_out, weight flipped in space, channels exchanged)."""
        n, _, _, c_out = grad_out.shape
        _, kh, kw, c_in = weight.shape
        h, w = size
        k = kh * kw * c_out
        flipped = weight[:, ::-1, ::-1, :].transpose(1, 2, 0, 3).reshape(k, c_in)  # copy
        grad_x = np.empty((n, h, w, c_in), grad_out.dtype)
        chunks = _image_chunks(n, h * w * k * grad_out.itemsize, weight.nbytes)

        def task(i: int) -> None:
            start, stop = chunks[i]
            col = self._columns(grad_out[start:stop], kh, kw, 1, padding, h, w)
            row_product(col, flipped, grad_x[start:stop].reshape(col.shape[0], c_in))

        self.pool.run(len(chunks), task)
        return grad_x

    def _grad_input_by_col2im(
        self,
        grad_out: np.ndarray,
        weight: np.ndarray,
        x_shape: tuple[int, int, int, int],
        stride: int,
        padding: int,
    ) -> np.ndarray:
        n, h, w, c_in = x_shape
        c_out, kh, kw, _ = weight.shape
        _, oh, ow, _ = grad_out.shape
        k = kh * kw * c_in
        w_matrix = weight.reshape(c_out, k)
        grad_x = np.empty(x_shape, grad_out.dtype)
        chunks = _image_chunks(n, oh * ow * k * grad_out.itemsize, weight.nbytes)

        def task(i: int) -> None:
            start, stop = chunks[i]
            m = stop - start
            g = grad_out[start:stop].reshape(m * oh * ow, c_out)
            if (kh, kw, stride, padding) == (1, 1, 1, 0):
                row_product(g, w_matrix, grad_x[start:stop].reshape(m * h * w, c_in))
                return
            col = self.workspace.get("columns", (m * oh * ow, k), g.dtype)
            row_product(g, w_matrix, col)
            col = col.reshape(m, oh, ow, kh, kw, c_in)
            shape = (m, h + 2 * padding, w + 2 * padding, c_in)
            padded = self.workspace.get("summed", shape, g.dtype)
            padded.fill(0)
            for ky in range(kh):
                for kx in range(kw):
                    rows = slice(ky, ky + stride * oh, stride)
                    cols = slice(kx, kx + stride * ow, stride)
                    padded[:, rows, cols, :] += col[:, :, :, ky, kx, :]
            grad_x[start:stop] = padded[:, padding : padding + h, padding : padding + w, :]

        self.pool.run(len(chunks), task)
        return grad_x

    def _columns(
        self, x: np.ndarray, kh: int, kw: int, stride: int, padding: int, oh: int, ow: int
    ) -> np.ndarray:
        """im2col of one chunk in this thread's workspace; a view of x for a 1x1 convolution."""
        n, h, w, c = x.shape
        if (kh, kw, stride, padding) == (1, 1, 1, 0):
            return x.reshape(n * h * w, c)
        if padding:
            shape = (n, h + 2 * padding, w + 2 * padding, c)
            padded = self.workspace.get_zeroed("padded", shape, x.dtype)
            padded[:, padding:-padding, padding:-padding] = x
        else:
            padded = np.ascontiguousarray(x)
        sn, sh, sw, _ = padded.strides
        sc = padded.itemsize  # a contiguous array with one channel may call this stride 0
        # One row of a window, kw pixels of c channels, is contiguous: it is copied in one run.
        # (numpy's as_strided does the same, slowly and holding the interpreter lock.)
        windows = np.ndarray(
            (n, oh, ow, kh, kw * c),
            x.dtype,
            buffer=padded,
            strides=(sn, stride * sh, stride * sw, sh, sc),
        )
        col = self.workspace.get("columns", (n, oh, ow, kh, kw * c), x.dtype)
        if kw * c < SHORT_RUN:  # a run costs some 10 ns however short: go along the pixels instead
            for ky in range(kh):
                for i in range(kw * c):
                    np.copyto(col[..., ky, i], windows[..., ky, i])
        else:
            np.copyto(col, windows)
        return col.reshape(n * oh * ow, kh * kw * c)

    def _sum_parts(self, partial: np.ndarray) -> np.ndarray:
        """Add the parts in their order: the same bits for any number of threads."""
        total = partial[0]
        for part in partial[1:]:
            total += part
        return total


def _image_chunks(n: int, bytes_per_image: int, weight_bytes: int) -> tuple[tuple[int, int], ...]:
    """Split n images so that a chunk's columns fit the cache but outweigh a large weight.

    Each chunk's product reads the whole weight (BLAS copies it into its own order).
    """
    return split(n, max(COLUMN_BYTES, weight_bytes) // max(bytes_per_image, 1), MIN_CHUNKS)
