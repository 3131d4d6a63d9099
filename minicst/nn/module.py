"""Modules hold parameters (learned) and buffers (running statistics), found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minicst.autograd import Parameter
from minicst.backend import Backend, get_backend
from minicst.backend.base import Array


class Module:
    """A tree of parameters, buffers and other modules, in the order in which they were assigned.

    `buffers` names the attributes that are state but not learned, as arrays.
    """

    buffers: tuple[str, ...] = ()

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules directly below."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter) of the whole tree."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, module in self.children():
            yield from module.named_parameters(f"{prefix}{name}.")

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
        """Yield (dotted name, array) of the whole tree; the arrays are the state, not copies."""
        for name in self.buffers:
            yield prefix + name, getattr(self, name)
        for name, module in self.children():
            yield from module.named_buffers(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        """All parameters of the tree."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.grad = None

    def state(self) -> dict[str, np.ndarray]:
        """{dotted name: array} of parameters and buffers; the arrays are the state, not copies."""
        state = {name: parameter.data for name, parameter in self.named_parameters()}
        state.update(self.named_buffers())
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Copy arrays of the same names and shapes into parameters and buffers.

        Raises:
            ValueError: if a name is missing or unknown, or a shape differs; names both.
        """
        own = self.state()
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(f"state lacks {missing[0]} (and {len(missing) - 1} more)")
        if unknown := sorted(state.keys() - own.keys()):
            raise ValueError(f"state has {unknown[0]}, which this network doesn't have")
        for name, array in own.items():
            given = state[name]
            shape = tuple(given.shape) if hasattr(given, "shape") else np.shape(given)
            if shape != array.shape:
                raise ValueError(f"{name} has shape {array.shape} here and {shape} in the state")
        asarray = self.backend.asarray
        for name, array in own.items():  # only now: a state that doesn't fit changes nothing
            array[...] = asarray(state[name])

    @property
    def backend(self) -> Backend:
        """Where the parameters are; without any, the backend in use."""
        first = next(self.named_parameters(), None)
        return get_backend() if first is None else first[1].backend

    def to(self, backend: Backend) -> Module:
        """Move parameters and buffers to a backend, in place; gradients are dropped. Return self.

        An optimizer made before keeps the state that it has: make a new one.
        """
        source = self.backend
        if backend is not source:
            for _, parameter in self.named_parameters():
                parameter.data = backend.asarray(source.to_numpy(parameter.data))
                parameter.backend, parameter.grad = backend, None
            self._convert_buffers(lambda array: backend.asarray(source.to_numpy(array)))
        return self

    def host_state(self) -> dict[str, np.ndarray]:
        """As state(), with the arrays on the host: the same ones on the CPU, else copies."""
        to_numpy = self.backend.to_numpy
        return {name: to_numpy(array) for name, array in self.state().items()}

    def astype(self, dtype: Any) -> Module:
        """Convert parameters and buffers in place (float64 for gradient checks); return self."""
        for _, parameter in self.named_parameters():
            parameter.data = parameter.data.astype(dtype)
            parameter.grad = None
        self._convert_buffers(lambda array: array.astype(dtype))
        return self

    def _convert_buffers(self, convert: Callable[[Array], Array]) -> None:
        for name in self.buffers:
            setattr(self, name, convert(getattr(self, name)))
        for _, module in self.children():
            module._convert_buffers(convert)
