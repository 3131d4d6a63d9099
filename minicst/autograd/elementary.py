"""Elementwise operations, reductions, products and changes of shape.

Forward and backward of an operation stand together. `g` is the upstream gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array


def unbroadcast(grad: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Sum `grad` over the axes along which an input of `shape` and `dtype` was broadcast.

    A float64 loss plus a float32 penalty is float64; the penalty's gradient is float32 again.
    """
    grad = grad.astype(dtype, copy=False)
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, size in enumerate(shape) if size == 1 and grad.shape[i + extra] != 1
    )
    return grad.sum(axis=axes, keepdims=True).reshape(shape)


class Add(Function):
    """a + b;  g, g."""

    def forward(self, a: Array, b: Array) -> Array:
        self.save(a.shape, a.dtype, b.shape, b.dtype)
        alike = a.shape == b.shape and a.dtype == b.dtype
        return self.backend.add(a, b) if alike else a + b

    def backward(self, g: Array) -> tuple[Array, ...]:
        shape_a, dtype_a, shape_b, dtype_b = self.saved
        return unbroadcast(g, shape_a, dtype_a), unbroadcast(g, shape_b, dtype_b)


class AddReLU(Function):
    """max(a + b, 0);  g where the result is positive, 0 elsewhere, for both."""

    def forward(self, a: Array, b: Array) -> Array:
        out = self.backend.add(a, b, relu=True)
        self.save(out)
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        (out,) = self.saved
        g = self.backend.relu_backward(g, out)
        return g, g


class Sub(Function):
    """a - b;  g, -g."""

    def forward(self, a: Array, b: Array) -> Array:
        self.save(a.shape, a.dtype, b.shape, b.dtype)
        return a - b

    def backward(self, g: Array) -> tuple[Array, ...]:
        shape_a, dtype_a, shape_b, dtype_b = self.saved
        return unbroadcast(g, shape_a, dtype_a), unbroadcast(-g, shape_b, dtype_b)


class Mul(Function):
    """a b;  g b, g a."""

    def forward(self, a: Array, b: Array) -> Array:
        self.save(a, b)
        return a * b

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        return (
            unbroadcast(g * b, a.shape, a.dtype) if self.needs_grad[0] else None,
            unbroadcast(g * a, b.shape, b.dtype) if self.needs_grad[1] else None,
        )


class Div(Function):
    """a / b;  g / b, -g a / b^2."""

    def forward(self, a: Array, b: Array) -> Array:
        self.save(a, b)
        return a / b

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        return (
            unbroadcast(g / b, a.shape, a.dtype) if self.needs_grad[0] else None,
            unbroadcast(-g * a / (b * b), b.shape, b.dtype) if self.needs_grad[1] else None,
        )


class Power(Function):
    """x^p for a number p;  g p x^(p - 1)."""

    def forward(self, x: Array, *, exponent: float) -> Array:
        self.save(x, exponent)
        return x**exponent

    def backward(self, g: Array) -> tuple[Array, ...]:
        x, p = self.saved
        return (g * p * x ** (p - 1.0),)


class Exp(Function):
    """e^x;  g e^x."""

    def forward(self, x: Array) -> Array:
        out = self.xp.exp(x)
        self.save(out)
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        (out,) = self.saved
        return (g * out,)


class Log(Function):
    """Natural logarithm;  g / x."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return self.xp.log(x)

    def backward(self, g: Array) -> tuple[Array, ...]:
        (x,) = self.saved
        return (g / x,)


class ReLU(Function):
    """max(x, 0);  g where the result is positive, 0 elsewhere (at x = 0 too)."""

    def forward(self, x: Array) -> Array:
        out = self.backend.relu(x)
        self.save(out)
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        (out,) = self.saved
        return (self.backend.relu_backward(g, out),)


class Sum(Function):
    """Sum over axes;  g, broadcast back."""

    def forward(self, x: Array, *, axis: Any, keepdims: bool) -> Array:
        self.save(x.shape, axis, keepdims)
        return self.xp.asarray(x.sum(axis=axis, keepdims=keepdims))

    def backward(self, g: Array) -> tuple[Array, ...]:
        shape, axis, keepdims = self.saved
        if axis is not None and not keepdims:
            g = self.xp.expand_dims(g, axis)
        return (self.xp.broadcast_to(g, shape).copy(),)


class MatMul(Function):
    """a @ b of two matrices;  g b^T, a^T g."""

    def forward(self, a: Array, b: Array) -> Array:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(
                f"matmul takes matrices (n, k) and (k, m), got shapes {a.shape} and {b.shape}"
            )
        if a.dtype != b.dtype:
            raise TypeError(f"matmul of {a.dtype} with {b.dtype}: use one dtype")
        self.save(a, b)
        return a @ b

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        a, b = self.saved
        return (
            g @ b.T if self.needs_grad[0] else None,
            a.T @ g if self.needs_grad[1] else None,
        )


class Reshape(Function):
    """Same elements, other shape;  g in the old shape."""

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.save(x.shape)
        return x.reshape(shape)

    def backward(self, g: Array) -> tuple[Array, ...]:
        (shape,) = self.saved
        return (g.reshape(shape),)


class Transpose(Function):
    """Axes in another order;  g in the old order."""

    def forward(self, x: Array, *, axes: tuple[int, ...] | None) -> Array:
        out = x.transpose(axes)
        axes = tuple(reversed(range(x.ndim))) if axes is None else axes
        self.save(np.argsort([axis % x.ndim for axis in axes]).tolist())
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        (inverse,) = self.saved
        return (g.transpose(inverse),)


class ChannelSlice(Function):
    """Channels `index` of the last axis;  g put back at their places, 0 elsewhere."""

    def forward(self, x: Array, *, index: Array) -> Array:
        self.save(index, x.shape[-1])
        return self.backend.take_channels(x, index)

    def backward(self, g: Array) -> tuple[Array, ...]:
        index, channels = self.saved
        return (self.backend.place_channels(g, index, channels),)


class ChannelScatter(Function):
    """Zeros with x at channels `index` of the last axis;  g at those places."""

    def forward(self, x: Array, *, index: Array, channels: int) -> Array:
        self.save(index)
        return self.backend.place_channels(x, index, channels)

    def backward(self, g: Array) -> tuple[Array, ...]:
        (index,) = self.saved
        return (self.backend.take_channels(g, index),)


class Subsample(Function):
    """Every stride-th row and column of (n, h, w, c);  g put back, 0 elsewhere."""

    def forward(self, x: Array, *, stride: int) -> Array:
        self.save(x.shape, stride)
        return self.xp.ascontiguousarray(x[:, ::stride, ::stride, :])

    def backward(self, g: Array) -> tuple[Array, ...]:
        shape, stride = self.saved
        grad_x = self.xp.zeros(shape, g.dtype)
        grad_x[:, ::stride, ::stride, :] = g
        return (grad_x,)


def add(a: Any, b: Any) -> Tensor:
    """Return a + b, broadcast."""
    return Add.apply(a, b)


def sub(a: Any, b: Any) -> Tensor:
    """Return a - b, broadcast."""
    return Sub.apply(a, b)


def mul(a: Any, b: Any) -> Tensor:
    """Return a b elementwise, broadcast."""
    return Mul.apply(a, b)


def div(a: Any, b: Any) -> Tensor:
    """Return a / b elementwise, broadcast."""
    return Div.apply(a, b)


def power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent elementwise, for a number."""
    return Power.apply(x, exponent=float(exponent))


