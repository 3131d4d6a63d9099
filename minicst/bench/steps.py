"""Algorithm 1's whole step against minicst's dense step and against the authors' way."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from minicst.bench.dense import OWN, hyper, plan
from minicst.bench.paper import row_of
from minicst.bench.peers import Contestants, Peers, Says, in_turns, median_ratio
from minicst.bench.settings import Workload
from minicst.methods.base import Method
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.methods.trace import StepTrace
from minicst.sparse.accounting import train_cost_saving

# Phases that dense training doesn't have.
OF_THE_STRUCTURE = ("sample", "cut", "structure", "paste")


class Timed:
    """A method that takes steps on one batch, and keeps what each of them traced.

    Args:
        method: takes the steps.
        workload: has the batch.
    """

    def __init__(self, method: Method, workload: Workload) -> None:
        self.method, self.batch = method, workload.batch
        self.seconds: list[float] = []
        self.traces: list[StepTrace] = []

    def __call__(self) -> float:
        """Take a step; return its seconds, whatever is in no phase included."""
        start = time.perf_counter()
        trace = self.method.train_step(self.batch)
        self.seconds.append(time.perf_counter() - start)
        self.traces.append(trace)
        return self.seconds[-1]

    def keep_last(self, pairs: int) -> None:
        """Forget the steps that warmed up."""
        self.seconds, self.traces = self.seconds[-pairs:], self.traces[-pairs:]

    def phases(self) -> dict[str, dict[str, float]]:
        """{phase: {"seconds", and where something is multiplied "macs" and "gmacs"}}, medians."""
        table = {}
        for phase in self.traces[0].seconds:
            seconds = [trace.seconds[phase] for trace in self.traces]
            table[phase] = {"seconds": statistics.median(seconds)}
            macs = [phase_macs(trace, phase) for trace in self.traces]
            if all(macs):
                rates = [m / s / 1e9 for m, s in zip(macs, seconds, strict=True)]
                table[phase] |= {
                    "macs": statistics.median(macs),
                    "gmacs": statistics.median(rates),
                }
        inside = [sum(trace.seconds.values()) for trace in self.traces]
        rest = [s - i for s, i in zip(self.seconds, inside, strict=True)]
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
        over Algorithm 1's}}.
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
    names = _build_authors(workload, peers) if authors else {}
    contestants |= names
    took = in_turns(contestants, pairs, peers)
    for timed in (dense, *sparse.values()):
        timed.keep_last(pairs)
    rows = []
    for share, timed in sparse.items():
        found = _row(workload, share, timed, dense)
        found["authors"] = {
            label: {
                "seconds": statistics.median(took[name]),
                "over": median_ratio(took[name], timed.seconds),
            }
            for label in peers.torch
            if (name := _label(label, share)) in took
        }
        rows.append(found)
    for share in sparse:
        peers.forget(f"authors {share:g}")
    return {"dense": _timed(dense), "rows": rows}


def _label(who: str, share: float) -> str:
    return f"{who}: {share:g}"


def _build_authors(workload: Workload, peers: Peers) -> Contestants:
    spec, images = workload.build().spec(), list(workload.batch.images.shape)
    contestants: Contestants = {}
    for share, rate in workload.keep_rates.items():
        name = f"authors {share:g}"
        request = {"name": name, "spec": spec, "images": images, "keep_prob": rate}
        for label in peers.build(list(peers.torch), **request):
            peer = peers.found[label]
            contestants[_label(label, share)] = partial(peer.time, name, "masked_step")
    return contestants


def _timed(timed: Timed) -> dict[str, Any]:
    macs = [trace.executed_macs for trace in timed.traces]
    rates = [m / s / 1e9 for m, s in zip(macs, timed.seconds, strict=True)]
    return {
        "seconds": statistics.median(timed.seconds),
        "macs": statistics.median(macs),
        "gmacs": statistics.median(rates),
        "phases": timed.phases(),
    }


def _row(workload: Workload, share: float, timed: Timed, dense: Timed) -> dict[str, Any]:
    executed = statistics.mean(trace.cost_ratio for trace in timed.traces)
    macs = statistics.mean(trace.executed_macs for trace in timed.traces)
    structure = [
        sum(trace.seconds.get(phase, 0.0) for phase in OF_THE_STRUCTURE) / seconds
        for trace, seconds in zip(timed.traces, timed.seconds, strict=True)
    ]
    paper = row_of(workload.name, share)
    return {
        "share": share,
        "keep_rate": workload.keep_rates[share],
        "executed_share": executed,
        **_timed(timed),
        "saving": median_ratio(dense.seconds, timed.seconds),
        "saving_macs": dense.traces[0].executed_macs / macs,
        "saving_paper_formula": train_cost_saving(executed),
        "saving_paper": None if paper is None else paper.saving,
        "structure_share": statistics.median(structure),
    }
