"""Linear layers with absent weights, on the tape."""

from __future__ import annotations

from minicst.autograd.tensor import Function, Tensor
from minicst.backend import Pattern
from minicst.backend.base import Array


class SparseLinear(Function):
    """out = x S^T + b;  grad_x = g S, grad of S at its live entries only, grad_b = sum g."""

    def forward(self, x: Array, values: Array, *bias: Array, pattern: Pattern) -> Array:
        self.save(x, values, pattern)
        return self.backend.sparse_linear(x, values, pattern, bias[0] if bias else None)

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        x, values, pattern = self.saved
        back = self.backend
        grads: list[Array | None] = [
            back.sparse_linear_grad_input(g, values, pattern) if self.needs_grad[0] else None,
            back.sparse_linear_grad_weight(x, g, pattern) if self.needs_grad[1] else None,
        ]
        if len(self.needs_grad) == 3:
            grads.append(g.sum(axis=0) if self.needs_grad[2] else None)
        return tuple(grads)


def sparse_linear(
    x: Tensor, values: Tensor, pattern: Pattern, bias: Tensor | None = None
) -> Tensor:
    """Return x S^T + b for a matrix S of which only the live entries exist.

    Paper: Sec. 4.1, Discussion [fc-weights]

    Args:
        x: (n, c_in).
        values: (pattern.size,), the live entries of S row by row, dtype of x.
        pattern: their places in S (c_out, c_in).
        bias: (c_out,) or None.

    Returns:
        (n, c_out).

    Raises:
        ValueError: if shapes don't fit.
        TypeError: if dtypes differ.
    """
    c_out, c_in = pattern.shape
    if x.ndim != 2 or x.shape[1] != c_in or values.shape != (pattern.size,):
        raise ValueError(
            f"sparse_linear with {pattern.size} entries of a {c_out}x{c_in} matrix takes x "
            f"(n, {c_in}) and values ({pattern.size},), got shapes {x.shape} and {values.shape}"
        )
    if bias is not None and bias.shape != (c_out,):
        raise ValueError(f"bias of shape {bias.shape} for {c_out} outputs: one number each")
    inputs = (x, values) if bias is None else (x, values, bias)
    if any(t.dtype != x.dtype for t in inputs):
        raise TypeError(f"sparse_linear of {' and '.join(str(t.dtype) for t in inputs)}: use one")
    return SparseLinear.apply(*inputs, pattern=pattern)
