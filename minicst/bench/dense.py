"""Passes of a network, dense or cut: minicst's, and in turns with them those of its peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import minicst.functional as F
from minicst.autograd import no_grad
from minicst.bench.peers import (
    JAX,
    Contestants,
    Peers,
    Says,
    in_turns,
    median_ratio,
    medians,
    seconds_of,
)
from minicst.bench.settings import SHAPE, Workload
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.dense import Dense
from minicst.nn import Network
from minicst.sparse.accounting import count_macs

OWN = "minicst"
PASSES = ("forward", "forward_backward", "step")
# Of a step's time nothing depends on the rates. They are small so that the masks keep their share
# of the MACs, and random labels don't make training diverge.
LR, KEEP_PROB_LR = 0.01, 1e-6


def hyper(keep_rate: float = 0.5) -> Hyper:
    """Numbers of the timed methods."""
    return Hyper(lr=LR, keep_prob_lr=KEEP_PROB_LR, keep_rate=keep_rate)


def forward(network: Network, batch: Batch) -> None:
    """Training-mode forward pass without a tape."""
    with no_grad():
        network(batch.images, training=True)


def forward_backward(network: Network, batch: Batch) -> None:
    """Training-mode forward and backward pass."""
    network.zero_grad()
    F.cross_entropy(network(batch.images, training=True), batch.labels).backward()


def plan(workload: Workload) -> Plan:
    """A run that never ends."""
    return Plan(10**6, 10**6, workload.batch_size, SHAPE)


def pass_macs(network: Network, images: int) -> dict[str, int]:
    """{pass: multiply-adds that minicst executes}; the update multiplies nothing that counts."""
    layers = count_macs(network, SHAPE).executed(images, backward=True).values()
    both = sum(sum(passes.values()) for passes in layers)
    first = sum(passes["forward"] for passes in layers)
    return {"forward": first, "forward_backward": both, "step": both}


def row(what: str, took: dict[str, list[float]], macs: int) -> dict[str, Any]:
    """One line of a table: medians, ratios of pairs, executed MACs and their rate."""
    return {
        "what": what,
        "seconds": medians(took),
        "turns": took,
        "over": {
            label: median_ratio(took[OWN], seconds)
            for label, seconds in took.items()
            if label != OWN
        },
        "macs": macs,
        "gmacs": macs / medians(took)[OWN] / 1e9,
    }


def dense_rows(workload: Workload, pairs: int, peers: Peers, says: Says) -> list[dict[str, Any]]:
    """Time the dense network's passes: minicst, PyTorch in two memory formats, JAX.

    Returns:
        A row a pass: {"what", "seconds": {label: median}, "turns": {label: each turn's}, "over":
        {peer: median of minicst's time over its}, "macs", "gmacs": minicst's 10^9 MACs a second}.
    """
    network, batch = workload.build(), workload.batch
    method = Dense(workload.build(), hyper(), plan(workload))
    own: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(network, batch),
        "forward_backward": lambda: forward_backward(network, batch),
        "step": lambda: method.train_step(batch),
    }
    images = list(batch.images.shape)
    labels = peers.build(list(peers.found), name="dense", spec=network.spec(), images=images)
    macs = pass_macs(network, workload.batch_size)
    rows = []
    for what in PASSES:
        says(f"{workload.label}: dense {what.replace('_', ' + ')}")
        repeats = workload.repeats
        contestants: Contestants = {OWN: partial(seconds_of, own[what], network.backend, repeats)}
        for label in labels:
            if label in peers.found and not (label == JAX and what == "step"):
                contestants[label] = partial(peers.found[label].time, "dense", what, repeats)
        rows.append(row(what, in_turns(contestants, pairs, peers), macs[what]))
    peers.forget("dense")
    return rows
