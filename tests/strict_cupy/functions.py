"""The module's functions, with the keywords that CuPy has and no others."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from .array import Number, change, compute, deliver, ndarray, operand, upload
from .counting import counts, rules
from .streams import get_current_stream


class ufunc:
    """An elementwise function.

    Args:
        name: of NumPy's.
        nin: number of operands.
    """

    def __init__(self, name: str, nin: int) -> None:
        self.name, self.nin = name, nin
        self.__name__ = name

    def __call__(self, *args: Any, out=None, casting="same_kind", dtype=None) -> ndarray:
        if len(args) == self.nin + 1 and out is None:
            *args, out = args
        if len(args) != self.nin:
            raise TypeError(f"{self.name} takes {self.nin} operands, not {len(args)}")
        out = out[0] if isinstance(out, tuple) else out
        operands = [operand(a) for a in args]
        reads = [a for a in args if isinstance(a, ndarray)]
        if out is None:
            if not reads:
                raise TypeError(f"{self.name}: at least one operand must be a device array")
            options = {"casting": casting, "dtype": dtype}
            return compute(self.name, lambda: getattr(np, self.name)(*operands, **options), reads)
        if not isinstance(out, ndarray):
            raise TypeError(f"out= takes a device array, not {type(out).__name__}")

        def write() -> None:
            getattr(np, self.name)(*operands, out=out._host, casting=casting, dtype=dtype)

        change(self.name, write, reads, (out,))
        return out


UNARY = (
    *("abs", "absolute", "exp", "expm1", "isfinite", "isinf", "isnan", "log", "log1p"),
    *("logical_not", "negative", "sign", "sqrt", "square", "tanh"),
)
BINARY = (
    *("add", "divide", "floor_divide", "fmax", "fmin", "logaddexp", "maximum", "minimum"),
    *("multiply", "power", "remainder", "subtract", "true_divide", "logical_and", "logical_or"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
)
UFUNCS = {name: ufunc(name, 1) for name in UNARY} | {name: ufunc(name, 2) for name in BINARY}
globals().update(UFUNCS)

_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
}
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
BITWISE = {name: ufunc(name, 2) for name in ("bitwise_and", "bitwise_or", "bitwise_xor")}


def _add_operators() -> None:
    every = UFUNCS | BITWISE
    for short, name in _OPERATORS.items():
        function = every[name]
        setattr(ndarray, f"__{short}__", lambda a, b, f=function: f(a, b))
        setattr(ndarray, f"__r{short}__", lambda a, b, f=function: f(b, a))
        setattr(ndarray, f"__i{short}__", lambda a, b, f=function: f(a, b, out=a))
    for short, name in _COMPARISONS.items():
        setattr(ndarray, f"__{short}__", lambda a, b, f=every[name]: f(a, b))
    invert = ufunc("invert", 1)
    ndarray.__hash__ = None
    ndarray.__neg__ = lambda a: UFUNCS["negative"](a)
    ndarray.__pos__ = lambda a: a.copy()
    ndarray.__abs__ = lambda a: UFUNCS["absolute"](a)
    ndarray.__invert__ = lambda a: invert(a)


_add_operators()


# Making arrays


def empty(shape, dtype=float, order="C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape, dtype=float, order="C") -> ndarray:
    return full(shape, 0, dtype, order)


def ones(shape, dtype=float, order="C") -> ndarray:
    return full(shape, 1, dtype, order)


def full(shape, fill_value, dtype=None, order="C") -> ndarray:
    if dtype is None:
        known = isinstance(fill_value, (ndarray, np.generic))
        dtype = fill_value.dtype if known else np.array(fill_value).dtype
    array = empty(shape, dtype, order)
    array.fill(fill_value)
    return array


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None) -> ndarray:
    _check_array("empty_like", prototype)
    order = ("F" if prototype.flags.fnc else "C") if order in ("K", "A") else order
    dtype = prototype.dtype if dtype is None else dtype
    return empty(prototype.shape if shape is None else shape, dtype, order)


def zeros_like(a, dtype=None, order="K", subok=None, shape=None) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a, dtype=None, order="K", subok=None, shape=None) -> ndarray:
    return full_like(a, 1, dtype, order, subok, shape)


def full_like(a, fill_value, dtype=None, order="K", subok=None, shape=None) -> ndarray:
    array = empty_like(a, dtype, order, subok, shape)
    array.fill(fill_value)
    return array


def arange(start, stop=None, step=1, dtype=None) -> ndarray:
    if stop is None:
        start, stop = 0, start
    for number in (start, stop, step):
        if not isinstance(number, Number):
            raise TypeError(f"arange takes numbers, not {type(number).__name__}")
    return compute("arange", lambda: np.arange(start, stop, step, dtype=dtype), ())


def array(
    obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False
) -> ndarray:
    if isinstance(obj, ndarray):
        result = obj.astype(obj.dtype if dtype is None else dtype, order, copy=copy is True)
    else:
        result = _from_host(obj, dtype, order)
    if result.ndim < ndmin:
        result = result.reshape((1,) * (ndmin - result.ndim) + result.shape)
    return result


def _from_host(obj: Any, dtype: Any, order: str | None) -> ndarray:
    host = obj if isinstance(obj, np.ndarray) else _numbers(obj)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    if dtype is not None and host.dtype != dtype:
        host = host.astype(dtype)
    keeps_f = host.flags.f_contiguous and not host.flags.c_contiguous
    order = ("F" if keeps_f else "C") if order in (None, "K", "A") else order
    if not (host.flags.f_contiguous if order == "F" else host.flags.c_contiguous):
        host = np.array(host, order=order, copy=True)  # on the host: no longer pinned
    target = ndarray(host.shape, host.dtype, order=order)
    upload(host, target, get_current_stream())
    return target


def _numbers(obj: Any) -> np.ndarray:
    """A host array of numbers and lists of numbers."""
    if isinstance(obj, (list, tuple)) and builtins.any(isinstance(item, ndarray) for item in obj):
        raise TypeError("a list of device arrays: use stack or concatenate")
    return np.asarray(obj)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False) -> ndarray:
    return array(a, dtype, copy is True, "K" if order is None else order, blocking=blocking)


def ascontiguousarray(a, dtype=None) -> ndarray:
    return _contiguous(a, dtype, "C")


def asfortranarray(a, dtype=None) -> ndarray:
    return _contiguous(a, dtype, "F")


def _contiguous(a: Any, dtype: Any, order: str) -> ndarray:
    if not isinstance(a, ndarray):
        return _from_host(a, dtype, order)
    kept = dtype is None or np.dtype(dtype) == a.dtype
    if kept and (a.flags.c_contiguous if order == "C" else a.flags.f_contiguous):
        return a
    return a.astype(a.dtype if dtype is None else dtype, order)


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def _check_array(name: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, ndarray):
            raise TypeError(f"{name} takes device arrays, not {type(value).__name__}")


# Joining, splitting, shapes


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind") -> ndarray:
    _check_array("concatenate", *tup)
    options = {"axis": axis, "dtype": dtype, "casting": casting}
    hosts = [a._host for a in tup]
    return deliver("concatenate", lambda: np.concatenate(hosts, **options), tup, out)


def stack(tup, axis=0, out=None, *, dtype=None, casting="same_kind") -> ndarray:
    _check_array("stack", *tup)
    options = {"axis": axis, "dtype": dtype, "casting": casting}
    hosts = [a._host for a in tup]
    return deliver("stack", lambda: np.stack(hosts, **options), tup, out)


def split(ary, indices_or_sections, axis=0) -> list[ndarray]:
    _check_array("split", ary)
    if isinstance(indices_or_sections, ndarray):
        raise TypeError("split at places on the device: synchronises")
    return [ary._view(part) for part in np.split(ary._host, indices_or_sections, axis)]


def array_split(ary, indices_or_sections, axis=0) -> list[ndarray]:
    _check_array("array_split", ary)
    if isinstance(indices_or_sections, ndarray):
        raise TypeError("split at places on the device: synchronises")
    return [ary._view(part) for part in np.array_split(ary._host, indices_or_sections, axis)]


def reshape(a, newshape, order="C", *, copy=None) -> ndarray:
    _check_array("reshape", a)
    shape = newshape if isinstance(newshape, Sequence) else (newshape,)
    return a.reshape(*shape, order=order, copy=copy)


def ravel(a, order="C") -> ndarray:
    _check_array("ravel", a)
    return a.ravel(order)


def transpose(a, axes=None) -> ndarray:
    _check_array("transpose", a)
    return a._view(np.transpose(a._host, axes))


def moveaxis(a, source, destination) -> ndarray:
    _check_array("moveaxis", a)
    return a._view(np.moveaxis(a._host, source, destination))


def swapaxes(a, axis1, axis2) -> ndarray:
    _check_array("swapaxes", a)
    return a.swapaxes(axis1, axis2)


def expand_dims(a, axis) -> ndarray:
    _check_array("expand_dims", a)
    return a._view(np.expand_dims(a._host, axis))


def squeeze(a, axis=None) -> ndarray:
    _check_array("squeeze", a)
    return a.squeeze(axis)


def flip(a, axis=None) -> ndarray:
    _check_array("flip", a)
    return a._view(np.flip(a._host, axis))


def broadcast_to(array, shape) -> ndarray:
    """A view that can't be written (CuPy's can, to no good end)."""
    _check_array("broadcast_to", array)
    return array._view(np.broadcast_to(array._host, shape))


def repeat(a, repeats, axis=None) -> ndarray:
    _check_array("repeat", a)
    return a.repeat(repeats, axis)


def tile(A, reps) -> ndarray:
    _check_array("tile", A)
    return compute("tile", lambda: np.tile(A._host, reps), (A,))


def pad(array, pad_width, mode="constant", **kwargs) -> ndarray:
    _check_array("pad", array)
    return compute("pad", lambda: np.pad(array._host, pad_width, mode, **kwargs), (array,))


# Choosing and copying


def where(condition, x=None, y=None) -> ndarray:
    if x is None or y is None:
        raise TypeError("where(condition): size depends on data: synchronises")
    _check_array("where", condition)
    numbers = [operand(a) for a in (condition, x, y)]
    reads = [a for a in (condition, x, y) if isinstance(a, ndarray)]
    return compute("where", lambda: np.where(*numbers), reads)


def take(a, indices, axis=None, out=None) -> ndarray:
    _check_array("take", a)
    return a.take(indices, axis, out)


def clip(a, a_min, a_max, out=None) -> ndarray:
    _check_array("clip", a)
    return a.clip(a_min, a_max, out)


def copyto(dst, src, casting="same_kind", where=None) -> None:
    _check_array("copyto", dst)
    if isinstance(src, np.ndarray) and src.ndim:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    numbers = operand(src)
    reads = [a for a in (src, where) if isinstance(a, ndarray)]
    condition = True if where is None else operand(where)
    if not np.can_cast(getattr(numbers, "dtype", dst.dtype), dst.dtype, casting):
        raise TypeError(f"copyto: {numbers.dtype} isn't cast to {dst.dtype} ({casting})")
    change("copyto", lambda: np.copyto(dst._host, numbers, casting, where=condition), reads, (dst,))


def argsort(a, axis=-1, kind=None) -> ndarray:
    _check_array("argsort", a)
    return a.argsort(axis, kind)


# Reductions


def sum(a, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
    _check_array("sum", a)
    return a.sum(axis, dtype, out, keepdims)


def prod(a, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
    _check_array("prod", a)
    return a.prod(axis, dtype, out, keepdims)


def mean(a, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
    _check_array("mean", a)
    return a.mean(axis, dtype, out, keepdims)


def var(a, axis=None, dtype=None, out=None, ddof=0, keepdims=False) -> ndarray:
    _check_array("var", a)
    return a.var(axis, dtype, out, ddof, keepdims)


def max(a, axis=None, out=None, keepdims=False) -> ndarray:
    _check_array("max", a)
    return a.max(axis, out, keepdims)


def min(a, axis=None, out=None, keepdims=False) -> ndarray:
    _check_array("min", a)
    return a.min(axis, out, keepdims)


amax, amin = max, min


def any(a, axis=None, out=None, keepdims=False) -> ndarray:
    _check_array("any", a)
    return a.any(axis, out, keepdims)


def all(a, axis=None, out=None, keepdims=False) -> ndarray:
    _check_array("all", a)
    return a.all(axis, out, keepdims)


def argmax(a, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
    _check_array("argmax", a)
    return a.argmax(axis, out, dtype, keepdims)


def argmin(a, axis=None, dtype=None, out=None, keepdims=False) -> ndarray:
    _check_array("argmin", a)
    return a.argmin(axis, out, dtype, keepdims)


def cumsum(a, axis=None, dtype=None, out=None) -> ndarray:
    _check_array("cumsum", a)
    return a.cumsum(axis, dtype, out)


def count_nonzero(a, axis=None) -> ndarray:
    _check_array("count_nonzero", a)
    return compute("count_nonzero", lambda: np.count_nonzero(a._host, axis=axis), (a,))


# Products


def _product(name: str, a: Any, b: Any, out: ndarray | None, work: Any) -> ndarray:
    _check_array(name, a, b)
    for factor in (a, b):
        counts.operand_copies += not factor.flags.forc
    if out is not None:
        _check_array(f"{name}(out=)", out)
        dtype = np.result_type(a._host, b._host)
        if not out.flags.c_contiguous or out.dtype != dtype:
            raise ValueError(f"{name}: out must be C-contiguous and {dtype}, else it is copied")
    return deliver(name, work, (a, b), out)


def matmul(a, b, /, out=None) -> ndarray:
    _check_array("matmul", a, b)
    if builtins.max(a.ndim, b.ndim) > 2:
        raise ValueError("matmul of more than 2 axes: batched matmul is CuPy's slow path")
    return _product("matmul", a, b, out, lambda: np.matmul(a._host, b._host))


def dot(a, b, out=None) -> ndarray:
    _check_array("dot", a, b)
    if builtins.max(a.ndim, b.ndim) > 2:
        raise ValueError("dot of more than 2 axes: reshape to a 2-D product")
    return _product("dot", a, b, out, lambda: np.dot(a._host, b._host))


def tensordot(a, b, axes=2) -> ndarray:
    return _product("tensordot", a, b, None, lambda: np.tensordot(a._host, b._host, axes))


def outer(a, b, out=None) -> ndarray:
    return _product("outer", a, b, out, lambda: np.outer(a._host, b._host))


def einsum(*operands, **kwargs) -> ndarray:
    if not rules.allow_einsum:
        raise TypeError("no einsum in hot code: CuPy makes a batched product of it")
    subscripts, *arrays = operands
    _check_array("einsum", *arrays)
    hosts = [a._host for a in arrays]
    return compute("einsum", lambda: np.einsum(subscripts, *hosts, **kwargs), arrays)


# About arrays


def shares_memory(a, b, max_work=None) -> bool:
    return _overlap(np.shares_memory, a, b)


def may_share_memory(a, b, max_work=None) -> bool:
    return _overlap(np.may_share_memory, a, b)


def _overlap(function: Any, a: Any, b: Any) -> bool:
    both = isinstance(a, ndarray) and isinstance(b, ndarray)
    return both and bool(function(a._host, b._host))


def get_array_module(*args) -> Any:
    import sys

    device = builtins.any(isinstance(a, ndarray) for a in args)
    return sys.modules[__package__] if device else np


def is_available() -> bool:
    return True


def _needs_numbers(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{name}: size depends on data: synchronises")

    refuse.__name__ = name
    return refuse


nonzero = _needs_numbers("nonzero")
unique = _needs_numbers("unique")
flatnonzero = _needs_numbers("flatnonzero")
argwhere = _needs_numbers("argwhere")

__all__ = [
    name
    for name, value in list(globals().items())
    if not name.startswith("_")
    and (isinstance(value, ufunc) or getattr(value, "__module__", None) == __name__)
    and name not in ("ufunc",)
]
