"""A cut network's passes beside PyTorch's on a physically narrow network of the same widths."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minicst.bench.dense import OWN, forward, forward_backward, pass_macs, row
from minicst.bench.peers import Contestants, Peers, Says, Turns, in_turns, seconds_of
from minicst.bench.settings import Workload
from minicst.nn import Network
from minicst.randomness import rng_for
from minicst.sparse.liveness import repair
from minicst.sparse.masks import sample_mask
from minicst.sparse.subnetwork import cut

WHAT = ("forward", "forward_backward")


def draw_cut(network: Network, keep_rate: float, seed: int, number: int) -> Network:
    """Cut a network by a mask drawn at a uniform keep rate."""
    keep_prob = np.full(network.n_maskable, keep_rate)
    drawn = sample_mask(keep_prob, rng_for(seed, "bench", "mask", number))
    return cut(network, repair(network, drawn, keep_prob)[0]).network


def cut_rows(
    workload: Workload, pairs: int, peers: Peers, says: Says, seed: int
) -> list[dict[str, Any]]:
    """Time cut networks, at each share.

    "static": one network, again and again, all caches warm. "changing": a newly drawn one in each
    turn, as in training; both sides see its widths for the first time. To cut it, and to build it
    in PyTorch, is not in the time: minicst's cut is a phase of its whole step. On a GPU PyTorch
    then takes the convolutions that cuDNN's rules choose: a search would cost more than it gains.

    Returns:
        A row a share: {"share", "keep_rate", "executed_share", "static": rows of passes as in
        dense_rows, "changing": the same}.
    """
    full = workload.build()
    dense = pass_macs(full, workload.batch_size)["forward"]
    rows = []
    for share, rate in workload.keep_rates.items():
        says(f"{workload.label}: cut network at {share:g} % of the MACs")
        small = draw_cut(full, rate, seed, 0)
        rows.append(
            {
                "share": share,
                "keep_rate": rate,
                "executed_share": pass_macs(small, workload.batch_size)["forward"] / dense,
                "static": _static(small, workload, pairs, peers),
                "changing": _changing(full, rate, workload, pairs, peers, seed),
            }
        )
    return rows


def _own(network: Network, what: str, workload: Workload) -> Callable[[], None]:
    run = forward if what == "forward" else forward_backward
    return lambda: run(network, workload.batch)


def _static(small: Network, workload: Workload, pairs: int, peers: Peers) -> list[dict[str, Any]]:
    images = list(workload.batch.images.shape)
    labels = peers.build(list(peers.torch), name="narrow", spec=small.spec(), images=images)
    macs = pass_macs(small, workload.batch_size)
    rows = []
    for what in WHAT:
        run = _own(small, what, workload)
        repeats = workload.repeats
        contestants: Contestants = {OWN: partial(seconds_of, run, small.backend, repeats)}
        for label in labels:
            if label in peers.found:
                contestants[label] = partial(peers.found[label].time, "narrow", what, repeats)
        rows.append(row(what, in_turns(contestants, pairs, peers, warm=2), macs[what]))
    peers.forget("narrow")
    return rows


def _changing(
    full: Network, rate: float, workload: Workload, pairs: int, peers: Peers, seed: int
) -> list[dict[str, Any]]:
    """Each pass has networks of its own: its turns are the first to see them."""
    images = list(workload.batch.images.shape)
    rows = []
    for first, what in zip((1, 1 + 10**6), WHAT, strict=True):
        macs: list[int] = []
        took: Turns = {label: [] for label in (OWN, *peers.torch)}
        for number in range(-1, pairs):  # the first network wakes threads and fills the heap
            small = draw_cut(full, rate, seed, first + 1 + number)
            request = {"name": "new", "spec": small.spec(), "images": images, "search": False}
            labels = peers.build(list(peers.torch), **request)
            run = _own(small, what, workload)
            contestants: Contestants = {OWN: partial(seconds_of, run, small.backend)}
            for label in labels:
                contestants[label] = partial(peers.found[label].time, "new", what)
            once = in_turns(contestants, 1, peers, warm=0)
            if number >= 0:
                macs.append(pass_macs(small, workload.batch_size)[what])
                for label, seconds in once.items():
                    took[label] += seconds
        whole = {label: seconds for label, seconds in took.items() if len(seconds) == pairs}
        rows.append(row(what, whole, round(statistics.median(macs))))
    peers.forget("new")
    return rows
