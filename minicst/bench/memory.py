"""Peak memory of one training step, measured in a process of its own: `python -m` this module.

In a fresh process nothing is left of other networks: the threads' workspaces, which are kept from
call to call, are allocated within the step and counted. What was there before the step (weights,
optimizer state, images) is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from typing import Any

from minicst.bench.dense import hyper, plan
from minicst.bench.peers import Says
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
    share = request["share"]
    method: Method
    if share is None:
        method = Dense(workload.build(), hyper(), plan(workload))
    else:
        method = CompletelySparse(
            workload.build(), hyper(workload.keep_rates[share]), plan(workload)
        )
    print(json.dumps(step_peak(method, workload, threads)))


if __name__ == "__main__":
    main()
