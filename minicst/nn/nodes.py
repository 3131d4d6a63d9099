"""The parts a network is wired from: unit, pooling, shortcut, add.

A node computes, and it also knows its structure. That knowledge is all that liveness, cut and
accounting use, so a new kind of node is one class:

    out_shape(shapes)               (h, w, c) of the output, or (c,) after global pooling
    alive(live_inputs, mask)        which output channels can carry something
    readers(live_out)               which input channels a node with these live outputs reads
    narrow(keep_inputs, keep_out)   the physically small node, its arrays still to be filled
    axes()                          for every array, whether its first and last axis run over
                                    output ("out") or input ("in") channels
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.backend import conv_output_size
from minicst.nn.layers import BatchNorm, Conv2d, Linear
from minicst.nn.module import Module
from minicst.randomness import rng_for

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
    """

    def __init__(
        self,
        training: bool = False,
        track: bool = True,
        live: dict[str, Live] | None = None,
        step: int = 0,
        mask_position: str = "after-norm",
    ) -> None:
        self.training = training
        self.track = track
        self.live = live
        self.step = step
        self.mask_position = mask_position


class Node(Module):
    """One node of a network.

    Attributes:
        group: names the maskable channels it writes, if it has any.
        members: which of the group's channels it writes; None: all, in order. In a cut network the
            nodes of one group may keep different channels, as a padded shortcut does.
    """

    kind: ClassVar[str] = ""
    group: str | None = None
    members: list[int] | None = None

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Compute the output."""
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

    def readers(self, live_out: Live) -> list[Live]:
        """For each input, which of its channels this node reads to make `live_out`.

        One entry stands for all inputs if they are read alike.
        """
        return [live_out]

    def narrow(self, keep_inputs: list[np.ndarray], keep_out: np.ndarray) -> Node:
        """Return the same kind of node for the kept channels (indices), arrays unfilled."""
        return type(self)(**self.config())

    def axes(self) -> dict[str, Axes]:
        """{array name: (kind of first axis, kind of last axis)}."""
        return {}


class Unit(Node):
    """Convolution or linear -> batch norm -> channel mask -> ReLU: the atom of every network.

    Args:
        transform: Conv2d or Linear.
        norm: BatchNorm, or None.
        relu: whether ReLU ends the unit.
        group: name of its maskable output channels; None: never masked (the classifier).
        members: which of the group's channels it writes; None: all.
    """

    kind = "unit"

    def __init__(
        self,
        transform: Conv2d | Linear,
        norm: BatchNorm | None = None,
        relu: bool = False,
        group: str | None = None,
        members: list[int] | None = None,
    ) -> None:
        self.transform = transform
        self.norm = norm
        self.relu = relu
        self.group, self.members = group, members
        self.noise: ChannelNoise | None = None

    @property
    def is_conv(self) -> bool:
        """Whether the unit convolves (else it is linear)."""
        return isinstance(self.transform, Conv2d)

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Transform, normalize, mask, activate."""
        z = self.transform(inputs[0])
        live = None
        if context.live is not None:
            live = context.live[name].astype(z.dtype)
            z = z * live
        if context.mask_position == "filter":
            live = None
        if self.norm is not None:
            fused = self.relu and self.noise is None
            z = self.norm(z, context.training, context.track, relu=fused, live=live)
            if fused:
                return z
        if self.noise is not None:
            z = self.noise(z, context.step, live)
        return F.relu(z) if self.relu else z

    def config(self) -> dict[str, Any]:
        """Sizes and options."""
        t = self.transform
        config: dict[str, Any] = {
            "c_in": t.c_in,
            "c_out": t.c_out,
            "bias": t.bias is not None,
            "norm": self.norm is not None,
            "relu": self.relu,
            "group": self.group,
            "members": self.members,
        }
        if isinstance(t, Conv2d):
            config |= {
                "kernel": t.kernel,
                "stride": t.stride,
                "padding": t.padding,
                "groups": t.groups,
            }
        if self.norm is not None:
            config |= {"momentum": self.norm.momentum, "eps": self.norm.eps}
        if self.noise is not None:
            config["noise"] = self.noise.config()
        return config

    @classmethod
    def create(
        cls,
        c_in: int,
        c_out: int,
        kernel: int | None = None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        relu: bool = True,
        group: str | None = None,
        members: list[int] | None = None,
        momentum: float = 0.1,
        eps: float = 1e-5,
        noise: dict[str, Any] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Unit:
        """Build a unit from sizes; kernel=None makes it linear. Arguments as config() gives."""
        transform: Conv2d | Linear
        if kernel is None:
            transform = Linear(c_in, c_out, bias, rng)
        else:
            transform = Conv2d(c_in, c_out, kernel, stride, padding, bias, groups, rng)
        batch_norm = BatchNorm(c_out, momentum, eps) if norm else None
        unit = cls(transform, batch_norm, relu, group, members)
        unit.noise = None if noise is None else ChannelNoise(**noise)
        return unit

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """(oh, ow, c_out), or (c_out,) if linear."""
        t = self.transform
        if not isinstance(t, Conv2d):
            return (t.c_out,)
        h, w, _ = shapes[0]
        oh, ow = (conv_output_size(size, t.kernel, t.stride, t.padding) for size in (h, w))
        return (oh, ow, t.c_out)

    def check(self, channels: list[int]) -> int:
        """c_out; the input must have c_in channels."""
        if channels != [self.transform.c_in]:
            raise ValueError(f"reads {self.transform.c_in} channels and is given {channels}")
        return self.transform.c_out

    @property
    def is_depthwise(self) -> bool:
        """Whether every filter reads one channel, its own."""
        t = self.transform
        return isinstance(t, Conv2d) and t.groups > 1 and t.groups == t.c_in == t.c_out

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """All filters whose mask is 1, if anything live comes in."""
        own = np.ones(self.transform.c_out, bool) if mask is None else mask
        if self.is_depthwise:
            return own & live_inputs[0]
        return own & live_inputs[0].any()

    def readers(self, live_out: Live) -> list[Live]:
        """Every filter reads every input channel (a depthwise one its own)."""
        if self.is_depthwise:
            return [live_out]
        return [np.full(self.transform.c_in, live_out.any(), dtype=bool)]

    def narrow(self, keep_inputs: list[np.ndarray], keep_out: np.ndarray) -> Unit:
        """Unit with the kept filters, reading the kept input channels."""
        config = self.config() | {"c_in": len(keep_inputs[0]), "c_out": len(keep_out)}
        if self.is_depthwise:
            config["groups"] = len(keep_out)
        elif config.get("groups", 1) > 1:
            raise ValueError(
                f"a convolution in {config['groups']} groups can't be cut by channel: only "
                "groups = 1 and depthwise (one group a channel) can"
            )
        if self.noise is not None:
            config["noise"] = self.noise.narrow(keep_out).config()
        return Unit.create(**config)

    def axes(self) -> dict[str, Axes]:
        """Weights run from input to output channels, the rest has one number an output channel."""
        weight: Axes = ("out", None if self.is_depthwise else "in")
        return {
            name: weight if name == "transform.weight" else ("out", None) for name in self.state()
        }

    def macs(self, in_shape: Shape, n_in: float, n_out: float) -> float:
        """Multiply-adds of one image's forward pass, n_in live inputs and n_out live filters."""
        t = self.transform
        if not isinstance(t, Conv2d):
            return n_in * n_out
        oh, ow, _ = self.out_shape([in_shape])
        reads = 1 if self.is_depthwise else n_in / t.groups
        return oh * ow * t.kernel**2 * reads * n_out


class ChannelNoise:
    """Planted structure: in some channels, batch norm's output is replaced by noise.

    The noise is N(0, 1), keyed by (seed, step, layer, channel): the same in both passes of a step,
    in the masked and in the cut form. No gradient passes a noisy channel.

    Args:
        seed: of the noise.
        layer: name that keys it.
        bad: (c,) bool, the noisy channels.
        channels: (c,) numbers of these channels in the full network.
    """

    def __init__(self, seed: int, layer: str, bad: Any, channels: Any) -> None:
        self.seed, self.layer = seed, layer
        self.bad, self.channels = np.asarray(bad, bool), np.asarray(channels, np.intp)

    def __call__(self, z: Tensor, step: int, live: np.ndarray | None) -> Tensor:
        """Replace the noisy channels of z (n, h, w, c); absent channels stay 0."""
        noise = np.zeros(z.shape, z.dtype)
        for i in np.flatnonzero(self.bad):
            if live is None or live[i]:
                rng = rng_for(self.seed, "noise", step, self.layer, int(self.channels[i]))
                noise[..., i] = rng.standard_normal(z.shape[:-1], np.float32)
        return z * (~self.bad).astype(z.dtype) + noise

    def narrow(self, keep: np.ndarray) -> ChannelNoise:
        """Return the same noise for the kept channels."""
        return ChannelNoise(self.seed, self.layer, self.bad[keep], self.channels[keep])

    def config(self) -> dict[str, Any]:
        """Arguments as plain data."""
        return {
            "seed": self.seed,
            "layer": self.layer,
            "bad": self.bad.tolist(),
            "channels": self.channels.tolist(),
        }


class Pool(Node):
    """Max or average pooling.

    Args:
        how: "max" or "avg".
        kernel: side of the window.
        stride: step between windows.
        padding: border on each side.
    """

    kind = "pool"

    def __init__(
        self, how: str = "max", kernel: int = 2, stride: int | None = None, padding: int = 0
    ) -> None:
        self.how, self.kernel, self.padding = how, kernel, padding
        self.stride = stride or kernel

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Pool."""
        pool = F.max_pool2d if self.how == "max" else F.avg_pool2d
        return pool(inputs[0], self.kernel, self.stride, self.padding)

    def config(self) -> dict[str, Any]:
        """Sizes."""
        return {
            "how": self.how,
            "kernel": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
        }

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """(oh, ow, c)."""
        h, w, c = shapes[0]
        oh, ow = (conv_output_size(s, self.kernel, self.stride, self.padding) for s in (h, w))
        return (oh, ow, c)


class GlobalPool(Node):
    """Mean over all pixels: (n, h, w, c) -> (n, c)."""

    kind = "global-pool"

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Pool."""
        return F.global_avg_pool2d(inputs[0])

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """(c,)."""
        return shapes[0][-1:]


class Flatten(Node):
    """(n, h, w, c) -> (n, h w c), pixel by pixel.

    Args:
        pixels: h w of the input.
    """

    kind = "flatten"

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Reshape."""
        return inputs[0].reshape(inputs[0].shape[0], -1)

    def config(self) -> dict[str, Any]:
        """Number of pixels."""
        return {"pixels": self.pixels}

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """(h w c,)."""
        return (int(np.prod(shapes[0])),)

    def check(self, channels: list[int]) -> int:
        """Channels times pixels."""
        return channels[0] * self.pixels

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """A channel's liveness at every pixel."""
        return np.tile(live_inputs[0], self.pixels)

    def readers(self, live_out: Live) -> list[Live]:
        """A channel is read if it is at any pixel."""
        return [np.asarray(live_out.reshape(self.pixels, -1).any(axis=0))]


class Shortcut(Node):
    """Option A shortcut: every stride-th pixel, the new channels are zero and come last.

    Source: He et al., "Deep Residual Learning" (2016), Sec. 3.3 (A); the paper doesn't say where
    the zero channels stand. Here channel j of the input is channel j of the output.

    Args:
        stride: step between pixels.
        channels: output channels.
        take: input channels that are used, by number (all by default).
        place: their numbers in the output (the first ones by default).
        group: with tied masks, the new stage's group, whose mask it takes.
        members: which of the group's channels it writes; None: all.
    """

    kind = "shortcut"

    def __init__(
        self,
        stride: int,
        channels: int,
        take: list[int],
        place: list[int],
        group: str | None = None,
        members: list[int] | None = None,
    ) -> None:
        self.stride, self.channels = stride, channels
        self.group, self.members = group, members
        self.take, self.place = take, place

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Subsample, pick, pad."""
        x = F.channel_slice(F.subsample(inputs[0], self.stride), self.take)
        x = F.channel_scatter(x, self.place, self.channels)
        if context.live is not None and self.group is not None:
            x = x * context.live[name].astype(x.dtype)
        return x

    def config(self) -> dict[str, Any]:
        """Sizes and places."""
        return {
            "stride": self.stride,
            "channels": self.channels,
            "take": list(self.take),
            "place": list(self.place),
            "group": self.group,
            "members": self.members,
        }

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """(ceil(h / stride), ceil(w / stride), channels)."""
        h, w, _ = shapes[0]
        return (-(-h // self.stride), -(-w // self.stride), self.channels)

    def check(self, channels: list[int]) -> int:
        """Output channels; every channel it takes must be there."""
        if self.take and max(self.take) >= channels[0]:
            raise ValueError(f"takes channel {max(self.take)} of an input with {channels[0]}")
        return self.channels

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """Where a live input channel is placed (and the tied mask is 1)."""
        out = np.zeros(self.channels, bool)
        out[self.place] = live_inputs[0][self.take]
        return out if mask is None else out & mask

    def readers(self, live_out: Live) -> list[Live]:
        """The input channels that are placed where something is live."""
        needed = np.zeros(max(self.take, default=-1) + 1, bool)
        needed[self.take] = live_out[self.place]
        return [needed]

    def narrow(self, keep_inputs: list[np.ndarray], keep_out: np.ndarray) -> Shortcut:
        """Only live channels are left, so nothing is padded."""
        position_in = {int(c): i for i, c in enumerate(keep_inputs[0])}
        position_out = {int(c): i for i, c in enumerate(keep_out)}
        pairs = [
            (position_in[t], position_out[p])
            for t, p in zip(self.take, self.place, strict=True)
            if t in position_in and p in position_out
        ]
        take, place = [t for t, _ in pairs], [p for _, p in pairs]
        return Shortcut(self.stride, len(keep_out), take, place, self.group)


class Add(Node):
    """Sum of streams, then ReLU if asked.

    In a cut network the streams may have different live channels: each is placed at its channels
    of the union.

    Args:
        channels: output channels.
        places: for each input the output channels it adds to; None: all, in order.
        relu: whether ReLU ends it.
    """

    kind = "add"

    def __init__(
        self, channels: int, places: list[list[int] | None] | None = None, relu: bool = True
    ) -> None:
        self.channels, self.relu = channels, relu
        self.places = places

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Place and sum."""
        places = self.places or [None] * len(inputs)
        streams = [
            x if place is None else F.channel_scatter(x, place, self.channels)
            for x, place in zip(inputs, places, strict=True)
        ]
        total = streams[0]
        for stream in streams[1:]:
            total = total + stream
        return F.relu(total) if self.relu else total

    def config(self) -> dict[str, Any]:
        """Sizes and places."""
        return {"channels": self.channels, "places": self.places, "relu": self.relu}

    def check(self, channels: list[int]) -> int:
        """Output channels; every input must have as many as its places."""
        places = self.places or [None] * len(channels)
        for c, place in zip(channels, places, strict=True):
            if c != (self.channels if place is None else len(place)):
                raise ValueError(f"adds streams of {channels} channels: they must be equal")
        return self.channels

    def out_shape(self, shapes: list[Shape]) -> Shape:
        """Pixels of the inputs, channels of the union."""
        if len({shape[:-1] for shape in shapes}) != 1:
            raise ValueError(f"adds streams of shapes {shapes}: their pixels must be the same")
        return (*shapes[0][:-1], self.channels)

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """Union of the live writers."""
        out = np.zeros(self.channels, bool)
        for live, place in zip(live_inputs, self.places or [None] * len(live_inputs), strict=True):
            if place is None:
                out |= live
            else:
                out[place] |= live
        return out

    def readers(self, live_out: Live) -> list[Live]:
        """Whatever is live is read from every input."""
        if self.places is None:
            return [live_out]
        return [live_out if place is None else live_out[place] for place in self.places]

    def narrow(self, keep_inputs: list[np.ndarray], keep_out: np.ndarray) -> Add:
        """Each input at its places of the union; inputs without live channels are left out."""
        places: list[list[int] | None] = []
        for i, keep in enumerate(keep_inputs):
            if keep.size == 0:
                continue
            own = self.places[i] if self.places else None
            full = keep if own is None else np.asarray(own)[keep]
            position = np.searchsorted(keep_out, full)
            whole = len(position) == len(keep_out)
            places.append(None if whole else position.tolist())
        all_whole = all(place is None for place in places)
        return Add(len(keep_out), None if all_whole else places, self.relu)


KINDS: dict[str, type[Node]] = {
    node.kind: node for node in (Unit, Pool, GlobalPool, Flatten, Shortcut, Add)
}


def build_node(kind: str, config: dict[str, Any]) -> Node:
    """Rebuild a node from its kind and config().

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == Unit.kind:
        return Unit.create(**config)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of node '{kind}': known are {', '.join(sorted(KINDS))}")
    return KINDS[kind](**config)
