"""Softmax cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicst.autograd.tensor import Function, Tensor
from minicst.backend.base import Array, Backend


class CrossEntropy(Function):
    """Mean over the batch of -sum_k q_k ln softmax(logits)_k;  (softmax - q) / n.

    q is 1 at the label, mixed with label_smoothing of the uniform distribution. The scalar is
    float64 whatever the logits are: VR-PGE takes differences of two such numbers.
    """

    def forward(self, logits: Array, *, labels: Array, label_smoothing: float) -> Array:
        loss, residual = self.backend.cross_entropy(logits, labels, label_smoothing)
        self.save(residual, logits.dtype)
        return loss

    def backward(self, g: Array) -> tuple[Array, ...]:
        residual, dtype = self.saved
        return ((g * residual / residual.shape[0]).astype(dtype),)


def cross_entropy(logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of softmax(logits) against labels, in nats.

    Args:
        logits: (n, k).
        labels: (n,) integers in 0 ... k - 1, on the host; or what check_labels made of them.
        label_smoothing: in [0, 1): share of the target that is spread evenly over all classes.

    Returns:
        A float64 scalar.

    Raises:
        ValueError: if shapes don't fit, a label is out of range or smoothing is not in [0, 1).
    """
    if not isinstance(labels, Labels):
        labels = check_labels(labels, logits.shape[-1], logits.backend)
    if logits.ndim != 2 or labels.array.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy takes logits (n, k) and labels (n,), got {logits.shape} and "
            f"{labels.array.shape}"
        )
    if labels.classes > logits.shape[1]:
        raise ValueError(
            f"labels checked for {labels.classes} classes, and logits of {logits.shape[1]}: "
            "check_labels takes the number of logits"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing = {label_smoothing} is not in [0, 1)")
    return CrossEntropy.apply(logits, labels=labels.array, label_smoothing=label_smoothing)


@dataclass(frozen=True, eq=False)
class Labels:
    """Class numbers on a backend, known to be 0 ... classes - 1."""

    array: Array
    classes: int


def check_labels(labels: Any, classes: int, backend: Backend) -> Labels:
    """Check class numbers on the host and copy them to the device, once for several passes.

    Args:
        labels: (n,) integers in 0 ... classes - 1, on the host.
        classes: number of logits.
        backend: where the logits will be.

    Raises:
        ValueError: if there is none, or one is out of range (a GPU would read other memory).
        TypeError: if they aren't integers.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are {labels.dtype}: class numbers (integers) are needed")
    if labels.size == 0 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be 0 ... {classes - 1}, and at least one")
    return Labels(backend.asarray(labels, np.int64), classes)
