"""Backends: one object per device, which holds the array module and the hot operations."""

from __future__ import annotations

from functools import lru_cache

from minicst.backend.base import Backend, conv_output_size
from minicst.backend.meter import PASSES, Meter
from minicst.backend.numpy_backend import NumpyBackend
from minicst.backend.sparse_linear import Pattern

__all__ = [
    "PASSES",
    "Backend",
    "Meter",
    "NumpyBackend",
    "Pattern",
    "conv_output_size",
    "get_backend",
]

DEVICES = ("cpu", "cuda", "auto")


@lru_cache(maxsize=1)
def _numpy_backend() -> NumpyBackend:
    return NumpyBackend()


def get_backend(name: str = "cpu", threads: int | None = None) -> NumpyBackend:
    """Return the backend of a device, one object per device and process.

    Args:
        name: "cpu" (or "numpy"), "cuda", or "auto": a GPU where one is usable, else the CPU.
        threads: if given, threads that the CPU backend uses from now on.

    Raises:
        ValueError: for an unknown name, or for "cuda" where it can't be had, with the reason.
    """
    if name == "cuda":
        raise ValueError(f"device 'cuda' can't be used: {why_no_gpu()}; use --device cpu")
    if name not in ("cpu", "numpy", "auto"):
        raise ValueError(f"unknown device '{name}': choose one of {', '.join(DEVICES)}")
    backend = _numpy_backend()
    if threads is not None:
        backend.set_threads(threads)
    return backend


def why_no_gpu() -> str:
    """Say why no GPU can be used: no CuPy, no device, or (so far) no CuPy backend in minicst."""
    try:
        import cupy
    except Exception as error:
        return f"CuPy can't be imported ({type(error).__name__}: {error})"
    if not cupy.cuda.is_available():
        return "CuPy is installed, but it finds no CUDA device or driver"
    return "this version of minicst has no CuPy backend yet"
