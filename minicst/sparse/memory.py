"""Closed-form peak memory of a training step, from shapes and masks alone: nothing is run.

A pass is a list of operations (product, batch norm, ReLU, pooling, sum, ...); each reads arrays and
writes one. An array is alive until its last reader is done and, with a tape, if an operation saves
it, until backward has passed the first operation that does:

    forward    max over operations of   arrays alive + output
    backward   max over operations of   arrays still saved + weight gradients so far
                                        + gradients of activations alive + what the operation makes

What counts: float32 arrays, the tape's own (taps of max pooling, statistics of batch norm, channel
numbers, probabilities of the loss), and the workspaces of every thread, which stay once they are
allocated. What doesn't: Python's objects, other vectors of one number a channel, temporaries of a
chunk outside of workspaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minicst.nn import Network
from minicst.nn.node import Shape
from minicst.sparse.operations import LOSS_BYTES, Buffers, Operation, Pass


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step, and what the largest sum of them at one time is made of.

    Attributes:
        peak: largest number of bytes alive at one time.
        peak_at: the phase and the node where it is reached.
        parts: {what: bytes} at that time; their sum is the peak. "resident": parameters, running
            statistics and optimizer state of the full network, as large at any mask. "images": the
            batch. "cut": as resident, of the sub-networks open at the time. "activations": outputs,
            and what the tape holds. "gradients": of weights so far. "transient": gradients of
            activations, flipped weights, partial sums. "workspace": of all threads.
        activations: what the tape holds when the forward pass of the back-propagated network ends,
            equal to autograd.saved_bytes.
        gradients: of all live weights, when its backward pass ends.
    """

    peak: int
    peak_at: str
    parts: dict[str, int]
    activations: int
    gradients: int


def step_memory(
    network: Network,
    input_shape: Shape,
    batch_size: int,
    mask_a: np.ndarray | None = None,
    mask_b: np.ndarray | None = None,
    state_names: Sequence[str] = ("velocity",),
    threads: int = 1,
) -> StepMemory:
    """Peak memory of a training step, dense or sparse.

    Without masks: forward, backward and update of the network itself. With mask_a: cut, forward,
    backward, update, paste. With mask_b too it is the step of Algorithm 1: sub-network b first runs
    forward without a tape, and is gone when a's pass begins.

        peak = resident + images + max(cut_a + cut_b + forward_b,
                                       cut_a + max(forward_a, backward_a, update_a))

    Paper: Remark 1, memory falls with the cost [remark1]

    Args:
        network: the full network.
        input_shape: (h, w, c) of an image.
        batch_size: images, at least 1.
        mask_a: (n_maskable,) 0/1, the mask that is back-propagated; None: dense.
        mask_b: (n_maskable,) 0/1, needs mask_a.
        state_names: the optimizer's `state_names`, each an array of its parameter's shape.
        threads: of the backend.

    Raises:
        ValueError: if images, batch size, masks or threads are impossible.
    """
    if mask_a is None and mask_b is not None:
        raise ValueError("mask_b without mask_a: a is the mask that is back-propagated, give both")
    a = Pass(network, input_shape, batch_size, mask_a, threads)
    full = _state_bytes(network, len(state_names))
    walk = _Walk({"resident": full, "images": a.images})
    cut_a = 0 if mask_a is None else a.state_bytes(len(state_names))
    if mask_b is not None:
        b = Pass(network, input_shape, batch_size, mask_b, threads)
        walk.fixed["cut"] = cut_a + b.state_bytes(0)
        walk.forward(b, "forward_b", tape=False)
    walk.fixed["cut"] = cut_a
    activations = walk.forward(a, "forward_a", tape=True)
    walk.backward(a)
    walk.update(a)
    return StepMemory(walk.peak, walk.peak_at, walk.parts, activations, a.gradients)


def forward_memory(
    network: Network,
    input_shape: Shape,
    batch_size: int,
    mask: np.ndarray | None = None,
    threads: int = 1,
) -> StepMemory:
    """Peak memory of a forward pass without a tape: of the network, or of a mask's sub-network.

        peak = resident + images + max over operations of (arrays alive + output)

    The sub-network stands alone here: resident is its own. Arguments and errors as in step_memory.
    """
    only = Pass(network, input_shape, batch_size, mask, threads)
    walk = _Walk({"resident": only.state_bytes(0), "images": only.images})
    walk.forward(only, "forward", tape=False)
    return StepMemory(walk.peak, walk.peak_at, walk.parts, 0, 0)


