"""Convolution and linear layers on the tape, and the loop that defines them."""

from __future__ import annotations

import numpy as np

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array, conv_output_size


def conv2d_loop(
    x: np.ndarray, weight: np.ndarray, stride: int = 1, padding: int = 0, groups: int = 1
) -> np.ndarray:
    """Convolution by its definition, one output number at a time: the oracle of the tests.

    Args:
        x: (n, h, w, c_in).
        weight: (c_out, kh, kw, c_in / groups).
        stride: step between windows.
        padding: zeros on each side.
        groups: output channel o reads the input channels of its group.

    Returns:
        (n, oh, ow, c_out).
    """
    n, h, w, _ = x.shape
    c_out, kh, kw, c_group = weight.shape
    oh, ow = (conv_output_size(size, k, stride, padding) for size, k in ((h, kh), (w, kw)))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = np.zeros((n, oh, ow, c_out), x.dtype)
    for i in range(n):
        for y in range(oh):
            for z in range(ow):
                window = padded[i, y * stride : y * stride + kh, z * stride : z * stride + kw]
                for o in range(c_out):
                    first = o // (c_out // groups) * c_group
                    out[i, y, z, o] = np.sum(window[:, :, first : first + c_group] * weight[o])
    return out


class Conv2d(Function):
    """out = im2col(x) W^T + b;  grad_x = col2im(g W), grad_W = g^T im2col(x), grad_b = sum g."""

    def forward(
        self,
        x: Array,
        weight: Array,
        *bias: Array,
        stride: int,
        padding: int,
        groups: int,
    ) -> Array:
        self.save(x, weight, stride, padding, groups)
        b = bias[0] if bias else None
        if groups == 1:
            return self.backend.conv2d(x, weight, b, stride, padding)
        if _is_depthwise(x, weight, groups):
            return self.backend.depthwise_conv2d(x, weight, b, stride, padding)
        parts = [
            self.backend.conv2d(x_part, w_part, None, stride, padding)
            for x_part, w_part in self._parts(x, weight, groups)
        ]
        out = self.xp.concatenate(parts, axis=-1)
        return out if b is None else out + b

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        x, weight, stride, padding, groups = self.saved
        grad_x = grad_weight = None
        g = self.xp.ascontiguousarray(g)
        if groups == 1:
            if self.needs_grad[0]:
                grad_x = self.backend.conv2d_grad_input(g, weight, x.shape, stride, padding)
            if self.needs_grad[1]:
                grad_weight = self.backend.conv2d_grad_weight(x, g, weight.shape, stride, padding)
        elif _is_depthwise(x, weight, groups):
            back = self.backend
            if self.needs_grad[0]:
                grad_x = back.depthwise_conv2d_grad_input(g, weight, x.shape, stride, padding)
            if self.needs_grad[1]:
                grad_weight = back.depthwise_conv2d_grad_weight(x, g, weight.shape, stride, padding)
        else:
            xp = self.xp
            g_parts = [xp.ascontiguousarray(p) for p in xp.split(g, groups, axis=-1)]
            parts = self._parts(x, weight, groups)
            if self.needs_grad[0]:
                grads = [
                    self.backend.conv2d_grad_input(gp, wp, x_part.shape, stride, padding)
                    for gp, (x_part, wp) in zip(g_parts, parts, strict=True)
                ]
                grad_x = xp.concatenate(grads, axis=-1)
            if self.needs_grad[1]:
                grads = [
                    self.backend.conv2d_grad_weight(x_part, gp, wp.shape, stride, padding)
                    for gp, (x_part, wp) in zip(g_parts, parts, strict=True)
                ]
                grad_weight = xp.concatenate(grads, axis=0)
        if len(self.needs_grad) == 2:
            return grad_x, grad_weight
        grad_bias = g.reshape(-1, g.shape[-1]).sum(axis=0) if self.needs_grad[2] else None
        return grad_x, grad_weight, grad_bias

    def _parts(self, x: Array, weight: Array, groups: int) -> list[tuple[Array, Array]]:
        xs = self.xp.split(x, groups, axis=-1)
        return [
            (self.xp.ascontiguousarray(x_part), w_part)
            for x_part, w_part in zip(xs, self.xp.split(weight, groups, axis=0), strict=True)
        ]


def _is_depthwise(x: Array, weight: Array, groups: int) -> bool:
    return groups == x.shape[3] == weight.shape[0]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate x with every filter, channels last.

    out[n, y, x, o] = b[o] + sum_{ky, kx, c} x[n, y s + ky - p, x s + kx - p, c] w[o, ky, kx, c]

    Args:
        x: (n, h, w, c_in).
        weight: (c_out, kh, kw, c_in / groups), dtype of x.
        bias: (c_out,) or None.
        stride: step between windows, at least 1.
        padding: zeros on each side of h and w.
        groups: input and output channels are split into this many groups.

    Returns:
        (n, oh, ow, c_out), oh = floor((h + 2 padding - kh) / stride) + 1.

    Raises:
        ValueError: if shapes don't fit; the message names them.
    """
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"conv2d takes x (n, h, w, c_in) and weight (c_out, kh, kw, c_in / groups), "
            f"got shapes {x.shape} and {weight.shape}"
        )
    if groups < 1 or weight.shape[3] * groups != x.shape[3] or weight.shape[0] % groups:
        raise ValueError(
            f"conv2d with groups={groups}: x has {x.shape[3]} channels (the last axis), the filters"
            f" {weight.shape} read {weight.shape[3]} each: c_in must be groups times that, and "
            "c_out a multiple of groups"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias of shape {bias.shape} for filters {weight.shape}: one number per filter is "
            f"needed, shape {weight.shape[:1]}"
        )
    if stride < 1 or padding < 0:
        raise ValueError(f"stride {stride} must be at least 1 and padding {padding} at least 0")
    inputs = (x, weight) if bias is None else (x, weight, bias)
    if any(t.dtype != x.dtype for t in inputs):
        raise TypeError(f"conv2d of {' and '.join(str(t.dtype) for t in inputs)}: use one dtype")
    return Conv2d.apply(*inputs, stride=stride, padding=padding, groups=groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b: a 1x1 convolution on one pixel.

    Args:
        x: (n, c_in).
        weight: (c_out, c_in).
        bias: (c_out,) or None.

    Returns:
        (n, c_out).

    Raises:
        ValueError: if shapes don't fit.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear takes x (n, c_in) and weight (c_out, c_in), got {x.shape} and {weight.shape}"
        )
    (n, c_in), c_out = x.shape, weight.shape[0]
    out = conv2d(x.reshape(n, 1, 1, c_in), weight.reshape(c_out, 1, 1, c_in), bias)
    return out.reshape(n, c_out)
