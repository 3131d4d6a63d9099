"""RawModule and RawKernel: the CUDA text itself, run on the CPU by tests/kernel_emulation.py."""

from __future__ import annotations

import math
from typing import Any

from .array import change, ndarray

LIMITS = ((2**31 - 1, 65535, 65535), (1024, 1024, 64))  # of grid and block, x, y, z
BLOCK_THREADS = 1024
HARMLESS_OPTIONS = ("-std=", "--std=", "-I")  # they mean nothing to the emulation


class CUDADriverError(RuntimeError):
    """What CUDA's driver raises."""


class RawModule:
    """A text of CUDA kernels."""

    def __init__(
        self,
        code=None,
        *,
        path=None,
        options=(),
        backend="nvrtc",
        translate_cucomplex=False,
        enable_cooperative_groups=False,
        name_expressions=None,
        jitify=None,
    ) -> None:
        if not isinstance(code, str) or path is not None:
            raise TypeError("RawModule: give the CUDA text as code=")
        if not isinstance(options, tuple) or not all(isinstance(o, str) for o in options):
            raise TypeError("RawModule: options is a tuple of str")
        if backend not in ("nvrtc", "nvcc"):
            raise ValueError(f"Invalid value for `backend`: {backend}")
        if name_expressions is not None or jitify:
            raise TypeError('only RawModule kernels in plain extern "C" text are checked')
        self.code, self.options, self.backend = code, options, backend
        self._emulated: Any = None

    def compile(self, log_stream=None) -> None:
        """Compile now and not with the first kernel."""
        if self._emulated is None:
            import kernel_emulation

            kept = tuple(o for o in self.options if not o.startswith(HARMLESS_OPTIONS))
            self._emulated = kernel_emulation.Module(self.code, kept)

    def get_function(self, name: str) -> Kernel:
        """Return a kernel."""
        self.compile()
        try:
            return Kernel(name, self._emulated.get_function(name))
        except KeyError:
            raise CUDADriverError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name}") from None


class Kernel:
    """One kernel: kernel(grid, block, arguments)."""

    def __init__(self, name: str, emulated: Any) -> None:
        self.name, self._emulated = name, emulated

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None) -> None:
        grid, block = _sizes("grid", grid, LIMITS[0]), _sizes("block", block, LIMITS[1])
        if math.prod(block) > BLOCK_THREADS:
            raise ValueError(f"block {block} has more than {BLOCK_THREADS} threads")
        if shared_mem or stream is not None:
            raise TypeError("the stand-in runs kernels on the current stream, no shared memory")
        if not isinstance(args, tuple):
            raise TypeError(f"arguments come in a tuple, not in a {type(args).__name__}")
        parameters = self._emulated.parameters
        if len(args) != len(parameters):
            raise TypeError(
                f"kernel {self.name} takes {len(parameters)} arguments, not {len(args)}"
            )
        passed, reads, writes = [], [], []
        for parameter, argument in zip(parameters, args, strict=True):
            passed.append(self._passed(parameter.name, argument))
            if isinstance(argument, ndarray):
                (writes if parameter.written else reads).append(argument)
        change(self.name, lambda: self._emulated(grid, block, tuple(passed)), reads, writes)

    def _passed(self, parameter: str, argument: Any) -> Any:
        """Return the argument for the emulation, which checks its type; a GPU wouldn't."""
        what = f"kernel {self.name}, {parameter}"
        if isinstance(argument, ndarray):
            if not argument.flags.c_contiguous:
                raise ValueError(f"{what}: not in C order, and a kernel knows no strides")
            return argument._host
        if type(argument) not in (int, float):
            raise TypeError(f"{what}: a device array, int or float, not {type(argument).__name__}")
        return argument


class RawKernel(Kernel):
    """A text with one kernel."""

    def __init__(
        self,
        code,
        name,
        options=(),
        backend="nvrtc",
        translate_cucomplex=False,
        *,
        enable_cooperative_groups=False,
        jitify=None,
    ) -> None:
        kernel = RawModule(code, options=options, backend=backend, jitify=jitify).get_function(name)
        super().__init__(name, kernel._emulated)
        self.code, self.options, self.backend = code, options, backend


def _sizes(what: str, sizes: Any, limits: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise ValueError(f"{what} {sizes!r}: it is a tuple of 1 to 3 sizes")
    for size, limit in zip(sizes, limits, strict=False):
        if type(size) is not int or not 1 <= size <= limit:
            raise ValueError(f"{what} {sizes}: sizes are 1 to {limits} (x, y, z)")
    return sizes


def _refused(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{name}: only RawModule kernels are checked")

    refuse.__name__ = name
    return refuse


ElementwiseKernel = _refused("ElementwiseKernel")
ReductionKernel = _refused("ReductionKernel")
fuse = _refused("fuse")
