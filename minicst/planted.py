"""Planted structure: does the estimator find the good channels, or is it luck?

In half of the channels of every group, the output after batch norm is noise. Accuracy alone proves
nothing on small data: with a coin for the sign of L(m) - L(m'), keep_prob polarises by its own
noise. What counts is the share of keep_prob on the good channels.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicst.checkpoint import write_text
from minicst.job import Job, prepare
from minicst.nn import Network
from minicst.settings import TrainSettings
from minicst.training import train

# Label in the table: (method, estimator).
METHODS: dict[str, tuple[str, str]] = {
    "vr-pge-symmetric": ("completely-sparse", "vr-pge-symmetric"),
    "vr-pge": ("completely-sparse", "vr-pge"),
    "pge": ("completely-sparse", "pge"),
    "coin": ("completely-sparse", "coin"),
    "ste": ("ste", "vr-pge"),
    "gumbel": ("gumbel", "vr-pge"),
    "fixed-mask": ("fixed-mask", "vr-pge"),
}


@dataclass(frozen=True)
class PlantedSettings:
    """Plant noise in half of the channels and see which estimators find the other half."""

    network: str = "vgg-tiny"
    """Network; vgg-tiny has 80 maskable channels."""
    data: str = "digits"
    """Data set, as in train."""
    data_dir: Path | None = None
    """Folder of data that isn't inside the package, as in train."""
    verify: bool = True
    """Check files against the published checksums and sizes."""
    limit: int | None = None
    """Train on the first so many training images only."""
    width: float = 1.0
    """Multiplies every hidden channel count."""
    keep_rate: float = 0.25
    """Share of channels kept."""
    keep_prob_lr: float = 12e-3
    """Adam's learning rate for keep_prob, cosine."""
    epochs: int = 80
    """Passes over the training images; 22 steps each on digits."""
    seeds: int = 3
    """Number of seeds, from first_seed on."""
    first_seed: int = 0
    """First seed."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which to run: vr-pge-symmetric, vr-pge, pge, coin, ste, gumbel, fixed-mask."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    json: bool = False
    """Print JSON instead of a table."""
    out: Path | None = None
    """Write the picture (.png) here, and the numbers beside it (.json)."""
    debug: bool = False
    """Show the traceback of an error."""


def good_channels(network: Network) -> np.ndarray:
    """(n_maskable,) bool: the channels without planted noise."""
    good = np.ones(network.n_maskable, bool)
    for unit in network.units().values():
        if unit.noise is not None and unit.group is not None:
            good[network.groups[unit.group]] &= ~unit.noise.bad
    return good


def good_share(weights: np.ndarray, good: np.ndarray) -> float:
    """Share of `weights` (keep_prob, or a mask) on the good channels."""
    return float(weights[good].sum() / weights.sum())


def run_planted(
    settings: PlantedSettings, says: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train every method on every seed.

    Returns:
        {"network", "data", "limit", "width", "keep_rate", "epochs", "seeds", "base_share": mean
        share of good channels, "methods": {label: {"good_share": {mean, sd, values},
        "test_accuracy": {mean, sd, values}, "seconds_per_run"}}}.

    Raises:
        ValueError: for an unknown method or an impossible setting.
    """
    unknown = [label for label in settings.methods if label not in METHODS]
    if unknown or not settings.methods or settings.seeds < 1:
        raise ValueError(
            f"methods {list(settings.methods)}, {settings.seeds} seeds: one seed and one method at "
            f"least are needed, of {', '.join(METHODS)}"
        )
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    results: dict[str, Any] = {}
    base = []
    for label in settings.methods:
        shares, accuracies, seconds = [], [], 0.0
        for seed in seeds:
            job = _job(settings, label, seed)
            good = good_channels(job.full_network)
            base.append(float(good.mean()))
            _, summary = train(job)
            weights = getattr(job.method, "keep_prob", None)
            if weights is None:
                weights = job.method.mask.astype(float)  # type: ignore[attr-defined]
            shares.append(good_share(weights, good))
            accuracies.append(summary["test_accuracy"])
            seconds += summary["step_seconds"] * summary["steps"]
            says(
                f"{label}, seed {seed}: share on good channels {shares[-1]:.3f}, "
                f"test accuracy {accuracies[-1]:.3f}"
            )
        results[label] = {
            "good_share": _spread(shares),
            "test_accuracy": _spread(accuracies),
            "seconds_per_run": seconds / len(shares),
        }
    return {
        "network": settings.network,
        "data": settings.data,
        "limit": settings.limit,
        "width": settings.width,
        "keep_rate": settings.keep_rate,
        "epochs": settings.epochs,
        "seeds": list(seeds),
        "base_share": statistics.mean(base),
        "methods": results,
    }


def _job(settings: PlantedSettings, label: str, seed: int) -> Job:
    method, estimator = METHODS[label]
    train_settings = TrainSettings(
        network=settings.network,
        data=settings.data,
        data_dir=settings.data_dir,
        verify=settings.verify,
        limit=settings.limit,
        width=settings.width,
        method=method,
        estimator=estimator,
        keep_rate=settings.keep_rate,
        keep_prob_lr=settings.keep_prob_lr,
        fine_tune=0.0,
        epochs=settings.epochs,
        seed=seed,
        threads=settings.threads,
        dense_probes=0,
        planted=True,
    )
    return prepare(train_settings)


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": sd, "values": values}


def save_planted(results: dict[str, Any], path: Path) -> None:
    """Draw the shares and accuracies to path (.png), and write the numbers beside it (.json)."""
    from minicst.plots import plot_planted

    plot_planted(results, path)
    write_text(path.with_suffix(".json"), json.dumps(results, indent=2) + "\n")
