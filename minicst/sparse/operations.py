"""The operations of a forward pass, with the bytes that each makes, saves and needs beside.

Sizes follow from a network, the shape of its images and a mask. What the backend takes for itself
(columns, padded images, partial sums) follows its own rules: change both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from minicst.backend.chunks import COLUMN_BYTES, STREAM_BYTES, split
from minicst.backend.convolution import BIG_WEIGHT_BYTES, MIN_CHUNKS
from minicst.backend.depthwise import BAND_BYTES, MIN_BANDS
from minicst.backend.pool import INLINE_BYTES
from minicst.backend.products import SMALL_PRODUCT, SUM_ROWS
from minicst.nn import (
    INPUT,
    Add,
    Conv2d,
    GlobalPool,
    Network,
    Norm,
    Pool,
    Shortcut,
    SparseLinear,
    Unit,
)
from minicst.nn.node import Node, Shape
from minicst.sparse.liveness import as_mask, propagate

FLOAT_BYTES = 4  # float32
INDEX_BYTES = 8  # a channel's number
PLACE_BYTES = 4  # a row's or column's, in a sparse matrix
LOSS_BYTES = 8  # the loss and softmax - target are float64

Buffer = tuple[str, int, int]  # a workspace: tag, bytes in a thread, threads that use it
Buffers = tuple[Buffer, ...]


@dataclass
class Operation:
    """One operation; arrays are numbers of Pass.sizes.

    Attributes:
        node: the node that it belongs to.
        reads: its inputs.
        out: its output.
        saves: of these, the arrays that backward reads.
        kept: bytes of further arrays that backward reads.
        params: bytes of its parameters, and of their gradients.
        shares: backward hands grad_out on as it is.
        overwrites: without a tape the output takes its input's memory.
        scratch: bytes beside the results of forward, input gradient and weight gradient.
        buffers: workspaces of the same three.
    """

    node: str
    reads: tuple[int, ...]
    out: int
    saves: tuple[int, ...] = ()
    kept: int = 0
    params: int = 0
    shares: bool = False
    overwrites: bool = False
    scratch: tuple[int, int, int] = (0, 0, 0)
    buffers: tuple[Buffers, Buffers, Buffers] = ((), (), ())


class Pass:
    """The operations of a forward pass over n images, of a network as a mask leaves it.

    Attributes:
        operations: in their order.
        sizes: bytes of every array; array 0 is the images, counted in `images` instead.
        on_tape: for every array, whether backward reaches it.
        constants: bytes of what isn't learned: running statistics, places of sparse weights.
        images: bytes of the batch.
    """

    def __init__(
        self, network: Network, input_shape: Shape, n: int, mask: np.ndarray | None, threads: int
    ) -> None:
        for what, number in (("batch size", n), ("threads", threads)):
            if not isinstance(number, (int, np.integer)) or number < 1:
                raise ValueError(f"{what} {number}: a whole number of at least 1 is needed")
        self.network, self.n, self.threads = network, int(n), int(threads)
        self.shapes = network.shapes(input_shape)
        self.mask = as_mask(network, mask)
        if mask is None:  # nothing is cut: a padded shortcut has its zero channels
            names = (INPUT, *network.nodes)
            self.live = {name: np.ones(network.channels(name), bool) for name in names}
        else:
            self.live = propagate(network, self.mask)
        if not self.live[network.output].all():
            raise ValueError(
                f"this mask lets nothing reach the output of network {network.name}: "
                "repair(network, mask, keep_prob) keeps the most probable channel"
            )
        self.images = self.n * prod(self.shapes[INPUT]) * FLOAT_BYTES
        self.operations: list[Operation] = []
        self.sizes, self.on_tape = [0], [False]
        self.constants = 0
        self._at = {INPUT: 0}  # the array of every node's output
        for name, node in network.nodes.items():
            if self.live[name].any():
                reads = [read for read in network.inputs[name] if self.live[read].any()]
                self._at[name] = self._node(name, node, reads)
        residual = self.n * network.num_classes * LOSS_BYTES  # softmax - target
        self._append("loss", [self._at[network.output]], LOSS_BYTES, kept=residual)

    @property
    def gradients(self) -> int:
        """Bytes of the live parameters, and of their gradients."""
        return sum(operation.params for operation in self.operations)

    @property
    def largest(self) -> int:
        """Bytes of the largest parameters of one operation."""
        return max(operation.params for operation in self.operations)

    def state_bytes(self, n_states: int) -> int:
        """Bytes of the sub-network as it stands alone, and of its optimizer's state."""
        return (1 + n_states) * self.gradients + self.constants

    def _append(self, node: str, reads: list[int], size: int, saves: str = "", **facts: Any) -> int:
        """Add an operation that saves its "in"put, its "out"put or both; return its output."""
        out = len(self.sizes)
        saved = ((reads[0],) if "in" in saves else ()) + ((out,) if "out" in saves else ())
        operation = Operation(node, tuple(reads), out, saved, **facts)
        self.operations.append(operation)
        self.sizes.append(size)
        self.on_tape.append(operation.params > 0 or any(self.on_tape[read] for read in reads))
        return out

    def _bytes(self, name: str) -> int:
        """Of a node's output, live channels only."""
        return self.n * prod(self.shapes[name][:-1]) * int(self.live[name].sum()) * FLOAT_BYTES

    def _node(self, name: str, node: Node, reads: list[str]) -> int:
        """Append a node's operations; return the number of its output."""
        x = self._at[reads[0]]
        if isinstance(node, Unit):
            return self._unit(name, node, reads[0])
        if isinstance(node, Norm):
            return self._norm(name, x, relu=True, overwrites=False)
        if isinstance(node, Shortcut):
            return self._shortcut(name, node, reads[0])
        if isinstance(node, Add):
            return self._add(name, node, reads)
        if isinstance(node, GlobalPool) or (isinstance(node, Pool) and node.how == "avg"):
            return self._append(name, [x], self._bytes(name))
        if isinstance(node, Pool):
            taps = self._bytes(name) // FLOAT_BYTES if self.on_tape[x] else 0
            pairs = self.stream("pool", self.sizes[x])
            return self._append(name, [x], self._bytes(name), kept=taps, buffers=((pairs,), (), ()))
        return x  # flattened: a view

    def _unit(self, name: str, unit: Unit, source: str) -> int:
        """Product, batch norm, ReLU."""
        t, size = unit.transform, self._bytes(name)
        n_in, n_out = int(self.live[source].sum()), int(self.live[name].sum())
        n_weights = t.weight.size * n_out // t.c_out
        if unit.mask_on == "weights":
            own = self.network.own(name, self.mask)
            n_weights = int(unit.live_weights(self.live[source], self.live[name], own).sum())
        elif not unit.is_depthwise:
            n_weights = n_weights * n_in // t.c_in
        weight = n_weights * FLOAT_BYTES
        params = weight + (n_out * FLOAT_BYTES if t.bias is not None else 0)
        x = self._at[source]
        z = self._append(name, [x], size, "in", params=params)
        self._product_needs(self.operations[-1], unit, source, n_weights)
        if unit.norm is not None:
            z = self._norm(name, z, relu=unit.relu and unit.noise is None, overwrites=True)
        if unit.noise is not None:
            z = self._append(name, [z], size, "in")  # times 0/1
            z = self._append(name, [z], size, shares=True, scratch=(size, 0, 0))
        if unit.relu and (unit.norm is None or unit.noise is not None):
            z = self._append(name, [z], size, "out")
        return z

    def _norm(self, name: str, x: int, relu: bool, overwrites: bool) -> int:
        """Batch norm, with ReLU in the same pass; it keeps mean and 1 / std."""
        vectors = 2 * int(self.live[name].sum()) * FLOAT_BYTES
        self.constants += vectors
        size = self.sizes[x]
        stream = self.stream("stream", size)
        positive = ("positive", stream[1] // FLOAT_BYTES, stream[2])
        return self._append(
            name,
            [x],
            size,
            saves="in and out" if relu else "in",
            kept=vectors,
            params=vectors,
            overwrites=overwrites,
            buffers=((), (stream, *([positive] if relu else [])), ()),
        )

    def _shortcut(self, name: str, node: Shortcut, source: str) -> int:
        """Every stride-th pixel, picked channels, placed among zeros."""
        x, live_in, live_out = self._at[source], self.live[source], self.live[name]
        pixels = self.n * prod(self.shapes[name][:-1]) * FLOAT_BYTES
        moved = int((live_in[node.take] & live_out[node.place]).sum())
        if node.stride > 1:
            x = self._append(name, [x], pixels * int(live_in.sum()))
        x = self._append(name, [x], pixels * moved, kept=moved * INDEX_BYTES)
        return self._append(name, [x], self._bytes(name), kept=moved * INDEX_BYTES)

    def _add(self, name: str, node: Add, reads: list[str]) -> int:
        """Sum of streams, each placed at its channels of the union; ReLU if asked."""
        size, union = self._bytes(name), int(self.live[name].sum())
        streams = []
        for read in reads:
            x, channels = self._at[read], int(self.live[read].sum())
            if channels < union:
                placed = self.stream("placed", size)
                buffers = ((placed,), (), ())
                x = self._append(name, [x], size, kept=channels * INDEX_BYTES, buffers=buffers)
            streams.append(x)
        total = streams[0]
        for i, x in enumerate(streams[1:], 2):
            if node.relu and i == len(streams):  # in one pass
                return self._append(name, [total, x], size, "out")
            total = self._append(name, [total, x], size, shares=True)
        return self._append(name, [total], size, "out") if node.relu else total

    def stream(self, tag: str, size: int) -> Buffer:
        """A chunk of an elementwise pass over `size` bytes."""
        threads = 1 if size < INLINE_BYTES else self.threads
        return tag, min(size, STREAM_BYTES), threads

    def _product_needs(self, operation: Operation, unit: Unit, source: str, n_weights: int) -> None:
        """Fill in scratch and workspaces of a product with so many live weights."""
        t, name = unit.transform, operation.node
        n_in, n_out = int(self.live[source].sum()), int(self.live[name].sum())
        x, out = self._bytes(source), self.sizes[operation.out]
        if isinstance(t, SparseLinear) or (not unit.is_conv and n_weights < n_in * n_out):
            operation.scratch = (x + out,) * 3  # both are transposed
            self.constants += PLACE_BYTES * (2 * n_weights + n_out + 1)  # rows, columns, pointers
        elif unit.is_depthwise:
            operation.buffers = self._bands(t.stride, x, out)  # type: ignore[union-attr]
        elif not isinstance(t, Conv2d):
            pixel = _Windows(self.n, (1, 1), (1, 1), 1, 1, 0)
            operation.scratch, operation.buffers = pixel.needs(n_in, n_out, self.threads)
        else:
            sizes = self.shapes[source][:2], self.shapes[name][:2]
            windows = _Windows(self.n, *sizes, t.kernel, t.stride, t.padding)
            groups = t.groups
            scratch, buffers = windows.needs(n_in // groups, n_out // groups, self.threads)
            copies = x + out if groups > 1 else 0  # channels of a group, side by side
            operation.scratch = (scratch[0] + copies, scratch[1] + copies, scratch[2] + copies)
            operation.buffers = buffers

    def _bands(self, stride: int, x: int, out: int) -> tuple[Buffers, Buffers, Buffers]:
        """Workspaces of a depthwise product: a band of x, and with a stride one of the output."""
        both = min(BAND_BYTES, (x + out) // MIN_BANDS)
        band = ("band", both * x // (x + out), self.threads)
        part = ("depthwise", both * out // (x + out) * (stride > 1), self.threads)
        half = ("band", both // 2, self.threads)
        return (band, part), (half, ("depthwise", both // 2 * (stride > 1), self.threads)), (band,)


@dataclass(frozen=True)
class _Windows:
    """Windows of a convolution over n images; columns are as the backend cuts them into chunks."""

    n: int
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    kernel: int
    stride: int
    padding: int

    def needs(
        self, n_in: int, n_out: int, threads: int
    ) -> tuple[tuple[int, int, int], tuple[Buffers, Buffers, Buffers]]:
        """Scratch and workspaces of forward, input gradient and weight gradient.

        Forward transposes the weight and the input gradient of stride 1 turns it round: copies. The
        weight gradient is the sum of several parts of the batch; a thread's product of a small
        weight is itself a stack of products of SUM_ROWS rows.
        """
        entries = self.kernel**2 * n_in * n_out
        weight, row = entries * FLOAT_BYTES, self._row(n_in)
        chunks = self._chunks(row, weight)
        forward = self._columns(n_in, chunks, min(threads, len(chunks)))
        flips = self.stride == 1 and self.padding < self.kernel
        flips = flips and self.n * prod(self.out_size) > 2 * n_out
        back = tuple(("summed" if tag == "padded" else tag, b, t) for tag, b, t in forward)
        if flips:
            turned = _Windows(
                self.n, self.out_size, self.size, self.kernel, 1, self.kernel - 1 - self.padding
            )
            chunks = self._chunks(turned._row(n_out), weight)
            back = turned._columns(n_out, chunks, min(threads, len(chunks)))
        parts = split(self.n, self.n, 2 if weight >= BIG_WEIGHT_BYTES else MIN_CHUNKS)
        images = max(1, max(COLUMN_BYTES, 2 * weight) // max(row, 1))
        chunks = split(_largest(parts), images)
        workers = min(threads, len(parts))
        sums = self._columns(n_in, chunks, workers)
        if len(chunks) > 1:
            sums += (("grad_weight", weight, workers),)
        blocks = _largest(chunks) * prod(self.out_size) // SUM_ROWS
        stack = workers * blocks * weight * (entries * SUM_ROWS <= SMALL_PRODUCT)
        scratch = (weight, weight * flips, weight * (len(parts) - 1) + stack)
        return scratch, (forward, back, sums)

    def _chunks(self, row: int, weight: int) -> tuple[tuple[int, int], ...]:
        """Pieces of the batch, at `row` bytes of columns an image."""
        return split(self.n, max(COLUMN_BYTES, weight) // max(row, 1), MIN_CHUNKS)

    def _row(self, channels: int) -> int:
        """Bytes of the columns of one image."""
        return prod(self.out_size) * self.kernel**2 * channels * FLOAT_BYTES

    def _columns(self, channels: int, chunks: tuple[tuple[int, int], ...], threads: int) -> Buffers:
        """Columns and padded images of the largest chunk."""
        if (self.kernel, self.stride, self.padding) == (1, 1, 0):
            return ()  # the columns are the images
        n = _largest(chunks)
        padded = prod(side + 2 * self.padding for side in self.size) * channels * FLOAT_BYTES
        padded *= self.padding > 0
        return (("columns", n * self._row(channels), threads), ("padded", n * padded, threads))


def _largest(chunks: tuple[tuple[int, int], ...]) -> int:
    return max(stop - start for start, stop in chunks)
