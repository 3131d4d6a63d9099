"""Which channels of a network are live under a mask, and the repair of a mask that kills it.

No live input means no live output; no live reader means not live. Both are decided before a single
number is computed.
"""

from __future__ import annotations

from itertools import repeat
from weakref import WeakKeyDictionary

import numpy as np

from minicst.nn import INPUT, Add, Network, Unit
from minicst.nn.node import Live


def propagate(network: Network, mask: np.ndarray | None) -> dict[str, Live]:
    """Return the live output channels of every node.

    Forward: a filter is live if its mask is 1 and something live comes in; a stream's channel is
    live where any of its writers is. Backward: what no live node reads is not live; a pool, an add
    or a shortcut has the channels of its inputs as long as any is read. Of a unit masked weight by
    weight, a neuron is live if a live weight joins it to something live, and an input is read if
    one joins it to a live neuron; the network's output keeps all its neurons if any has one.

    Paper: Sec. 4.2.1, nothing passes a pruned channel [sec421-x]; Sec. 4.1, Discussion [fc-weights]

    Args:
        network: any network.
        mask: (n_maskable,) 0/1, or None: all ones.

    Returns:
        {node: bool (channels,)}, with "input".

    Raises:
        ValueError: if the mask has another length or other values.
    """
    mask = as_mask(network, mask)
    live = reached(network, mask)
    needed = {name: np.zeros(channels.size, bool) for name, channels in live.items()}
    needed[network.output][:] = True
    for name in reversed(network.nodes):
        live[name] = live[name] & needed[name]
        reads = network.nodes[name].readers(live[name], network.own(name, mask))
        wanted = reads if len(reads) > 1 else repeat(reads[0])
        for source, channels in zip(network.inputs[name], wanted, strict=False):
            needed[source][: channels.size] |= channels
    # What passes channels on has those of its inputs: another reader may need more of an input
    # than this node's readers do, and an add or a pool drops no channel.
    for name, node in network.nodes.items():
        if live[name].any() and not isinstance(node, Unit):
            reads = [live[read] for read in network.inputs[name]]
            live[name] = node.alive(reads, network.own(name, mask))
    return live


def as_mask(network: Network, mask: np.ndarray | None) -> np.ndarray:
    """Return the mask as bool (n_maskable,), all ones for None.

    Raises:
        ValueError: if it has another length or values other than 0 and 1.
    """
    n = network.n_maskable
    if mask is None:
        return np.ones(n, bool)
    mask = np.asarray(mask)
    if mask.shape != (n,):
        raise ValueError(
            f"mask of shape {mask.shape}: network {network.name} has {n} maskable "
            f"{network.maskable}, "
            f"so the mask must have shape ({n},)"
        )
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError("a mask holds only 0 and 1: draw it with sample_mask(keep_prob, rng)")
    return mask.astype(bool, copy=False)


def repair(network: Network, mask: np.ndarray, keep_prob: np.ndarray) -> tuple[np.ndarray, int]:
    """Return a mask under which data reaches the output, and the number of channels switched on.

    Where the mask leaves a node empty without which nothing reaches the output, the most probable
    channel (or weight, of those that read something live) is kept. In a residual branch empty is
    allowed: the branch then adds nothing. At an add with nothing live the shortcut is revived.

    The score function takes the *drawn* mask: then the estimators stay unbiased, for the expected
    loss of the repaired network. Differs: paper and released code don't treat this case.

    Args:
        network: any network.
        mask: (n_maskable,) bool, as drawn.
        keep_prob: (n_maskable,), decides which channel of an empty group is kept.

    Returns:
        The mask to use (the same array if nothing was empty), and how many channels were added.
    """
    used = as_mask(network, mask)
    repaired = 0
    while True:
        live = reached(network, used)
        dead = next((name for name in spine(network) if not live[name].any()), None)
        if dead is None:
            return used, repaired
        used = used.copy()
        added = _revive(network, dead, used, keep_prob)
        if added == 0:  # in a cut network a shortcut may have no place for what comes in
            absent = np.flatnonzero(~used)
            used[absent[np.argmax(keep_prob[absent])]] = True
            added = 1
        repaired += added


def spine(network: Network) -> tuple[str, ...]:
    """Names of the nodes that every path from the images to the output passes, in order."""
    n_nodes, known = _spines.get(network, (0, ()))
    if n_nodes != len(network.nodes):  # new, or grown since
        known = tuple(name for name in network.nodes if _output_dies(network, name))
        _spines[network] = len(network.nodes), known
    return known


_spines: WeakKeyDictionary[Network, tuple[int, tuple[str, ...]]] = WeakKeyDictionary()


def minimum_live(network: Network) -> int:
    """Fewest entries under which data reaches the output: one a group on the shortest path."""
    passed: dict[str, frozenset[str]] = {INPUT: frozenset()}
    for name, node in network.nodes.items():
        shortest = min((passed[read] for read in network.inputs[name]), key=len)
        passed[name] = shortest if node.group is None else shortest | {node.group}
    return len(passed[network.output])


def _output_dies(network: Network, without: str) -> bool:
    reached = {INPUT}
    for name, reads in network.inputs.items():
        if name != without and reached.intersection(reads):
            reached.add(name)
    return network.output not in reached


def reached(network: Network, mask: np.ndarray) -> dict[str, Live]:
    """Return the channels of every node that data reaches, read by anything or not.

    The forward half of ``propagate``: {node: bool (channels,)}, with "input".
    """
    live: dict[str, Live] = {INPUT: np.ones(network.in_channels, bool)}
    for name, node in network.nodes.items():
        live[name] = node.alive(
            [live[read] for read in network.inputs[name]], network.own(name, mask)
        )
        if node.mask_on == "weights" and name == network.output:
            live[name][:] = live[name].any()  # a class without live weights is its bias
    return live


def _revive(network: Network, name: str, mask: np.ndarray, keep_prob: np.ndarray) -> int:
    """Switch on the channels that make node `name` live; return how many."""
    node = network.nodes[name]
    reads = network.inputs[name]
    if isinstance(node, Add):
        return _revive(network, reads[-1], mask, keep_prob)  # the shortcut is the last input
    added = 0
    if reads[0] != INPUT and not reached(network, mask)[reads[0]].any():
        added = _revive(network, reads[0], mask, keep_prob)
    own, numbers = network.own(name, mask), network.own(name, np.arange(mask.size))
    if own is not None and numbers is not None:
        live_inputs = [reached(network, mask)[read] for read in reads]
        possible = node.revivable(live_inputs)
        if possible.any() and not (possible & own).any():
            best = np.argmax(np.where(possible, keep_prob[numbers], -1.0))
            mask[numbers[best]] = True
            added += 1
    return added
