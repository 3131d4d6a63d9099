"""What the machine can do: matrix products on all threads, and copies of memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from minicst.backend import NumpyBackend

SIDE = 1024  # three such matrices are 12 MB: the product is limited by arithmetic, not by memory
PRODUCTS = 3
COPY_BYTES = 64 << 20  # for each thread, far beyond the caches
TRIES = 5


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
