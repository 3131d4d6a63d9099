"""`minicst graph`: a network as an SVG picture: units, groups, live counts of one mask.

What groups, unions at adds and dead stream channels mean is said in `minicst.models`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicst.checkpoint import write_text
from minicst.counts import NetworkSettings, network_and_shape
from minicst.graph_svg import Group, Part, picture
from minicst.nn import INPUT, Add, Network, Node, Pool, Shortcut, Unit
from minicst.nn.node import Live, Shape
from minicst.randomness import rng_for
from minicst.sparse.accounting import LayerCount, MacCount, count_macs
from minicst.sparse.liveness import propagate, repair
from minicst.sparse.masks import sample_mask


@dataclass(frozen=True)
class GraphSettings(NetworkSettings):
    """Draw a network as an SVG picture: units, groups of maskable channels, live counts."""

    keep_rate: float | None = None
    """Draw the network under one mask, sampled with this uniform keep probability, in (0, 1];
    without it, dense."""
    out: Path | None = None
    """File; NETWORK.svg in the working folder by default."""


def save_graph(settings: GraphSettings) -> Path:
    """Draw a network and write the picture; return its path. An older file stays whole until then.

    Raises:
        ValueError: if a setting is impossible or the file can't be written.
    """
    path = settings.out or Path(f"{settings.network}.svg")
    if path.is_dir():
        raise ValueError(f"--out {path}: is a directory; name a file, as {path / 'network.svg'}")
    write_text(path, draw(settings))
    return path


def draw(settings: GraphSettings) -> str:
    """Return the SVG of a network by name.

    Raises:
        ValueError: if a setting is impossible.
    """
    rate = settings.keep_rate
    if rate is not None and not 0.0 < rate <= 1.0:
        raise ValueError(f"keep rate {rate}: it is the share of channels that are kept, in (0, 1]")
    network, shape = network_and_shape(settings)
    mask, sampling = None, ""
    if rate is not None:
        keep_prob = np.full(network.n_maskable, rate)
        drawn = sample_mask(keep_prob, rng_for(settings.seed, "macs"))
        mask, _ = repair(network, drawn, keep_prob)
        sampling = f" sampled at keep rate {rate:g}, seed {settings.seed}"
    options = "" if settings.width == 1 else f", width {settings.width:g}"
    if any(isinstance(node, Add) for node in network.nodes.values()):
        options += f", {settings.residual} masks at residual adds"
    return draw_network(network, shape, mask, options, sampling)


def draw_network(
    network: Network,
    input_shape: Shape,
    mask: np.ndarray | None = None,
    options: str = "",
    sampling: str = "",
) -> str:
    """Return the SVG of any network of chains and residual blocks, cut ones included.

    Args:
        network: to draw.
        input_shape: (h, w, c) of an image.
        mask: (n_maskable,) 0/1; shows what is live under it. None: no live counts.
        options: goes on behind images and classes, in the line below the title.
        sampling: goes on behind "one mask".

    Raises:
        ValueError: if images or mask don't fit.
    """
    dense = count_macs(network, input_shape)
    live = None if mask is None else propagate(network, mask)
    sampled = None if mask is None else count_macs(network, input_shape, mask)
    h, w, c = input_shape
    lines = [
        f"images {c}x{h}x{w}, {network.num_classes} classes{options}",
        f"dense: {dense.params:,} parameters, {network.n_maskable:,} maskable {network.maskable}, "
        f"{dense.macs:,} forward MACs an image",
    ]
    if sampled is not None and mask is not None:
        kept = int(np.sum(mask))
        lines.append(
            f"one mask{sampling}: {sampled.params:,} parameters "
            f"({sampled.params / dense.params:.2%}), {kept:,} {network.maskable} "
            f"({kept / max(1, network.n_maskable):.2%}), {sampled.macs:,} MACs "
            f"({sampled.macs / dense.macs:.2%} of dense)"
        )
    parts = _parts(network, input_shape, mask, live, dense, sampled)
    legend = _legend(network, sampled is not None)
    return picture(network, parts, _groups(network, mask, live), network.name, lines, legend)


def _groups(network: Network, mask: np.ndarray | None, live: dict[str, Live] | None) -> list[Group]:
    """Groups in order: a channel is live where any node that the group masks has it live.

    A group of weights has as many live ones as join a live input to a live neuron.
    """
    nodes = defaultdict(list)
    for name, node in network.nodes.items():
        if node.group is not None:
            nodes[node.group].append(name)
    groups = []
    for group, place in network.groups.items():
        n_live, unit = None, network.weight_units().get(nodes[group][0])
        if live is not None and unit is not None:
            source = network.inputs[nodes[group][0]][0]
            own = None if mask is None else mask[place].astype(bool)
            n_live = int(unit.live_weights(live[source], live[nodes[group][0]], own).sum())
        elif live is not None:
            alive = np.zeros(place.stop - place.start, bool)
            for name in nodes[group]:
                members = network.nodes[name].members
                alive[slice(None) if members is None else members] |= live[name]
            n_live = int(alive.sum())
        groups.append(Group(group, place.stop - place.start, n_live, tuple(nodes[group])))
    return groups


def _parts(
    network: Network,
    shape: Shape,
    mask: np.ndarray | None,
    live: dict[str, Live] | None,
    dense: MacCount,
    sampled: MacCount | None,
) -> dict[str, Part]:
    """Say about every node what the picture shows."""
    shapes = network.shapes(shape)
    n_live = None if live is None else {name: int(on.sum()) for name, on in live.items()}
    full = {layer.name: layer for layer in dense.layers}
    small = {layer.name: layer for layer in sampled.layers} if sampled else {}
    masked = [node.group for node in network.nodes.values() if node.group is not None]
    parts = {}
    for name, total in ((name, network.channels(name)) for name in (INPUT, *network.nodes)):
        node = network.nodes.get(name)
        size = "x".join(map(str, shapes[name][:-1]))
        kind = "images" if node is None else _kind(node, full.get(name))
        count = f"{total}" if n_live is None else f"{n_live[name]} of {total}"
        details = [f"{name}: {kind}", f"output {size or 'a vector'}, {count} channels"]
        if n_live is not None:
            details[1] += " live"
        if node is not None and node.group is not None:
            details.append(f"group {node.group}, {masked.count(node.group)} layers")
            own = None if mask is None else network.own(name, mask)
            if own is not None:
                entries = "weights" if name in network.weight_units() else "channels"
                details[-1] += f"; its mask keeps {int(own.sum())} {entries} here"
        if name in full:
            details.append(_layer_details(full[name], small.get(name)))
        parts[name] = Part(
            name=name,
            what=f"{kind}, {size}" if size else kind,
            total=total,
            live=None if n_live is None else n_live[name],
            group=None if node is None else node.group,
            note=_note(network, name, masked, n_live),
            details="\n".join(details),
            joins=isinstance(node, Add),
        )
    return parts


def _kind(node: Node, layer: LayerCount | None) -> str:
    """Say in words what a node does."""
    if layer is not None and isinstance(node, Unit):
        return layer.kind
    if isinstance(node, Pool):
        step = "" if node.stride == node.kernel else f" / {node.stride}"
        return f"{node.how} pool {node.kernel}x{node.kernel}{step}"
    if isinstance(node, Add):
        return "add, ReLU" if node.relu else "add"
    if isinstance(node, Shortcut):
        return f"zero padding / {node.stride}"
    words = {"global-pool": "mean of all pixels", "norm": "batch norm, ReLU"}
    return words.get(node.kind, node.kind)


def _note(network: Network, name: str, masked: list[str], n_live: dict[str, int] | None) -> str:
    """Return the last line of a box: its group, what an add joins, what a norm keeps out."""
    node = network.nodes.get(name)
    if node is None:
        return ""
    if node.group is not None:
        if name in network.weight_units():
            return "a mask for every weight"
        n = masked.count(node.group)
        if n > 1:
            return f"group {node.group}, one mask for {n}"
        return "group of its own" if node.group == name else f"group of its own: {node.group}"
    if isinstance(node, Unit):
        return "never masked"
    if n_live is not None and isinstance(node, Add):
        return "union of " + " and ".join(str(n_live[read]) for read in network.inputs[name])
    if n_live is not None and node.kind == "norm":
        return "a dead channel stays absent"
    return ""


def _layer_details(full: LayerCount, small: LayerCount | None) -> str:
    text = (
        f"{full.c_in} input channels; dense: {full.params:,} parameters, "
        f"{full.macs:,} MACs an image"
    )
    if small is None:
        return text
    return (
        f"{text}\nunder the mask: {small.c_in} input channels, {small.params:,} parameters, "
        f"{small.macs:,} MACs ({small.macs / max(1, full.macs):.2%})"
    )


def _legend(network: Network, sampled: bool) -> list[str]:
    """Return sentences that explain what the picture of this network holds."""
    nodes = network.nodes.values()
    count = "live/all channels of its output" if sampled else "channels of its output"
    sentences = [
        f"A box is a layer: name; kind, size and {count}{'; bar: the live share' * sampled}. "
        "Exact numbers show where the pointer rests.",
        "A color is a group: layers of one color share one mask, channel by channel. Grey: "
        "no mask of its own.",
    ]
    if any(isinstance(node, Add) for node in nodes):
        union = ": a channel is live where it is in any stream" if sampled else ""
        sentences.append(
            f"Straight down runs the stream; branches come back to it at an add{union}."
        )
    if sampled:
        sentences.append('Dashed and "empty": no channel is live, nothing is computed.')
        if any(node.kind == "norm" for node in nodes):
            sentences.append(
                "A batch norm ahead of a convolution keeps a dead channel of the stream absent: "
                "its beta doesn't revive it."
            )
    sentences.append(
        "1 multiply-add = 1 MAC. Convolution and linear layers count, padding included."
    )
    return sentences
