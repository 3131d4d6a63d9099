"""What the paper measured: Tables 4 and 5, VGG-19 on CIFAR-10, on one RTX 2080 Ti."""

from __future__ import annotations

from dataclasses import dataclass

NETWORK = "vgg19"


@dataclass(frozen=True)
class MeasuredRow:
    """A row of Tables 4 and 5.

    Attributes:
        macs: percent of the dense FLOPs.
        train_cost: train-cost saving by the paper's formula, times.
        forward: minutes of all forward passes of the training.
        backward: minutes of all backward passes.
        saving: of the computational time, times, as printed.
    """

    macs: float
    train_cost: float
    forward: float
    backward: float
    saving: float


DENSE = MeasuredRow(100.0, 1.0, 6.89, 14.96, 1.0)
ROWS = (
    MeasuredRow(28.57, 2.64, 6.41, 7.63, 1.55),
    MeasuredRow(19.33, 3.89, 4.89, 5.54, 2.09),
    MeasuredRow(10.27, 7.30, 3.10, 3.73, 3.20),
    MeasuredRow(4.94, 15.28, 2.15, 2.71, 4.50),
    MeasuredRow(1.70, 44.68, 1.27, 1.68, 7.41),
)


def row_of(network: str, share: float) -> MeasuredRow | None:
    """Row of a network at a share of the MACs, in percent; None where the paper has none."""
    if network != NETWORK:
        return None
    return next((row for row in ROWS if row.macs == share), None)
