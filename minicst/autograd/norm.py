"""Batch norm on the tape, with ReLU in the same pass where it follows."""

from __future__ import annotations

from typing import Any

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array


class BatchNorm(Function):
    """gamma (x - mean) / sqrt(var + eps) + beta, then ReLU if asked.

    The formulas of the backward pass stand at `batch_norm_backward` of the backend.
    """

    def forward(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        *,
        mean: Array,
        variance: Array,
        eps: float,
        training: bool,
        relu: bool,
        overwrite: bool,
    ) -> Array:
        inv_std, scale, shift = self.backend.batch_norm_fold(mean, variance, gamma, beta, eps)
        in_place = overwrite and not any(self.needs_grad) and x.flags.c_contiguous
        out = self.backend.scale_shift(x, scale, shift, relu, in_place)
        self.save(x, out if relu else None, mean, inv_std, gamma, training)
        return out

    def backward(self, g: Array) -> tuple[Array, ...]:
        x, out, mean, inv_std, gamma, training = self.saved
        g = self.xp.ascontiguousarray(g)
        return self.backend.batch_norm_backward(g, x, out, mean, inv_std, gamma, training)


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    live: Any = None,
    overwrite: bool = False,
) -> Tensor:
    """Normalize each channel to mean 0 and variance 1, then scale and shift it.

    training: mean and (biased) variance come from x, and the running ones are updated in place:
        running <- (1 - momentum) running + momentum batch      (variance with N / (N - 1))
    else: the running ones are used, and are constants to the gradient.

    Args:
        x: (..., c).
        gamma: (c,).
        beta: (c,).
        running_mean: (c,) array updated in place, or None: nothing is tracked.
        running_var: (c,) array updated in place, or None.
        training: batch statistics (and update) or running ones.
        momentum: weight of the newest batch in the running statistics.
        eps: added to the variance.
        relu: also clip at 0, in the same pass.
        live: (c,) 0/1 array or None: only the running statistics of live channels move.
        overwrite: x is needed by nobody else, so without a tape its memory may take the result.

    Returns:
        (..., c).

    Raises:
        ValueError: if shapes don't fit, or running statistics are needed and missing.
    """
    c = x.shape[-1]
    if gamma.shape != (c,) or beta.shape != (c,):
        raise ValueError(
            f"batch_norm of x with {c} channels (the last axis) needs gamma and beta of shape "
            f"({c},), got {gamma.shape} and {beta.shape}"
        )
    if gamma.dtype != x.dtype or beta.dtype != x.dtype:
        raise TypeError(
            f"batch_norm of {x.dtype} x with {gamma.dtype} gamma and {beta.dtype} beta: "
            "use one dtype"
        )
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm needs running_mean and running_var, or neither")
    backend, xp = x.backend, x.backend.xp
    if training:
        n = x.size // c if c else 0
        if c and not n:
            raise ValueError(
                f"batch_norm in training of shape {x.shape}: there is nothing to average"
            )
        data = xp.ascontiguousarray(x.data)
        mean, variance = backend.batch_norm_statistics(data)
        if running_mean is not None:
            running, unbiased = (running_mean, running_var), n / max(n - 1, 1)
            live = None if live is None else backend.asarray(live, x.dtype)
            backend.batch_norm_track(running, (mean, variance), live, momentum, unbiased)
    elif running_mean is None:
        raise ValueError("batch_norm in eval mode needs running_mean and running_var")
    else:
        # Copies: training may move the running statistics before backward reads them.
        mean, variance = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    return BatchNorm.apply(
        x,
        gamma,
        beta,
        mean=mean,
        variance=variance,
        eps=eps,
        training=training,
        relu=relu,
        overwrite=overwrite,
    )
