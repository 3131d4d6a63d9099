"""Backends: one object per device, which holds the array module and the hot operations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from minicst.backend.base import Backend, conv_output_size
from minicst.backend.meter import PASSES, Meter
from minicst.backend.numpy_backend import NumpyBackend
from minicst.backend.probe import Unusable, why_no_gpu
from minicst.backend.sparse_linear import Pattern

__all__ = [
    "DEVICES",
    "PASSES",
    "Backend",
    "Meter",
    "NumpyBackend",
    "Pattern",
    "conv_output_size",
    "cpu_backend",
    "get_backend",
    "using",
    "why_no_gpu",
]

DEVICES = ("cpu", "cuda", "auto")


class _Current(threading.local):
    def __init__(self) -> None:
        self.stack: list[Backend] = []  # of `using`, innermost last


_current = _Current()


@lru_cache(maxsize=1)
def cpu_backend() -> NumpyBackend:
    """Return the CPU's backend."""
    return NumpyBackend()


@lru_cache(maxsize=1)
def _cuda_backend() -> Backend:
    if (reason := why_no_gpu()) is not None:
        raise Unusable(reason)
    from minicst.backend.cupy_backend import CupyBackend

    return CupyBackend()


def get_backend(name: str | None = None, threads: int | None = None) -> Backend:
    """Return the backend of a device, one object per device and process.

    Args:
        name: "cpu" (or "numpy"), "cuda", or "auto": a GPU where one is usable, else the CPU. None:
            the one in use, see using(); outside of it the CPU's.
        threads: if given, threads that the CPU backend uses from now on.

    Raises:
        ValueError: for an unknown name, or for "cuda" where it can't be had, with the reason.
    """
    if threads is not None:
        cpu_backend().set_threads(threads)
    if name is None:
        return _current.stack[-1] if _current.stack else cpu_backend()
    if name in ("cpu", "numpy"):
        return cpu_backend()
    if name not in DEVICES:
        raise ValueError(f"unknown device '{name}': choose one of {', '.join(DEVICES)}")
    try:
        return _cuda_backend()
    except Unusable as error:
        if name == "auto":
            return cpu_backend()
        raise ValueError(f"device 'cuda' can't be used: {error}; or use --device cpu") from None


@contextmanager
def using(backend: Backend) -> Iterator[Backend]:
    """Inside, tensors and networks are made on this backend unless another one is named.

    That holds for the calling thread.
    """
    _current.stack.append(backend)
    try:
        yield backend
    finally:
        _current.stack.pop()
