"""A strict stand-in for the module `cupy`: GPU code runs, and is checked, without a GPU.

Put it at sys.modules["cupy"], and `strict_cupy.cupyx` at sys.modules["cupyx"] (installed() does
both). It refuses what CuPy refuses, and also what CuPy takes at a price that hot code mustn't pay:
host arrays as indices, masks as indices, batched products, kernel arguments of another type or
order. It counts copies between host and device, waits and launches. A kernel's own CUDA text is run
on the CPU. A name that isn't here raises AttributeError.

Its own names, which cupy hasn't: counts, rules, recording, reset, installed, RaceError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np

from . import _core, cuda, cupyx, functions
from .array import ndarray
from .counting import counts, recording, rules
from .functions import *  # noqa: F403
from .kernels import ElementwiseKernel, RawKernel, RawModule, ReductionKernel, fuse
from .memory import get_default_memory_pool, get_default_pinned_memory_pool, pool
from .streams import RaceError, forget_streams

__version__ = "14.2.0"

OWN_NAMES = ("RaceError", "counts", "installed", "recording", "reset", "rules")
TYPES = ("bool_", "dtype", "float32", "float64", "int8", "int32", "int64", "intp", "uint8")
NUMPY_NAMES = (*TYPES, "e", "inf", "nan", "newaxis", "pi", "uint32", "uint64")
globals().update({name: getattr(np, name) for name in NUMPY_NAMES})

__all__ = [
    "ElementwiseKernel",
    "RaceError",
    "RawKernel",
    "RawModule",
    "ReductionKernel",
    "counts",
    "cuda",
    "cupyx",
    "fuse",
    "get_default_memory_pool",
    "get_default_pinned_memory_pool",
    "installed",
    "ndarray",
    "recording",
    "reset",
    "rules",
    *NUMPY_NAMES,
    *functions.__all__,
]


def reset() -> None:
    """Forget counts, streams, limits and compute types; arrays that live keep their memory."""
    counts.reset()
    rules.allow_einsum, rules.memory_limit = False, None
    pool._limit = 0
    counts.peak_bytes = pool._total = pool._used
    _core._compute_types.clear()
    forget_streams()


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Inside, `import cupy` and `import cupyx` give the stand-in, fresh."""
    here = sys.modules[__name__]
    modules = {"cupy": here, "cupy._core": _core, "cupy.cuda": cuda, "cupyx": cupyx}
    before = {name: sys.modules.get(name) for name in modules}
    reset()
    sys.modules.update(modules)
    try:
        yield here
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        reset()


__path__: list[str] = []  # else `import cupy.cuda` would run cuda.py once more, as another module
