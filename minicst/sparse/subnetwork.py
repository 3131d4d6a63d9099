"""Cut and paste: the only place where a channel index touches weights or their state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import Backend, using
from minicst.nn import Network, Unit
from minicst.nn.node import Live
from minicst.optim import Optimizer
from minicst.sparse.blocks import Block, on, overlap, together
from minicst.sparse.liveness import as_mask, propagate


@dataclass
class Subnetwork:
    """A physically small network, and the way back into the full one.

    Attributes:
        network: an ordinary network of the live channels only.
        optimizer: the full network's optimizer on the small arrays, state included; or None.
        keep_index: {node: numbers of its live output channels in the full network}.
        mask: (n_maskable,) bool, the mask it was cut by.
        blocks: {parameter or buffer: its live entries, and the arrays they are moved between}.
    """

    network: Network
    optimizer: Optimizer | None
    keep_index: dict[str, np.ndarray]
    mask: np.ndarray
    _full: Network
    _full_optimizer: Optimizer | None
    blocks: dict[str, Block] = field(repr=False, default_factory=dict)
    _staged: list[Any] = field(repr=False, default_factory=list)  # a GPU may still read them
    _arrived: Any = field(repr=False, default=None)

    def __call__(self, x: Any, training: bool, track: bool = True, step: int = 0) -> Tensor:
        """Run the small network."""
        return self.network(x, training=training, track=track, step=step)

    def paste(self, hosted: list[list[Any]] | None = None) -> None:
        """Write weights, batch-norm state and optimizer state back to their live entries.

        Absent entries of the full network aren't touched: no decay, no momentum.

        Args:
            hosted: the numbers where the full network is, as hosted() gives them; None: hosted().
        """
        numbers = self.hosted() if hosted is None else hosted
        backend = self._full.backend
        blocks = list(self.blocks.values())

        def task(i: int) -> None:
            # On the CPU entries weigh twice the numbers themselves, so they are not kept.
            entries = backend.entries(blocks[i].shape, *blocks[i].places)
            for (full, _), small in zip(blocks[i].pairs, numbers[i], strict=True):
                backend.scatter(full, entries, small)

        self._share_out(task)
        if self.optimizer is not None and self._full_optimizer is not None:
            self._full_optimizer.steps = self.optimizer.steps

    def hosted(self, after: Any = None) -> list[list[Any]]:
        """Return all numbers where the full network is, by block: what paste() writes.

        Args:
            after: on a GPU, mark of the computation whose results they shall be; None: now.
        """
        pairs = [block.pairs for block in self.blocks.values()]
        flat = [small for of_block in pairs for _, small in of_block]
        device = self.network.backend
        if device is not self._full.backend:
            flat = device.download(flat, after)
        numbers = iter(flat)
        return [[next(numbers) for _ in of_block] for of_block in pairs]

    def arrive(self) -> None:
        """Let the computation wait for the copies of a sub-network that was cut ahead."""
        self.network.backend.wait_for(self._arrived)

    def take_over(self, other: Subnetwork) -> None:
        """Take what both have from another sub-network of the same network, state included.

        It has been trained since this one was cut, and isn't written back yet.
        """
        backend = self.network.backend
        shared = [
            (block, other.blocks[name], common)
            for name, block in self.blocks.items()
            if name in other.blocks
            if (common := overlap(block, other.blocks[name])) is not None
        ]
        places = together(
            backend, [at for *_, common in shared for at in (common.own, common.theirs)]
        )
        own_places, their_places = places[::2], places[1::2]
        for (block, theirs, common), own_at, their_at in zip(
            shared, own_places, their_places, strict=True
        ):
            for (_, small), (_, source) in zip(block.pairs, theirs.pairs, strict=False):
                own_shape, their_shape = block.of(small), theirs.of(source)
                moved = backend.xp.empty(common.shape(own_shape), small.dtype)
                backend.gather(source, backend.entries(their_shape, *their_at), moved)
                backend.scatter(small, backend.entries(own_shape, *own_at), moved)
        if self.optimizer is not None and other.optimizer is not None:
            self.optimizer.steps = other.optimizer.steps

    @property
    def nbytes(self) -> int:
        """Bytes that are moved between the full network and this one, one way."""
        return sum(small.nbytes for block in self.blocks.values() for _, small in block.pairs)

    def restore_all_but(self, parts: Sequence[Subnetwork]) -> None:
        """Take back from the full network what lies in none of these smaller sub-networks.

        The cut of two masks' union holds more than both cuts: weights from a channel of one to a
        channel of the other. No loss reached them, so no decay and no momentum may move them.
        """
        backend = self.network.backend
        for name, block in self.blocks.items():
            entries = backend.entries(block.shape, *block.places)
            blocks = [part.blocks[name] for part in parts if name in part.blocks]
            for full, small in block.pairs:
                kept = backend.xp.empty_like(small)
                backend.gather(full, entries, kept)
                for inner in blocks:
                    rows, columns = inner.inside(block)
                    inside = backend.entries(block.of(small), *on(backend, rows, columns))
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
                rows, columns = self.blocks[name].inside(larger.blocks[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            target = targets[name]
            if target.grad is None:
                target.grad = backend.xp.zeros_like(target.data)
            shape = larger.blocks[name].of(target.data)
            inside = backend.entries(shape, *on(backend, rows, columns))
            total = backend.xp.empty_like(parameter.data)
            backend.gather(target.grad, inside, total)
            total += parameter.grad
            backend.scatter(target.grad, inside, total)

    def _fill(self) -> None:
        """Pair up full and small arrays, and fetch the live entries."""
        full_state, small_state = self._full.state(), self.network.state()
        for name, block in self.blocks.items():
            block.pairs = [(full_state[name], small_state[name])]
            if self.optimizer is not None and name in self.optimizer.state:
                assert self._full_optimizer is not None
                block.pairs += [
                    (self._full_optimizer.state[name][key], array)
                    for key, array in self.optimizer.state[name].items()
                ]
        source, device = self._full.backend, self.network.backend
        blocks = list(self.blocks.values())

        def task(i: int) -> None:
            entries = source.entries(blocks[i].shape, *blocks[i].places)
            for full, small in blocks[i].pairs:
                staged = small if device is source else device.staging(small)
                source.gather(full, entries, staged)
                if staged is not small:
                    device.upload(staged, small)
                    self._staged.append(staged)

        self._share_out(task)
        self._arrived = device.copied()

    def _share_out(self, task: Callable[[int], None]) -> None:
        """Call task(i) for every block, on all threads of the full network's backend."""
        # The largest first: whoever is done early takes from the small ones.
        sizes = [-block.pairs[0][1].size for block in self.blocks.values()]
        order = np.argsort(sizes, kind="stable").tolist()
        self._full.backend.share_out(len(order), lambda i: task(order[i]), self.nbytes)


def cut(
    network: Network,
    mask: Any,
    optimizer: Optimizer | None = None,
    backend: Backend | None = None,
    ahead: Any = None,
) -> Subnetwork:
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
        backend: where the small network is to be; None: where the full one is.
        ahead: a mark (Backend.mark) after which memory may be reused: the numbers then are copied
            while something else is computed, and arrive() comes before the first use.

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
    device = network.backend if backend is None else backend
    if device is network.backend:
        return _filled(network, mask, optimizer, device, live, keep)
    with device.copying(device.mark() if ahead is None else ahead):
        sub = _filled(network, mask, optimizer, device, live, keep)
    if ahead is None:
        sub.arrive()
    return sub


def _filled(
    network: Network,
    mask: np.ndarray,
    optimizer: Optimizer | None,
    device: Backend,
    live: dict[str, Live],
    keep: dict[str, np.ndarray],
) -> Subnetwork:
    """Make the small network and its optimizer, and fetch their numbers."""
    with using(device):
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
        together(network.backend, [(block.rows, block.columns) for block in blocks.values()]),
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
