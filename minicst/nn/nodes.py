"""The other parts a network is wired from: norm, pooling, flattening, shortcut, add."""

from __future__ import annotations

from typing import Any

import numpy as np

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.backend import conv_output_size
from minicst.nn.layers import BatchNorm
from minicst.nn.node import Axes, Context, Live, Node, Shape
from minicst.nn.unit import Unit


class Norm(Node):
    """Batch norm -> ReLU on a stream, before the convolutions that read it: "pre-activation".

    Batch norm turns a channel that is 0 everywhere into its beta. A dead stream channel therefore
    has to be absent behind the norm too: in the masked form the output is multiplied by the live
    indicator of the stream, in a cut network the channel isn't there.

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), Sec. 4.

    Args:
        channels: of the stream.
        momentum: of the running statistics.
        eps: added to the variance.
    """

    kind = "norm"

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        self.norm = BatchNorm(channels, momentum, eps)
        self.channels = channels

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Normalize, mask, clip."""
        x, live = inputs[0], None
        if context.live is not None and context.mask_position != "filter":
            live = x.backend.asarray(context.live[name], x.dtype)
        return self.norm(x, context.training, context.track, relu=True, live=live)

    def config(self) -> dict[str, Any]:
        """Size and batch norm's numbers."""
        norm = self.norm
        return {"channels": self.channels, "momentum": norm.momentum, "eps": norm.eps}

    def check(self, channels: list[int]) -> int:
        """Its channels; the stream must have as many."""
        if channels != [self.channels]:
            raise ValueError(
                f"normalizes {self.channels} channels and is given {channels}: they must be equal"
            )
        return self.channels

    def narrow(
        self, keep_inputs: list[np.ndarray], keep_out: np.ndarray, mask: Live | None = None
    ) -> Norm:
        """Batch norm of the live channels."""
        return Norm(**self.config() | {"channels": len(keep_out)})

    def axes(self) -> dict[str, Axes]:
        """One number a channel."""
        return dict.fromkeys(self.state(), ("out", None))


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

    def readers(self, live_out: Live, mask: Live | None = None) -> list[Live]:
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

    def readers(self, live_out: Live, mask: Live | None = None) -> list[Live]:
        """The input channels that are placed where something is live."""
        needed = np.zeros(max(self.take, default=-1) + 1, bool)
        needed[self.take] = live_out[self.place]
        return [needed]

    def narrow(
        self, keep_inputs: list[np.ndarray], keep_out: np.ndarray, mask: Live | None = None
    ) -> Shortcut:
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
        inputs.clear()
        streams.reverse()
        total = streams.pop()
        while len(streams) > 1:
            total = total + streams.pop()
        if not streams:
            return F.relu(total) if self.relu else total
        return (F.add_relu if self.relu else F.add)(total, streams.pop())

    def config(self) -> dict[str, Any]:
        """Sizes and places."""
        return {"channels": self.channels, "places": self.places, "relu": self.relu}

    def check(self, channels: list[int]) -> int:
        """Output channels; every input must have as many as its places."""
        places = self.places or [None] * len(channels)
        wanted = [self.channels if place is None else len(place) for place in places]
        if channels != wanted:
            raise ValueError(
                f"adds streams of {channels} channels to a sum of {self.channels}, at {wanted} of "
                "them: they must be equal"
            )
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

    def readers(self, live_out: Live, mask: Live | None = None) -> list[Live]:
        """Whatever is live is read from every input."""
        if self.places is None:
            return [live_out]
        return [live_out if place is None else live_out[place] for place in self.places]

    def narrow(
        self, keep_inputs: list[np.ndarray], keep_out: np.ndarray, mask: Live | None = None
    ) -> Add:
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
    node.kind: node for node in (Unit, Norm, Pool, GlobalPool, Flatten, Shortcut, Add)
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
