"""Layers with parameters: convolution, linear (dense or sparse), batch norm."""

from __future__ import annotations

import numpy as np

import minicst.functional as F
from minicst.autograd import Parameter, Tensor
from minicst.backend import Pattern, get_backend
from minicst.nn.module import Module

DRAWN = 1 << 20  # numbers drawn at a time


def he_normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Weights N(0, 2 / fan_in), fan_in = product of all axes but the first; float32.

    Source: He et al., "Delving Deep into Rectifiers" (2015), Eq. (10).
    """
    std = (2.0 / max(int(np.prod(shape[1:])), 1)) ** 0.5
    weight = np.empty(shape, np.float32)
    flat = weight.reshape(-1)
    for start in range(0, flat.size, DRAWN):  # a large layer in float64 would take twice its size
        part = flat[start : start + DRAWN]
        part[...] = rng.standard_normal(part.size) * std
    return weight


def _weight(shape: tuple[int, ...], rng: np.random.Generator | None) -> Parameter:
    """He normal weights, or zeros made where they are needed."""
    return Parameter(
        get_backend().zeros(shape, np.float32) if rng is None else he_normal(shape, rng)
    )


def _bias(channels: int) -> Parameter:
    return Parameter(get_backend().zeros((channels,), np.float32))


class Conv2d(Module):
    """Convolution, channels last; weight (c_out, kernel, kernel, c_in / groups).

    Args:
        c_in: input channels.
        c_out: output channels (filters).
        kernel: side of the square window.
        stride: step between windows.
        padding: zeros on each side.
        bias: whether a number per filter is added.
        groups: groups of channels that don't see each other.
        rng: draws the weights (He normal); None leaves them zero, to be loaded.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        groups: int = 1,
        rng: np.random.Generator | None = None,
    ) -> None:
        shape = (c_out, kernel, kernel, c_in // groups)
        self.weight = _weight(shape, rng)
        self.bias = _bias(c_out) if bias else None
        self.c_in, self.c_out, self.kernel = c_in, c_out, kernel
        self.stride, self.padding, self.groups = stride, padding, groups

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve x (n, h, w, c_in) into (n, oh, ow, c_out)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)


class Linear(Module):
    """Return x W^T + b; weight (c_out, c_in).

    Args:
        c_in: input features.
        c_out: output features (neurons).
        bias: whether a number per neuron is added.
        rng: draws the weights (He normal); None leaves them zero, to be loaded.
    """

    def __init__(
        self, c_in: int, c_out: int, bias: bool = True, rng: np.random.Generator | None = None
    ) -> None:
        shape = (c_out, c_in)
        self.weight = _weight(shape, rng)
        self.bias = _bias(c_out) if bias else None
        self.c_in, self.c_out = c_in, c_out

    def __call__(self, x: Tensor, mask: np.ndarray | None = None) -> Tensor:
        """Map x (n, c_in) to (n, c_out), the weight times a mask of its shape if given."""
        return F.linear(x, _masked(self.weight, mask), self.bias)


class SparseLinear(Module):
    """Return x S^T + b, where only the live weights of S (c_out, c_in) exist; weight (n_live,).

    Args:
        pattern: places of the live weights.
        bias: whether a number per neuron is added.
    """

    def __init__(self, pattern: Pattern, bias: bool = True) -> None:
        self.pattern = pattern
        self.c_out, self.c_in = pattern.shape
        self.weight = _weight((pattern.size,), None)
        self.bias = _bias(self.c_out) if bias else None

    def __call__(self, x: Tensor, mask: np.ndarray | None = None) -> Tensor:
        """Map x (n, c_in) to (n, c_out), the live weights times a mask (n_live,) if given."""
        return F.sparse_linear(x, _masked(self.weight, mask), self.pattern, self.bias)


def _masked(weight: Tensor, mask: np.ndarray | None) -> Tensor:
    return weight if mask is None else weight * mask.astype(weight.dtype)


class BatchNorm(Module):
    """Batch norm over all axes but the last.

    The running variance takes the unbiased batch variance, as PyTorch's does.

    Args:
        channels: size of the last axis.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
    """

    buffers = ("running_mean", "running_var")

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        backend = get_backend()
        self.gamma = Parameter(backend.xp.ones(channels, np.float32))
        self.beta = _bias(channels)
        self.running_mean = backend.zeros((channels,), np.float32)
        self.running_var = backend.as_state(backend.xp.ones(channels, np.float32))
        self.momentum, self.eps = momentum, eps

    def __call__(
        self,
        x: Tensor,
        training: bool,
        track: bool = True,
        relu: bool = False,
        live: np.ndarray | None = None,
        overwrite: bool = False,
    ) -> Tensor:
        """Normalize x (..., channels).

        Args:
            x: input.
            training: batch statistics; else running ones.
            track: in training, whether the running statistics move.
            relu: clip at 0 in the same pass.
            live: (channels,) 0/1 of x's dtype, on x's device: an absent channel gives 0, and its
                statistics stay.
            overwrite: x is needed by nobody else: without a tape its memory may take the result.
        """
        gamma, beta = self.gamma, self.beta
        if live is not None:
            gamma, beta = gamma * live, beta * live  # type: ignore[assignment]
        tracked = track or not training
        return F.batch_norm(
            x,
            gamma,
            beta,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            training=training,
            momentum=self.momentum,
            eps=self.eps,
            relu=relu,
            live=live,
            overwrite=overwrite,
        )
