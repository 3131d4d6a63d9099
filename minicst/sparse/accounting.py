"""Closed-form counts: parameters, multiply-adds, activations; dense and masked (see `expected`).

One multiply-add is 1 MAC; FLOPs = 2 x MACs. Convolutions and linear layers count, padding included.
`MacCount.executed` equals the meter to the integer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicst.backend import PASSES
from minicst.nn import INPUT, Add, Network, Norm, Pool, Unit
from minicst.nn.node import Live, Shape
from minicst.sparse.liveness import as_mask, propagate, reached

FLOAT_BYTES = 4  # float32


@dataclass(frozen=True)
class LayerCount:
    """Counts of one unit (convolution or linear) or norm for one image.

    Attributes:
        name: of the node.
        kind: "conv 3x3", "conv 3x3 / 2" (stride), "depthwise 3x3", "linear", "linear, by weight"
            (each weight has a mask), "norm".
        c_in: live input channels.
        c_out: live output channels.
        out_shape: (h, w) of the output; () if linear.
        params: live parameters, batch norm included.
        macs: multiply-adds of the forward pass.
        input_gradient: whether the backward pass goes on to its input.
    """

    name: str
    kind: str
    c_in: int
    c_out: int
    out_shape: Shape
    params: int
    macs: int
    input_gradient: bool


@dataclass(frozen=True)
class MacCount:
    """Counts of a network for one image.

    Attributes:
        layers: one entry a unit or norm, also where no channel is live.
        params: live parameters.
        macs: multiply-adds of the forward pass.
        activation_bytes: float32 activations that a training step holds at the end of its forward
            pass, for backward; per image.
    """

    layers: tuple[LayerCount, ...]
    params: int
    macs: int
    activation_bytes: int

    def executed(self, images: int, backward: bool) -> dict[str, dict[str, int]]:
        """{layer: {pass: MACs}} of one forward pass over `images`, and its backward pass.

        The weight gradient costs as much as the forward pass, the input gradient too, but for the
        layers that read the images.
        """
        table = {}
        for layer in self.layers:
            if layer.macs:
                n = layer.macs * images
                counts = (n, n * backward, n * (backward and layer.input_gradient))
                table[layer.name] = dict(zip(PASSES, counts, strict=True))
        return table


def count_macs(network: Network, input_shape: Shape, mask: np.ndarray | None = None) -> MacCount:
    """Count parameters, multiply-adds and activations by formula, for one image.

    macs(unit) = oh ow kh kw (live inputs) (live filters), or
                 the number of live weights where each has a mask of its own

    Paper: Remark 1, the cost falls to about rho^2 [remark1]; Sec. 4.1, Discussion [fc-weights]

    Args:
        network: any network, cut ones included.
        input_shape: (h, w, c) of an image.
        mask: (n_maskable,) 0/1, or None: dense.

    Raises:
        ValueError: if the images or the mask don't fit.
    """
    shapes = network.shapes(input_shape)
    flat = as_mask(network, mask)
    live = propagate(network, flat)
    n_live = {name: int(channels.sum()) for name, channels in live.items()}
    on_tape = _on_tape(network)
    layers = []
    for name, node in network.nodes.items():
        if not isinstance(node, (Unit, Norm)):
            continue
        source = network.inputs[name][0]
        n_in, n_out = n_live[source], n_live[name]
        if isinstance(node, Unit):
            n_weights = None
            if node.mask_on == "weights":
                own = network.own(name, flat)
                n_weights = int(node.live_weights(live[source], live[name], own).sum())
            kind, params = _kind(node), round(unit_params(node, n_in, n_out, n_weights))
            macs = round(node.macs(shapes[source], n_in, n_out, n_weights))
        else:
            kind, params, macs = "norm", 2 * n_out, 0
        out_shape = shapes[name][:-1]
        layers.append(LayerCount(name, kind, n_in, n_out, out_shape, params, macs, on_tape[source]))
    return MacCount(
        layers=tuple(layers),
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        activation_bytes=_activation_bytes(network, shapes, live, on_tape),
    )


def train_cost_saving(ratio: float, forwards: float = 2.0, backwards: float = 1.0) -> float:
    """Training-cost saving by the paper's formula, which counts backward as twice forward.

    (fD + 2 fD) / (forwards fS + 2 backwards fS); with 2 and 1 it is 3 / (4 fS / fD)

    Paper: App. C.1 [cost-ours]
    Differs: the released code runs two backward passes, 3 / (6 fS / fD).

    Args:
        ratio: fS / fD, mean over both forward passes and all steps; > 0.
        forwards: sparse forward passes a step.
        backwards: sparse backward passes a step.
    """
    return 3.0 / ((forwards + 2.0 * backwards) * ratio)


def grow_efficient_saving(ratio: float) -> float:
    """Saving of GrowEfficient: sparse forward, dense backward: 3 / (2 + fS / fD) < 3 / 2.

    Paper: App. C.1 [cost-grow]
    """
    return 3.0 / (2.0 + ratio)


def chain_rule_saving(keep_rate: float) -> float:
    """Largest saving of a chain-rule method by the paper: 3 / (2 + rho) < 3 / 2.

    Forward computes all filters from the live inputs, rho fD; backward is dense, 2 fD.

    Paper: Sec. 3 [sec3-cost]
    Differs: where m_c = 0 exactly, dL/dm_c still needs the channel's output and the gradient that
    arrives there, but m_c stops the gradient from going further. So with 0/1 masks rho fD would do
    for the input gradient and rho^2 fD for the weights', 3 / (2 rho + rho^2) in all: see
    chain_rule_macs. With soft masks nothing can be left out, and the saving is 1.

    Args:
        keep_rate: rho, in [0, 1].
    """
    return 3.0 / (2.0 + keep_rate)


def chain_rule_macs(
    network: Network,
    input_shape: Shape,
    mask: np.ndarray | None = None,
    images: int = 1,
    dense_backward: bool = True,
) -> dict[str, dict[str, int]]:
    """Least multiply-adds of a chain-rule step with 0/1 masks: {layer: {pass: MACs}}.

        forward            oh ow kh kw (live inputs) (all filters)
        weight gradient    oh ow kh kw (live inputs) (live filters)
        input gradient     oh ow kh kw (all inputs)  (live filters)

    dense_backward counts both gradients with all inputs and all filters instead, as the paper does.
    A layer that nothing live reaches costs nothing forward. `minicst train --method ste` executes
    the dense network, more than either.

    Paper: Sec. 3, forward rho at best, backward dense [sec3-cost]

    Args:
        network: the full network.
        input_shape: (h, w, c) of an image.
        mask: (n_maskable,) 0/1, or None: all ones.
        images: in the batch.
        dense_backward: see above.

    Raises:
        ValueError: if the images or the mask don't fit, or weights have masks of their own.
    """
    if by_weight := network.weight_units():
        raise ValueError(
            f"unit '{min(by_weight)}' is masked weight by weight: chain-rule methods mask channels"
        )
    shapes = network.shapes(input_shape)
    # Not what `propagate` says: every filter is computed, so every live channel is read.
    live = reached(network, as_mask(network, mask))
    table = {}
    on_tape = _on_tape(network)
    for name, unit in network.units().items():
        source = network.inputs[name][0]
        n_in, n_out = int(live[source].sum()), int(live[name].sum())
        every_in, every_out = unit.transform.c_in, unit.transform.c_out
        if unit.is_depthwise:  # a filter reads its own channel alone
            pairs = [(n_in, n_in), (n_out, n_out), (n_out, n_out)]
        else:
            pairs = [(n_in, every_out), (n_in, n_out), (every_in, n_out)]
        if dense_backward:
            pairs[1:] = [(every_in, every_out)] * 2
        counts = [images * round(unit.macs(shapes[source], *pair)) for pair in pairs]
        counts[2] *= on_tape[source]
        table[name] = dict(zip(PASSES, counts, strict=True))
    return table


def _kind(unit: Unit) -> str:
    t = unit.transform
    if not unit.is_conv:
        return "linear, by weight" if unit.mask_on == "weights" else "linear"
    name = "depthwise" if unit.is_depthwise else "conv"
    stride = f" / {t.stride}" if t.stride > 1 else ""  # type: ignore[union-attr]
    return f"{name} {t.kernel}x{t.kernel}{stride}"  # type: ignore[union-attr]


def unit_params(unit: Unit, n_in: float, n_out: float, n_weights: float | None = None) -> float:
    """Parameters of a unit with n_in live inputs and n_out live filters, batch norm included.

    n_weights: live weights, where each has a mask of its own.
    """
    t = unit.transform
    weights = t.weight.size * n_out / t.c_out
    if not unit.is_depthwise:
        weights *= n_in / t.c_in
    if n_weights is not None:
        weights = n_weights
    vectors = n_out * (2 * (unit.norm is not None) + (t.bias is not None))
    return weights + vectors if n_in else 0


def _on_tape(network: Network) -> dict[str, bool]:
    """Whether a node's output depends on parameters, so that backward reaches it."""
    on_tape = {INPUT: False}
    for name, node in network.nodes.items():
        reads = network.inputs[name]
        on_tape[name] = isinstance(node, (Unit, Norm)) or any(on_tape[read] for read in reads)
    return on_tape