def exp(x: Tensor) -> Tensor:
    """e^x elementwise."""
    return Exp.apply(x)


def log(x: Tensor) -> Tensor:
    """Natural logarithm, elementwise."""
    return Log.apply(x)


def sqrt(x: Tensor) -> Tensor:
    """Square root, elementwise."""
    return Power.apply(x, exponent=0.5)


def add_relu(a: Tensor, b: Tensor) -> Tensor:
    """max(a + b, 0) in one pass, as a residual block ends.

    Args:
        a: any shape.
        b: shape and dtype of a.

    Raises:
        ValueError: if shapes or dtypes differ: nothing is broadcast.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"add_relu of {a.dtype}{a.shape} and {b.dtype}{b.shape}: one shape and dtype is "
            "needed, or relu(a + b), which broadcasts"
        )
    return AddReLU.apply(a, b)


def relu(x: Tensor) -> Tensor:
    """max(x, 0), elementwise."""
    return ReLU.apply(x)


def sum(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (all by default)."""
    return Sum.apply(x, axis=axis, keepdims=keepdims)


def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (all by default)."""
    total = Sum.apply(x, axis=axis, keepdims=keepdims)
    return Mul.apply(total, total.size / x.size)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of two matrices."""
    return MatMul.apply(a, b)


def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Same elements in another shape; one size may be -1."""
    return Reshape.apply(x, shape=tuple(shape))


def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """Axes in another order (reversed by default)."""
    return Transpose.apply(x, axes=axes)


def channel_slice(x: Tensor, index: Any) -> Tensor:
    """Keep the channels `index` (distinct integers) of the last axis.

    Raises:
        ValueError: if an index is out of range or comes twice.
        TypeError: if it isn't made of integers; a 0/1 mask isn't an index.
    """
    return ChannelSlice.apply(x, index=_channel_index(index, x.shape[-1], x))


def channel_scatter(x: Tensor, index: Any, channels: int) -> Tensor:
    """Place the channels of x at `index` among `channels` zero channels.

    Raises:
        ValueError: if an index is out of range, comes twice, or isn't one number per channel of x.
        TypeError: if it isn't made of integers; a 0/1 mask isn't an index.
    """
    if np.shape(index) != x.shape[-1:]:
        raise ValueError(
            f"channel_scatter of x {x.shape} needs one index per channel (the last axis), "
            f"got {np.shape(index)}"
        )
    return ChannelScatter.apply(x, index=_channel_index(index, channels, x), channels=channels)


def subsample(x: Tensor, stride: int) -> Tensor:
    """Every stride-th row and column of x (n, h, w, c).

    Raises:
        ValueError: if x isn't four-dimensional or stride below 1.
    """
    if x.ndim != 4 or stride < 1:
        raise ValueError(
            f"subsample takes (n, h, w, c) and a stride of at least 1, got {x.shape} and {stride}"
        )
    return Subsample.apply(x, stride=stride)


def _channel_index(index: Any, channels: int, x: Tensor) -> Array:
    host = np.asarray(index)
    if host.size and host.dtype.kind not in "iu":
        raise TypeError(f"channel index is {host.dtype}: channel numbers are needed, not a mask")
    host = host.astype(np.intp)
    # A GPU wraps an index that is out of range silently, so it is checked on the host.
    if host.ndim != 1 or (host.size and (host.min() < 0 or host.max() >= channels)):
        raise ValueError(f"channel index {host.tolist()} is not within 0 ... {channels - 1}")
    if np.unique(host).size != host.size:
        raise ValueError(f"channel index {host.tolist()} names a channel twice")
    return x.backend.asarray(host)