def _state_bytes(network: Network, n_states: int) -> int:
    """Parameters, running statistics and optimizer state."""
    weights = sum(parameter.data.nbytes for parameter in network.parameters())
    return (1 + n_states) * weights + sum(array.nbytes for _, array in network.named_buffers())


@dataclass(eq=False)
class _Gradient:
    """An array with the gradient of one array, or of several: a sum hands its own on to each."""

    size: int


class _Walk:
    """Walks through passes and notes the largest sum of what is alive.

    Attributes:
        fixed: {what: bytes} alive throughout.
        peak: so far; parts: what it is made of; peak_at: where.
    """

    def __init__(self, fixed: dict[str, int]) -> None:
        self.fixed = fixed
        self.peak, self.peak_at = 0, ""
        self.parts: dict[str, int] = {}
        self._buffers: dict[tuple[str, int], int] = {}  # by tag and thread: they only grow
        self._held = 0  # bytes of arrays alive
        self._gradients = 0
        self._savers: Counter[int] = Counter()

    def forward(self, work: Pass, phase: str, tape: bool) -> int:
        """Run through the operations; return the bytes that the tape holds afterwards."""
        last = {read: i for i, op in enumerate(work.operations) for read in op.reads}
        self._held, self._savers = 0, Counter()
        for i, op in enumerate(work.operations):
            taken = op.overwrites and not tape
            self._held += 0 if taken else work.sizes[op.out]
            self._allocate(op.buffers[0])
            if tape and work.on_tape[op.out]:
                self._held += op.kept
                self._savers.update(op.saves)
            self._note(phase, op.node, op.scratch[0])
            for read in set(op.reads):
                if last[read] == i and not self._savers[read] and not taken:
                    self._held -= work.sizes[read]
        return self._held - LOSS_BYTES  # the loss itself isn't kept for backward

    def backward(self, work: Pass) -> None:
        """Run back; after forward(tape=True) of the same pass."""
        loss = _Gradient(LOSS_BYTES)
        of = {work.operations[-1].out: loss}  # the gradient of an array, as far as it is known
        alive = [loss]
        for op in reversed(work.operations):
            if op.out not in of:  # not on the tape
                continue
            grad_out = of.pop(op.out)
            made = {
                read: grad_out if op.shares else _Gradient(work.sizes[read])
                for read in op.reads
                if work.on_tape[read]
            }
            if not op.shares:
                alive += made.values()
            for which in (1, 2) if made else (2,):
                self._gradients += op.params * (which == 2)
                self._allocate(op.buffers[which])
                self._note_backward(op, alive, op.scratch[which])
            for read, gradient in made.items():
                if read in of:  # the sum is an array of its own
                    gradient = _Gradient(work.sizes[read])
                    self._note_backward(op, [*alive, gradient], 0)
                of[read] = gradient
            self._release(work, op)
            alive = list({id(g): g for g in of.values()}.values())

    def update(self, work: Pass) -> None:
        """Update the weights, chunk by chunk."""
        self._allocate((work.stream("update", work.largest),))
        self._note("update", "", 0)

    def _release(self, work: Pass, op: Operation) -> None:
        self._held -= op.kept
        for array in op.saves:
            self._savers[array] -= 1
            if not self._savers[array]:
                self._held -= work.sizes[array]

    def _note_backward(self, op: Operation, alive: list[_Gradient], scratch: int) -> None:
        self._note("backward", op.node, sum(gradient.size for gradient in alive) + scratch)

    def _allocate(self, buffers: Buffers) -> None:
        for tag, size, threads in buffers:
            for thread in range(threads):
                key = tag, thread
                self._buffers[key] = max(size, self._buffers.get(key, 0))

    def _note(self, phase: str, node: str, transient: int) -> None:
        parts = self.fixed | {
            "activations": self._held,
            "gradients": self._gradients,
            "transient": transient,
            "workspace": sum(self._buffers.values()),
        }
        total = sum(parts.values())
        if total > self.peak:
            self.peak, self.parts = total, parts
            self.peak_at = f"{phase}, {node}" if node else phase
