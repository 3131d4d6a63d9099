"""The tape: tensors remember the function that made them, backward walks back through them.

First order only: `Function.backward` works on raw arrays. Gradients accumulate in leaves; what a
function saved is released as soon as backward has passed it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minicst.backend import Backend, get_backend
from minicst.backend.base import Array


class _Mode(threading.local):
    recording = True


_mode = _Mode()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded: forward passes keep no activations."""
    before, _mode.recording = _mode.recording, False
    try:
        yield
    finally:
        _mode.recording = before


class Place:
    """Where a result stands on the tape: what made it, without its array.

    The tape links places, not tensors, so that only what a function saved keeps an array alive.
    """

    __slots__ = ("creator", "dtype", "requires_grad", "shape")

    def __init__(self, creator: Function, data: Array) -> None:
        self.creator: Function | None = creator
        self.requires_grad = True
        self.shape: tuple[int, ...] = tuple(data.shape)
        self.dtype = data.dtype


class Tensor:
    """An array that remembers how it was computed.

    Args:
        data: array of `backend`, or anything numpy.asarray takes. Integers become float32.
        requires_grad: whether backward shall leave a gradient here.
        backend: where the array lives; the CPU by default.

    Attributes:
        data: the array.
        grad: sum of the gradients of all backward calls so far, or None.
    """

    __array_priority__ = 100  # numpy_array * tensor asks the tensor

    def __init__(
        self, data: Any, requires_grad: bool = False, backend: Backend | None = None
    ) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor of a Tensor: pass its .data (which cuts it off the tape)")
        self.backend = backend or get_backend()
        array = self.backend.asarray(data)
        if array.dtype.kind in "iub":
            array = array.astype(np.float32)
        if array.dtype.kind != "f":
            raise TypeError(f"Tensor data is {array.dtype}: floating point numbers are needed")
        self.data: Array = array
        self.place: Place | None = None
        self.requires_grad = requires_grad
        self.grad: Array | None = None

    @property
    def creator(self) -> Function | None:
        """The function that made it, None for a leaf and once backward has passed."""
        return None if self.place is None else self.place.creator

    @property
    def requires_grad(self) -> bool:
        """Whether backward leaves a gradient here, or passes on to the inputs."""
        return self._needs if self.place is None else self.place.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.place is None:
            self._needs = value
        else:
            self.place.requires_grad = value

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.data.shape)

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        return self.data.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    def item(self) -> float:
        """Return the only element as a Python float (reads it from the device)."""
        return float(self.data.reshape(-1)[0]) if self.size == 1 else self._not_scalar()

    def _not_scalar(self) -> float:
        raise ValueError(f"item() of a tensor of shape {self.shape}: it has {self.size} elements")

    def numpy(self) -> Any:
        """Return the data as numpy.ndarray, off the tape."""
        return self.backend.to_numpy(self.data)

    def detach(self) -> Tensor:
        """Return a tensor of the same data that the tape doesn't know."""
        return Tensor(self.data, backend=self.backend)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def backward(self, grad: Array | None = None) -> None:
        """Add d self / d leaf to the `grad` of every leaf that requires it.

        Args:
            grad: upstream gradient, shape of self; 1 for a scalar.

        Raises:
            ValueError: if self isn't on the tape, if part of its tape was used by another backward,
                or if self is not a scalar and no gradient is given.
        """
        if not self.requires_grad:
            raise ValueError(
                "backward of a tensor that is not on the tape: nothing in it requires a gradient, "
                "or it was made under no_grad, or its tape was used already"
            )
        if grad is None:
            if self.size != 1:
                raise ValueError(
                    f"backward of shape {self.shape} needs a gradient of that shape; "
                    "only scalars start at 1"
                )
            grad = self.backend.xp.ones(self.shape, self.dtype)
        grad = self.backend.asarray(grad, self.dtype)
        if tuple(grad.shape) != self.shape:
            raise ValueError(f"gradient of shape {grad.shape} for a tensor of shape {self.shape}")
        order = _topological_order(self.place or self)
        _check_unused(order)
        order.reverse()
        grads: dict[int, Array] = {id(self.place or self): grad}
        given = {id(_owner(grad))}
        del grad
        while order:  # popped, not iterated over: the list would keep every activation alive
            place = order.pop()
            grad_out = grads.pop(id(place))
            if isinstance(place, Tensor):
                place._accumulate(grad_out, given)
                continue
            function = place.creator
            assert function is not None
            _hand_on(function, function.run(grad_out), grads)
            function.release()
            place.creator = None
            place.requires_grad = False

    def _accumulate(self, grad: Array, given: set[int]) -> None:
        """Add to `grad` of a leaf, in an array of its own: one may be clipped in place."""
        if self.grad is not None:
            grad = self.grad + grad
        elif id(_owner(grad)) in given:
            grad = grad.copy()
        self.grad = self.backend.asarray(grad)
        given.add(id(_owner(self.grad)))

    def __repr__(self) -> str:
        made_by = f", made by {type(self.creator).__name__}" if self.creator else ""
        needs = ", requires_grad" if self.requires_grad else ""
        return f"Tensor({self.dtype}{list(self.shape)}{needs}{made_by})\n{self.data}"

    # Operators call the functions of elementary.py, which imports this module.

    def __add__(self, other: Any) -> Tensor:
        return _functions().add(self, other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Tensor:
        return _functions().mul(self, other)

    __rmul__ = __mul__

    def __neg__(self) -> Tensor:
        return _functions().mul(self, -1.0)

    def __sub__(self, other: Any) -> Tensor:
        return _functions().sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _functions().sub(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _functions().div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _functions().div(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return _functions().power(self, exponent)

    def __matmul__(self, other: Any) -> Tensor:
        return _functions().matmul(self, other)

    def __getitem__(self, index: Any) -> Tensor:
        raise TypeError("indexing a tensor isn't recorded: use functional.channel_slice, or .data")

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Sum over `axis` (all by default)."""
        return _functions().sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Mean over `axis` (all by default)."""
        return _functions().mean(self, axis, keepdims)

    def reshape(self, *shape: Any) -> Tensor:
        """Same elements in another shape."""
        return _functions().reshape(self, shape[0] if isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes: int) -> Tensor:
        """Axes in another order (reversed by default)."""
        return _functions().transpose(self, axes or None)


class Parameter(Tensor):
    """A tensor that a network learns."""

    def __init__(self, data: Any, backend: Backend | None = None) -> None:
        super().__init__(data, requires_grad=True, backend=backend)
        # Cut and paste writes through a flat view, which only C order has.
        self.data = self.backend.as_state(self.data)


class Function:
    """One operation: `forward` and `backward` on raw arrays, side by side.

    A subclass's forward(*arrays, **options) returns the result and keeps what backward needs with
    `self.save(...)`; backward(grad_out) returns a gradient per input, None where
    `self.needs_grad[i]` is false, so that the first layer computes no input gradient.
    """

    def __init__(self, backend: Backend, needs_grad: tuple[bool, ...]) -> None:
        self.backend = backend
        self.xp = backend.xp
        self.needs_grad = needs_grad
        self.saved: tuple[Any, ...] = ()
        self.inputs: tuple[Tensor | Place, ...] = ()
        self.layer = backend.meter.layer

    def forward(self, *arrays: Array, **options: Any) -> Array:
        """Return the result."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def backward(self, grad_out: Array) -> tuple[Array | None, ...]:
        """Return the gradient of each input."""
        raise TypeError(f"{type(self).__name__} has no backward")

    def save(self, *values: Any) -> None:
        """Keep values for backward; under no_grad nothing is kept."""
        if any(self.needs_grad):
            self.saved = values

    def run(self, grad_out: Array) -> tuple[Array | None, ...]:
        """Run backward; the meter attributes it to the layer that ran the forward pass."""
        meter = self.backend.meter
        before, meter.layer = meter.layer, self.layer
        try:
            return self.backward(grad_out)
        finally:
            meter.layer = before

    def release(self) -> None:
        """Drop what was saved and the way to the inputs."""
        self.saved = ()
        self.inputs = ()

    @classmethod
    def apply(cls, *inputs: Any, **options: Any) -> Tensor:
        """Run forward and record it if any input requires a gradient."""
        backend = next((x.backend for x in inputs if isinstance(x, Tensor)), None)
        dtype = next((x.dtype for x in inputs if isinstance(x, Tensor)), None)
        # Bare numbers and arrays take the tensor's dtype: a stray float64 must not widen the net.
        tensors = tuple(
            x
            if isinstance(x, Tensor)
            else Tensor((backend or get_backend()).asarray(x, dtype or np.float32), backend=backend)
            for x in inputs
        )
        needs = tuple(_mode.recording and x.requires_grad for x in tensors)
        function = cls(backend or get_backend(), needs)
        out = Tensor.__new__(Tensor)
        out.backend = function.backend
        # NumPy turns 0-d results into scalars; data is an array.
        out.data = function.backend.asarray(function.forward(*(x.data for x in tensors), **options))
        out.grad = None
        out.place = None
        out.requires_grad = False
        if any(needs):
            function.inputs = tuple(x.place or x for x in tensors)
            out.place = Place(function, out.data)
        return out


def saved_bytes(loss: Tensor) -> int:
    """Bytes of activations that the tape of `loss` holds for backward, each array once.

    Leaves (weights, the batch) don't count; views count as what they view.
    """
    leaves = set()
    held: dict[int, int] = {}
    for tensor in _topological_order(loss.place or loss):
        if tensor.creator is None:
            if isinstance(tensor, Tensor):
                leaves.add(id(_owner(tensor.data)))
            continue
        for parent in tensor.creator.inputs:
            if isinstance(parent, Tensor):
                leaves.add(id(_owner(parent.data)))
        for value in tensor.creator.saved:
            if hasattr(value, "nbytes") and hasattr(value, "shape"):
                owner = _owner(value)
                held[id(owner)] = owner.nbytes
    return sum(size for key, size in held.items() if key not in leaves)


def _owner(array: Array) -> Array:
    """The array whose memory `array` views, itself if none (a buffer like bytes is no array)."""
    owner = array
    while (array := getattr(array, "base", None)) is not None:
        if hasattr(array, "nbytes"):
            owner = array
    return owner


def _hand_on(
    function: Function, parent_grads: tuple[Array | None, ...], grads: dict[int, Array]
) -> None:
    """Add the gradients of a function's inputs to those known; a frame of its own lets go."""
    backend = function.backend
    for parent, need, parent_grad in zip(
        function.inputs, function.needs_grad, parent_grads, strict=True
    ):
        if not need:
            continue
        if (
            parent_grad is None
            or tuple(parent_grad.shape) != parent.shape
            or parent_grad.dtype != parent.dtype
        ):
            got = None if parent_grad is None else f"{parent_grad.dtype}{parent_grad.shape}"
            raise AssertionError(
                f"{type(function).__name__} gave a gradient {got} for an input "
                f"{parent.dtype}{parent.shape}"
            )
        known = grads.get(id(parent))
        grads[id(parent)] = parent_grad if known is None else backend.add(known, parent_grad)


def _check_unused(order: list[Tensor | Place]) -> None:
    for tensor in order:
        if tensor.creator is None:
            continue
        for parent, need in zip(tensor.creator.inputs, tensor.creator.needs_grad, strict=True):
            if need and not parent.requires_grad:
                raise ValueError(
                    f"backward through {type(tensor.creator).__name__} reaches a tensor of shape "
                    f"{parent.shape} whose tape was used already (or whose requires_grad was taken "
                    "back): run forward again, or add the losses and call backward once"
                )


def _topological_order(last: Tensor | Place) -> list[Tensor | Place]:
    """Tensors that lead to `last` and required a gradient then, each after all that use it."""
    order: list[Tensor | Place] = []
    seen: set[int] = set()
    stack: list[tuple[Tensor | Place, bool]] = [(last, False)]
    while stack:
        tensor, inputs_done = stack.pop()
        if inputs_done:
            order.append(tensor)
            continue
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        stack.append((tensor, True))
        if tensor.creator is not None:
            function = tensor.creator
            stack.extend(
                (parent, False)
                for parent, need in zip(function.inputs, function.needs_grad, strict=True)
                if need
            )
    order.reverse()
    return order


def _functions() -> Any:
    from minicst.autograd import elementary

    return elementary
