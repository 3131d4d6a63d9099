"""Counts in expectation: what a vector of keep probabilities costs, and what reaches a share.

One multiply-add is 1 MAC. Exact counts of one mask are in `accounting`.
"""

from __future__ import annotations

import numpy as np

from minicst.nn import INPUT, Add, Network, Norm, Shortcut, SparseLinear, Unit
from minicst.nn.node import Shape
from minicst.sparse.accounting import unit_params


def expected_counts(
    network: Network, input_shape: Shape, keep_prob: np.ndarray
) -> tuple[float, float]:
    """Expected parameters, and multiply-adds of one image's forward pass, under independent masks.

    E[live inputs x live filters] of a unit is a product of two expectations, as no unit reads and
    writes one group (a depthwise unit: one expectation). A stream's channel is live with
    probability 1 - prod over its writers (1 - s), writers of one group counted once.

    A unit masked weight by weight costs sum over its weights of s_ji r_i n_j: r_i the probability
    that something live reaches input i, n_j that a live weight joins neuron j to something that
    reads on:

        r_j = 1 - prod_i (1 - s_ji r_i)        n_i = 1 - prod_j (1 - s_ji n_j)

    n_i also thins the channels of the units that such a unit reads, and of no other.

    Exact for layers of weights as long as the r of a unit's inputs, and the n of its neurons, are
    independent: in a chain of two hidden layers and a classifier they are. In longer chains they
    share masks further off, which is neglected, as is that the classifier (and its bias) goes when
    it has no live weight at all, and that a norm on a stream loses channels that nothing reads.

    For channels exact as long as no drawn group is empty. Empty groups (their repair, and what they
    silence) are neglected: with 16 channels at keep rate .125 an inner group is empty in 12 % of
    the draws, and the true value is that much smaller.

    Paper: Remark 1, in expectation [remark1]; Sec. 4.1, Discussion [fc-weights]

    Args:
        network: the full network.
        input_shape: (h, w, c) of an image.
        keep_prob: (n_maskable,) in [0, 1].

    Returns:
        ``(params, macs)``.

    Raises:
        ValueError: if the images don't fit, or keep_prob has another length.
    """
    if np.shape(keep_prob) != (network.n_maskable,):
        raise ValueError(
            f"keep_prob of shape {np.shape(keep_prob)}: network {network.name} has "
            f"{network.n_maskable} maskable {network.maskable}"
        )
    shapes = network.shapes(input_shape)
    params = macs = 0.0
    read = _read(network, np.asarray(keep_prob, float))
    # Probability that a channel is absent, by the groups that write it: {group: 1 - s}. Nodes
    # without a group count as one that is never absent.
    absent: dict[str, dict[str | None, np.ndarray]] = {INPUT: {None: np.zeros(network.in_channels)}}
    for name, node in network.nodes.items():
        reads = network.inputs[name]
        channels = network.channels(name)
        keep = network.own(name, keep_prob)
        if isinstance(node, Add):
            absent[name] = _merge(node, [absent[read] for read in reads])
        elif isinstance(node, Shortcut):
            come_in = {
                group: _place(gone[node.take], node.place, channels)
                for group, gone in absent[reads[0]].items()
            }
            absent[name] = _gate(node.group, keep, come_in)
        elif isinstance(node, Unit):
            n_weights = None
            if node.mask_on == "weights":
                assert keep is not None
                live = _by_weight(node, keep, reached=_live(absent[reads[0]]))
                gone = np.prod(1.0 - live, axis=1)
                if name == network.output:
                    gone[:] = 0.0
                absent[name] = {node.group: gone}
                n_weights = float(live.sum(axis=1) @ read[name])
            elif node.is_depthwise:
                absent[name] = _gate(node.group, keep, absent[reads[0]])
            else:
                gone = np.zeros(channels) if keep is None else 1.0 - keep
                absent[name] = {node.group: gone}
            n_in = float(_live(absent[reads[0]]).sum())
            n_out = float((_live(absent[name]) * read[name]).sum())
            macs += node.macs(shapes[reads[0]], n_in, n_out, n_weights)
            params += unit_params(node, n_in, n_out, n_weights)
        else:
            # Flattened channels come once for every pixel.
            absent[name] = {g: np.tile(p, channels // p.size) for g, p in absent[reads[0]].items()}
            if isinstance(node, Norm):
                params += 2 * float(_live(absent[name]).sum())
    return float(params), float(macs)


def expected_macs(network: Network, input_shape: Shape, keep_prob: np.ndarray) -> float:
    """Expected multiply-adds of one image's forward pass: see expected_counts."""
    return expected_counts(network, input_shape, keep_prob)[1]


def keep_rate_for(network: Network, input_shape: Shape, share: float, of: str = "macs") -> float:
    """Return the keep rate at which a share of the dense MACs, or parameters, is expected.

    Solves expected_counts(rho 1) = share x dense for rho; both counts rise with rho. Tables quote
    shares of MACs, Algorithm 1 takes rho.

    Args:
        network: any network with maskable channels.
        input_shape: (h, w, c) of an image.
        share: in (0, 1].
        of: "macs" or "params".

    Returns:
        rho in (0, 1], to 1e-12.

    Raises:
        ValueError: if the share isn't in (0, 1], the images don't fit, nothing is maskable, what is
            never masked is more than the share, or `of` is another count.
    """
    if of not in ("params", "macs"):
        raise ValueError(f"a share of '{of}': choose macs or params")
    which = ("params", "macs").index(of)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share of {share:g} of the {of}: it must be in (0, 1]")
    n = network.n_maskable
    if n == 0:
        raise ValueError(f"network {network.name} has no maskable channels: it is always dense")

    # Half of the time in which a command starts, if it were imported above.
    from scipy.optimize import brentq

    def count(rate: float) -> float:
        return expected_counts(network, input_shape, np.full(n, rate))[which]

    dense, least = count(1.0), count(1e-15)  # at 0 a bias is gone with its unit's inputs
    if share * dense <= least:
        raise ValueError(
            f"{share:.3%} of the {of} of {network.name}: what has no mask is {least / dense:.3%} "
            "already; ask for more"
        )
    if share == 1.0:
        return 1.0
    return float(brentq(lambda rate: count(rate) / dense - share, 1e-15, 1.0, xtol=1e-12))


def linear_macs_cost(network: Network, input_shape: Shape) -> tuple[np.ndarray, float]:
    """What a channel costs: multiply-adds of its filters, one image, all inputs live.

    costs_c = sum over the units that write channel c of oh ow kh kw c_in (a depthwise unit:
    oh ow kh kw). expected_macs is bilinear, live inputs times live filters; with every input live
    it becomes (a weight with a mask of its own costs 1)

        constant + sum_c costs_c s_c >= expected_macs(network, input_shape, s)

    Equal at s = 1, and a unit's share is equal wherever its inputs are all certain to be live: at a
    uniform s = rho the bound falls as rho where the expectation falls as rho^2.

    Differs: the paper's budget counts channels, whatever they cost.

    Args:
        network: any network.
        input_shape: (h, w, c) of an image.

    Returns:
        ``(costs, constant)``: float64 (n_maskable,), >= 0, and the multiply-adds of units without a
        group, such as the classifier. The sum of both is the dense count.

    Raises:
        ValueError: if the images don't fit.
    """
    shapes = network.shapes(input_shape)
    numbers = np.arange(network.n_maskable)
    costs, constant = np.zeros(numbers.size), 0.0
    for name, unit in network.units().items():
        source = network.inputs[name][0]
        c_in, c_out = network.channels(source), network.channels(name)
        own = network.own(name, numbers)
        if own is not None and unit.mask_on == "weights":
            costs[own] += 1.0
        elif own is None:
            constant += unit.macs(shapes[source], c_in, c_out)
        else:
            costs[own] += unit.macs(shapes[source], c_in, 1)
    return costs, float(constant)


def _merge(node: Add, streams: list[dict[str | None, np.ndarray]]) -> dict[str | None, np.ndarray]:
    """Absence, by group, of the sum of streams."""
    merged: dict[str | None, np.ndarray] = {}
    for stream, place in zip(streams, node.places or [None] * len(streams), strict=True):
        for group, gone in stream.items():
            gone = gone if place is None else _place(gone, place, node.channels)
            # One group's mask decides for all that it writes; a padded stream may reach fewer
            # channels than its group's other writers do.
            merged[group] = np.minimum(gone, merged.get(group, 1.0))
    return merged


def _gate(
    group: str | None, keep: np.ndarray | None, come_in: dict[str | None, np.ndarray]
) -> dict[str | None, np.ndarray]:
    """Absence behind a mask that passes on what comes in, channel by channel."""
    if keep is None:
        return come_in
    own = come_in.get(group, np.ones_like(keep)) < 1.0  # the same mask let it in
    others = np.prod([gone for g, gone in come_in.items() if g != group], axis=0)
    return {group: 1.0 - keep * np.where(own, 1.0, 1.0 - others)}


def _place(gone: np.ndarray, place: list[int], channels: int) -> np.ndarray:
    placed = np.ones(channels)
    placed[place] = gone
    return placed


def _live(absent: dict[str | None, np.ndarray]) -> np.ndarray:
    """Probability of each channel that any of the groups that write it has it."""
    return np.asarray(1.0 - np.prod(list(absent.values()), axis=0))


def _by_weight(
    unit: Unit,
    keep: np.ndarray,
    reached: np.ndarray | float = 1.0,
    read: np.ndarray | float = 1.0,
) -> np.ndarray:
    """(c_out, c_in): s_ji times `reached` (c_in,) and `read` (c_out,); 0 where no weight exists."""
    t = unit.transform
    s = np.zeros((t.c_out, t.c_in))
    if isinstance(t, SparseLinear):
        s[t.pattern.rows, t.pattern.columns] = keep
    else:
        s[...] = keep.reshape(s.shape)
    return s * reached * np.reshape(read, (-1, 1))


def _read(network: Network, keep_prob: np.ndarray) -> dict[str, np.ndarray]:
    """Probability that something reads on from a channel, were it live: 1 but for weight masks.

    That a unit whose channels have masks is empty, and reads nothing, is neglected.
    """
    # Probability that nothing does, over readers.
    unread = {name: np.ones(network.channels(name)) for name in (INPUT, *network.nodes)}
    unread[network.output][:] = 0.0
    for name in reversed(network.nodes):
        node, on = network.nodes[name], 1.0 - unread[name]
        for i, source in enumerate(network.inputs[name]):
            gone = unread[source]
            if isinstance(node, Add):
                place = node.places[i] if node.places else None
                gone *= unread[name] if place is None else unread[name][place]
            elif isinstance(node, Shortcut):
                gone[node.take] *= unread[name][node.place]
            elif isinstance(node, Unit) and node.mask_on == "weights":
                own = network.own(name, keep_prob)
                assert own is not None
                gone *= np.prod(1.0 - _by_weight(node, own, read=on), axis=0)
            elif isinstance(node, Unit) and not node.is_depthwise:
                gone[:] = 0.0
            else:  # a flattened channel is read at any of its pixels
                gone *= np.prod(unread[name].reshape(-1, gone.size), axis=0)
    return {name: 1.0 - gone for name, gone in unread.items()}
