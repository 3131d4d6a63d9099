"""Every operation of the tape, as functions: `import minicst.functional as F`."""

from __future__ import annotations

from typing import Any

from minicst.autograd.conv import conv2d, conv2d_loop, linear
from minicst.autograd.elementary import (
    add,
    add_relu,
    channel_scatter,
    channel_slice,
    div,
    exp,
    log,
    matmul,
    mean,
    mul,
    power,
    relu,
    reshape,
    sqrt,
    sub,
    subsample,
    sum,
    transpose,
)
from minicst.autograd.loss import check_labels, cross_entropy
from minicst.autograd.norm import batch_norm
from minicst.autograd.pool import avg_pool2d, global_avg_pool2d, max_pool2d
from minicst.autograd.sparse_linear import sparse_linear
from minicst.backend import get_backend

__all__ = [
    "add",
    "add_relu",
    "avg_pool2d",
    "batch_norm",
    "channel_scatter",
    "channel_slice",
    "check_labels",
    "col2im",
    "conv2d",
    "conv2d_loop",
    "cross_entropy",
    "div",
    "exp",
    "global_avg_pool2d",
    "im2col",
    "linear",
    "log",
    "matmul",
    "max_pool2d",
    "mean",
    "mul",
    "power",
    "relu",
    "reshape",
    "sparse_linear",
    "sqrt",
    "sub",
    "subsample",
    "sum",
    "transpose",
]


def im2col(x: Any, kh: int, kw: int, stride: int = 1, padding: int = 0) -> Any:
    """Windows of an array x (n, h, w, c) as rows: (n * oh * ow, kh * kw * c). See the backend."""
    backend = get_backend()
    return backend.im2col(backend.asarray(x), kh, kw, stride, padding)


def col2im(
    col: Any,
    x_shape: tuple[int, int, int, int],
    kh: int,
    kw: int,
    stride: int = 1,
    padding: int = 0,
) -> Any:
    """Rows added back to their windows: the transpose of im2col. See the backend."""
    backend = get_backend()
    return backend.col2im(backend.asarray(col), x_shape, kh, kw, stride, padding)
