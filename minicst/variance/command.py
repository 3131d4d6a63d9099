"""`minicst variance`: how noisy each estimator's gradient is, layer by layer, and over training.

Weights and mini-batch are fixed at each measuring point and masks are drawn, as in the paper's
Figure 3 (right). Beside it stand E L^2 and V: their quotient is what the difference L(m) - L(m')
alone takes off the variance, near enough (exactly at s = 1/2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicst.backend import cpu_backend
from minicst.checkpoint import write_text
from minicst.data import Batch, train_loader
from minicst.job import Job, prepare
from minicst.methods.mask_loss import MaskLoss
from minicst.settings import TrainSettings
from minicst.sparse.rules import RULES
from minicst.training import Silent, load_job, train
from minicst.variance.point import ROWS, Sizes, label, measure
from minicst.variance.report import dumps, point_line, summarize_points

# An epoch number that training never reaches: the mini-batch's order and augmentation.
BATCH_EPOCH = 2**31 + 1


@dataclass(frozen=True)
class VarianceSettings:
    """Measure the variance of every estimator's gradient, per channel and per layer."""

    run: Path | None = None
    """Folder of a run: measure at its checkpoint. Otherwise a short training is measured."""
    network: str = "vgg-small"
    """Network of the short training."""
    data: str = "fashion"
    """Its data set."""
    data_dir: Path | None = None
    """Folder of cifar10's files."""
    limit: int | None = None
    """Train on the first so many training images only."""
    width: float = 1.0
    """Multiplies every hidden channel count."""
    keep_rate: float = 0.5
    """Share of the maskable channels kept on average."""
    keep_prob_lr: float = 0.1
    """Adam's learning rate for keep_prob."""
    epochs: int = 16
    """Passes over the training images; measured after 0, 1, 4, 16, ... and the last."""
    batch_size: int = 128
    """Images of the fixed mini-batch, augmented as in training; training takes 64."""
    draws: int = 200
    """Independent pairs of masks, and as many antithetic ones: 4 forward passes each. Vmax takes up
    to 320 more, for rare values of a mask."""
    n_masks: int = 4
    """Masks of vr-pge-multi."""
    seed: int = 0
    """Of the short training and of the masks."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    json: bool = False
    """Print JSON instead of a table."""
    out: Path | None = None
    """Write the picture here (.png), the numbers beside it (.json); variance.png in the run's
    folder, or here, by default."""
    debug: bool = False
    """Show the traceback of an error."""

    def sizes(self) -> Sizes:
        """How much is drawn at a measuring point."""
        return Sizes(self.draws, self.n_masks, self.draws, flip_entries=4, per_channel=True)


class Measurer(Silent):
    """Measures while the loop trains, at the given epochs; training doesn't notice.

    Args:
        epochs: after which it measures; 0: before the first step.
        sizes: how much is drawn.
        batch_size: of the fixed mini-batch.
        seed: of the masks; None: the run's.
        says: takes progress lines.
        keep: called with all points after each one.

    Attributes:
        points: of measure(), with "epoch", "step" and "train_loss".
    """

    def __init__(
        self,
        epochs: list[int],
        sizes: Sizes,
        batch_size: int,
        seed: int | None = None,
        says: Callable[[str], None] = lambda text: None,
        keep: Callable[[list[dict[str, Any]]], None] = lambda points: None,
    ) -> None:
        self.epochs, self.sizes, self.batch_size = set(epochs), sizes, batch_size
        self.seed, self.say, self.keep = seed, says, keep
        self.points: list[dict[str, Any]] = []

    def started(self, job: Job) -> None:
        """Measure before the first step."""
        if job.totals.epoch == 0 and 0 in self.epochs:
            self.measure(job, None)

    def epoch_ended(self, job: Job, row: dict[str, Any]) -> None:
        """Measure."""
        self.say(f"epoch {row['epoch']}/{job.settings.epochs}: loss {row['loss_a']:.4f}")
        if row["epoch"] in self.epochs:
            self.measure(job, row["loss_a"])

    def measure(self, job: Job, train_loss: float | None) -> None:
        """Take one point."""
        loss = MaskLoss.of(job.method, fixed_batch(job, self.batch_size))
        point = {"epoch": job.totals.epoch, "step": job.method.step, "train_loss": train_loss}
        seed = job.settings.seed if self.seed is None else self.seed
        point |= measure(loss, self.sizes, seed, job.method.step)
        self.points.append(point)
        self.keep(self.points)
        self.say(point_line(point))


def fixed_batch(job: Job, batch_size: int) -> Batch:
    """Return the mini-batch of all measuring points: training images, augmented as in training."""
    augment = job.loader.augment
    loader = train_loader(job.dataset, batch_size, job.settings.seed, augment, prefetch=False)
    return next(iter(loader.epoch(BATCH_EPOCH)))


def spaced_epochs(epochs: int, factor: int = 4) -> list[int]:
    """0, 1, factor, factor^2, ... and the last epoch."""
    powers = [factor**i for i in range(32) if factor**i < epochs]
    return [0, *powers, epochs]


def description(job: Job, sizes: Sizes, batch_size: int) -> dict[str, Any]:
    """What the numbers depend on, and where they were made; no paths."""
    s = job.settings
    return {
        "network": s.network,
        "width": s.width,
        "residual": s.residual,
        "data": s.data,
        "training_images": len(job.dataset.train_labels),
        "maskable_channels": job.full_network.n_maskable,
        "maskable": job.full_network.maskable,
        "keep_rate": s.keep_rate,
        "epochs": s.epochs,
        "training_batch_size": s.batch_size,
        "steps_per_epoch": job.steps_per_epoch,
        "estimator": s.estimator,
        "lr": s.lr,
        "keep_prob_optimizer": s.keep_prob_optimizer,
        "keep_prob_lr": s.keep_prob_lr,
        "augment": job.loader.augment,
        "seed": s.seed,
        "batch_size": batch_size,
        "masks": sizes.pool,
        "antithetic_pairs": sizes.pairs,
        "flip_entries": sizes.flip_entries,
        "flip_draws": sizes.flip_draws,
        "estimators": {
            label(rule, alpha): {
                "rule": rule,
                "alpha": alpha,
                "passes": RULES[rule].masks_per_step(sizes.n_masks),
            }
            for rule, alpha in ROWS
        }
        if sizes.pairs
        else {},
        "numpy": np.__version__,
        "cpu_count": os.cpu_count(),
        "threads": cpu_backend().threads,
    }


def measure_training(
    settings: TrainSettings,
    epochs: list[int],
    sizes: Sizes,
    batch_size: int,
    says: Callable[[str], None] = lambda text: None,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Train, and measure at the given epochs.

    Args:
        settings: of the training.
        epochs: when to measure, 0 is before the first step.
        sizes: how much is drawn at a point.
        batch_size: of the fixed mini-batch.
        says: takes progress lines.
        keep: called with the results so far after each point, to save them.

    Returns:
        description(), "points", "seconds", "test_accuracy", "summary" (of summarize_points).
    """
    start = time.perf_counter()
    job = prepare(settings)
    sizes.check()
    results = description(job, sizes, batch_size)

    def keep_points(points: list[dict[str, Any]]) -> None:
        results["points"] = points
        results["seconds"] = round(time.perf_counter() - start, 1)
        results["summary"] = summarize_points(results)
        keep(results)

    watcher = Measurer(epochs, sizes, batch_size, None, says, keep_points)
    _, summary = train(job, watcher=watcher)
    results["test_accuracy"] = summary["test_accuracy"]
    results["seconds"] = round(time.perf_counter() - start, 1)
    keep(results)
    return results


