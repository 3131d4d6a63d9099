"""Loads kernels.cu, once for each dtype, and launches what is in it."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

from minicst.backend.base import Array, Backend

BLOCK = 256  # threads of a block
REAL = {"float32": "float", "float64": "double"}
# Products and sums stay apart, as NumPy's do: the kernels' bits can be checked on a CPU. They are
# bound by memory, so a fused multiply-add would gain nothing.
OPTIONS = ("--fmad=false",)


def kernel_text() -> str:
    """Return the CUDA text of all kernels."""
    return resources.files("minicst.backend").joinpath("kernels.cu").read_text()


def kernel_options(dtype: Any) -> tuple[str, ...]:
    """Return the compiler's options for arrays of a dtype.

    Raises:
        TypeError: if there are no kernels for it.
    """
    name = np.dtype(dtype).name
    if name not in REAL:
        raise TypeError(f"there are no GPU kernels for {name}: use float32 or float64")
    return (*OPTIONS, f"-DREAL={REAL[name]}")


class KernelOps(Backend):
    """Base of the GPU's operations: launching.

    Attributes:
        xp: cupy.
    """

    def __init__(self, cupy: Any) -> None:
        super().__init__()
        self.xp = cupy
        self._kernels: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}

    def launch(self, name: str, dtype: Any, total: int, *arguments: Any) -> None:
        """Run a kernel on `total` threads, one block of BLOCK after the other.

        Args:
            name: of the kernel.
            dtype: REAL's.
            total: number of threads that have work; none: nothing is launched.
            arguments: arrays of this backend in C order, int, float; None for a null pointer.
        """
        self._launch(name, dtype, (-(-total // BLOCK),), (BLOCK,), arguments)

    def launch_rows(self, name: str, dtype: Any, rows: int, width: int, *arguments: Any) -> None:
        """Run a kernel on `rows` rows of threads, each row as wide as a warp or as `width`."""
        across = 32
        while across > 1 and across // 2 >= width:
            across //= 2
        down = BLOCK // across
        self._launch(name, dtype, (-(-rows // down),), (across, down), arguments)

    def _launch(
        self,
        name: str,
        dtype: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: tuple[Any, ...],
    ) -> None:
        if not grid[0]:
            return
        self._kernel(name, dtype)(grid, block, tuple(self._passed(name, a) for a in arguments))

    def _passed(self, name: str, argument: Any) -> Any:
        """Return an argument as the kernel takes it."""
        if argument is None:
            return 0  # a null pointer
        if isinstance(argument, (int, float)):
            return argument
        if not isinstance(argument, self.xp.ndarray) or not argument.flags.c_contiguous:
            # A kernel knows no strides: it would read other numbers without a word.
            raise TypeError(f"kernel {name} takes arrays of the device in C order")
        return argument

    def _kernel(self, name: str, dtype: Any) -> Any:
        key = (name, np.dtype(dtype).name)
        if key not in self._kernels:
            if key[1] not in self._modules:
                options = kernel_options(dtype)
                self._modules[key[1]] = self.xp.RawModule(code=kernel_text(), options=options)
            self._kernels[key] = self._modules[key[1]].get_function(name)
        return self._kernels[key]

    def contiguous(self, array: Array) -> Array:
        """The array in C order, copied only if it isn't."""
        return self.xp.ascontiguousarray(array)
