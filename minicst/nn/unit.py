"""The unit: the atom of every network."""

from __future__ import annotations

from typing import Any

import numpy as np

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.backend import Pattern, conv_output_size
from minicst.nn.layers import BatchNorm, Conv2d, Linear, SparseLinear
from minicst.nn.node import Axes, Context, Live, Node, Shape
from minicst.nn.noise import ChannelNoise


class Unit(Node):
    """Convolution or linear -> batch norm -> channel mask -> ReLU: the atom of every network.

    A linear unit may be masked weight by weight instead: its group then has one entry for each
    weight, row by row, and none for its neurons. A neuron is live where a live weight joins it to a
    live input, and reads only inputs that a live weight joins to it.

    Paper: Sec. 4.1, Discussion [fc-weights]
    Differs: the paper doesn't say what becomes of a neuron without live weights. Here it is absent,
        as a channel whose mask is 0; the network's output keeps all its neurons, of which one
        without live weights is its bias.

    Args:
        transform: Conv2d, Linear or SparseLinear.
        norm: BatchNorm, or None.
        relu: whether ReLU ends the unit.
        group: name of its maskable output channels; None: never masked (the classifier).
        members: which of the group's channels it writes; None: all.
        mask_on: "channels", or "weights" (linear units).

    Raises:
        ValueError: if such a unit can't be masked weight by weight.
    """

    kind = "unit"

    def __init__(
        self,
        transform: Conv2d | Linear | SparseLinear,
        norm: BatchNorm | None = None,
        relu: bool = False,
        group: str | None = None,
        members: list[int] | None = None,
        mask_on: str = "channels",
    ) -> None:
        if mask_on not in ("channels", "weights"):
            raise ValueError(f"mask_on '{mask_on}': choose channels or weights")
        if mask_on == "weights" and isinstance(transform, Conv2d):
            raise ValueError(
                "a convolution can't be masked weight by weight: only linear layers can, leave "
                "mask_on at channels"
            )
        if mask_on == "weights" and (group is None or members is not None):
            raise ValueError("a unit masked weight by weight has a group, all of it, to itself")
        if mask_on == "channels" and isinstance(transform, SparseLinear):
            raise ValueError("a sparse linear layer is masked weight by weight: mask_on weights")
        self.transform = transform
        self.norm = norm
        self.relu = relu
        self.group, self.members, self.mask_on = group, members, mask_on
        self.noise: ChannelNoise | None = None

    @property
    def is_conv(self) -> bool:
        """Whether the unit convolves (else it is linear)."""
        return isinstance(self.transform, Conv2d)

    def forward(self, name: str, inputs: list[Tensor], context: Context) -> Tensor:
        """Transform, normalize, mask, activate."""
        # Popped: without a tape the input is gone when the norm runs.
        if name in context.weights and not isinstance(self.transform, Conv2d):
            z = self.transform(inputs.pop(), context.weights[name])
        else:
            z = self.transform(inputs.pop())
        live = None
        if context.live is not None:
            live = z.backend.asarray(context.live[name], z.dtype)
            z = z * live
        if context.mask_position == "filter":
            live = None
        if self.norm is not None:
            fused = self.relu and self.noise is None
            # z is the unit's own: the transform made it.
            z = self.norm(z, context.training, context.track, fused, live, overwrite=True)
            if fused:
                return z
        if self.noise is not None:
            present = None if live is None or context.live is None else context.live[name]
            z = self.noise(z, context.step, present)
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
        if self.mask_on != "channels":
            config["mask_on"] = self.mask_on
        if isinstance(t, SparseLinear):
            config["pattern"] = t.pattern.text()
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
        mask_on: str = "channels",
        pattern: Pattern | str | None = None,
        rng: np.random.Generator | None = None,
    ) -> Unit:
        """Build a unit from sizes; kernel=None makes it linear. Arguments as config() gives.

        Raises:
            ValueError: if the arguments contradict each other.
        """
        if noise is not None and mask_on == "weights":
            raise ValueError("planted noise replaces maskable channels: mask_on must be channels")
        transform: Conv2d | Linear | SparseLinear
        if pattern is not None:
            if isinstance(pattern, str):
                pattern = Pattern.of_text((c_out, c_in), pattern)
            transform = SparseLinear(pattern, bias)
        elif kernel is None:
            transform = Linear(c_in, c_out, bias, rng)
        else:
            transform = Conv2d(c_in, c_out, kernel, stride, padding, bias, groups, rng)
        batch_norm = BatchNorm(c_out, momentum, eps) if norm else None
        unit = cls(transform, batch_norm, relu, group, members, mask_on)
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
            raise ValueError(
                f"reads {self.transform.c_in} channels and is given {channels}: one input of as "
                "many is needed"
            )
        return self.transform.c_out

    @property
    def is_depthwise(self) -> bool:
        """Whether every filter reads one channel, its own."""
        t = self.transform
        return isinstance(t, Conv2d) and t.groups > 1 and t.groups == t.c_in == t.c_out

    def alive(self, live_inputs: list[Live], mask: Live | None) -> Live:
        """All filters whose mask is 1, if anything live comes in."""
        if self.mask_on == "weights":
            every = np.ones(self.transform.c_out, bool)
            return self._joined(self.live_weights(live_inputs[0], every, mask), axis=0)
        own = np.ones(self.transform.c_out, bool) if mask is None else mask
        if self.is_depthwise:
            return own & live_inputs[0]
        return own & live_inputs[0].any()

    def readers(self, live_out: Live, mask: Live | None = None) -> list[Live]:
        """Every filter reads every input channel (a depthwise one its own)."""
        if self.mask_on == "weights":
            every = np.ones(self.transform.c_in, bool)
            return [self._joined(self.live_weights(every, live_out, mask), axis=1)]
        if self.is_depthwise:
            return [live_out]
        return [np.full(self.transform.c_in, live_out.any(), dtype=bool)]

    def revivable(self, live_inputs: list[Live]) -> Live:
        """Filters, if anything live comes in; or the weights that read something live."""
        if self.mask_on == "weights":
            every = np.ones(self.transform.c_out, bool)
            return self.live_weights(live_inputs[0], every).reshape(-1)
        return self.alive(live_inputs, None)

    def live_weights(self, live_in: Live, live_out: Live, mask: Live | None = None) -> np.ndarray:
        """Bool of the weight's shape: mask 1, input and neuron live (linear units)."""
        t = self.transform
        if isinstance(t, SparseLinear):
            live = live_out[t.pattern.rows] & live_in[t.pattern.columns]
        else:
            live = live_out[:, None] & live_in
        return live if mask is None else live & mask.reshape(live.shape)

    def _joined(self, live: np.ndarray, axis: int) -> Live:
        """Which neurons (axis 0) or inputs (axis 1) have a live weight; live as live_weights()."""
        t = self.transform
        if isinstance(t, SparseLinear):
            places = (t.pattern.rows, t.pattern.columns)[axis]
            return np.bincount(places[live], minlength=t.pattern.shape[axis]) > 0
        return np.asarray(live.any(axis=1 - axis))

    def narrow(
        self, keep_inputs: list[np.ndarray], keep_out: np.ndarray, mask: Live | None = None
    ) -> Unit:
        """Unit with the kept filters, reading the kept input channels.

        Masked weight by weight, its transform becomes sparse, but where no weight is absent.
        """
        config = self.config() | {"c_in": len(keep_inputs[0]), "c_out": len(keep_out)}
        if self.mask_on == "weights":
            config["pattern"] = self._pattern(keep_inputs[0], keep_out, mask)
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

    def _pattern(
        self, keep_in: np.ndarray, keep_out: np.ndarray, mask: Live | None
    ) -> Pattern | None:
        """Live weights between kept inputs and neurons; None: all of them."""
        t = self.transform
        live_in, live_out = np.zeros(t.c_in, bool), np.zeros(t.c_out, bool)
        live_in[keep_in] = live_out[keep_out] = True
        at = np.flatnonzero(self.live_weights(live_in, live_out, mask))
        if at.size == keep_in.size * keep_out.size:
            return None
        if isinstance(t, SparseLinear):
            rows, columns = t.pattern.rows[at], t.pattern.columns[at]
        else:
            rows, columns = np.divmod(at, t.c_in)
        per_row = np.bincount(rows, minlength=t.c_out)[keep_out]
        pointers = np.concatenate([[0], np.cumsum(per_row)])
        renumbered = np.cumsum(live_in) - 1  # place of each kept input
        return Pattern((keep_out.size, keep_in.size), pointers, renumbered[columns])

    def axes(self) -> dict[str, Axes]:
        """Weights run from input to output channels, the rest has one number an output channel."""
        weight: Axes = ("out", None if self.is_depthwise else "in")
        if self.mask_on == "weights":
            weight = ("entry", None)
        return {
            name: weight if name == "transform.weight" else ("out", None) for name in self.state()
        }

    def macs(
        self, in_shape: Shape, n_in: float, n_out: float, n_weights: float | None = None
    ) -> float:
        """Multiply-adds of one image's forward pass.

        Args:
            in_shape: of the input.
            n_in: live inputs.
            n_out: live filters.
            n_weights: live weights, where each has a mask of its own.
        """
        t = self.transform
        if n_weights is not None:
            return n_weights
        if not isinstance(t, Conv2d):
            return n_in * n_out
        oh, ow, _ = self.out_shape([in_shape])
        reads = 1 if self.is_depthwise else n_in / t.groups
        return oh * ow * t.kernel**2 * reads * n_out
