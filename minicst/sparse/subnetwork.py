"""Cut and paste: the only place where a channel index touches weights or their state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import Backend
from minicst.nn import Network, Unit
from minicst.optim import Optimizer
from minicst.sparse.liveness import as_mask, propagate


class Block:
    """The live entries of one parameter or buffer, with the arrays that they are moved between.

    Attributes:
        build: makes the flat positions of the live entries in the full arrays. They weigh twice the
            entries themselves, so they are not kept.
        pairs: (full array, small array) of its values and of each state of the optimizer.
    """

    def __init__(self, build: Callable[[], np.ndarray]) -> None:
        self.build = build
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []


@dataclass
class Subnetwork:
    """A physically small network, and the way back into the full one.

    Attributes:
        network: an ordinary network of the live channels only.
        optimizer: the full network's optimizer on the small arrays, state included; or None.
        keep_index: {node: numbers of its live output channels in the full network}.
        mask: (n_maskable,) bool, the mask it was cut by.
    """

    network: Network
    optimizer: Optimizer | None
    keep_index: dict[str, np.ndarray]
    mask: np.ndarray
    _full: Network
    _full_optimizer: Optimizer | None
    _blocks: dict[str, Block] = field(repr=False, default_factory=dict)

    def __call__(self, x: Any, training: bool, track: bool = True, step: int = 0) -> Tensor:
        """Run the small network."""
        return self.network(x, training=training, track=track, step=step)

    def paste(self) -> None:
        """Write weights, batch-norm state and optimizer state back to their live entries.

        Absent entries of the full network aren't touched: no decay, no momentum.
        """
        self._move(lambda backend, full, index, small: backend.scatter(full, index, small))
        if self.optimizer is not None and self._full_optimizer is not None:
            self._full_optimizer.steps = self.optimizer.steps

    def restore_all_but(self, parts: Sequence[Subnetwork]) -> None:
        """Take back from the full network what lies in none of these smaller sub-networks.

        The cut of two masks' union holds more than both cuts: weights from a channel of one to a
        channel of the other. No loss reached them, so no decay and no momentum may move them.
        """
        for name, block in self._blocks.items():
            index = block.build()
            inside = [part._blocks[name].build() for part in parts if name in part._blocks]
            outside = ~np.isin(index, np.concatenate([*inside, index[:0]]))
            for full, small in block.pairs:
                small.reshape(-1)[outside] = full.reshape(-1)[index[outside]]

    def update(self) -> None:
        """Take an optimizer step on the small arrays."""
        assert self.optimizer is not None
        self.optimizer.step()

    def add_gradients_to(self, larger: Subnetwork) -> None:
        """Add the gradients to those of a sub-network of the same network that contains this one.

        Raises:
            ValueError: if `larger` lacks a live entry of this one.
        """
        targets = dict(larger.network.named_parameters())
        for name, parameter in self.network.named_parameters():
            if parameter.grad is None:
                continue
            into, block = larger._blocks[name].build(), self._blocks[name].build()
            position = np.searchsorted(into, block)  # both are in ascending order
            if position.max(initial=-1) >= into.size or (into[position] != block).any():
                raise ValueError(f"{name}: the larger sub-network lacks live entries of this one")
            target = targets[name]
            if target.grad is None:
                target.grad = np.zeros_like(target.data)
            target.grad.reshape(-1)[position] += parameter.grad.reshape(-1)

    def _fill(self) -> None:
        """Pair up full and small arrays, and fetch the live entries."""
        full_state, small_state = self._full.state(), self.network.state()
        for name, block in self._blocks.items():
            block.pairs = [(full_state[name], small_state[name])]
            if self.optimizer is not None and name in self.optimizer.state:
                assert self._full_optimizer is not None
                block.pairs += [
                    (self._full_optimizer.state[name][key], array)
                    for key, array in self.optimizer.state[name].items()
                ]
        self._move(lambda backend, full, index, small: backend.gather(full, index, small))

    def _move(self, move: Callable[[Backend, np.ndarray, np.ndarray, np.ndarray], None]) -> None:
        """Call move(backend, full array, index, small array) for all state, on all threads."""
        backend = self._full.parameters()[0].backend
        # The largest first: whoever is done early takes from the small ones.
        blocks = sorted(self._blocks.values(), key=lambda block: -block.pairs[0][1].size)

        def task(i: int) -> None:
            index = blocks[i].build()
            for full, small in blocks[i].pairs:
                move(backend, full, index, small)

        n_bytes = sum(small.nbytes for block in blocks for _, small in block.pairs)
        backend.share_out(len(blocks), task, n_bytes)


def cut(network: Network, mask: Any, optimizer: Optimizer | None = None) -> Subnetwork:
    """Return the physically small network of a mask.

    Live channel indices walk through the network as data does. The small network computes what the
    masked one does, to rounding: outputs, gradients, and updated weights, momentum and batch-norm
    state at live entries.

    A unit masked weight by weight becomes sparse: only live weights exist there.

    Paper: Remark 1 [remark1], Sec. 4.2.1: no gradient for [sec421-w] and no error through
    [sec421-x] a pruned channel; Sec. 4.1, Discussion [fc-weights]

    Args:
        network: the full network; it isn't changed before paste().
        mask: (n_maskable,) 0/1.
        optimizer: the full network's; its state is cut alike.

    Returns:
        Subnetwork(.network, .optimizer, .keep_index, .paste()).

    Raises:
        ValueError: if the mask doesn't fit the network, or lets nothing reach the output.
    """
    mask = as_mask(network, mask)
    live = propagate(network, mask)
    if not live[network.output].all():
        raise ValueError(
            f"this mask lets nothing reach the output of network {network.name}: a group that "
            "every path passes is empty; repair(network, mask, keep_prob) keeps its most "
            "probable channel"
        )
    keep = {name: np.flatnonzero(channels) for name, channels in live.items()}
    members = _members(network, keep)
    small = Network(network.name, network.in_channels)
    blocks: dict[str, Block] = {}
    for name, node in network.nodes.items():
        if keep[name].size == 0:
            continue
        reads = network.inputs[name]
        keep_inputs = [keep[read] for read in reads]
        own = network.own(name, mask)
        narrow = node.narrow(keep_inputs, keep[name], own)
        narrow.members = members.get(name)
        small.add(name, narrow, *(read for read in reads if keep[read].size))
        full_state = node.state()
        for key, (first, last) in node.axes().items():
            if first == "entry":
                assert isinstance(node, Unit)
                entries = node.live_weights(live[reads[0]], live[name], own)
                build = partial(np.flatnonzero, entries)
                blocks[f"{name}.{key}"] = Block(build)
                continue
            shape = full_state[key].shape
            rows = keep[name] if first == "out" else None
            columns = keep_inputs[0] if last == "in" else None
            build = partial(_flat_index, shape, rows, columns)
            blocks[f"{name}.{key}"] = Block(build)
    dtype = network.parameters()[0].dtype
    if dtype != np.float32:
        small.astype(dtype)
    small_optimizer = None
    if optimizer is not None:
        small_optimizer = optimizer.like(dict(small.named_parameters()))
    sub = Subnetwork(small, small_optimizer, keep, mask, network, optimizer, blocks)
    sub._fill()
    return sub


def _members(network: Network, keep: dict[str, np.ndarray]) -> dict[str, list[int] | None]:
    """{node: its places in what is left of its group}, None where it writes all of that.

    Nodes of one group may keep different channels: a padded shortcut lacks the new ones, and the
    last writer of a stream those that nothing reads any more. A group of weights has one node.
    """
    numbers = np.arange(network.n_maskable)
    kept: dict[str, dict[str, np.ndarray]] = {}
    for name, node in network.nodes.items():
        if node.mask_on == "weights":
            continue
        own = network.own(name, numbers)
        if node.group is not None and own is not None and keep[name].size:
            kept.setdefault(node.group, {})[name] = own[keep[name]]
    members: dict[str, list[int] | None] = {}
    for nodes in kept.values():
        union = np.unique(np.concatenate(list(nodes.values())))
        for name, own in nodes.items():
            whole = own.size == union.size
            members[name] = None if whole else np.searchsorted(union, own).tolist()
    return members


def _flat_index(
    shape: tuple[int, ...], rows: np.ndarray | None, columns: np.ndarray | None
) -> np.ndarray:
    """Flat positions, in a C-contiguous array, of rows (first axis) and columns (last axis)."""
    row_size = prod(shape[1:])
    index = (np.arange(shape[0]) if rows is None else rows) * row_size
    if row_size == 1:
        return index
    if columns is None:
        return (index[:, None] + np.arange(row_size)).reshape(-1)
    taps = np.arange(0, row_size, shape[-1])  # kh * kw window positions
    within = (taps[:, None] + columns).reshape(-1)
    return (index[:, None] + within).reshape(-1)
