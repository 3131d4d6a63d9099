"""The CPU backend: NumPy arrays, a pool of threads, BLAS held to one thread in each."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from minicst.backend.base import Array
from minicst.backend.chunks import STREAM_BYTES, split
from minicst.backend.convolution import ConvolutionOps
from minicst.backend.depthwise import DepthwiseOps
from minicst.backend.normalization import NormalizationOps
from minicst.backend.pool import WorkerPool, Workspace
from minicst.backend.pooling import PoolingOps
from minicst.backend.sparse_linear import RowwiseSparseLinearOps

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # source: glibc, malloc.h


class NumpyBackend(
    ConvolutionOps, DepthwiseOps, RowwiseSparseLinearOps, NormalizationOps, PoolingOps
):
    """Channels-last arrays of numpy; the readable specification that other backends override.

    Creating it holds BLAS to one thread for the whole process: the pool's threads share the
    work out, and a product's bits must not depend on how many threads BLAS would take. It also
    lets the process keep freed memory, see keep_freed_memory().

    Args:
        threads: size of the pool; None takes the number of cores this process may use.
    """

    name = "numpy"
    xp = np

    def __init__(self, threads: int | None = None) -> None:
        super().__init__()
        ThreadpoolController().limit(limits=1, user_api="blas")
        keep_freed_memory()
        self.pool = WorkerPool(threads or available_cores())
        self.workspace = Workspace()

    @property
    def sparse(self) -> Any:
        """scipy.sparse, imported by the first who needs it."""
        import scipy.sparse

        return scipy.sparse

    @property
    def threads(self) -> int:
        """Number of threads that work on one operation."""
        return self.pool.threads

    def set_threads(self, threads: int) -> None:
        """Use this many threads from now on. Results don't change, bit for bit."""
        if threads != self.pool.threads:
            new = WorkerPool(threads)
            self.pool.close()
            self.pool = new

    def to_numpy(self, array: Array) -> np.ndarray:
        """Return the array itself: it is on the host."""
        return np.asarray(array)

    def share_out(self, n_tasks: int, task: Callable[[int], None], n_bytes: int) -> None:
        """Call task(0) ... task(n_tasks - 1), each once, on the pool's threads."""
        self.pool.run(n_tasks, task, n_bytes)

    def gather(self, full: np.ndarray, entries: np.ndarray, small: np.ndarray) -> None:
        """Fill small with full's entries; both arrays are contiguous."""
        # mode="wrap" spares numpy a buffered copy of the result.
        np.take(full.reshape(-1), entries, out=small.reshape(-1), mode="wrap")

    def take_channels(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return channels `index` (distinct) of the last axis."""
        c_in, c_out = x.shape[-1], len(index)
        out = np.empty((*x.shape[:-1], c_out), x.dtype)
        n = math.prod(x.shape[:-1])
        rows, into = x.reshape(n, c_in), out.reshape(n, c_out)
        chunks = split(n, STREAM_BYTES // max(c_in * x.itemsize, 1))

        def task(i: int) -> None:
            start, stop = chunks[i]
            np.take(rows[start:stop], index, axis=1, out=into[start:stop], mode="wrap")

        self.pool.run(len(chunks) if c_out else 0, task, x.nbytes)
        return out

    def place_channels(self, x: np.ndarray, index: np.ndarray, channels: int) -> np.ndarray:
        """Return zeros (..., channels) with x's channels at places `index` (distinct)."""
        # Assigning to out[..., index] is seven times slower than taking from x and one zero more.
        c_in = x.shape[-1]
        source = np.full(channels, c_in)
        source[index] = np.arange(c_in)
        out = np.empty((*x.shape[:-1], channels), x.dtype)
        n = math.prod(x.shape[:-1])
        rows, into = x.reshape(n, c_in), out.reshape(n, channels)
        chunks = split(n, STREAM_BYTES // max(channels * x.itemsize, 1))

        def task(i: int) -> None:
            start, stop = chunks[i]
            padded = self.workspace.get("placed", (stop - start, c_in + 1), x.dtype)
            padded[:, :c_in] = rows[start:stop]
            padded[:, c_in] = 0
            np.take(padded, source, axis=1, out=into[start:stop], mode="wrap")

        self.pool.run(len(chunks), task, out.nbytes)
        return out

    def add(self, a: np.ndarray, b: np.ndarray, relu: bool = False) -> np.ndarray:
        """Return a + b, or max(a + b, 0) with relu; a and b have one shape and dtype."""
        out = np.empty(a.shape, a.dtype)

        def step(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> None:
            np.add(x, y, out=total)
            if relu:
                np.maximum(total, 0, out=total)

        self._stream(step, a, b, out)
        return out

    def relu(self, x: np.ndarray) -> np.ndarray:
        """max(x, 0), elementwise."""
        out = np.empty_like(x, order="C")
        self._stream(lambda a, b: np.maximum(a, 0, out=b), np.ascontiguousarray(x), out)
        return out

    def relu_backward(self, grad_out: np.ndarray, out: np.ndarray) -> np.ndarray:
        """grad_out where out > 0, else 0."""
        grad_x = np.empty_like(out)

        def gate(g: np.ndarray, y: np.ndarray, gx: np.ndarray) -> None:
            np.copyto(gx, y > 0)  # multiplying by a bool array itself takes half as long again
            np.multiply(gx, g, out=gx)

        self._stream(gate, np.ascontiguousarray(grad_out), out, grad_x)
        return grad_x

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
        """In place: g += decay w;  v = momentum v + g;  w -= lr (v, or g + momentum v)."""

        def step(w: np.ndarray, g: np.ndarray, *state: np.ndarray) -> None:
            update = self.workspace.get("update", w.shape, w.dtype)
            if weight_decay:
                np.multiply(w, weight_decay, out=update)
                np.add(update, g, out=update)
            else:
                np.copyto(update, g)
            if state:
                (v,) = state
                np.multiply(v, momentum, out=v)
                np.add(v, update, out=v)
                if nesterov:
                    scaled = self.workspace.get("scaled", w.shape, w.dtype)
                    np.multiply(v, momentum, out=scaled)
                    np.add(update, scaled, out=update)
                else:
                    np.copyto(update, v)
            np.multiply(update, lr, out=update)
            np.subtract(w, update, out=w)

        self._stream(step, weight, grad, *([] if velocity is None else [velocity]))

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
        """In place: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= lr m^ / (sqrt(v^) + eps).

        Source: Kingma and Ba, "Adam" (2015), Algorithm 1, with its bias corrections m^ and v^.
        """
        b1, b2 = betas
        correct1, correct2 = 1 - b1**step, 1 - b2**step

        def update(w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
            if weight_decay:
                g = g + weight_decay * w
            m *= b1
            m += (1 - b1) * g
            v *= b2
            v += (1 - b2) * g * g
            w -= lr / correct1 * m / (np.sqrt(v / correct2) + eps)

        self._stream(update, weight, grad, first, second)

    def _stream(self, operation: Callable[..., Any], *arrays: np.ndarray) -> None:
        """Run an elementwise operation on arrays of one shape, chunk by chunk."""
        if not all(a.flags.c_contiguous for a in arrays):
            operation(*arrays)  # flattening would copy, and what is written would be lost
            return
        flat = [a.reshape(-1) for a in arrays]
        chunks = split(flat[0].size, STREAM_BYTES // flat[0].itemsize)

        def task(i: int) -> None:
            start, stop = chunks[i]
            operation(*(a[start:stop] for a in flat))

        self.pool.run(len(chunks), task, flat[0].nbytes)


def keep_freed_memory() -> None:
    """Ask glibc's malloc to keep freed arrays for the next ones, in place of unmapping them.

    A step allocates and frees the same arrays over and over. Unmapped, each comes back as fresh
    pages that the kernel clears, at first touch: 18,000 page faults and a tenth of the time of a
    ResNet-20 step. The process stays as large as its largest step. Other C libraries are left as
    they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes on 64 bits
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def available_cores() -> int:
    """Number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
