"""A network: nodes in the order in which data walks through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import using
from minicst.nn.layers import BatchNorm
from minicst.nn.module import Module
from minicst.nn.node import Context, Live, Node, Shape
from minicst.nn.nodes import build_node
from minicst.nn.unit import Unit

INPUT = "input"


class Network(Module):
    """Nodes and their wiring. The last node added is the output.

    A cut network is an ordinary Network: it can be printed, counted, trained and saved.

    Args:
        name: of the architecture.
        in_channels: channels of the images.

    Attributes:
        nodes: {name: node} in topological order.
        inputs: {name: names of the nodes it reads}; "input" is the batch of images.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        self.name = name
        self.in_channels = in_channels
        self.nodes: dict[str, Node] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self._channels: dict[str, int] = {INPUT: in_channels}
        self._groups: dict[str, slice] | None = None

    def add(self, name: str, node: Node, *inputs: str) -> str:
        """Append a node that reads `inputs`; return its name.

        Raises:
            ValueError: if the name is taken, an input unknown, or channels don't fit.
        """
        if name in self._channels:
            raise ValueError(f"network {self.name} already has a node '{name}'")
        if not inputs:
            raise ValueError(f"node '{name}' reads nothing: name the nodes it reads, or '{INPUT}'")
        for read in inputs:
            if read not in self._channels:
                raise ValueError(f"node '{name}' reads '{read}', which isn't there (yet)")
        try:
            self._channels[name] = node.check([self._channels[read] for read in inputs])
        except ValueError as error:
            counts = ", ".join(f"{read} ({self._channels[read]} channels)" for read in inputs)
            raise ValueError(f"node '{name}' after {counts}: {error}") from None
        self.nodes[name] = node
        self.inputs[name] = inputs
        self._groups = None
        return name

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the nodes."""
        yield from self.nodes.items()

    @property
    def output(self) -> str:
        """Name of the last node."""
        return next(reversed(self.nodes))

    @property
    def num_classes(self) -> int:
        """Channels of the output."""
        return self._channels[self.output]

    def channels(self, name: str) -> int:
        """Channels of a node's output."""
        return self._channels[name]

    @property
    def groups(self) -> dict[str, slice]:
        """{group: its place in the flat mask}, in the order in which data meets the groups."""
        if self._groups is None:
            sizes: dict[str, int] = {}
            widest: dict[str, str] = {}
            by_weight = self.weight_units()
            for name, node in self.nodes.items():
                if node.group is not None:
                    size = self._channels[name] if node.members is None else max(node.members) + 1
                    if name in by_weight:
                        size = by_weight[name].transform.weight.size
                    if size > sizes.get(node.group, 0):
                        sizes[node.group], widest[node.group] = size, name
            for name, unit in by_weight.items():
                if sum(node.group == unit.group for node in self.nodes.values()) > 1:
                    raise ValueError(
                        f"node '{name}' is masked weight by weight: no other node can share its "
                        f"group '{unit.group}'"
                    )
            for name, node in self.nodes.items():
                if node.group is None or node.members is not None or name in by_weight:
                    continue
                if self._channels[name] != sizes[node.group]:
                    raise ValueError(
                        f"node '{name}' has {self._channels[name]} channels, node "
                        f"'{widest[node.group]}' of its group '{node.group}' has "
                        f"{sizes[node.group]}: nodes of one group share one mask; give them "
                        "as many channels, or groups of their own"
                    )
            ends = accumulate(sizes.values())
            self._groups = {
                group: slice(end - size, end)
                for (group, size), end in zip(sizes.items(), ends, strict=True)
            }
        return self._groups

    def own(self, name: str, flat: np.ndarray) -> np.ndarray | None:
        """Entries of a flat vector (mask, keep_prob) for a node's channels; None: no group.

        For a unit masked weight by weight they are its weights', row by row.
        """
        node = self.nodes[name]
        if node.group is None:
            return None
        entries = flat[self.groups[node.group]]
        return entries if node.members is None else entries[node.members]

    @property
    def n_maskable(self) -> int:
        """Number of maskable channels (or weights): the length of mask and keep_prob."""
        return max((place.stop for place in self.groups.values()), default=0)

    @property
    def maskable(self) -> str:
        """What the entries of a mask are: "channels", "weights" or "channels and weights"."""
        kinds = {node.mask_on for node in self.nodes.values() if node.group is not None}
        return " and ".join(sorted(kinds)) or "channels"

    def __call__(
        self,
        x: Any,
        training: bool = False,
        track: bool = True,
        live: dict[str, Live] | None = None,
        step: int = 0,
        mask_position: str = "after-norm",
        gate: Callable[[str, Tensor], Tensor] | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> Tensor:
        """Return the logits.

        Args:
            x: (n, h, w, in_channels), Tensor or array of the parameters' dtype.
            training: batch norm uses batch statistics, and moves the running ones if `track`.
            track: see there.
            live: live channels of every node, for the masked form.
            step: of training; keys planted noise.
            mask_position: for the masked form, see Context.
            gate: takes a node's name and output, returns what others read instead.
            weights: live weights of every unit masked weight by weight, for the masked form.

        Returns:
            (n, num_classes).
        """
        if live is not None and (missing := self.weight_units().keys() - (weights or {}).keys()):
            raise ValueError(
                f"unit '{min(missing)}' is masked weight by weight: the masked form needs its "
                "`weights` beside `live`, as masked(network, mask) gives them"
            )
        x = x if isinstance(x, Tensor) else Tensor(x, backend=self.backend)
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"network {self.name} takes images (n, h, w, {self.in_channels}), got {x.shape}"
            )
        context = Context(training, track, live, step, mask_position, weights)
        meter = x.backend.meter
        values = {INPUT: x}
        last_read = {read: name for name, reads in self.inputs.items() for read in reads}
        for name, node in self.nodes.items():
            meter.layer = name
            inputs = [values[read] for read in self.inputs[name]]
            for read in self.inputs[name]:
                if last_read[read] == name:  # only the node, and the tape if any, hold it now
                    values.pop(read, None)
            values[name] = node.forward(name, inputs, context)
            inputs.clear()
            if gate is not None:
                values[name] = gate(name, values[name])
        meter.layer = ""
        return values[self.output]

    def shapes(self, input_shape: Shape) -> dict[str, Shape]:
        """{node: shape of its output for one image}; input_shape is (h, w, c).

        Raises:
            ValueError: if the images don't fit; names the node.
        """
        if len(input_shape) != 3 or input_shape[2] != self.in_channels:
            raise ValueError(
                f"network {self.name} takes images (h, w, {self.in_channels}), "
                f"got {tuple(input_shape)}"
            )
        shapes: dict[str, Shape] = {INPUT: tuple(input_shape)}
        for name, node in self.nodes.items():
            try:
                shapes[name] = node.out_shape([shapes[read] for read in self.inputs[name]])
                wired = self._channels[name]
                if shapes[name][-1] != wired:
                    raise ValueError(f"gives {shapes[name][-1]} features where {wired} are wired")
            except ValueError as error:
                size = "x".join(map(str, input_shape))
                raise ValueError(
                    f"network {self.name} with {size} images: node '{name}' {error}"
                ) from None
        return shapes

    def units(self) -> dict[str, Unit]:
        """{name: unit} of the nodes that multiply."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, Unit)}

    def weight_units(self) -> dict[str, Unit]:
        """{name: unit} of the units masked weight by weight."""
        return {name: unit for name, unit in self.units().items() if unit.mask_on == "weights"}

    def norms(self) -> dict[str, BatchNorm]:
        """{name: batch norm} of the nodes that have one."""
        found = {name: getattr(node, "norm", None) for name, node in self.nodes.items()}
        return {name: norm for name, norm in found.items() if norm is not None}

    def spec(self) -> dict[str, Any]:
        """Everything but the arrays, as plain data: `from_spec` rebuilds the network."""
        return {
            "name": self.name,
            "in_channels": self.in_channels,
            "nodes": [
                {
                    "name": name,
                    "kind": node.kind,
                    "inputs": list(self.inputs[name]),
                    "config": node.config(),
                }
                for name, node in self.nodes.items()
            ],
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Network:
        """Rebuild a network from spec(), its arrays zero."""
        network = cls(spec["name"], spec["in_channels"])
        for node in spec["nodes"]:
            network.add(node["name"], build_node(node["kind"], node["config"]), *node["inputs"])
        return network

    def n_parameters(self) -> int:
        """Number of learned numbers."""
        return sum(parameter.size for parameter in self.parameters())

    def __repr__(self) -> str:
        lines = [f"Network {self.name}: {self.n_parameters():,} parameters"]
        for name, node in self.nodes.items():
            group = f", group {node.group}" if node.group else ""
            group += " of weights" if node.mask_on == "weights" else ""
            reads = ", ".join(self.inputs[name])
            channels = f"{self._channels[name]} channels{group}"
            lines.append(f"  {name}: {node.kind}, {channels} <- {reads}")
        return "\n".join(lines)


def clone(network: Network) -> Network:
    """Return an independent copy: same wiring, same values, same planted noise."""
    with using(network.backend):
        copy = Network.from_spec(network.spec())
    copy.astype(network.parameters()[0].dtype)
    copy.load_state(network.state())
    return copy
