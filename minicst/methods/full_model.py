"""Where the full network lives, and how its sub-networks come and go."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from minicst.backend import Backend, using
from minicst.nn import Network
from minicst.optim import Optimizer
from minicst.sparse.subnetwork import Subnetwork, cut

Position = Any  # what says where the run stands; made and stored by whoever keeps checkpoints
Writer = Callable[[Subnetwork, Position, Any], None]


def paste(sub: Subnetwork, position: Position, after: Any) -> None:
    """Write a sub-network back where its full network is held in memory."""
    sub.paste(sub.hosted(after))


class FullModel:
    """The full network on the device (where it trains), in host memory or on disk.

    On the device every step cuts its sub-networks and pastes the trained one back. Elsewhere
    only sub-networks are on the device, and one is written back when the next ones take its place:

    The two masks of an estimate. At the first step of a block of T (resample_every) both
    sub-networks, of m and m', are gathered from the full model and are on the device together;
    both losses are at the same weights. The one of m' is let go after its forward pass. It is never
    written back: it learned nothing.

    The update of keep_prob. Once a block, at its first step, from these two losses. Steps 2 ... T
    train the sub-network of m alone and leave keep_prob as it is. So the masks of the next block
    are known after the first step of this one. Where T > 1 they are drawn then, and a thread of its
    own gathers the next sub-networks while this one trains: on a GPU into pinned memory, copied on
    a stream of its own. What this block changes is stale there. When the blocks change, entries
    that both have are copied from the old sub-network to the new ones, on the device, and only then
    is the old one written back, again beside the training. Every number is the one that an ordinary
    run has, bit for bit.

    What is written when. When a block ends: live entries of weights, of the optimizer's state and
    of batch norm's running statistics of the sub-network of m. At the end of an epoch, before a
    checkpoint, an evaluation or the final cut: the same, and the block goes on. In between the full
    model is as the last write left it. On disk, a write is a transaction: see Store.

    Paper: Appendix D, the full model on the host and the sub-network on the device [host-full]
    Differs: the paper leaves it to future work, and says neither what happens to keep_prob within
        a block nor to entries that two blocks share.

    Args:
        network: the full network.
        optimizer: of its weights.
        device: where sub-networks train; None: where the network is.

    Attributes:
        elsewhere: whether the full network isn't on the device.
        position: asked, at every write, for what says where the run stands; None: nothing does.
        write: stores a sub-network and a position.
        bytes_in: moved from the full model to sub-networks so far.
        bytes_out: moved back.
    """

    def __init__(
        self, network: Network, optimizer: Optimizer, device: Backend | None = None
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.elsewhere = device is not None
        self.device = network.backend if device is None else device
        self.position: Callable[[], Position] | None = None
        self.write: Writer = paste
        self.bytes_in = self.bytes_out = 0
        self._worker: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._coming: tuple[np.ndarray, Future[list[Subnetwork]]] | None = None

    def open(self, mask: np.ndarray, with_optimizer: bool) -> Subnetwork:
        """Cut a sub-network, for now."""
        self.finish()
        sub = cut(self.network, mask, self.optimizer if with_optimizer else None, self.device)
        self.bytes_in += sub.nbytes
        return sub

    def exchange(
        self, held: Subnetwork | None, masks: np.ndarray, written: bool = False
    ) -> list[Subnetwork]:
        """Write `held` back and return the sub-networks of a step, the first with its optimizer.

        Args:
            held: of the block that ends, if any.
            masks: (k, n) of the step's forward passes, as used.
            written: whether the full model has all of `held` already. What was gathered ahead may
                be older than that.
        """
        coming = self._take(masks)
        if coming is None:
            if held is not None and not written:
                self.write_back(held)
            return [self.open(mask, with_optimizer=i == 0) for i, mask in enumerate(masks)]
        for sub in coming:
            sub.arrive()
            if held is not None:
                sub.take_over(held)
        if held is not None and not written:
            self.write_back(held, wait=False)
        return coming

    def ahead(self, masks: np.ndarray) -> None:
        """Start to gather the sub-networks of the next block while this one trains."""
        mark = self.device.mark()

        def gather() -> list[Subnetwork]:
            with using(self.device):
                return [
                    cut(self.network, mask, self.optimizer if i == 0 else None, self.device, mark)
                    for i, mask in enumerate(masks)
                ]

        self._coming = (masks, self._submit(gather))

    def write_back(self, sub: Subnetwork, wait: bool = True) -> None:
        """Write a sub-network's numbers to the full model, and the run's position with them.

        Args:
            sub: as it is after all that was asked for so far.
            wait: until it is done; else it is done beside the training, before anything else
                reads the full model.
        """
        self.finish()  # an error of the write before must not be lost
        if sub.optimizer is not None:
            self.optimizer.steps = sub.optimizer.steps
        position = None if self.position is None else self.position()
        self.bytes_out += sub.nbytes
        if not self.elsewhere:
            self.write(sub, position, None)
            return
        mark = self.device.mark()
        self._writing = self._submit(lambda: self.write(sub, position, mark))
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the last write; whoever reads the full network's arrays calls it before."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _take(self, masks: np.ndarray) -> list[Subnetwork] | None:
        """Sub-networks that were gathered ahead, if they are those of these masks."""
        if self._coming is None:
            return None
        (expected, future), self._coming = self._coming, None
        coming = future.result()
        if not np.array_equal(expected, masks):
            return None
        self.bytes_in += sum(sub.nbytes for sub in coming)
        return coming

    def _submit(self, task: Callable[[], Any]) -> Future[Any]:
        # One thread: what is asked for is done in its order, so a gather sees the writes before it.
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="full-model")
        return self._worker.submit(task)