def run_variance(
    settings: VarianceSettings, says: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Measure at a run's checkpoint, or over a short training.

    Raises:
        ValueError: an impossible setting, a damaged run, a run without masks.
    """
    sizes = settings.sizes()
    sizes.check()
    if settings.run is None:
        train_settings = TrainSettings(
            network=settings.network,
            data=settings.data,
            data_dir=settings.data_dir,
            limit=settings.limit,
            width=settings.width,
            keep_rate=settings.keep_rate,
            keep_prob_lr=settings.keep_prob_lr,
            epochs=settings.epochs,
            dense_probes=0,
            seed=settings.seed,
            threads=settings.threads,
        )
        epochs = spaced_epochs(settings.epochs)
        return measure_training(train_settings, epochs, sizes, settings.batch_size, says)
    if not settings.run.is_dir():
        raise ValueError(
            f"there is no folder {settings.run}: --run takes a run's, as train made it"
        )
    start = time.perf_counter()
    job = load_job(settings.run, settings.threads)
    watcher = Measurer([], sizes, settings.batch_size, settings.seed, says)
    watcher.measure(job, None)
    results = description(job, sizes, settings.batch_size)
    results |= {"mask_seed": settings.seed, "points": watcher.points}
    results["seconds"] = round(time.perf_counter() - start, 1)
    results["summary"] = summarize_points(results)
    return results


def save_variance(results: dict[str, Any], settings: VarianceSettings) -> Path:
    """Draw to --out and write the numbers beside it; return the picture's path."""
    from minicst.variance.plots import plot_variance

    path = settings.out or (settings.run or Path()) / "variance.png"
    plot_variance(results, path)
    write_text(path.with_suffix(".json"), dumps(results))
    return path
