"""L(m): the loss of a mask's sub-network on one fixed mini-batch, a plain function of the mask."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

import minicst.functional as F
from minicst.autograd import no_grad
from minicst.data import Batch
from minicst.methods.base import Method, on_device
from minicst.nn import Network
from minicst.sparse.liveness import repair
from minicst.sparse.masked_form import masked
from minicst.sparse.subnetwork import cut


class MaskLoss:
    """The function m -> L(m) that keep_prob's estimators see, weights and mini-batch fixed.

    L(m) is the cross-entropy of one training-mode forward pass (batch statistics) of the
    sub-network of m, empty groups repaired as in training. It reads weights and changes nothing:
    no tape, no running statistics, no random stream.

    Paper: Sec. 4.1, L(w, m) inside Eq. (2) [eq2]

    Args:
        network: the full network, read anew at every call.
        batch: the mini-batch; images of the network's dtype.
        keep_prob: (n,), decides which channel of an empty group is kept.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        step: of training; keys planted noise.
        mask_position: "after-norm" (cut networks) or "filter", as in training.

    Attributes:
        evaluations: forward passes so far.
        repaired: of these, how many had an empty group.

    Raises:
        ValueError: ``keep_prob`` has another length than the mask.
    """

    def __init__(
        self,
        network: Network,
        batch: Batch,
        keep_prob: NDArray[np.float64],
        label_smoothing: float = 0.0,
        step: int = 0,
        mask_position: str = "after-norm",
    ) -> None:
        if np.shape(keep_prob) != (network.n_maskable,):
            raise ValueError(
                f"keep_prob has shape {np.shape(keep_prob)}: network {network.name} has "
                f"{network.n_maskable} maskable channels, one number for each is needed"
            )
        self.network = network
        self.batch = on_device(batch, network.backend, network.num_classes)
        self.keep_prob = np.array(keep_prob, np.float64)
        self.label_smoothing, self.step = label_smoothing, step
        self.mask_position = mask_position
        self.evaluations = self.repaired = 0

    @classmethod
    def of(cls, method: Method, batch: Batch) -> MaskLoss:
        """L(m) as a method with masks computes it at its present weights, step and keep_prob.

        Raises:
            ValueError: the method has no keep_prob.
        """
        keep_prob = getattr(method, "keep_prob", None)
        if keep_prob is None:
            raise ValueError(
                f"method '{method.name}' has no keep_prob, so it draws no masks: take a run of "
                "--method completely-sparse"
            )
        hyper = method.hyper
        return cls(
            method.network,
            batch,
            keep_prob,
            hyper.label_smoothing,
            method.step,
            hyper.mask_position,
        )

    def __call__(self, mask: NDArray[np.bool_]) -> float:
        """Return L(m), nats.

        Args:
            mask: m as drawn, (n,) 0/1.

        Raises:
            ValueError: the mask doesn't fit, or the loss isn't finite.
        """
        used, n_repaired = repair(self.network, np.asarray(mask), self.keep_prob)
        self.evaluations += 1
        self.repaired += n_repaired > 0
        meter = self.network.backend.meter
        sub = (
            masked(self.network, used, None, "filter")
            if self.mask_position == "filter"
            else cut(self.network, used)
        )
        with no_grad(), meter.in_phase("measure"):
            logits = sub(self.batch.images, training=True, track=False, step=self.step)
            loss = F.cross_entropy(logits, self.batch.labels, self.label_smoothing).item()
        if not math.isfinite(loss):
            raise ValueError(
                f"L(m) is {loss} on this mini-batch: the weights have diverged, nothing can be "
                "measured with them"
            )
        return float(loss)

    def of_masks(self, masks: Iterable[NDArray[np.bool_]]) -> NDArray[np.float64]:
        """L(m) of each mask, float64 (n_masks,)."""
        return np.array([self(mask) for mask in masks])
