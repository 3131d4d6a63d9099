"""The hot operations in a few lines of NumPy each: what the CPU's own are tested against."""

from __future__ import annotations

import numpy as np

from minicst.backend import Backend, Pattern
from minicst.backend.base import conv_output_size

Shape4 = tuple[int, int, int, int]


class PlainBackend(Backend):
    """Whole arrays, no chunks, no threads, no workspace; slow and short. Formulas as documented."""

    name = "plain"
    xp = np

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return np.asarray(array)

    # Columns by index arrays, where Backend takes slices.

    def im2col(
        self, x: np.ndarray, kh: int, kw: int, stride: int = 1, padding: int = 0
    ) -> np.ndarray:
        """See Backend.im2col."""
        n, h, w, c = x.shape
        rows, columns, oh, ow = _windows(h, w, kh, kw, stride, padding)
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return np.asarray(padded[:, rows, columns].reshape(n * oh * ow, kh * kw * c))

    def col2im(
        self,
        col: np.ndarray,
        x_shape: Shape4,
        kh: int,
        kw: int,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """See Backend.col2im."""
        n, h, w, c = x_shape
        rows, columns, oh, ow = _windows(h, w, kh, kw, stride, padding)
        padded = np.zeros((h + 2 * padding, w + 2 * padding, n, c), col.dtype)
        # Taps first: each pixel then adds up its taps in their order, as Backend does.
        taps_first = (2, 3, 0, 1)
        numbers = col.reshape(n, oh, ow, kh, kw, c).transpose(3, 4, 1, 2, 0, 5)
        at = (rows.transpose(taps_first), columns.transpose(taps_first))
        np.add.at(padded, at, numbers)
        inside = padded[padding : padding + h, padding : padding + w]
        return np.ascontiguousarray(inside.transpose(2, 0, 1, 3))

    def conv2d(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """im2col(x) @ W.T + b."""
        n, h = x.shape[:2]
        c_out, kh, kw, _ = weight.shape
        out = self.im2col(x, kh, kw, stride, padding) @ weight.reshape(c_out, -1).T
        if bias is not None:
            out = out + bias
        oh = conv_output_size(h, kh, stride, padding)
        self.meter.record("forward", out.size * weight[0].size, 0)
        return out.reshape(n, oh, -1, c_out)

    def conv2d_grad_weight(
        self,
        x: np.ndarray,
        grad_out: np.ndarray,
        weight_shape: Shape4,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """grad_out.T @ im2col(x)."""
        c_out, kh, kw, _ = weight_shape
        g = grad_out.reshape(-1, c_out)
        grad = g.T @ self.im2col(x, kh, kw, stride, padding)
        self.meter.record("weight_gradient", len(g) * grad.size, 0)
        return grad.reshape(weight_shape)

    def conv2d_grad_input(
        self,
        grad_out: np.ndarray,
        weight: np.ndarray,
        x_shape: Shape4,
        stride: int = 1,
        padding: int = 0,
    ) -> np.ndarray:
        """col2im(grad_out @ W)."""
        c_out, kh, kw, _ = weight.shape
        g = grad_out.reshape(-1, c_out)
        self.meter.record("input_gradient", len(g) * weight.size, 0)
        return self.col2im(g @ weight.reshape(c_out, -1), x_shape, kh, kw, stride, padding)

    # Batch norm on (rows, c), sums in float64.

    def batch_norm_statistics(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and biased variance of each channel."""
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        return rows.mean(axis=0).astype(x.dtype), rows.var(axis=0).astype(x.dtype)

    def scale_shift(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        shift: np.ndarray,
        relu: bool = False,
        in_place: bool = False,
    ) -> np.ndarray:
        """Return x * scale + shift, or max(that, 0)."""
        out = x * scale + shift
        if relu:
            out = np.maximum(out, 0)
        if in_place:
            x[...] = out
        return x if in_place else out

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
        """Gradients of x, gamma and beta by their formulas."""
        g = (grad_out if out is None else grad_out * (out > 0)).astype(np.float64)
        normal = (x.astype(np.float64) - mean) * inv_std
        axes = tuple(range(x.ndim - 1))
        n = x.size // x.shape[-1]
        grad_beta, grad_gamma = g.sum(axes), (g * normal).sum(axes)
        if training:
            g = g - grad_beta / n - normal * grad_gamma / n
        grads = gamma * inv_std * g, grad_gamma, grad_beta
        return grads[0].astype(x.dtype), grads[1].astype(x.dtype), grads[2].astype(x.dtype)

    # Pooling: windows as columns, (n, oh, ow, taps, c).

    def max_pool2d(
        self, x: np.ndarray, kernel: int, stride: int, padding: int = 0, with_index: bool = True
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Largest value of every window, and its tap."""
        border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        windows = self._windows(np.pad(x, border, constant_values=-np.inf), kernel, stride, 0)
        tap = windows.argmax(axis=3).astype(np.uint8)
        return windows.max(axis=3), tap if with_index else None

    def max_pool2d_backward(
        self,
        grad_out: np.ndarray,
        tap: np.ndarray,
        x_shape: Shape4,
        kernel: int,
        stride: int,
        padding: int = 0,
    ) -> np.ndarray:
        """Each window's gradient, at its tap."""
        taps = np.arange(kernel**2)[:, None]
        col = grad_out[:, :, :, None] * (tap[:, :, :, None] == taps)
        return self.col2im(col, x_shape, kernel, kernel, stride, padding)

    def avg_pool2d(self, x: np.ndarray, kernel: int, stride: int, padding: int = 0) -> np.ndarray:
        """Mean of every window, taps added in their order."""
        windows = self._windows(x, kernel, stride, padding)
        total = windows[:, :, :, 0]
        for k in range(1, kernel**2):
            total = total + windows[:, :, :, k]
        return np.asarray(total * (1.0 / kernel**2))

    def avg_pool2d_backward(
        self,
        grad_out: np.ndarray,
        x_shape: Shape4,
        kernel: int,
        stride: int,
        padding: int = 0,
    ) -> np.ndarray:
        """Each window's gradient, evenly over its pixels."""
        share = grad_out[:, :, :, None] * (1.0 / kernel**2)
        return self.col2im(
            np.repeat(share, kernel**2, axis=3), x_shape, kernel, kernel, stride, padding
        )

    def _windows(self, x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
        n, h, _, c = x.shape
        oh = conv_output_size(h, kernel, stride, padding)
        col = self.im2col(x, kernel, kernel, stride, padding)
        return col.reshape(n, oh, -1, kernel**2, c)

    # Sparse linear layers as dense ones.

    def sparse_linear(
        self,
        x: np.ndarray,
        values: np.ndarray,
        pattern: Pattern,
        bias: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return x S.T + b."""
        self.meter.record("forward", len(x) * pattern.size, 0)
        out = x @ _dense(values, pattern).T
        return out if bias is None else out + bias

    def sparse_linear_grad_weight(
        self, x: np.ndarray, grad_out: np.ndarray, pattern: Pattern
    ) -> np.ndarray:
        """Live entries of grad_out.T @ x."""
        self.meter.record("weight_gradient", len(x) * pattern.size, 0)
        return np.asarray((grad_out.T @ x)[pattern.rows, pattern.columns])

    def sparse_linear_grad_input(
        self, grad_out: np.ndarray, values: np.ndarray, pattern: Pattern
    ) -> np.ndarray:
        """grad_out S."""
        self.meter.record("input_gradient", len(grad_out) * pattern.size, 0)
        return grad_out @ _dense(values, pattern)

    # Elementwise, and updates.

    def add(self, a: np.ndarray, b: np.ndarray, relu: bool = False) -> np.ndarray:
        """Return a + b, or max(that, 0)."""
        return np.maximum(a + b, 0) if relu else a + b

    def relu(self, x: np.ndarray) -> np.ndarray:
        """max(x, 0)."""
        return np.maximum(x, 0)

    def relu_backward(self, grad_out: np.ndarray, out: np.ndarray) -> np.ndarray:
        """grad_out where out > 0."""
        return np.asarray(grad_out * (out > 0))

    def sgd_update(
        self,
        weight: np.ndarray,
        grad: np.ndarray,
        velocity: np.ndarray | None,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """With g + decay w for g: v = momentum v + g, and w -= lr (v, or g + momentum v)."""
        update = weight_decay * weight + grad if weight_decay else grad
        if velocity is not None:
            velocity[...] = momentum * velocity + update
            update = update + momentum * velocity if nesterov else velocity
        weight -= lr * update

    def adam_update(
        self,
        weight: np.ndarray,
        grad: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        step: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Adam's formulas, in the order of operations of NumpyBackend."""
        b1, b2 = betas
        g = grad + weight_decay * weight if weight_decay else grad
        first[...] = b1 * first + (1 - b1) * g
        second[...] = b2 * second + (1 - b2) * g * g
        size = np.sqrt(second / (1 - b2**step)) + eps
        weight -= lr / (1 - b1**step) * first / size

    # Cut and paste by np.ix_.

    def entries(
        self, shape: tuple[int, ...], rows: np.ndarray | None, columns: np.ndarray | None
    ) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]]:
        """The shape, and np.ix_ of the block."""
        axes = [np.arange(size) for size in shape]
        if columns is not None and len(shape) > 1:
            axes[-1] = columns
        if rows is not None:
            axes[0] = rows
        return shape, np.ix_(*axes)

    def gather(
        self,
        full: np.ndarray,
        entries: tuple[tuple[int, ...], tuple[np.ndarray, ...]],
        small: np.ndarray,
    ) -> None:
        """Fill small with the block."""
        shape, at = entries
        small[...] = full.reshape(shape)[at].reshape(small.shape)

    def scatter(
        self,
        full: np.ndarray,
        entries: tuple[tuple[int, ...], tuple[np.ndarray, ...]],
        small: np.ndarray,
    ) -> None:
        """Set the block to small's numbers."""
        shape, at = entries
        view = full.reshape(shape)
        view[at] = small.reshape(view[at].shape)

    def take_channels(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Channels `index` of the last axis."""
        return np.asarray(x[..., index])


def _windows(
    h: int, w: int, kh: int, kw: int, stride: int, padding: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Rows and columns of the padded pixels of every window, (oh, ow, kh, kw) each; oh and ow."""
    oh = conv_output_size(h, kh, stride, padding)
    ow = conv_output_size(w, kw, stride, padding)
    oy, ox, ky, kx = np.ogrid[:oh, :ow, :kh, :kw]
    shape = (oh, ow, kh, kw)
    rows = np.broadcast_to(oy * stride + ky, shape)
    return rows, np.broadcast_to(ox * stride + kx, shape), oh, ow


def _dense(values: np.ndarray, pattern: Pattern) -> np.ndarray:
    matrix = np.zeros(pattern.shape, values.dtype)
    matrix[pattern.rows, pattern.columns] = values
    return matrix
