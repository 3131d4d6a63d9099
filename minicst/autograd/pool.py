"""Pooling on the tape."""

from __future__ import annotations

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array


class MaxPool2d(Function):
    """Largest value of each window;  g to the one that won (the first of equals)."""

    def forward(self, x: Array, *, kernel: int, stride: int, padding: int) -> Array:
        out, tap = self.backend.max_pool2d(x, kernel, stride, padding, self.needs_grad[0])
        self.save(tap, x.shape, kernel, stride, padding)
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        tap, shape, kernel, stride, padding = self.saved
        return (self.backend.max_pool2d_backward(g, tap, shape, kernel, stride, padding),)


class AvgPool2d(Function):
    """Mean of each window;  g / kernel^2 to every pixel of it."""

    def forward(self, x: Array, *, kernel: int, stride: int, padding: int) -> Array:
        self.save(x.shape, kernel, stride, padding)
        return self.backend.avg_pool2d(x, kernel, stride, padding)

    def backward(self, g: Array) -> tuple[Array, ...]:
        return (self.backend.avg_pool2d_backward(g, *self.saved),)


class GlobalAvgPool2d(Function):
    """Mean over h and w;  g / (h w) to every pixel."""

    def forward(self, x: Array) -> Array:
        self.save(x.shape)
        n, h, w, c = x.shape
        return x.reshape(n, h * w, c).sum(axis=1) * (1.0 / (h * w))

    def backward(self, g: Array) -> tuple[Array, ...]:
        ((n, h, w, c),) = self.saved
        share = (g * (1.0 / (h * w))).reshape(n, 1, 1, c)
        return (self.xp.broadcast_to(share, (n, h, w, c)).copy(),)


def max_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """Largest value of every window.

    Args:
        x: (n, h, w, c).
        kernel: side of the square window, 1 ... 15.
        stride: step between windows; kernel by default.
        padding: border that never wins, at most kernel / 2.

    Returns:
        (n, oh, ow, c).

    Raises:
        ValueError: if shapes or sizes don't fit.
    """
    stride = stride or kernel
    _check(x, kernel, stride, padding)
    return MaxPool2d.apply(x, kernel=kernel, stride=stride, padding=padding)


def avg_pool2d(x: Tensor, kernel: int, stride: int | None = None, padding: int = 0) -> Tensor:
    """Mean of every window; padded zeros count as pixels.

    Args:
        x: (n, h, w, c).
        kernel: side of the square window, 1 ... 15.
        stride: step between windows; kernel by default.
        padding: zeros on each side, at most kernel / 2.

    Returns:
        (n, oh, ow, c).

    Raises:
        ValueError: if shapes or sizes don't fit.
    """
    stride = stride or kernel
    _check(x, kernel, stride, padding)
    return AvgPool2d.apply(x, kernel=kernel, stride=stride, padding=padding)


def global_avg_pool2d(x: Tensor) -> Tensor:
    """Mean over h and w: (n, h, w, c) -> (n, c).

    Raises:
        ValueError: if x isn't four-dimensional.
    """
    if x.ndim != 4:
        raise ValueError(f"global_avg_pool2d takes (n, h, w, c), got shape {x.shape}")
    return GlobalAvgPool2d.apply(x)


def _check(x: Tensor, kernel: int, stride: int, padding: int) -> None:
    if x.ndim != 4:
        raise ValueError(f"pooling takes (n, h, w, c), got shape {x.shape}")
    if not 1 <= kernel <= 15 or stride < 1 or not 0 <= padding <= kernel // 2:
        raise ValueError(
            f"pooling with kernel={kernel}, stride={stride}, padding={padding}: needed are "
            "1 <= kernel <= 15, stride >= 1 and 0 <= padding <= kernel / 2"
        )
