"""Algorithm 1's whole step against minicst's dense step and against the authors' way."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from minicst.bench.dense import OWN, hyper, plan
from minicst.bench.paper import row_of
from minicst.bench.peers import (
    Contestants,
    Peers,
    Says,
    Turns,
    in_turns,
    median_ratio,
    seconds_of,
)
from minicst.bench.settings import Workload
from minicst.methods.base import Method
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.methods.trace import StepTrace
from minicst.sparse.accounting import train_cost_saving

# Phases that dense training doesn't have.
DENSE = "dense step"  # PyTorch's, by this name
OF_THE_STRUCTURE = ("sample", "cut", "structure", "paste")


class Timed:
    """A method that takes steps on one batch, and keeps what each of them traced.

    Args:
        method: takes the steps.
        workload: has the batch.

    Attributes:
        seconds: of a step, each turn's.
        turns: traces of each turn's steps.
        apart: (seconds, trace) of the steps whose phases are reported: on the CPU the turns' own.
            A GPU works on while the host goes on, so there each phase of further steps is waited
            for, which takes longer than a step that isn't.
    """

    def __init__(self, method: Method, workload: Workload) -> None:
        self.method, self.batch, self.repeats = method, workload.batch, workload.repeats
        self.seconds: list[float] = []
        self.turns: list[list[StepTrace]] = []
        self.apart: list[tuple[float, StepTrace]] = []

    def __call__(self) -> float:
        """Take a turn; return a step's seconds, whatever is in no phase included."""
        traces: list[StepTrace] = []
        seconds = seconds_of(
            lambda: traces.append(self.method.train_step(self.batch)),
            *(self.method.backend, self.repeats),
        )
        self.seconds.append(seconds)
        self.turns.append(traces[-self.repeats :])
        return seconds

    def finish(self, pairs: int) -> None:
        """Forget the turns that warmed up; take the steps whose phases are reported."""
        self.seconds, self.turns = self.seconds[-pairs:], self.turns[-pairs:]
        backend = self.method.backend
        if backend.name != "cuda":
            first = [traces[0] for traces in self.turns]
            self.apart = list(zip(self.seconds, first, strict=True))
            return
        backend.exact_times = True
        try:
            for _ in range(pairs):
                start = time.perf_counter()
                trace = self.method.train_step(self.batch)
                self.apart.append((time.perf_counter() - start, trace))
        finally:
            backend.exact_times = False

    def phases(self) -> dict[str, dict[str, float]]:
        """{phase: {"seconds", and where something is multiplied "macs" and "gmacs"}}, medians."""
        table = {}
        for phase in self.apart[0][1].seconds:
            seconds = [trace.seconds[phase] for _, trace in self.apart]
            table[phase] = {"seconds": statistics.median(seconds)}
            macs = [phase_macs(trace, phase) for _, trace in self.apart]
            if all(macs):
                rates = [m / s / 1e9 for m, s in zip(macs, seconds, strict=True)]
                table[phase] |= {
                    "macs": statistics.median(macs),
                    "gmacs": statistics.median(rates),
                }
        rest = [seconds - sum(trace.seconds.values()) for seconds, trace in self.apart]
        table["rest"] = {"seconds": statistics.median(rest)}
        return table


def phase_macs(trace: StepTrace, phase: str) -> int:
    """MACs that a phase of a step executed."""
    return sum(sum(passes.values()) for passes in trace.macs.get(phase, {}).values())


