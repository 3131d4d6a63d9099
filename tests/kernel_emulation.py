"""Runs the text of CUDA kernels on the CPU: a C++ compiler and a loop over blocks and threads.

The text stays as it is. What CUDA gives it (threadIdx, __global__, sqrt of a float, ...) stands in
front of it, and behind it a driver for each kernel, which calls it once a thread, in order. Good
for kernels whose threads don't wait for each other; races between them don't show.
"""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# Sums and products are rounded one by one, as NumPy's are.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fno-fast-math",
    "-fPIC",
    "-shared",
    "-ftls-model=initial-exec",
)
# Hidden: a kernel named like a function of the process must not be taken for it.
BEFORE = """
#include <cmath>
using std::exp; using std::log; using std::sqrt;
struct Dim3 { unsigned x, y, z; };
static thread_local Dim3 threadIdx, blockIdx, blockDim, gridDim;
#define __global__ __attribute__((visibility("hidden")))
#define __device__ static inline
#line 1 "kernels"
"""
DRIVER = """
extern "C" void run_{name}(const unsigned* grid, const unsigned* block{declared}) {{
    gridDim = {{grid[0], grid[1], grid[2]}};
    blockDim = {{block[0], block[1], block[2]}};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
    for (threadIdx.z = 0; threadIdx.z < block[2]; ++threadIdx.z)
    for (threadIdx.y = 0; threadIdx.y < block[1]; ++threadIdx.y)
    for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
        {name}({passed});
}}
"""
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(\w+)\s*\(([^)]*)\)')
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
REALS = {"float": np.float32, "double": np.float64}
POINTERS = {"double": np.float64, "long long": np.int64, "unsigned char": np.uint8}
MOST_THREADS = 1024  # of a block, on every GPU so far


class CompileError(RuntimeError):
    """The compiler refused the text; the message is its own."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel; `type` is without const and pointer."""

    name: str
    type: str
    pointer: bool
    written: bool


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def why_not() -> str | None:
    """Say why kernels can't be run here; None if they can."""
    if find_compiler() is None:
        return "no C++ compiler (g++, c++, clang++ or $CXX) to run kernels on the CPU"
    return None


def kernels_of(text: str) -> dict[str, tuple[Parameter, ...]]:
    """Names and parameters of the kernels in a text, in its order."""
    found = {}
    for name, inside in KERNEL.findall(COMMENT.sub(" ", text)):
        found[name] = tuple(_parameter(part) for part in inside.split(",") if part.strip())
    return found


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").split()
    words = [word for word in words if word != "__restrict__"]
    written = "const" not in words
    words = [word for word in words if word != "const"]
    pointer = "*" in words
    return Parameter(words[-1], " ".join(w for w in words[:-1] if w != "*"), pointer, written)


class Module:
    """What cupy.RawModule is to a GPU: the kernels of a text, compiled.

    Args:
        text: of the kernels.
        options: of the GPU's compiler. Those that define a macro are used; --fmad=false is what
            this does anyway.

    Raises:
        CompileError: if the text isn't C++.
    """

    def __init__(self, text: str, options: tuple[str, ...] = ()) -> None:
        defines = [option for option in options if option.startswith("-D")]
        unknown = set(options) - set(defines) - {"--fmad=false"}
        if unknown:
            raise ValueError(f"options {sorted(unknown)}: only -D... and --fmad=false can be had")
        reals = [o.removeprefix("-DREAL=") for o in defines if o.startswith("-DREAL=")]
        self.real = reals[-1] if reals else "float"
        if self.real not in REALS:
            raise ValueError(f"-DREAL={self.real}: choose float or double")
        self.kernels = kernels_of(text)
        self._library = ctypes.CDLL(str(_built(text, tuple(defines))))

    def get_function(self, name: str) -> Function:
        """Return a kernel.

        Raises:
            KeyError: if the text has no kernel of this name.
        """
        if name not in self.kernels:
            raise KeyError(f"no kernel {name} in this text: it has {', '.join(self.kernels)}")
        return Function(name, self.kernels[name], self.real, self._library[f"run_{name}"])


