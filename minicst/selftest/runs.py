"""Algorithm 1 for 20 steps: on the device against the reference, and repeated on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np

from minicst.backend import Backend, NumpyBackend, using
from minicst.data import Batch, load_dataset, train_loader
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.models import build
from minicst.selftest.check import Pair, Result, Tolerance, checked, failure

TRAINING, REPEATED = "20 training steps", "repeated runs"
STEPS = 20
BATCH = 64
STEADY = Tolerance(1e-10, "rounding, which a step amplifies and hands on to the next")
SAME_DRAW = Tolerance(0.0, "drawn on the host by seed and step from keep_prob, which agrees")
SAME_BITS = Tolerance(0.0, "bit for bit: sums are taken in a fixed order")


@dataclass(frozen=True)
class Run:
    """What training left.

    Attributes:
        losses: (steps, 2) L(m) and L(m').
        keep_prob: (steps, n) after each step.
        masks: (steps, 2, n) as drawn.
        weights: {name: array} of the network's state at the end, on the host.
    """

    losses: np.ndarray
    keep_prob: np.ndarray
    masks: np.ndarray
    weights: dict[str, np.ndarray]


def train_20(backend: Backend, dtype: str, steps: int = STEPS) -> Run:
    """Train a small VGG on digits by Algorithm 1."""
    data = load_dataset("digits")
    with using(backend):
        network = build("vgg-small", data.num_classes, data.input_shape[2], width=0.5)
    network.astype(dtype)
    hyper = Hyper(keep_rate=0.5, keep_prob_lr=0.05, lr=0.05)
    method = CompletelySparse(network, hyper, Plan(steps, steps, BATCH, data.input_shape))
    loader = train_loader(data, BATCH, 0, prefetch=False)
    traces = [
        method.train_step(Batch(batch.index, batch.images.astype(dtype), batch.labels))
        for batch in islice(cycle(loader.epoch(0)), steps)
    ]
    method.end_epoch()
    return Run(
        np.array([trace.losses for trace in traces]),
        np.array([trace.keep_prob for trace in traces]),
        np.array([trace.masks_drawn for trace in traces]),
        {name: array.copy() for name, array in network.host_state().items()},
    )


def check_training(device: Backend, reference: Backend, steps: int = STEPS) -> list[Result]:
    """Compare 20 steps of a float64 network: masks, losses, keep_prob, weights."""
    names = {
        "masks drawn": SAME_DRAW,
        "losses L(m) and L(m')": STEADY,
        "keep_prob": STEADY,
        "weights and statistics": STEADY,
    }
    try:
        a, b = (train_20(backend, "float64", steps) for backend in (device, reference))
    except Exception as error:
        return [failure(TRAINING, name, "float64", t, error) for name, t in names.items()]
    pairs: tuple[list[Pair], ...] = (
        [(a.masks, b.masks)],
        [(a.losses, b.losses)],
        [(a.keep_prob, b.keep_prob)],
        [(a.weights[name], b.weights[name]) for name in b.weights],
    )
    return [
        checked(TRAINING, name, "float64", tolerance, partial(iter, found))
        for (name, tolerance), found in zip(names.items(), pairs, strict=True)
    ]


def check_repeated(device: Backend, steps: int = STEPS) -> list[Result]:
    """Compare two runs on the device bit for bit; on the CPU, with one thread and with two."""
    on_cpu = isinstance(device, NumpyBackend)
    name = "one thread and two" if on_cpu else "the same run twice"

    def pairs() -> Iterator[Pair]:
        runs = []
        for threads in (1, 2):
            backend = NumpyBackend(threads) if on_cpu else device
            runs.append(train_20(backend, "float32", steps))
            if isinstance(backend, NumpyBackend):
                backend.pool.close()
        a, b = runs
        yield from ((a.losses, b.losses), (a.keep_prob, b.keep_prob), (a.masks, b.masks))
        for key, array in a.weights.items():
            yield b.weights[key], array

    return [checked(REPEATED, name, "float32", SAME_BITS, pairs)]
