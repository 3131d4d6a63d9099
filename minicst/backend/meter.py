"""The meter counts multiply-adds and bytes that were executed, per phase, layer and pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

PASSES = ("forward", "weight_gradient", "input_gradient")


class Meter:
    """Counts executed multiply-adds (MACs, one multiply-add = 1) and operand bytes.

    Every product of the backend (convolution, linear) reports itself. The count is attributed to
    the current `phase` (set by the method: forward_a, forward_b, recalibrate, ...), the current
    `layer` (set by the network as it walks its nodes; the tape restores it for the backward pass)
    and the pass: forward, weight_gradient or input_gradient.

    Attributes:
        macs: {(phase, layer, pass): int}, padding included as every framework counts it.
        bytes: {(phase, layer, pass): int}, operands and results once each, columns not counted.
    """

    def __init__(self) -> None:
        self.phase = ""
        self.layer = ""
        self.macs: dict[tuple[str, str, str], int] = defaultdict(int)
        self.bytes: dict[tuple[str, str, str], int] = defaultdict(int)

    def record(self, which: str, macs: int, n_bytes: int) -> None:
        """Add one executed product to the current phase and layer; `which` is one of PASSES."""
        key = (self.phase, self.layer, which)
        self.macs[key] += macs
        self.bytes[key] += n_bytes

    @contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        """Attribute everything executed inside to `phase`."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def total(self, phase: str | None = None, which: str | None = None) -> int:
        """Executed MACs, of one phase and one pass or (None) of all."""
        return sum(
            macs
            for (its_phase, _, its_pass), macs in self.macs.items()
            if phase in (None, its_phase) and which in (None, its_pass)
        )

    def by_layer(self, phase: str) -> dict[str, dict[str, int]]:
        """{layer: {pass: MACs}} of one phase."""
        table: dict[str, dict[str, int]] = {}
        for (its_phase, layer, which), macs in self.macs.items():
            if its_phase == phase:
                table.setdefault(layer, dict.fromkeys(PASSES, 0))[which] += macs
        return table

    def reset(self) -> None:
        """Forget all counts."""
        self.macs.clear()
        self.bytes.clear()
