"""What a run is made of: data, network, method, plan, running sums; built from the settings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import minicst.functional as F
from minicst.backend import get_backend, using
from minicst.counts import keep_rate_of
from minicst.data import Batch, Dataset, Loader, load_dataset, test_loader, train_loader
from minicst.methods import METHODS
from minicst.methods.base import Method, Plan, build_optimizer
from minicst.methods.chain_rule import GumbelSoftmax, StraightThrough
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense, FixedMask, Narrow
from minicst.methods.trace import StepTrace
from minicst.models import ARCHITECTURES, build
from minicst.nn import ChannelNoise, Network, clone
from minicst.randomness import rng_for
from minicst.settings import TrainSettings
from minicst.store import Store

# Methods that learn keep_prob.
SEARCHES: dict[str, type[CompletelySparse]] = {
    method.name: method for method in (CompletelySparse, StraightThrough, GumbelSoftmax)
}


@dataclass
class Totals:
    """Running sums of a run; part of the checkpoint.

    Attributes:
        epoch: epochs that are complete.
        batch: batches of the current epoch that are done.
        executed: MACs executed in training steps, recalibration included.
        executed_dense: MACs that dense training would have executed in as many steps.
        paper_cost: sum over steps of (forwards + 2 backwards) fS / fD.
        ratio_sum: sum over steps of the mean fS / fD of the forward passes.
        step_seconds: of all training steps, data loading excluded.
        wait_seconds: that training steps waited for their batches.
        dense_seconds: of the dense steps timed in between.
        scores: test accuracies at the end of the search, by kind of final mask.
        epoch_sums: sums over the current epoch's steps.
        unreadable: absolute paths of the image files that couldn't be read before the last resume.
    """

    epoch: int = 0
    batch: int = 0
    executed: int = 0
    executed_dense: int = 0
    paper_cost: float = 0.0
    ratio_sum: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    wait_seconds: float = 0.0
    dense_seconds: list[float] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    epoch_sums: dict[str, float] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def add(self, trace: StepTrace, waited: float = 0.0) -> None:
        """Count one training step, and the seconds that it waited for its batch."""
        forwards, backwards = trace.passes
        self.steps += 1
        self.executed += trace.executed_macs
        self.executed_dense += trace.dense_macs
        self.paper_cost += (forwards + 2 * backwards) * trace.cost_ratio
        self.ratio_sum += trace.cost_ratio
        self.step_seconds += trace.total_seconds
        self.wait_seconds += waited
        sums = {
            "steps": 1.0,
            "loss_a": trace.loss_a,
            "seconds": trace.total_seconds,
            "waited": waited,
            "macs": float(trace.executed_macs),
            "repaired": float(trace.repaired),
            "ratio": trace.cost_ratio,
        }
        if trace.loss_b is not None:
            sums |= {
                "paired": 1.0,
                "loss_b": trace.loss_b,
                "difference_squared": (trace.loss_a - trace.loss_b) ** 2,
            }
        for key, value in sums.items():
            self.epoch_sums[key] = self.epoch_sums.get(key, 0.0) + value


@dataclass(frozen=True)
class Rereadable:
    """The first `n` batches of one epoch, made anew whenever they are run through.

    A batch of 256 images of 224x224 takes 154 MB: 16 of them are not to be held at once.
    """

    loader: Loader
    n: int

    def __iter__(self) -> Iterator[Batch]:
        # An epoch number that training never reaches keys an order of its own.
        return islice(self.loader.epoch(2**31), self.n)


@dataclass
class Job:
    """All that a run is made of."""

    settings: TrainSettings
    dataset: Dataset
    loader: Loader
    full_network: Network
    method: Method
    plan: Plan
    totals: Totals
    probe: DenseProbe | None
    store: Store | None = None
    recovered: str | None = None  # what was found of a crash, when the full model was opened

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch."""
        return len(self.loader)

    def position(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Header and arrays that say where the run stands, all but the full network's own."""
        totals = replace(self.totals, unreadable=self.unreadable_files())
        header = {"settings": self.settings.as_json(), "totals": asdict(totals)}
        return header, self.method.position()

    def recalibration_batches(self) -> Rereadable:
        """Training batches for batch norm's statistics, always the same ones, not augmented."""
        data, settings = self.dataset, self.settings
        plain = train_loader(data, settings.batch_size, settings.seed, "none", prefetch=False)
        return Rereadable(plain, settings.recalibration_batches)

    def unreadable_files(self) -> list[str]:
        """Absolute paths of the image files that couldn't be read, of the whole run, sorted."""
        now = (os.path.abspath(path) for path in self.dataset.unreadable)
        return sorted({*self.totals.unreadable, *now})

    def test_batches(self) -> Iterable[Batch]:
        """All test images, in order."""
        h, w, _ = self.dataset.input_shape
        images = 250 if h * w <= 64**2 else 32  # activations of large images are large
        return test_loader(self.dataset, images, prefetch=False).epoch(0)


class DenseProbe:
    """Times dense steps of the same network, on a copy, in between the training steps."""

    def __init__(self, network: Network, settings: TrainSettings) -> None:
        self.network = clone(network)
        hyper = settings.hyper()
        self.optimizer = build_optimizer(hyper.optimizer, self.network, hyper)
        self.warm = False

    def time(self, batch: Batch) -> float:
        """Seconds of one dense step: forward, backward, update. The first call warms up."""
        backend = self.network.backend
        if not self.warm:
            self._step(batch)
            self.warm = True
        backend.synchronize()
        start = time.perf_counter()
        self._step(batch)
        backend.synchronize()
        return time.perf_counter() - start

    def _step(self, batch: Batch) -> None:
        with self.network.backend.meter.in_phase("probe"):
            self.optimizer.zero_grad()
            logits = self.network(batch.images, training=True)
            F.cross_entropy(logits, batch.labels).backward()
            self.optimizer.step()


def model_options(settings: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    """Arguments of models.build for these settings."""
    return {
        "name": settings.network,
        "num_classes": dataset.num_classes,
        "in_channels": dataset.input_shape[2],
        "width": settings.width,
        "residual": settings.residual,
        "shortcut": settings.shortcut,
        "image_size": dataset.input_shape[0],
        "seed": settings.seed,
        "linear_masks": settings.linear_masks,
    }


def limit_test(dataset: Dataset, limit: int) -> Dataset:
    """Return the data set with at most so many test images, evenly spaced over all of them."""
    n = len(dataset.test_labels)
    if limit >= n:
        return dataset
    chosen = np.arange(limit) * n // limit
    images = dataset.test_images
    few = images[chosen] if isinstance(images, np.ndarray) else images.subset(chosen)
    return replace(dataset, test_images=few, test_labels=dataset.test_labels[chosen])


def plant(network: Network, seed: int) -> None:
    """Replace half of the channels of every maskable unit by noise, drawn from `seed`.

    Raises:
        ValueError: if a unit is masked weight by weight.
    """
    if by_weight := network.weight_units():
        raise ValueError(
            f"unit '{min(by_weight)}' is masked weight by weight: planted noise replaces channels"
        )
    for name, unit in network.units().items():
        if unit.group is not None and unit.norm is not None:
            channels = np.arange(unit.transform.c_out)
            order = rng_for(seed, "planted", name).permutation(channels.size)
            bad = order < channels.size // 2
            unit.noise = ChannelNoise(seed, name, bad, channels)


def prepare(
    settings: TrainSettings,
    target_macs: float | None = None,
    folder: Path | None = None,
    fresh: bool = True,
) -> Job:
    """Build data, network and method.

    Args:
        settings: of the run.
        target_macs: for the controls, MACs of a forward pass to come close to.
        folder: of the run, existing, where its full model is to be kept on disk.
        fresh: whether the full model on disk is made, or opened as a run left it.

    Raises:
        ValueError: if a setting is impossible.
    """
    settings.check()
    store = None
    if settings.full_model == "disk":
        if folder is None:
            raise ValueError("--full-model disk needs a run folder to keep the full model in")
        store = Store(folder, fresh, settings.threads)
    backend = get_backend(settings.device, settings.threads)
    backend.configure(settings.precision, settings.workspace_mb)
    with using(backend):
        job = _prepare(settings, target_macs, store)
    if store is not None:
        assert isinstance(job.method, CompletelySparse)
        job.store, job.method.full.write = store, store.write
        job.method.full.position = job.position
    return job


def _prepare(settings: TrainSettings, target_macs: float | None, store: Store | None) -> Job:
    if settings.network not in ARCHITECTURES:
        raise ValueError(
            f"unknown network '{settings.network}': choose one of {', '.join(ARCHITECTURES)}"
        )
    known = ARCHITECTURES[settings.network]
    dataset = load_dataset(
        settings.data,
        None if known.any_size or settings.data == "folder" else known.image[0],
        settings.data_dir,
        settings.limit,
        verify=settings.verify,
        validation=settings.validation,
        image_size=settings.image_size,
    )
    test_limit = settings.test_limit or (settings.limit if settings.recipe else None)
    if test_limit is not None:
        dataset = limit_test(dataset, test_limit)
    # Mirrored digits are other signs or none, so they are never flipped.
    augment = "none" if settings.data in ("digits", "mnist") else settings.augment
    loader = train_loader(dataset, settings.batch_size, settings.seed, augment)
    options = model_options(settings, dataset)
    home = get_backend("cpu") if settings.full_model == "host" else get_backend()
    with using(home if store is None else store.backend):
        network = build(**options)
    network.shapes(dataset.input_shape)
    if settings.method != Dense.name:
        keep_rate = keep_rate_of(settings, network, dataset.input_shape)
        settings = replace(settings, keep_rate=keep_rate)
    if settings.planted:
        plant(network, settings.seed)
    search_epochs = settings.epochs - round(settings.epochs * settings.fine_tune)
    if settings.method not in SEARCHES:
        search_epochs = settings.epochs
    elif search_epochs < 1:
        raise ValueError(
            f"--fine-tune {settings.fine_tune} of {settings.epochs} epochs leaves none for the "
            "search: take a smaller share or more epochs"
        )
    plan = Plan(
        total_steps=settings.epochs * len(loader),
        search_steps=search_epochs * len(loader),
        batch_size=settings.batch_size,
        input_shape=dataset.input_shape,
    )
    hyper = settings.hyper()
    method: Method
    if settings.full_model != "device":
        method = CompletelySparse(network, hyper, plan, get_backend())
    elif settings.method in SEARCHES:
        method = SEARCHES[settings.method](network, hyper, plan)
    elif settings.method == Dense.name:
        method = Dense(network, hyper, plan)
    elif settings.method == FixedMask.name:
        method = FixedMask(network, hyper, plan, target_macs)
    elif settings.method == Narrow.name:
        method = Narrow(network, hyper, plan, options, target_macs)
    else:
        raise ValueError(f"unknown method '{settings.method}': choose one of {', '.join(METHODS)}")
    # A dense step of a full model that is kept elsewhere may not fit on the device.
    probe = DenseProbe(network, settings) if settings.full_model == "device" else None
    return Job(settings, dataset, loader, network, method, plan, Totals(), probe)
