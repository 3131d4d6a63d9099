"""Convolution on the GPU: im2col into one workspace, chunk by chunk, and plain 2-D products.

The formulas stand where the CPU backend defines them (convolution.py, base.py).
"""

from __future__ import annotations

from typing import Any

from minicst.backend.base import Array, conv_output_size
from minicst.backend.chunks import split
from minicst.backend.cuda_kernels import KernelOps

WORKSPACE_MB = 256
SEGMENT_THREADS = 1 << 16  # threads that sum over rows: enough to keep a large GPU's memory busy
MAX_SEGMENTS = 512  # partial sums of a number, which one thread then adds up
ROWS_IN_A_SEGMENT = 32  # fewest: below it the partial sums cost as much as the rows

Shape4 = tuple[int, int, int, int]


class CupyConvolutionOps(KernelOps):
    """conv2d and its gradients, depthwise too.

    Attributes:
        workspace_bytes: most that the columns of a chunk take; a single image may need more.
    """

    def __init__(self, cupy: Any) -> None:
        super().__init__(cupy)
        self.workspace_bytes = WORKSPACE_MB << 20
        self._workspace: Array | None = None

    def conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """Return im2col(x) @ W.T + b, see NumpyBackend.conv2d."""
        n, h, w, c_in = x.shape
        c_out, kh, kw, _ = weight.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        k = kh * kw * c_in
        x = self.contiguous(x)
        out = self.xp.empty((n, oh, ow, c_out), x.dtype)
        w_matrix = weight.reshape(c_out, k).T  # (k, c_out), a view: BLAS takes it by a flag
        for start, stop in self._chunks(n, oh * ow * k * x.itemsize):
            col = self._columns(x[start:stop], (kh, kw), stride, padding, (oh, ow))
            rows = out[start:stop].reshape(col.shape[0], c_out)  # ((stop - start) oh ow, c_out)
            self.xp.dot(col, w_matrix, out=rows)
        if bias is not None:
            out += bias
        self.meter.record("forward", n * oh * ow * k * c_out, x.nbytes + weight.nbytes + out.nbytes)
        return out

    def conv2d_grad_weight(
        self, x: Array, grad_out: Array, weight_shape: Shape4, stride: int = 1, padding: int = 0
    ) -> Array:
        """grad_weight = grad_out.T @ im2col(x), see NumpyBackend.conv2d_grad_weight."""
        c_out, kh, kw, c_in = weight_shape
        n, oh, ow, _ = grad_out.shape
        k = kh * kw * c_in
        x, grad_out = self.contiguous(x), self.contiguous(grad_out)
        grad = self.xp.empty((c_out, k), x.dtype)
        for start, stop in self._chunks(n, oh * ow * k * x.itemsize):
            col = self._columns(x[start:stop], (kh, kw), stride, padding, (oh, ow))
            g = grad_out[start:stop].reshape(col.shape[0], c_out)  # ((stop - start) oh ow, c_out)
            if start == 0:
                self.xp.dot(g.T, col, out=grad)
            else:
                grad += self.xp.dot(g.T, col)
        n_bytes = x.nbytes + grad_out.nbytes + grad.nbytes
        self.meter.record("weight_gradient", n * oh * ow * k * c_out, n_bytes)
        return grad.reshape(weight_shape)

    def conv2d_grad_input(
        self, grad_out: Array, weight: Array, x_shape: Shape4, stride: int = 1, padding: int = 0
    ) -> Array:
        """grad_x = col2im(grad_out @ W), see NumpyBackend.conv2d_grad_input.

        For stride 1 it is a convolution with the flipped kernel too. The columns then have c_out
        channels in place of c_in, and the way with fewer is taken.
        """
        n, h, w, c_in = x_shape
        c_out, kh, kw, _ = weight.shape
        _, oh, ow, _ = grad_out.shape
        grad_out, weight = self.contiguous(grad_out), self.contiguous(weight)
        grad_x = self.xp.empty(x_shape, grad_out.dtype)
        back = kh - 1 - padding
        if (kh, kw, stride, padding) == (1, 1, 1, 0):
            g = grad_out.reshape(n * h * w, c_out)
            self.xp.dot(g, weight.reshape(c_out, c_in), out=grad_x.reshape(n * h * w, c_in))
        elif stride == 1 and c_out <= c_in and 0 <= back == kw - 1 - padding:
            turned = weight[:, ::-1, ::-1, :].transpose(1, 2, 0, 3)  # (kh, kw, c_out, c_in)
            w_matrix = self.contiguous(turned).reshape(kh * kw * c_out, c_in)
            for start, stop in self._chunks(n, h * w * kh * kw * c_out * grad_x.itemsize):
                col = self._columns(grad_out[start:stop], (kh, kw), 1, back, (h, w))
                self.xp.dot(col, w_matrix, out=grad_x[start:stop].reshape(col.shape[0], c_in))
        else:
            k = kh * kw * c_in
            w_matrix = weight.reshape(c_out, k)
            for start, stop in self._chunks(n, oh * ow * k * grad_x.itemsize):
                g = grad_out[start:stop].reshape((stop - start) * oh * ow, c_out)
                col = self._space((g.shape[0], k), g.dtype)
                self.xp.dot(g, w_matrix, out=col)
                part = grad_x[start:stop]
                sizes = (h, w, c_in, oh, ow, kh, kw, stride, padding)
                pixels = (stop - start) * h * w
                self.launch_rows("col2im", g.dtype, pixels, c_in, col, part, pixels, *sizes)
        n_bytes = grad_out.nbytes + weight.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", n * oh * ow * weight.size, n_bytes)
        return grad_x

    def im2col(self, x: Array, kh: int, kw: int, stride: int = 1, padding: int = 0) -> Array:
        """Lay out every window of x as one row, see Backend.im2col."""
        n, h, w, c = x.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        col = self.xp.empty((n * oh * ow, kh * kw * c), x.dtype)
        self._fill_columns(self.contiguous(x), col, (kh, kw), stride, padding, (oh, ow))
        return col

    def col2im(
        self, col: Array, x_shape: Shape4, kh: int, kw: int, stride: int = 1, padding: int = 0
    ) -> Array:
        """Add every row of col back to its window, see Backend.col2im."""
        n, h, w, c = x_shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        x = self.xp.empty(x_shape, col.dtype)
        sizes = (h, w, c, oh, ow, kh, kw, stride, padding)
        pixels = n * h * w
        self.launch_rows("col2im", x.dtype, pixels, c, self.contiguous(col), x, pixels, *sizes)
        return x

    def depthwise_conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """Every channel with one filter of its own, see Backend.depthwise_conv2d."""
        n, h, w, c = x.shape
        _, kh, kw, _ = weight.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        out = self.xp.empty((n, oh, ow, c), x.dtype)
        sizes = (h, w, c, oh, ow, kh, kw, stride, padding)
        arrays = (self.contiguous(x), self.contiguous(weight), bias, out)
        self.launch("depthwise", x.dtype, out.size, *arrays, out.size, *sizes)
        self.meter.record("forward", out.size * kh * kw, x.nbytes + weight.nbytes + out.nbytes)
        return out

    def depthwise_conv2d_grad_weight(
        self, x: Array, grad_out: Array, weight_shape: Shape4, stride: int = 1, padding: int = 0
    ) -> Array:
        """Sums over parts of the pixels, then over the parts; see Backend's."""
        c, kh, kw, _ = weight_shape
        n, h, w, _ = x.shape
        _, oh, ow, _ = grad_out.shape
        taps = kh * kw
        segments = segment_count(n * oh * ow, c * taps)
        partial = self.xp.empty((segments, taps, c), self.xp.float64)
        sizes = (n, h, w, c, oh, ow, kh, kw, stride, padding)
        arrays = (self.contiguous(x), self.contiguous(grad_out), partial)
        threads = segments * taps * c
        self.launch("depthwise_grad_weight", x.dtype, threads, *arrays, *sizes, segments)
        grad = self.xp.empty(weight_shape, x.dtype)
        self.launch("depthwise_weight_sums", x.dtype, c * taps, partial, grad, c, taps, segments)
        n_bytes = x.nbytes + grad_out.nbytes + grad.nbytes
        self.meter.record("weight_gradient", grad_out.size * taps, n_bytes)
        return grad

    def depthwise_conv2d_grad_input(
        self, grad_out: Array, weight: Array, x_shape: Shape4, stride: int = 1, padding: int = 0
    ) -> Array:
        """Every pixel gathers from the windows that read it; see Backend's."""
        _, h, w, c = x_shape
        _, kh, kw, _ = weight.shape
        _, oh, ow, _ = grad_out.shape
        grad_x = self.xp.empty(x_shape, grad_out.dtype)
        sizes = (h, w, c, oh, ow, kh, kw, stride, padding)
        arrays = (self.contiguous(grad_out), self.contiguous(weight), grad_x)
        self.launch("depthwise_grad_input", grad_x.dtype, grad_x.size, *arrays, grad_x.size, *sizes)
        n_bytes = grad_out.nbytes + weight.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", grad_out.size * kh * kw, n_bytes)
        return grad_x

    def _chunks(self, n: int, bytes_per_image: int) -> tuple[tuple[int, int], ...]:
        """Split n images so that a chunk's columns fit the workspace."""
        return split(n, self.workspace_bytes // max(bytes_per_image, 1))

    def _columns(
        self,
        x: Array,
        kernel: tuple[int, int],
        stride: int,
        padding: int,
        out_size: tuple[int, int],
    ) -> Array:
        """im2col of one chunk in the workspace; a view of x for a 1x1 convolution."""
        n, h, w, c = x.shape
        kh, kw = kernel
        if (kh, kw, stride, padding) == (1, 1, 1, 0):
            return x.reshape(n * h * w, c)
        col = self._space((n * out_size[0] * out_size[1], kh * kw * c), x.dtype)
        self._fill_columns(x, col, kernel, stride, padding, out_size)
        return col

    def _fill_columns(
        self,
        x: Array,
        col: Array,
        kernel: tuple[int, int],
        stride: int,
        padding: int,
        out_size: tuple[int, int],
    ) -> None:
        n, h, w, c = x.shape
        kh, kw = kernel
        oh, ow = out_size
        runs = n * oh * ow * kh  # rows of windows: kw c numbers each
        sizes = (h, w, c, oh, ow, kh, kw, stride, padding)
        self.launch_rows("im2col", x.dtype, runs, kw * c, x, col, runs, *sizes)

    def _space(self, shape: tuple[int, int], dtype: Any) -> Array:
        """The workspace as an array of this shape; whoever asks next overwrites it.

        That is safe on one stream, where kernels run in the order in which they were launched.
        """
        n_bytes = shape[0] * shape[1] * self.xp.dtype(dtype).itemsize
        if self._workspace is None or self._workspace.nbytes < n_bytes:
            self._workspace = None  # freed first, so that there is room
            self._workspace = self.xp.empty(max(n_bytes, 1), self.xp.uint8)
        return self._workspace[:n_bytes].view(dtype).reshape(shape)


def segment_count(rows: int, columns: int) -> int:
    """Number of parts into which a sum over rows is cut, for so many columns side by side."""
    wanted = min(SEGMENT_THREADS // max(columns, 1), rows // ROWS_IN_A_SEGMENT, MAX_SEGMENTS)
    return max(wanted, 1)