def step_rows(
    workload: Workload, pairs: int, authors: bool, peers: Peers, says: Says
) -> dict[str, Any]:
    """Time whole training steps, update included, all in the same turns.

    Args:
        workload: network, images and keep rates.
        pairs: turns.
        authors: whether PyTorch takes its turns with the authors' way: dense convolutions of
            weight * mask, two forward and two backward passes.
        peers: PyTorch's processes.
        says: progress.

    Returns:
        {"dense": {"seconds", "macs", "gmacs", "phases"}, "rows": one a share}. A row holds
        keep_rate, executed_share (forward MACs, mean), seconds, macs, gmacs, phases; saving (dense
        over Algorithm 1, median of pairs), saving_macs (the same in executed MACs),
        saving_paper_formula, saving_paper (measured there; or None); structure_share (of the step:
        sampling, cut, update of keep_prob, paste); authors {peer: {"seconds", "over": authors' way
        over Algorithm 1's}}; on a GPU torch_dense, the same for PyTorch's dense step.
    """
    says(f"{workload.label}: whole steps, dense and Algorithm 1")
    arrangement = plan(workload)
    dense = Timed(Dense(workload.build(), hyper(), arrangement), workload)
    sparse = {}
    for share, rate in workload.keep_rates.items():
        method = CompletelySparse(workload.build(), hyper(rate), arrangement)
        sparse[share] = Timed(method, workload)
    contestants: Contestants = {OWN: dense}
    contestants |= {_label(OWN, share): timed for share, timed in sparse.items()}
    if authors:
        contestants |= _build_authors(workload, peers)
    on_gpu = dense.method.backend.name == "cuda"
    if on_gpu:
        contestants |= _build_dense(workload, peers)
    took = in_turns(contestants, pairs, peers)
    for timed in (dense, *sparse.values()):
        timed.finish(pairs)
    rows = []
    for share, timed in sparse.items():
        found = _row(workload, share, timed, dense)
        found["authors"] = _beside(timed, share, took, peers)
        if on_gpu:
            found["torch_dense"] = _beside(timed, DENSE, took, peers)
        rows.append(found)
    for share in sparse:
        peers.forget(f"authors {share:g}")
    if on_gpu:
        peers.forget(DENSE)
    return {"dense": _timed(dense), "rows": rows}


def _label(who: str, what: float | str) -> str:
    return f"{who}: {what}" if isinstance(what, str) else f"{who}: {what:g}"


def _beside(timed: Timed, what: float | str, took: Turns, peers: Peers) -> dict[str, Any]:
    """{peer: its seconds, and the median of its time over the timed method's, turn by turn}."""
    return {
        label: {
            "seconds": statistics.median(took[name]),
            "over": median_ratio(took[name], timed.seconds),
        }
        for label in peers.torch
        if (name := _label(label, what)) in took
    }


def _build_dense(workload: Workload, peers: Peers) -> Contestants:
    request = {"spec": workload.build().spec(), "images": list(workload.batch.images.shape)}
    return {
        _label(label, DENSE): partial(peers.found[label].time, DENSE, "step", workload.repeats)
        for label in peers.build(list(peers.torch), name=DENSE, **request)
    }


def _build_authors(workload: Workload, peers: Peers) -> Contestants:
    spec, images = workload.build().spec(), list(workload.batch.images.shape)
    contestants: Contestants = {}
    for share, rate in workload.keep_rates.items():
        name = f"authors {share:g}"
        request = {"name": name, "spec": spec, "images": images, "keep_prob": rate}
        for label in peers.build(list(peers.torch), **request):
            peer = peers.found[label]
            contestants[_label(label, share)] = partial(
                peer.time, name, "masked_step", workload.repeats
            )
    return contestants


def _timed(timed: Timed) -> dict[str, Any]:
    macs = [statistics.mean(trace.executed_macs for trace in traces) for traces in timed.turns]
    rates = [m / s / 1e9 for m, s in zip(macs, timed.seconds, strict=True)]
    return {
        "seconds": statistics.median(timed.seconds),
        "macs": statistics.median(macs),
        "gmacs": statistics.median(rates),
        "phases": timed.phases(),
    }


def _row(workload: Workload, share: float, timed: Timed, dense: Timed) -> dict[str, Any]:
    every = [trace for traces in timed.turns for trace in traces]
    executed = statistics.mean(trace.cost_ratio for trace in every)
    macs = statistics.mean(trace.executed_macs for trace in every)
    structure = [
        sum(trace.seconds.get(phase, 0.0) for phase in OF_THE_STRUCTURE) / seconds
        for seconds, trace in timed.apart
    ]
    paper = row_of(workload.name, share)
    return {
        "share": share,
        "keep_rate": workload.keep_rates[share],
        "executed_share": executed,
        **_timed(timed),
        "saving": median_ratio(dense.seconds, timed.seconds),
        "saving_macs": dense.turns[0][0].executed_macs / macs,
        "saving_paper_formula": train_cost_saving(executed),
        "saving_paper": None if paper is None else paper.saving,
        "structure_share": statistics.median(structure),
    }
