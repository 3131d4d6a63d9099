"""Device memory: who holds how much, and host memory that is pinned."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from .counting import counts, rules
from .streams import Uses, _BaseStream, get_current_stream

BLOCK = 512  # CuPy's pool rounds up to it


class OutOfMemoryError(MemoryError):
    """Raised where rules.memory_limit or a pool's limit would be exceeded."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes, "
            f"limit set to: {limit:,} bytes)."
        )


class MemoryPool:
    """Bytes that live arrays hold. A block goes back when the last array on it is gone."""

    def __init__(self) -> None:
        self._used = self._total = self._limit = 0

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._total

    def free_bytes(self) -> int:
        return self._total - self._used

    def malloc(self, size: int) -> Buffer:
        return Buffer(size)

    def free_all_blocks(self, stream: object = None) -> None:
        self._total = self._used

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("size or fraction must be specified, and not both")
        self._limit = int(size if size is not None else fraction * DEVICE_BYTES)

    def get_limit(self) -> int:
        return self._limit

    def _take(self, nbytes: int) -> int:
        """Take a block, return its size."""
        size = -(-nbytes // BLOCK) * BLOCK
        limits = [limit for limit in (self._limit, rules.memory_limit) if limit]
        if limits and self._used + size > min(limits):
            raise OutOfMemoryError(size, self._used, min(limits))
        self._used += size
        self._total = max(self._total, self._used)
        counts.peak_bytes = max(counts.peak_bytes, self._used)
        return size

    def _give_back(self, size: int) -> None:
        self._used -= size


class PinnedMemoryPool:
    """Host memory that never leaves its place."""

    def free_all_blocks(self) -> None:
        """Nothing is kept for later here."""

    def n_free_blocks(self) -> int:
        return 0


DEVICE_BYTES = 80 << 30
pool = MemoryPool()
pinned_pool = PinnedMemoryPool()


class Buffer:
    """One allocation on the device: lives as long as an array that uses it.

    It belongs to the stream that is the current one now: CuPy's pool gives freed memory to the next
    array of that stream without a look at what other streams still do with it.
    """

    def __init__(self, nbytes: int) -> None:
        stream = get_current_stream()
        stream._take_memory()
        size = pool._take(nbytes)
        self.uses = Uses()
        weakref.finalize(self, _free, size, self.uses, stream).atexit = False


def _free(size: int, uses: Uses, stream: _BaseStream) -> None:
    pool._give_back(size)
    stream._free_memory(uses)


def get_default_memory_pool() -> MemoryPool:
    return pool


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return pinned_pool


_here = threading.local()


@contextmanager
def using_allocator(allocator: Callable[[int], Buffer] | None = None) -> Iterator[None]:
    """Inside, this thread's arrays get their memory from a function of the size."""
    before = getattr(_here, "allocator", None)
    _here.allocator = allocator
    try:
        yield
    finally:
        _here.allocator = before


def allocate(nbytes: int) -> Buffer:
    """Memory for an array, from the allocator in use."""
    return (getattr(_here, "allocator", None) or pool.malloc)(nbytes)


class _Pinned(bytearray):
    """Memory that empty_pinned gave out."""


def empty_pinned(
    shape: int | tuple[int, ...], dtype: object = float, order: str = "C"
) -> np.ndarray:
    """A host array on pinned memory, full of ones (bits)."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    fill = b"\x01" if dtype.kind == "b" else b"\xff"
    return np.ndarray(shape, dtype, buffer=_Pinned(fill * n_bytes), order=order)


def zeros_pinned(
    shape: int | tuple[int, ...], dtype: object = float, order: str = "C"
) -> np.ndarray:
    """A host array on pinned memory, full of zeros."""
    array = empty_pinned(shape, dtype, order)
    array[...] = 0
    return array


def empty_like_pinned(a, dtype=None, order="K", subok=None, shape=None) -> np.ndarray:
    """A host array on pinned memory, shaped as another array."""
    order = "F" if order == "K" and a.flags.f_contiguous and not a.flags.c_contiguous else "C"
    return empty_pinned(a.shape if shape is None else shape, dtype or a.dtype, order)


def zeros_like_pinned(a, dtype=None, order="K", subok=None, shape=None) -> np.ndarray:
    """The same, full of zeros."""
    array = empty_like_pinned(a, dtype, order, subok, shape)
    array[...] = 0
    return array


def is_pinned(array: np.ndarray) -> bool:
    """Whether the array, or the one it is a view of, was made by empty_pinned or zeros_pinned."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, _Pinned)
