"""What a GPU's step waits for: the host, which launches kernels, or the device, which computes.

A step is launch-bound where the host hardly ever waits: the device has done what it was told before
the host has told it more. Such a step takes as long for fewer images or channels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from minicst.autograd import Tensor
from minicst.backend import Backend
from minicst.bench.dense import hyper, plan
from minicst.bench.peers import Contestants, Peers, Says, in_turns, seconds_of
from minicst.bench.settings import BenchSettings, Workload, random_batch
from minicst.methods.base import Method
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense

LAUNCH_BOUND = 0.9  # share of a step in which the host doesn't wait, from which it is said to be so
WORKSPACES_MB = (32, 64, 128, 256, 512, 1024, 2048)


@dataclass
class HostCounts:
    """What the host did.

    Attributes:
        waited: seconds that it waited for the device.
        reads: numbers read from the device.
        launches: of minicst's own kernels; the array module's calls (products, sums, fills) and
            copies aren't counted.
    """

    waited: float = 0.0
    reads: int = 0
    launches: int = 0


@contextmanager
def host_counts(backend: Backend) -> Iterator[HostCounts]:
    """Count on this backend what the host does: how often it reads, how long it waits for that.

    Before it reads a number, it waits for all that was launched, and that wait is timed.
    """
    counts = HostCounts()
    item, launch = Tensor.item, getattr(backend, "_launch", None)

    def waiting(tensor: Tensor) -> float:
        start = time.perf_counter()
        backend.synchronize()
        counts.waited += time.perf_counter() - start
        counts.reads += 1
        return item(tensor)

    def counting(
        name: str, dtype: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any
    ) -> None:
        counts.launches += grid[0] > 0  # an empty one isn't launched
        launch(name, dtype, grid, block, arguments)  # type: ignore[misc]

    try:
        Tensor.item = waiting  # type: ignore[assignment, method-assign]
        if launch is not None:
            backend._launch = counting  # type: ignore[attr-defined]
        yield counts
    finally:
        Tensor.item = item  # type: ignore[method-assign]
        if launch is not None:
            del backend._launch  # type: ignore[attr-defined]


def launch_rows(
    settings: BenchSettings, workload: Workload, peers: Peers, says: Says
) -> list[dict[str, Any]]:
    """Time steps by their batch size, and what the host does in them.

    Steps follow one another, and the host waits only where a step reads its losses, and at the end.

        seconds = host + waited

    Where launches pile up (CUDA holds about a thousand), launching itself waits, and counts as
    host: compare with the smallest batch, at which the device has next to nothing to compute.

    Returns:
        A row for each batch size and method: {"batch_size", "share" (percent, None: dense),
        "seconds", "host", "waited" (of a step, medians of turns), "host_share": host over seconds,
        "bound": "launches" where that is LAUNCH_BOUND or more, else "device"; "launches" and
        "reads" of a step}. A batch that doesn't fit the GPU's memory is left out with a line.
    """
    rows = []
    for size in settings.launch_batches:
        says(f"{workload.label}: launches at batch {size}")
        backend = workload.build().backend
        try:
            there = replace(workload, batch=random_batch(size, settings.seed))
            there = there.on_gpu(backend, settings.repeats)
            for share, method in _methods(there, settings.launch_share):
                row = {"batch_size": size, "share": share}
                rows.append(row | _launches(method, there, settings.pairs))
        except MemoryError as error:
            line = " ".join(str(error).split())
            peers.leave_out(f"{workload.label}: launches at batch {size} are left out ({line})")
        free_blocks(backend)
    return rows


def _methods(workload: Workload, share: float) -> Iterator[tuple[float | None, Method]]:
    """The dense method, then Algorithm 1; one at a time in memory."""
    yield None, Dense(workload.build(), hyper(), plan(workload))
    rate = hyper(workload.launch_rate)
    yield share, CompletelySparse(workload.build(), rate, plan(workload))


def _launches(method: Method, workload: Workload, pairs: int) -> dict[str, Any]:
    backend, steps = method.backend, workload.repeats
    method.train_step(workload.batch)  # compiles, fills the pool
    with host_counts(backend) as counts:
        for _ in range(steps):
            method.train_step(workload.batch)
    turns = [_turn(method, workload, steps) for _ in range(pairs)]
    seconds, waited = (statistics.median(column) for column in zip(*turns, strict=True))
    host = statistics.median(whole - wait for whole, wait in turns)
    share = statistics.median(1.0 - wait / whole for whole, wait in turns)
    return {
        "seconds": seconds,
        "host": host,
        "waited": waited,
        "host_share": share,
        "bound": "launches" if share >= LAUNCH_BOUND else "device",
        "launches": counts.launches / steps,
        "reads": counts.reads / steps,
    }


def _turn(method: Method, workload: Workload, steps: int) -> tuple[float, float]:
    """Seconds of a step, and how much of them the host waits."""
    backend = method.backend
    method.train_step(workload.batch)
    backend.synchronize()
    with host_counts(backend) as counts:
        start = time.perf_counter()
        for _ in range(steps):
            method.train_step(workload.batch)
        last = time.perf_counter()
        backend.synchronize()
        end = time.perf_counter()
    return (end - start) / steps, (counts.waited + end - last) / steps


def workspace_rows(
    settings: BenchSettings, workload: Workload, precision: str, peers: Peers, says: Says
) -> list[dict[str, Any]]:
    """Time a dense step and Algorithm 1's by the size of the column workspace, in turns.

    Returns:
        A row a size: {"workspace_mb", "dense", "sparse": seconds}; afterwards the workspace is of
        the size of the settings again.
    """
    says(f"{workload.label}: column workspace")
    found: dict[int, dict[str, Any]] = {size: {"workspace_mb": size} for size in WORKSPACES_MB}
    for share, method in _methods(workload, settings.launch_share):
        backend = method.backend
        contestants: Contestants = {
            f"{size} MB": _at(size, method, workload, precision) for size in WORKSPACES_MB
        }
        try:
            took = in_turns(contestants, settings.pairs, peers)
            for size in WORKSPACES_MB:
                name = "dense" if share is None else "sparse"
                found[size][name] = statistics.median(took[f"{size} MB"])
        except MemoryError as error:
            line = " ".join(str(error).split())
            peers.leave_out(f"{workload.label}: the column workspaces are left out ({line})")
            return []
        finally:
            backend.configure(precision, settings.workspace_mb)
            free_blocks(backend)
    return list(found.values())


def _at(size: int, method: Method, workload: Workload, precision: str) -> Callable[[], float]:
    def turn() -> float:
        method.backend.configure(precision, size)
        step = partial(method.train_step, workload.batch)
        return seconds_of(step, method.backend, workload.repeats)

    return turn


def free_blocks(backend: Backend) -> None:
    """Give what arrays no longer hold back to the device, where other processes run too."""
    if backend.name == "cuda":
        backend.xp.get_default_memory_pool().free_all_blocks()
