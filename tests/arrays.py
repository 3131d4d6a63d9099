"""Arrays of any device as NumPy's, for tests that compare, and the way there."""

import functools
import inspect
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import Backend, get_backend


def host(x: Any) -> Any:
    """A tensor's or array's numbers as numpy.ndarray; the same for the values of a dict or list."""
    if isinstance(x, Tensor):
        return x.numpy()
    if isinstance(x, dict):
        return {key: host(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(host(value) for value in x)
    return get_backend().to_numpy(x) if hasattr(x, "dtype") else x


def to_device(x: Any, dtype: Any = None) -> Any:
    """An array of the device in use: for gradients, states and running statistics."""
    return get_backend().asarray(np.asarray(x, dtype))


def same_memory(a: Any, b: Any) -> bool:
    """Whether arrays share memory; on a device, whether they start at one place."""
    if isinstance(a, np.ndarray):
        return np.shares_memory(a, b)
    return a.data.ptr == b.data.ptr


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Give what tells the most bytes that were allocated inside, on a device rounded up by array.

    tracemalloc sees the CPU's arrays, the memory pool a device's.
    """
    xp = get_backend().xp
    if xp is np:
        tracemalloc.start()
        try:
            yield lambda: tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    yield lambda: pool.total_bytes() - before


class AtTheEdge:
    """A backend's operations for tests that hold NumPy arrays: they go to the device and back.

    An array's memory layout goes along, gaps and turned axes too. What an operation changes in
    place is changed in the test's array as well; where it returns an argument, so does this.

    Args:
        backend: of the device.
        kind: the class whose operations are called; the backend's own if not given.
    """

    def __init__(self, backend: Backend, kind: type[Backend] | None = None) -> None:
        self._backend, self._kind = backend, kind

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        if not inspect.ismethod(value) or name in ("asarray", "to_numpy", "set_threads"):
            return value
        if self._kind is not None:
            value = getattr(self._kind, name).__get__(self._backend)

        @functools.wraps(value)
        def call(*arguments: Any, **options: Any) -> Any:
            there: dict[int, tuple[np.ndarray, Any]] = {}

            def over(x: Any) -> Any:
                if isinstance(x, tuple) and any(isinstance(part, np.ndarray) for part in x):
                    return tuple(over(part) for part in x)
                if not isinstance(x, np.ndarray):
                    return x
                if id(x) not in there:
                    there[id(x)] = (x, _laid_out_as(x, self._backend))
                return there[id(x)][1]

            def back(x: Any) -> Any:
                if isinstance(x, tuple):
                    return tuple(back(part) for part in x)
                given = next((here for here, device in there.values() if device is x), None)
                if given is not None:
                    return given
                return self._backend.to_numpy(x) if hasattr(x, "dtype") else x

            result = value(*map(over, arguments), **{k: over(x) for k, x in options.items()})
            for here, device in there.values():
                if here.flags.writeable:
                    here[...] = self._backend.to_numpy(device)
            return back(result)

        return call


def at_the_edge(backend: Backend, kind: type[Backend] | None = None) -> Any:
    """A backend that takes NumPy arrays: the CPU's does by itself."""
    return backend if backend.name == "numpy" and kind is None else AtTheEdge(backend, kind)


def _laid_out_as(x: np.ndarray, backend: Backend) -> Any:
    """The numbers on the device, with axes in x's order and gaps or turned axes where x has them.

    A plain copy would come in C order, and a kernel that takes strided memory for C order would
    read the right numbers.
    """
    if x.flags.c_contiguous:
        return backend.asarray(x)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    turned = tuple(slice(None, None, -1 if x.strides[axis] < 0 else 1) for axis in order)
    straight = x.transpose(order)[turned]
    if straight.flags.c_contiguous:
        there = backend.asarray(straight)
    else:
        there = backend.asarray(np.repeat(straight, 2, axis=-1))[..., ::2]
    return there[turned].transpose([order.index(axis) for axis in range(x.ndim)])
