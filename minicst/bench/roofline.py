"""What the machine can do: matrix products on all threads or a GPU, and copies of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minicst.backend import Backend, NumpyBackend
from minicst.backend.base import Array
from minicst.bench.peers import seconds_of

SIDE = 1024  # three such matrices are 12 MB: the product is limited by arithmetic, not by memory
PRODUCTS = 3
COPY_BYTES = 64 << 20  # for each thread, far beyond the caches
TRIES = 5
GPU_SIDE = 8192
GPU_PRODUCTS = 10  # or copies, launched one after the other
GPU_COPY_BYTES = 1 << 30
# A convolution of VGG-19 as a product: channels in and out, pixels of a side.
VGG = (
    *((3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8)),
    *((256, 512, 4), (512, 512, 4), (512, 512, 2)),
)


class Roofline:
    """Best measured rates; `measure` may be called again and again.

    The floor of a pass is its MACs over the GEMM peak: no program whose products run through this
    BLAS is faster, whatever else it does.

    Args:
        backend: whose threads are used; BLAS inside each is held to one, as everywhere in minicst.

    Attributes:
        gmacs: 10^9 multiply-adds a second, float32, best so far.
        copied: 10^9 bytes a second, read plus written, best so far.
        each: gmacs of every call of `measure`: far apart, others are using the machine.
    """

    def __init__(self, backend: NumpyBackend) -> None:
        self.backend = backend
        self.gmacs = self.copied = 0.0
        self.each: list[float] = []

    def measure(self, tries: int = TRIES) -> None:
        """Measure a few times; keep the best."""
        threads = self.backend.threads
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
        outs = [np.empty((SIDE, SIDE), np.float32) for _ in range(threads)]

        def multiply(i: int) -> None:
            for _ in range(PRODUCTS):
                np.matmul(a, b, out=outs[i])

        macs = threads * PRODUCTS * SIDE**3
        self.each.append(macs / self._best(multiply, tries) / 1e9)
        self.gmacs = max(self.each)
        sources = [np.ones(COPY_BYTES // 4, np.float32) for _ in range(threads)]
        targets = [np.zeros_like(source) for source in sources]

        def copy(i: int) -> None:
            np.copyto(targets[i], sources[i])

        moved = 2 * threads * COPY_BYTES
        self.copied = max(self.copied, moved / self._best(copy, tries) / 1e9)

    def floor(self, macs: float) -> float:
        """Seconds that multiply-adds take at the peak."""
        return macs / (self.gmacs * 1e9)

    def _best(self, task: Callable[[int], None], tries: int) -> float:
        best = float("inf")
        for _ in range(tries):
            start = time.perf_counter()
            self.backend.pool.run(self.backend.threads, task)
            best = min(best, time.perf_counter() - start)
        return best


class GpuRoofline:
    """The same of a GPU, at the precision for which the backend is configured.

    Args:
        backend: the GPU's.
        images: a batch; sets the rows of VGG-19's products.

    Attributes:
        gmacs: 10^9 multiply-adds a second, best so far of all products.
        copied: 10^9 bytes a second from device to device, read plus written, best so far.
        each: best gmacs of every call of `measure`.
        products: {(rows, inner, columns): gmacs, best so far}: a square one, and those of VGG-19's
            forward pass, on columns as long as the workspace takes.
    """

    def __init__(self, backend: Backend, images: int) -> None:
        self.backend = backend
        self.gmacs = self.copied = 0.0
        self.each: list[float] = []
        self.shapes = [(GPU_SIDE, GPU_SIDE, GPU_SIDE)]
        room: int = getattr(backend, "workspace_bytes", 0)
        for c_in, c_out, side in VGG:
            inner = 9 * c_in
            chunk = min(images, max(room // (4 * inner * side * side), 1))
            self.shapes.append((chunk * side * side, inner, c_out))
        self.products = dict.fromkeys(self.shapes, 0.0)

    def measure(self, tries: int = TRIES) -> None:
        """Measure a few times; keep the best."""
        best = 0.0
        for shape in self.shapes:
            rate = self._product(shape, tries)
            self.products[shape] = max(self.products[shape], rate)
            best = max(best, rate)
        self.each.append(best)
        self.gmacs = max(self.each)
        xp = self.backend.xp
        source = xp.ones(GPU_COPY_BYTES // 4, np.float32)
        target = xp.zeros_like(source)
        seconds = self._best(lambda: xp.copyto(target, source), tries)
        self.copied = max(self.copied, 2 * GPU_COPY_BYTES / seconds / 1e9)

    def floor(self, macs: float) -> float:
        """Seconds that multiply-adds take at the peak."""
        return macs / (self.gmacs * 1e9)

    def _product(self, shape: tuple[int, int, int], tries: int) -> float:
        rows, inner, columns = shape
        a = self._random(rows, inner)
        b = self._random(columns, inner).T  # as weights lie
        out = self.backend.xp.empty((rows, columns), np.float32)
        seconds = self._best(lambda: self.backend.xp.dot(a, b, out=out), tries)
        return rows * inner * columns / seconds / 1e9

    def _random(self, rows: int, columns: int) -> Array:
        """Random numbers: a product of zeros needs less power, and runs faster."""
        some = np.random.default_rng(0).standard_normal((min(rows, SIDE), columns), np.float32)
        full = self.backend.xp.empty((rows, columns), np.float32)
        for start in range(0, rows, SIDE):  # the same again: the host takes long to draw them
            full[start : start + SIDE] = self.backend.asarray(some[: rows - start])
        return full

    def _best(self, task: Callable[[], Any], tries: int) -> float:
        return min(seconds_of(task, self.backend, GPU_PRODUCTS) for _ in range(tries))
