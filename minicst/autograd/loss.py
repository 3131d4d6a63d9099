"""Softmax cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array


class CrossEntropy(Function):
    """Mean over the batch of -sum_k q_k ln softmax(logits)_k;  (softmax - q) / n.

    q is 1 at the label, mixed with label_smoothing of the uniform distribution. The scalar is
    float64 whatever the logits are: VR-PGE takes differences of two such numbers.
    """

    def forward(self, logits: Array, *, labels: Array, label_smoothing: float) -> Array:
        xp = self.xp
        n, k = logits.shape
        z = logits.astype(np.float64)
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))
        target = xp.full((n, k), label_smoothing / k)
        target[xp.arange(n), labels] += 1.0 - label_smoothing
        self.save(xp.exp(log_p), target, logits.dtype)
        return -(target * log_p).sum() / n

    def backward(self, g: Array) -> tuple[Array, ...]:
        p, target, dtype = self.saved
        return ((g * (p - target) / p.shape[0]).astype(dtype),)


def cross_entropy(logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of softmax(logits) against labels, in nats.

    Args:
        logits: (n, k).
        labels: (n,) integers in 0 ... k - 1.
        label_smoothing: in [0, 1): share of the target that is spread evenly over all classes.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: if shapes don't fit, a label is out of range or smoothing is not in [0, 1).
    """
    labels = np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy takes logits (n, k) and labels (n,), got {logits.shape} and "
            f"{labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are {labels.dtype}: class numbers (integers) are needed")
    if labels.size == 0 or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must be 0 ... {logits.shape[1] - 1}, and at least one")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing = {label_smoothing} is not in [0, 1)")
    labels = logits.backend.asarray(labels)
    return CrossEntropy.apply(logits, labels=labels, label_smoothing=label_smoothing)
