"""What a training step did: every quantity, for the display, the lessons and `minicst step`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from minicst.backend import Backend
from minicst.sparse.estimators import preconditioner
from minicst.sparse.masks import score_function


@dataclass
class StepTrace:
    """One training step.

    A method that has no masks leaves their fields None; a step that doesn't update keep_prob (a
    later step of a block, fine-tuning) leaves those of the update None.

    Attributes:
        step: number of the step, from 0.
        losses: of the forward passes, nats: L(m), which was back-propagated, L(m'), ...
        masks_drawn: (k, n) bool as drawn, one for each forward pass; the score function takes them.
        masks_used: (k, n) bool after empty groups were repaired; the sub-networks'.
        uniform: (n,) float64, U of an antithetic pair or of a chain-rule method's mask.
        baseline: average of earlier losses that the estimator took off, or None.
        coin: +1 or -1 of the coin control, or None.
        repaired: channels switched on by the repair, in all masks.
        keep_prob_before: (n,) float64, s.
        gradient: (n,) float64, the estimate of H^alpha grad Phi(s).
        z: (n,) float64, keep_prob after the optimizer, before the projection.
        multiplier: of the budget constraint, >= 0.
        keep_prob: (n,) float64, the new s.
        precondition_power: alpha.
        live_channels: {"a": {group: count}, "b": ...}.
        macs: {phase: {layer: {pass: executed MACs}}}.
        macs_dense: {layer: {pass: MACs}} of a dense step on the same batch.
        executed_bytes: operands and results of all products, each once.
        cost_ratio: mean of fS / fD over the step's forward passes, sampled.
        passes: (forward, backward) passes of the step.
        seconds: {phase: seconds}.
    """

    step: int
    losses: tuple[float, ...]
    masks_drawn: np.ndarray | None = None
    masks_used: np.ndarray | None = None
    uniform: np.ndarray | None = None
    baseline: float | None = None
    coin: float | None = None
    repaired: int = 0
    keep_prob_before: np.ndarray | None = None
    gradient: np.ndarray | None = None
    z: np.ndarray | None = None
    multiplier: float | None = None
    keep_prob: np.ndarray | None = None
    precondition_power: float = 0.5
    live_channels: dict[str, dict[str, int]] = field(default_factory=dict)
    macs: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    macs_dense: dict[str, dict[str, int]] = field(default_factory=dict)
    executed_bytes: int = 0
    cost_ratio: float = 1.0
    passes: tuple[int, int] = (1, 1)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def loss_a(self) -> float:
        """L(m), the loss that was back-propagated."""
        return self.losses[0]

    @property
    def loss_b(self) -> float | None:
        """L(m') of the second forward pass, or None."""
        return self.losses[1] if len(self.losses) > 1 else None

    @property
    def mask_drawn_a(self) -> np.ndarray | None:
        """(n,) bool, m as drawn."""
        return _row(self.masks_drawn, 0)

    @property
    def mask_drawn_b(self) -> np.ndarray | None:
        """(n,) bool, m' as drawn."""
        return _row(self.masks_drawn, 1)

    @property
    def mask_used_a(self) -> np.ndarray | None:
        """(n,) bool, mask of the sub-network that was back-propagated."""
        return _row(self.masks_used, 0)

    @property
    def mask_used_b(self) -> np.ndarray | None:
        """(n,) bool, mask of the second sub-network."""
        return _row(self.masks_used, 1)

    @property
    def score(self) -> np.ndarray | None:
        """Score function of the first drawn mask: (m - s) / (s (1 - s))."""
        if self.mask_drawn_a is None or self.keep_prob_before is None:
            return None
        return score_function(self.mask_drawn_a, self.keep_prob_before)

    @property
    def preconditioner(self) -> np.ndarray | None:
        """Diagonal of H^alpha: (s (1 - s))^alpha."""
        if self.keep_prob_before is None:
            return None
        return preconditioner(self.keep_prob_before, self.precondition_power)

    @property
    def executed_macs(self) -> int:
        """MACs that the step executed, all phases, layers and passes."""
        return sum(
            count
            for layers in self.macs.values()
            for passes in layers.values()
            for count in passes.values()
        )

    @property
    def dense_macs(self) -> int:
        """MACs of a dense step on the same batch."""
        return sum(count for passes in self.macs_dense.values() for count in passes.values())

    @property
    def total_seconds(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())


def _row(masks: np.ndarray | None, i: int) -> np.ndarray | None:
    return masks[i] if masks is not None and len(masks) > i else None


class Stopwatch:
    """Adds up seconds per phase: `with watch("cut"): ...`.

    A GPU works on while the host goes on: seconds then count where the host waits, mostly where a
    loss is read, and only their sum says something. With backend.exact_times the device is waited
    for at the end of every phase; that costs time, but tells the phases apart.

    Args:
        backend: of the network.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.backend.exact_times:
                self.backend.synchronize()
            passed = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
