"""ndarray: a device array that can't be taken for a host array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from .counting import count_copy, count_launch, count_synchronisation
from .memory import Buffer, allocate, is_pinned
from .streams import get_current_stream

Number = (bool, int, float, complex, np.generic)


class Flags:
    """Memory layout of an array."""

    __slots__ = ("_host",)

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    c_contiguous = property(lambda self: self._host.flags.c_contiguous)
    f_contiguous = property(lambda self: self._host.flags.f_contiguous)
    owndata = property(lambda self: self._host.base is None)
    fnc = property(lambda self: self.f_contiguous and not self.c_contiguous)
    forc = property(lambda self: self.f_contiguous or self.c_contiguous)

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class ndarray:
    """Numbers on the device.

    It is no numpy.ndarray and NumPy's functions refuse it. What reads numbers is counted.
    """

    __array_ufunc__ = None  # NumPy's operators leave the work to this class; its ufuncs refuse

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C") -> None:
        if memptr is not None or strides is not None:
            raise TypeError("the stand-in makes no arrays on foreign memory")
        host = np.empty(shape, dtype, order)
        host.fill(_garbage(host.dtype))
        self._become(host, allocate(host.nbytes), None)

    def _become(self, host: np.ndarray, buffer: Buffer, base: ndarray | None) -> None:
        self._host, self._buffer, self.base = host, buffer, base
        self._place: tuple[int, int] | None = None

    def _bytes(self) -> tuple[int, int]:
        """Where its memory begins and ends; it never moves."""
        if self._place is None:
            start = address(self._host)
            ends = zip(self._host.shape, self._host.strides, strict=True)
            spans = [(n - 1) * stride for n, stride in ends]
            low = start + sum(span for span in spans if span < 0)
            high = start + sum(span for span in spans if span > 0) + self._host.itemsize
            self._place = low, high
        return self._place

    def _view(self, host: np.ndarray) -> ndarray:
        """An array on this one's memory."""
        view = object.__new__(ndarray)
        view._become(host, self._buffer, self if self.base is None else self.base)
        return view

    # What is known without a look at the numbers

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host))
    T = property(lambda self: self._view(self._host.T))

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=address(self._host), mem=self._buffer, device=self.device)

    @property
    def device(self) -> Any:
        from .cuda import Device

        return Device(0)

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # NumPy keeps out

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{func.__name__} was given a device array: use cupy's function")

    # Reads: copies to the host that wait for the device

    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        """Copy to the host."""
        if out is not None:
            _check_host_array(out, self, "obtained from")
            if not (out.flags.c_contiguous or out.flags.f_contiguous):
                raise RuntimeError(
                    "`out` cannot be specified when copying to non-contiguous ndarray"
                )
        elif not self.size:
            return np.empty(self.shape, self.dtype)
        if not blocking and (out is None or not is_pinned(out)):
            raise ValueError("a copy that doesn't block needs out= on pinned memory")
        stream = get_current_stream() if stream is None else stream
        target = np.empty(self.shape, self.dtype, order) if out is None else out
        tick = stream._begin()
        use((self,), (), stream, tick)
        count_copy("d2h", self._host)
        if not blocking:
            source = self._host  # the closure keeps no array alive
            stream._later(lambda: np.copyto(target, source))
            return target
        np.copyto(target, self._host)
        count_synchronisation()
        stream._wait_on_host()
        return target

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order="C") -> bytes:
        return self.get().tobytes(order)

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, format_spec: str) -> str:
        return format(self.get(), format_spec)

    # Copies from the host

    def set(self, arr, stream=None) -> None:
        """Copy host numbers of the same shape and dtype here."""
        _check_host_array(arr, self, "set to")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        order = "c_contiguous" if self.flags.c_contiguous else "f_contiguous"
        if not getattr(arr.flags, order):
            raise ValueError("the host array has another order: CuPy would copy it first")
        if stream is not None and not is_pinned(arr):
            raise ValueError("a copy on a stream of its own needs pinned memory: else it blocks")
        upload(arr, self, get_current_stream() if stream is None else stream)

    # Indexing

    def __getitem__(self, slices: Any) -> ndarray:
        index, fancy = self._index(slices)
        if not fancy:
            return self._view(_as_array(self._host[index]))
        return compute("take", lambda: self._host[index], (self, *fancy))

    def __setitem__(self, slices: Any, value: Any) -> None:
        index, fancy = self._index(slices)
        if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if not isinstance(value, (ndarray, np.ndarray, *Number)):
            raise TypeError(f"a device array can't be set to a {type(value).__name__}")
        if fancy:
            places = np.arange(self.size).reshape(self.shape)[index]
            if len(np.unique(places)) < places.size:
                raise ValueError("an index appears twice: which number stays is undefined")
        numbers = value._host if isinstance(value, ndarray) else value

        def put() -> None:
            self._host[index] = numbers

        target = self if fancy else self._view(_as_array(self._host[index]))
        reads = (value, *fancy) if isinstance(value, ndarray) else fancy
        change("setitem", put, reads, (target,))

    def _index(self, slices: Any) -> tuple[tuple[Any, ...], tuple[ndarray, ...]]:
        """NumPy's index, and the device arrays in it; integers out of range wrap, as on a GPU."""
        parts = list(slices) if isinstance(slices, tuple) else [slices]
        for part in parts:
            if isinstance(part, (bool, np.bool_)) or (
                isinstance(part, ndarray) and part.dtype == bool
            ):
                raise TypeError("a mask as index: its size depends on data: synchronises")
            if isinstance(part, (np.ndarray, list, tuple)):
                raise TypeError("index on the host: upload it first")
        used = sum(part is not None and part is not Ellipsis for part in parts)
        if not any(part is Ellipsis for part in parts):
            parts.append(Ellipsis)
        axis, index, fancy = 0, [], []
        for part in parts:
            if isinstance(part, ndarray):
                if part.dtype.kind not in "iu":
                    raise IndexError("arrays used as indices must be of integer type")
                fancy.append(part)
                get_current_stream()._begin()
                index.append(part._host % self.shape[axis] if part.size else part._host)
            else:
                index.append(part)
            axis += self.ndim - used if part is Ellipsis else part is not None
        return tuple(index), tuple(fancy)

    # Shape: views where possible

    def reshape(self, *shape, order="C", copy=None) -> ndarray:
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        host = self._host.reshape(shape, order=order)
        if np.may_share_memory(host, self._host) or not self.size:
            return self._view(host)
        return compute("reshape", lambda: self._host.reshape(shape, order=order), (self,))

    def transpose(self, *axes) -> ndarray:
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, axis1, axis2) -> ndarray:
        return self._view(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis=None) -> ndarray:
        return self._view(self._host.squeeze(axis))

    def ravel(self, order="C") -> ndarray:
        return self.reshape(-1, order=order)

    def flatten(self, order="C") -> ndarray:
        return compute("flatten", lambda: self._host.flatten(order), (self,))

    def view(self, dtype=None, type=None) -> ndarray:
        if type is not None:
            raise TypeError("the stand-in has no subclasses")
        return self._view(self._host.view(self.dtype if dtype is None else dtype))

    # Copies on the device

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True) -> ndarray:
        laid_out = {"C": self.flags.c_contiguous, "F": self.flags.f_contiguous}.get(order, True)
        if not copy and laid_out and np.dtype(dtype) == self.dtype:
            return self
        casting = "unsafe" if casting is None else casting
        order = ("F" if self.flags.fnc else "C") if order == "K" else order
        return compute("astype", lambda: self._host.astype(dtype, order, casting), (self,), order)

    def copy(self, order="C") -> ndarray:
        order = ("F" if self.flags.fnc else "C") if order == "K" else order
        return compute("copy", lambda: self._host.copy(order), (self,), order)

    def fill(self, value) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if isinstance(value, ndarray) and value.ndim:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        self[...] = value

    # Reductions: 0-d arrays, never numbers

    def sum(self, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("sum", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("prod", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("mean", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def var(self, axis=None, dtype=None, out=None, ddof=0, keepdims=False) -> ndarray:
        return self._reduce("var", out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("max", out, axis=axis, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("min", out, axis=axis, keepdims=keepdims)

    def any(self, axis=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("any", out, axis=axis, keepdims=keepdims)

    def all(self, axis=None, out=None, keepdims=False) -> ndarray:
        return self._reduce("all", out, axis=axis, keepdims=keepdims)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False) -> ndarray:
        return self._arg("argmax", axis, out, dtype, keepdims)

    def argmin(self, axis=None, out=None, dtype=None, keepdims=False) -> ndarray:
        return self._arg("argmin", axis, out, dtype, keepdims)

    def cumsum(self, axis=None, dtype=None, out=None) -> ndarray:
        return self._reduce("cumsum", out, axis=axis, dtype=dtype)

    def _reduce(self, name: str, out: ndarray | None, **options: Any) -> ndarray:
        return deliver(name, lambda: getattr(self._host, name)(**options), (self,), out)

    def _arg(self, name, axis, out, dtype, keepdims) -> ndarray:
        def find() -> np.ndarray:
            found = getattr(self._host, name)(axis=axis, keepdims=keepdims)
            return np.asarray(found, np.int64 if dtype is None else dtype)

        return deliver(name, find, (self,), out)

    def argsort(self, axis=-1, kind=None) -> ndarray:
        return compute("argsort", lambda: self._host.argsort(axis, "stable"), (self,))

    def take(self, indices, axis=None, out=None) -> ndarray:
        if isinstance(indices, (np.ndarray, list, tuple)):
            raise TypeError("index on the host: upload it first")
        reads = (self, indices) if isinstance(indices, ndarray) else (self,)

        def pick() -> np.ndarray:
            numbers = indices._host if isinstance(indices, ndarray) else indices
            return np.take(self._host, numbers, axis, mode="wrap")

        return deliver("take", pick, reads, out)

    def repeat(self, repeats, axis=None) -> ndarray:
        return compute("repeat", lambda: self._host.repeat(repeats, axis), (self,))

    def clip(self, min=None, max=None, out=None) -> ndarray:
        low, high = operand(min), operand(max)
        reads = tuple(a for a in (self, min, max) if isinstance(a, ndarray))
        return deliver("clip", lambda: np.clip(self._host, low, high), reads, out)

    def round(self, decimals=0, out=None) -> ndarray:
        return deliver("round", lambda: np.round(self._host, decimals), (self,), out)

    def dot(self, b, out=None) -> ndarray:
        from .functions import dot

        return dot(self, b, out)

    def __matmul__(self, other: Any) -> ndarray:
        from .functions import matmul

        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> ndarray:
        from .functions import matmul

        return matmul(other, self)

    def __imatmul__(self, other: Any) -> ndarray:
        raise TypeError("a @= b makes a temporary: use matmul(a, b, out=...)")


def _garbage(dtype: np.dtype) -> Any:
    """What cupy.empty holds: NaN, or numbers that are easily seen."""
    if dtype.kind in "fc":
        return np.nan
    return True if dtype.kind == "b" else np.frombuffer(b"\xff" * dtype.itemsize, dtype)[0]


def _as_array(host: Any) -> np.ndarray:
    return host if isinstance(host, np.ndarray) else np.asarray(host)


def address(host: np.ndarray) -> int:
    """Where an array begins."""
    return host.__array_interface__["data"][0]


def _check_host_array(host: Any, device: ndarray, what: str) -> None:
    if not isinstance(host, np.ndarray):
        raise TypeError(f"Only numpy.ndarray can be {what} cupy.ndarray")
    if host.dtype != device.dtype:
        raise TypeError(f"{host.dtype} array cannot be {what} {device.dtype} array")
    if host.shape != device.shape:
        raise ValueError(f"Shape mismatch. Device: {device.shape}, host: {host.shape}")


def operand(value: Any) -> Any:
    """What NumPy is given for an operand: a device array's numbers, or a number."""
    if isinstance(value, ndarray):
        return value._host
    if value is None or isinstance(value, Number):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def use(reads: Sequence[ndarray], writes: Sequence[ndarray], stream: Any, tick: int) -> None:
    """Note which memory a piece of work uses; raises RaceError."""
    for arrays, wrote in ((reads, False), (writes, True)):
        for array in arrays:
            if array._host.size:
                array._buffer.uses.add(*array._bytes(), stream, tick, wrote)


def change(
    name: str, work: Callable[[], None], reads: Sequence[ndarray], writes: Sequence[ndarray]
) -> None:
    """Launch work that writes into arrays there are."""
    stream = get_current_stream()
    tick = stream._begin()
    use(reads, writes, stream, tick)
    count_launch(name)
    with np.errstate(all="ignore"):  # a GPU never warns
        work()


def compute(
    name: str, work: Callable[[], Any], reads: Sequence[ndarray], order: str = "C"
) -> ndarray:
    """Launch work and return what it gives in an array of its own."""
    results: list[np.ndarray] = []
    change(name, lambda: results.append(np.asarray(work())), reads, ())
    return fresh(results[0], order)


def fresh(numbers: np.ndarray, order: str = "C") -> ndarray:
    """A device array with these numbers, written by the current stream."""
    host = np.array(numbers, order=order, copy=True) if numbers.base is not None else numbers
    host = np.asarray(host, order=order)
    array = object.__new__(ndarray)
    array._become(host, allocate(host.nbytes), None)
    stream = get_current_stream()
    use((), (array,), stream, stream._clock[stream._number])
    return array


def deliver(
    name: str, work: Callable[[], Any], reads: Sequence[ndarray], out: ndarray | None
) -> ndarray:
    """The same, or into `out` if there is one: of the result's shape, cast to the same kind."""
    if out is None:
        return compute(name, work, reads)
    if not isinstance(out, ndarray):
        raise TypeError(f"out= takes a device array, not {type(out).__name__}")

    def write() -> None:
        numbers = np.asarray(work())
        if numbers.shape != out.shape:
            raise ValueError(f"{name}: out has shape {out.shape}, the result {numbers.shape}")
        np.copyto(out._host, numbers, casting="same_kind")

    change(name, write, reads, (out,))
    return out


def upload(host: np.ndarray, target: ndarray, stream: Any) -> None:
    """Copy from the host: from pinned memory when the stream goes on, else at once."""
    tick = stream._begin()
    use((), (target,), stream, tick)
    count_copy("h2d", target._host)
    numbers = target._host  # the closure keeps no array alive
    if is_pinned(host):
        stream._later(lambda: np.copyto(numbers, host))
    else:
        np.copyto(numbers, host)
