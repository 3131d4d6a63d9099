"""Peak memory of one training step.

On the CPU it is measured in a process of its own: `python -m` this module. In a fresh process
nothing is left of other networks: the threads' workspaces, which are kept from call to call, are
allocated within the step and counted. What was there before the step (weights, optimizer state,
images) is not.

On a GPU it is what arrays hold of CuPy's memory pool at one time, above what they held before the
step; a backend made for the step allocates its column workspace in it. The context of CUDA, the
libraries, and blocks that the pool keeps for later are not in it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from minicst.backend import get_backend, using
from minicst.backend.cupy_backend import CupyBackend
from minicst.bench.dense import hyper, plan
from minicst.bench.peers import PeerError, Peers, Says
from minicst.bench.settings import SHAPE, BenchSettings, Workload, use_threads, workloads
from minicst.methods.base import Method
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.sparse.memory import step_memory

BEFORE = ("resident", "images")  # parts of step_memory that are there before the step


def memory_rows(settings: BenchSettings, workload: Workload, says: Says) -> list[dict[str, Any]]:
    """Measure the peak of a dense step and of Algorithm 1's at each share.

    Returns:
        A row a step: {"share" (percent, None: dense), "executed_share", "peak", "closed_form":
        bytes; "closed_form_at": where step_memory reaches its peak, and "parts" of it}.

    Raises:
        ValueError: if a measuring process fails; gives its last line.
    """
    rows = []
    for share in (None, *workload.keep_rates):
        says(f"{workload.label}: peak memory, {_name(share)}")
        request = {"share": share, "settings": _plain(settings, workload.name)}
        done = subprocess.run(
            [sys.executable, "-m", "minicst.bench.memory", json.dumps(request)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"measuring the memory of {workload.label} failed: {why}")
        rows.append({"share": share, **json.loads(done.stdout)})
    return rows


def step_peak(method: Method, workload: Workload, threads: int) -> dict[str, Any]:
    """Take a step; return its peak of allocated bytes above those before it, and the closed form.

    The closed form is that of the step's own masks, without what is there before the step.
    """
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        trace = method.train_step(workload.batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    used = [] if trace.masks_used is None else list(trace.masks_used)
    mask_a, mask_b = (*used, None, None)[:2]
    form = step_memory(
        *(method.network, SHAPE, workload.batch_size, mask_a, mask_b),
        state_names=method.optimizer.state_names,
        threads=threads,
    )
    parts = {what: size for what, size in form.parts.items() if what not in BEFORE}
    return {
        "executed_share": trace.cost_ratio,
        "peak": peak - before,
        "closed_form": sum(parts.values()),
        "closed_form_at": form.peak_at,
        "parts": parts,
    }


def gpu_memory_rows(workload: Workload, peers: Peers, says: Says) -> list[dict[str, Any]]:
    """Measure the peak of a dense step and of Algorithm 1's at each share, on a GPU.

    Returns:
        A row a step: {"share", "executed_share", "peak": bytes}; that of the dense step also
        {"torch": {peer: bytes, as PyTorch's allocator counts them}}.
    """
    rows: list[dict[str, Any]] = []
    for share in (None, *workload.keep_rates):
        says(f"{workload.label}: peak memory, {_name(share)}")
        rows.append({"share": share, **_gpu_peak(workload, share)})
    request = {"spec": workload.build().spec(), "images": list(workload.batch.images.shape)}
    found = {}
    for label in peers.build(list(peers.torch), name="memory", **request):
        try:
            found[label] = peers.found[label].ask(do="peak", name="memory", what="step")["bytes"]
        except PeerError as error:
            peers.drop(label, error)
    peers.forget("memory")
    rows[0]["torch"] = {label: size for label, size in found.items() if size is not None}
    return rows


def _gpu_peak(workload: Workload, share: float | None) -> dict[str, Any]:
    backend = get_backend()
    assert isinstance(backend, CupyBackend)
    fresh = CupyBackend(backend.xp, backend.cupyx)
    fresh.configure(backend.precision, backend.workspace_bytes >> 20)
    with using(fresh):
        method = _method(workload, share)
        with pool_peak(fresh.xp) as held:
            trace = method.train_step(workload.batch)
    return {"executed_share": trace.cost_ratio, "peak": held["peak"] - held["before"]}


@contextmanager
def pool_peak(cupy: Any) -> Iterator[dict[str, int]]:
    """Yield {"before", "peak"}: bytes that arrays hold of the pool now, and at most until the end.

    They are most right after something was allocated, so the allocator looks.
    """
    pool = cupy.get_default_memory_pool()
    gc.collect()  # arrays that only a cycle of references keeps are not the step's
    held = dict.fromkeys(("before", "peak"), pool.used_bytes())

    def allocate(n_bytes: int) -> Any:
        memory = pool.malloc(n_bytes)
        held["peak"] = max(held["peak"], pool.used_bytes())
        return memory

    with cupy.cuda.using_allocator(allocate):
        yield held


def _method(workload: Workload, share: float | None) -> Method:
    if share is None:
        return Dense(workload.build(), hyper(), plan(workload))
    rate = workload.keep_rates[share]
    return CompletelySparse(workload.build(), hyper(rate), plan(workload))


def _name(share: float | None) -> str:
    return "dense step" if share is None else f"Algorithm 1 at {share:g} %"


def _plain(settings: BenchSettings, network: str) -> dict[str, Any]:
    """The settings that say what is measured, for one network."""
    return asdict(settings) | {"networks": [network], "peers": []}


def main() -> None:
    """Measure what the first argument says; print JSON."""
    request = json.loads(sys.argv[1])
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in request["settings"].items()
    }
    settings = BenchSettings(**given)
    threads = use_threads(settings)
    (workload,) = workloads(settings)
    method = _method(workload, request["share"])
    print(json.dumps(step_peak(method, workload, threads)))


if __name__ == "__main__":
    main()