def _activation_bytes(
    network: Network, shapes: dict[str, Shape], live: dict[str, Live], on_tape: dict[str, bool]
) -> int:
    """Sum over what the tape saves: inputs of products, of batch norm, results of ReLU, pool taps.

    A unit's input, batch norm's input (the convolution's output, or the stream) and ReLU's output
    are kept, each array once; max pooling keeps one byte a window.
    """

    def numbers(name: str) -> int:
        return int(np.prod(shapes[name][:-1], dtype=int)) * int(live[name].sum())

    kept: set[str] = set()
    total = 0
    for name, node in network.nodes.items():
        if not live[name].any():
            continue
        if isinstance(node, Unit):
            source = network.inputs[name][0]
            if on_tape[source]:
                kept.add(_storage(network, source))
            if node.norm is not None:
                total += FLOAT_BYTES * numbers(name)
        if isinstance(node, Norm):
            kept |= {_storage(network, network.inputs[name][0]), name}
        if isinstance(node, (Unit, Add)) and node.relu:
            kept.add(name)
        if isinstance(node, Pool) and node.how == "max" and on_tape[network.inputs[name][0]]:
            total += numbers(name)
    return total + FLOAT_BYTES * sum(numbers(name) for name in kept)


def _storage(network: Network, name: str) -> str:
    """The node whose output array `name` is a view of."""
    while network.nodes[name].kind == "flatten":
        name = network.inputs[name][0]
    return name
