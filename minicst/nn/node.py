"""What every part of a network is: a node that computes and knows its structure.

That knowledge is all that liveness, cut and accounting use, so a new kind of node is one class:

    out_shape(shapes)               (h, w, c) of the output, or (c,) after global pooling
    alive(live_inputs, mask)             which output channels can carry something
    readers(live_out, mask)              which input channels a node with these live outputs reads
    narrow(keep_inputs, keep_out, mask)  the physically small node, its arrays still to be filled
    axes()                               for every array, whether its first and last axis run over
                                         output ("out") or input ("in") channels, or whether it has
                                         a mask for each of its numbers ("entry")

A mask has one entry a channel, but for linear units masked weight by weight: one a weight there.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from minicst.autograd import Tensor
from minicst.nn.module import Module

Shape = tuple[int, ...]
Live = np.ndarray  # bool, one entry a channel
Axes = tuple[str | None, str | None]


class Context:
    """What a forward pass tells every node.

    Args:
        training: batch norm uses batch statistics.
        track: running statistics move (in training).
        live: {node name: bool (c,)} for the masked form, None for an ordinary pass.
        step: number of the training step, which keys planted noise.
        mask_position: "after-norm" (an absent channel is 0) or "filter" (masked before batch norm,
            so that beta leaks out of absent channels, as in the paper's formula).
        weights: {unit: bool of its weight's shape}, for units masked weight by weight in the masked
            form.
    """

    def __init__(
        self,
        training: bool = False,
        track: bool = True,
        live: dict[str, Live] | None = None,
        step: int = 0,
        mask_position: str = "after-norm",
        weights: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.training = training
        self.track = track
        self.live = live
        self.step = step
        self.mask_position = mask_position
        self.weights = weights or {}


class Node(Module):
    """One node of a network.

    Attributes:
        group: names the maskable channels it writes, if it has any.
        members: which of the group's channels it writes; None: all, in order. In a cut network the
            nodes of one group may keep different channels, as a padded shortcut does.
        mask_on: what an entry of the group's mask decides about: "channels", or "weights".
    """

    kind: ClassVar[str] = ""
    group: str | None = None
    members: list[int] | None = None
    mask_on: str = "channels"

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Compute the output.

        Args:
            name: the node's own.
            inputs: a list of its own, which it may empty: without a tape an input that nobody else
                reads is then gone before the node is done.
            context: of the pass.
        """
        raise TypeError(f"{type(self).__name__} has no forward")

    def config(self) -> dict[str, Any]:
        """Arguments (numbers, strings, lists) that rebuild this node."""
        return {}

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """Shape of the output without its batch axis."""
        return shapes[0]

    def check(self, channels: list[int]) -> int:
        """Return the number of output channels.

        Raises:
            ValueError: if the inputs' channel counts don't fit; says the rule.
        """
        return channels[0]

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """Return which output channels can be nonzero, given live inputs and the group's mask."""
        return live_inputs[0]

    def readers(self, live_out: Live, mask: Live | None = None) -> list[Live]:
        """For each input, which of its channels this node reads to make `live_out`.

        One entry stands for all inputs if they are read alike.
        """
        return [live_out]

    def revivable(self, live_inputs: list[Live]) -> Live:
        """Return which entries of the group's mask make something live, given live inputs."""
        return self.alive(live_inputs, None)

    def narrow(
        self, keep_inputs: list[np.ndarray], keep_out: np.ndarray, mask: Live | None = None
    ) -> Node:
        """Return the same kind of node for the kept channels (indices), arrays unfilled."""
        return type(self)(**self.config())

    def axes(self) -> dict[str, Axes]:
        """{array name: (kind of first axis, kind of last axis)}."""
        return {}