class Function:
    """A kernel: call it with grid, block and arguments, as cupy.RawKernel."""

    def __init__(self, name: str, parameters: tuple[Parameter, ...], real: str, run: Any) -> None:
        self.name, self.parameters, self.real, self._run = name, parameters, real, run
        self._run.restype = None

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any]) -> None:
        """Call the kernel once for each thread, in order.

        Args:
            grid: number of blocks, one to three numbers.
            block: number of threads of a block, one to three numbers.
            args: an int for long long, a float for double, a contiguous array or 0 for a pointer.

        Raises:
            TypeError: if an argument doesn't fit its parameter, or their number isn't right.
            ValueError: if a GPU would refuse grid or block.
        """
        if len(args) != len(self.parameters):
            raise TypeError(
                f"kernel {self.name} takes {len(self.parameters)} arguments, got {len(args)}"
            )
        passed = [self._passed(p, a) for p, a in zip(self.parameters, args, strict=True)]
        sizes = [self._size(what, s) for what, s in (("grid", grid), ("block", block))]
        if math.prod(block) > MOST_THREADS:
            raise ValueError(f"kernel {self.name}: a block of {block} has over {MOST_THREADS}")
        self._run(*sizes, *passed)

    def _size(self, what: str, size: tuple[int, ...]) -> Any:
        if not 1 <= len(size) <= 3 or min(size) < 1:
            raise ValueError(
                f"kernel {self.name}: {what} {size} is no one to three sizes from 1 on"
            )
        return (ctypes.c_uint * 3)(*size, *(1,) * (3 - len(size)))

    def _passed(self, parameter: Parameter, value: Any) -> Any:
        """The argument as ctypes takes it."""
        if parameter.pointer:
            return self._address(parameter, value)
        if parameter.type == "long long" and type(value) is int:
            return ctypes.c_longlong(value)
        if parameter.type == "double" and type(value) is float:
            return ctypes.c_double(value)
        raise self._wrong(parameter, value)

    def _address(self, parameter: Parameter, value: Any) -> Any:
        if type(value) is int and value == 0:
            return ctypes.c_void_p(None)
        if not isinstance(value, np.ndarray):
            raise self._wrong(parameter, value)
        dtype = REALS[self.real] if parameter.type == "REAL" else POINTERS[parameter.type]
        flags = value.flags
        if value.dtype != dtype or not flags.c_contiguous:
            raise self._wrong(parameter, value)
        if parameter.written and not flags.writeable:
            raise self._wrong(parameter, value)
        return ctypes.c_void_p(value.__array_interface__["data"][0])

    def _wrong(self, parameter: Parameter, value: Any) -> TypeError:
        kind = parameter.type.replace("REAL", self.real) + "*" * parameter.pointer
        if isinstance(value, np.ndarray):
            order = "" if value.flags.c_contiguous else ", not C-contiguous"
            order += "" if value.flags.writeable else ", read-only"
            came = f"an array of {value.dtype}{order}"
        else:
            came = f"{type(value).__name__} {value!r}"
        return TypeError(f"kernel {self.name}: parameter {parameter.name} is {kind}, got {came}")


@lru_cache(maxsize=64)
def _built(text: str, defines: tuple[str, ...]) -> Path:
    """Path of the library made of a text, compiled if no run of this user has done so."""
    compiler = find_compiler()
    if compiler is None:
        raise CompileError(why_not())
    source = BEFORE + text + "\n" + "".join(_driver(*k) for k in kernels_of(text).items())
    command = (compiler, *FLAGS, *defines)
    key = hashlib.sha256("\0".join((source, *command)).encode()).hexdigest()[:24]
    folder = _folder()
    library = folder / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            (file := Path(own, "kernels.cpp")).write_text(source)
            made = Path(own, "kernels.so")
            done = subprocess.run(
                [*command, str(file), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise CompileError(f"{compiler} refuses the kernels:\n{done.stderr}")
            os.replace(made, library)  # at once: another process finds all of it or nothing
    return library


def _driver(name: str, parameters: tuple[Parameter, ...]) -> str:
    declared = "".join(
        f", {'' if p.written else 'const '}{p.type}{'*' * p.pointer} {p.name}" for p in parameters
    )
    return DRIVER.format(name=name, declared=declared, passed=", ".join(p.name for p in parameters))


def _folder() -> Path:
    """A folder of this user alone: what lies in it is loaded into the process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "nobody"
    folder = Path(tempfile.gettempdir(), f"minicst-kernels-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022 or folder.is_symlink():
            return Path(tempfile.mkdtemp(prefix="minicst-kernels-"))
    return folder
