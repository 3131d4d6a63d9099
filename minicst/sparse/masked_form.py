"""The masked form: the dense network times 0/1. It defines what the cut network must compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.nn import Network, Unit
from minicst.nn.node import Live
from minicst.optim import Optimizer
from minicst.sparse.liveness import as_mask, propagate


@dataclass
class MaskedNetwork:
    """A full network under a mask, with the interface of a Subnetwork.

    Every convolution output and every batch-norm output is multiplied by its live indicator, so
    that an absent channel is 0. With mask_position "filter" only the filters are masked, as in the
    paper's formula x_out = x_in * (F_c m_c) and in the released code: batch norm then gives an
    absent channel its beta, a constant that leaks into the next layer. Such a network can't be cut
    without changing what it computes. The weight of a unit masked weight by weight is multiplied by
    its mask, and by nothing else: the live indicators of its input and output do the rest.

    Attributes:
        network: the full network.
        optimizer: the full network's, or None.
        live: {node: bool (channels,)}.
        mask: (n_maskable,) bool.
    """

    network: Network
    optimizer: Optimizer | None
    live: dict[str, Live]
    mask: np.ndarray
    mask_position: str = "after-norm"

    def __call__(self, x: Any, training: bool, track: bool = True, step: int = 0) -> Tensor:
        """Run the dense network times 0/1."""
        return self.network(
            x,
            training=training,
            track=track,
            live=self.live,
            step=step,
            mask_position=self.mask_position,
            weights=self.weights,
        )

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """{unit: mask of its weight's shape, bool} of the units masked weight by weight."""
        masks = {}
        for name, unit in self.network.weight_units().items():
            own = self.network.own(name, self.mask)
            assert own is not None
            masks[name] = own.reshape(unit.transform.weight.shape)
        return masks

    def update(self) -> None:
        """Take an optimizer step that moves live entries only: absent ones are frozen."""
        assert self.optimizer is not None
        before = _snapshot(self.optimizer)
        self.optimizer.step()
        if self.mask_position == "filter":
            return  # as released: decay and momentum move absent filters too
        entries = live_entries(self.network, self.live, self.mask)
        for name, parameter in self.optimizer.parameters.items():
            backend = parameter.backend
            absent = backend.asarray(~entries[name])
            arrays = {"": parameter.data, **self.optimizer.state[name]}
            for key, array in arrays.items():
                backend.xp.copyto(array, before[name, key], where=absent)

    def paste(self) -> None:
        """Nothing to do: it is the full network."""


def masked(
    network: Network,
    mask: Any,
    optimizer: Optimizer | None = None,
    mask_position: str = "after-norm",
) -> MaskedNetwork:
    """Return the dense network times 0/1.

    Paper: Sec. 4.1, x_out = x_in * (F_c m_c) [eq2], and its Discussion [fc-weights]

    Args:
        network: the full network.
        mask: (n_maskable,) 0/1.
        optimizer: the full network's.
        mask_position: "after-norm", or "filter" as in the paper's formula.

    Raises:
        ValueError: if mask or mask_position doesn't fit.
    """
    if mask_position not in ("after-norm", "filter"):
        raise ValueError(f"mask position '{mask_position}': choose after-norm or filter")
    mask = as_mask(network, mask)
    return MaskedNetwork(network, optimizer, propagate(network, mask), mask, mask_position)


def live_entries(
    network: Network, live: dict[str, Live], mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """{parameter or buffer: bool of its shape}, true where output and input channel are live.

    Where each weight has a mask of its own, it must be 1 too: that takes the flat mask.
    """
    entries = {}
    for name, node in network.nodes.items():
        state = node.state()
        for key, (first, last) in node.axes().items():
            if first == "entry":
                assert isinstance(node, Unit)
                own = None if mask is None else network.own(name, mask)
                sources = live[network.inputs[name][0]]
                entries[f"{name}.{key}"] = node.live_weights(sources, live[name], own)
                continue
            shape = state[key].shape
            entry = np.ones(shape, bool)
            if first == "out":
                entry &= live[name].reshape(-1, *([1] * (len(shape) - 1)))
            if last == "in":
                entry &= live[network.inputs[name][0]]
            entries[f"{name}.{key}"] = entry
    return entries


def _snapshot(optimizer: Optimizer) -> dict[tuple[str, str], np.ndarray]:
    copies = {}
    for name, parameter in optimizer.parameters.items():
        copies[name, ""] = parameter.data.copy()
        for key, array in optimizer.state[name].items():
            copies[name, key] = array.copy()
    return copies
