"""Check a gradient against central differences, along random directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minicst.autograd.tensor import Tensor
from minicst.backend.base import Array


def gradcheck(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    seed: int = 0,
    step: float = 1e-6,
    tolerance: float = 1e-6,
    directions: int = 3,
) -> float:
    """Compare <u, J v> by central differences with <J^T u, v> by backward.

    u (the upstream gradient) and v (a direction in the input) are drawn at random. All ones for u
    would be blind: for batch norm in training mode that gradient is zero, whatever the rule says.

    Args:
        function: takes the tensors, returns a tensor.
        inputs: float64; those with requires_grad are checked, one at a time.
        seed: of u and v.
        step: of the difference; the point must be that far from every kink.
        tolerance: on |difference| / max(1, |value|).
        directions: number of (u, v) drawn for each input.

    Returns:
        The largest relative error seen.

    Raises:
        ValueError: if the gradients differ; names the input, both numbers and the suspects. Also
            if no input requires a gradient: the check would say nothing.
        TypeError: if an input isn't float64, where differences would tell nothing.
    """
    for i, x in enumerate(inputs):
        if x.dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; differences need float64")
    if not any(x.requires_grad for x in inputs):
        raise ValueError("gradcheck: no input requires a gradient, so nothing would be checked")
    rng = np.random.default_rng(seed)
    worst = 0.0
    for i, x in enumerate(inputs):
        if not x.requires_grad:
            continue
        for _ in range(directions):
            out = function(*inputs)
            u = out.backend.asarray(rng.normal(size=out.shape))
            v = x.backend.asarray(rng.normal(size=x.shape))
            for y in inputs:
                y.zero_grad()
            out.backward(u.astype(out.dtype))
            if x.grad is None:
                raise ValueError(f"gradcheck: backward left no gradient in input {i}")
            analytic = float((x.grad * v).sum())
            numeric = _slope(function, inputs, i, u, v, step)
            error = abs(analytic - numeric) / max(1.0, abs(numeric))
            worst = max(worst, error)
            if not error <= tolerance:
                raise ValueError(
                    f"gradcheck: input {i}, shape {x.shape}: <u, J v> is {numeric:.9g} by "
                    f"differences and {analytic:.9g} by backward (relative error {error:.2g} > "
                    f"{tolerance:g}); suspects: the rule itself, a kink (ReLU, max) within "
                    f"{step:g}, or state that the forward pass changes"
                )
    for y in inputs:
        y.zero_grad()
    return worst


def _slope(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    i: int,
    u: Array,
    v: Array,
    step: float,
) -> float:
    values = []
    for sign in (1.0, -1.0):
        moved = list(inputs)
        moved[i] = Tensor(
            inputs[i].data + sign * step * v, requires_grad=True, backend=inputs[i].backend
        )
        values.append(float((function(*moved).data * u).sum()))
    return (values[0] - values[1]) / (2 * step)
