"""The unit, the atom of every network, and the noise that can be planted in it."""

from __future__ import annotations

from typing import Any

import numpy as np

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.backend import conv_output_size
from minicst.nn.layers import BatchNorm, Conv2d, Linear
from minicst.nn.node import Axes, Context, Live, Node, Shape
from minicst.randomness import rng_for


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
