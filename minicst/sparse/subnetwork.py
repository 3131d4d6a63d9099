"""Cut and paste: the only place where a channel index touches weights or their state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import Backend, using
from minicst.backend.base import Array
from minicst.nn import Network, Unit
from minicst.nn.node import Live
from minicst.optim import Optimizer
from minicst.sparse.liveness import as_mask, propagate


@dataclass
class Block:
    """The live entries of one parameter or buffer, with the arrays that they are moved between.

    Attributes:
        shape: of the full array.
        rows: numbers of its live rows (first axis), ascending; None: all. Where each weight has a
            mask of its own, the flat positions of the live ones.
        columns: of its live columns (last axis); None: all.
        places: rows and columns as arrays of the backend.
        pairs: (full array, small array) of its values and of each state of the optimizer.
    """

    shape: tuple[int, ...]
    rows: np.ndarray | None
    columns: np.ndarray | None
    places: tuple[Array | None, Array | None] = (None, None)
    pairs: list[tuple[Array, Array]] = field(default_factory=list)

    def of(self, small: Array) -> tuple[int, ...]:
        """Shape of a small array of this block as rows and columns count it."""
        return (small.size,) if len(self.shape) == 1 else tuple(small.shape)

    def inside(self, larger: Block) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Rows and columns of these entries in the small array of a block that contains them.

        Raises:
            ValueError: if it lacks one.
        """
        return (
            _positions(self.rows, larger.rows, self.shape[0]),
            _positions(self.columns, larger.columns, self.shape[-1]),
        )


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
        self._move("scatter")
        if self.optimizer is not None and self._full_optimizer is not None:
            self._full_optimizer.steps = self.optimizer.steps

    def restore_all_but(self, parts: Sequence[Subnetwork]) -> None:
        """Take back from the full network what lies in none of these smaller sub-networks.

        The cut of two masks' union holds more than both cuts: weights from a channel of one to a
        channel of the other. No loss reached them, so no decay and no momentum may move them.
        """
        backend = self.network.backend
        for name, block in self._blocks.items():
            entries = backend.entries(block.shape, *block.places)
            blocks = [part._blocks[name] for part in parts if name in part._blocks]
            for full, small in block.pairs:
                kept = backend.xp.empty_like(small)
                backend.gather(full, entries, kept)
                for inner in blocks:
                    rows, columns = inner.inside(block)
                    inside = backend.entries(block.of(small), *_on(backend, rows, columns))
                    moved = backend.xp.empty_like(inner.pairs[0][1])
                    backend.gather(small, inside, moved)
                    backend.scatter(kept, inside, moved)
                small[...] = kept

    def update(self) -> None:
        """Take an optimizer step on the small arrays."""
        assert self.optimizer is not None
        self.optimizer.step()

    def add_gradients_to(self, larger: Subnetwork) -> None:
        """Add the gradients to those of a sub-network of the same network that contains this one.

        Raises:
            ValueError: if `larger` lacks a live entry of this one.
        """
        backend = self.network.backend
        targets = dict(larger.network.named_parameters())
        for name, parameter in self.network.named_parameters():
            if parameter.grad is None:
                continue
            try:
                rows, columns = self._blocks[name].inside(larger._blocks[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            target = targets[name]
            if target.grad is None:
                target.grad = backend.xp.zeros_like(target.data)
            shape = larger._blocks[name].of(target.data)
            inside = backend.entries(shape, *_on(backend, rows, columns))
            total = backend.xp.empty_like(parameter.data)
            backend.gather(target.grad, inside, total)
            total += parameter.grad
            backend.scatter(target.grad, inside, total)

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
        self._move("gather")

    def _move(self, how: str) -> None:
        """Gather or scatter all state, on all threads."""
        backend = self._full.backend
        move = getattr(backend, how)
        # The largest first: whoever is done early takes from the small ones.
        blocks = sorted(self._blocks.values(), key=lambda block: -block.pairs[0][1].size)

        def task(i: int) -> None:
            # On the CPU these weigh twice the entries themselves, so they are not kept.
            entries = backend.entries(blocks[i].shape, *blocks[i].places)
            for full, small in blocks[i].pairs:
                move(full, entries, small)

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
    with using(network.backend):
        small, blocks = _narrow(network, mask, live, keep)
    dtype = network.parameters()[0].dtype
    if dtype != np.float32:
        small.astype(dtype)
    small_optimizer = None
    if optimizer is not None:
        small_optimizer = optimizer.like(dict(small.named_parameters()))
    sub = Subnetwork(small, small_optimizer, keep, mask, network, optimizer, blocks)
    sub._fill()
    return sub


def _narrow(
    network: Network, mask: np.ndarray, live: dict[str, Live], keep: dict[str, np.ndarray]
) -> tuple[Network, dict[str, Block]]:
    """Return the small network, still to be filled, and where its numbers are in the full one."""
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
        state = node.state()
        for key, (first, last) in node.axes().items():
            shape = tuple(state[key].shape)
            rows: np.ndarray | None = None
            columns: np.ndarray | None = None
            if first == "entry":
                assert isinstance(node, Unit)
                rows = np.flatnonzero(node.live_weights(live[reads[0]], live[name], own))
                shape = (state[key].size,)
            else:
                if first == "out":
                    rows = keep[name]
                if last == "in":
                    columns = keep_inputs[0]
            blocks[f"{name}.{key}"] = Block(shape, rows, columns)
    for block, places in zip(
        blocks.values(),
        _together(network.backend, [(block.rows, block.columns) for block in blocks.values()]),
        strict=True,
    ):
        block.places = places
    return small, blocks


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


def _positions(inner: np.ndarray | None, outer: np.ndarray | None, size: int) -> np.ndarray | None:
    """Where numbers `inner` stand among `outer`, both ascending; None: all of range(size)."""
    if outer is None:
        return inner
    numbers = np.arange(size) if inner is None else inner
    position = np.searchsorted(outer, numbers)
    if position.max(initial=-1) >= outer.size or (outer[position] != numbers).any():
        raise ValueError("the larger sub-network lacks live entries of this one")
    return position


def _on(
    backend: Backend, rows: np.ndarray | None, columns: np.ndarray | None
) -> tuple[Array | None, Array | None]:
    """Rows and columns as arrays of the backend."""
    return _together(backend, [(rows, columns)])[0]


def _together(
    backend: Backend, pairs: list[tuple[np.ndarray | None, np.ndarray | None]]
) -> list[tuple[Array | None, Array | None]]:
    """The same for many, each array once and all in one transfer."""
    arrays = {id(a): a for pair in pairs for a in pair if a is not None}
    places: dict[int, Array] = dict(
        zip(arrays, backend.indices(list(arrays.values())), strict=True)
    )
    return [(places.get(id(rows)), places.get(id(columns))) for rows, columns in pairs]
