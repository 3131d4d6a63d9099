"""`minicst step`: one iteration of Algorithm 1 with every quantity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from minicst.backend import PASSES
from minicst.job import Job, prepare
from minicst.methods.completely_sparse import LETTERS, CompletelySparse
from minicst.methods.trace import StepTrace
from minicst.settings import TrainSettings
from minicst.tables import table as new_table


@dataclass(frozen=True)
class StepSettings:
    """Run one iteration of Algorithm 1 on a small network and print every quantity."""

    network: str = "vgg-small"
    """Network, as in train."""
    data: str = "digits"
    """Data set, as in train."""
    data_dir: Path | None = None
    """Folder of data that isn't inside the package, as in train."""
    verify: bool = True
    """Check files against the published checksums and sizes."""
    limit: int | None = None
    """Take the first so many training images only."""
    image_size: int = 224
    """Side that the images of --data folder are cropped to."""
    width: float = 0.25
    """Multiplies every hidden channel count; at .25 vgg-small has 36 maskable channels."""
    keep_rate: float = 0.5
    """Share of channels kept on average, in (0, 1]."""
    keep_macs: str | None = None
    """Instead of --keep-rate: share of the MACs, as 8.7%; finds the rate at which to expect it."""
    keep_params: str | None = None
    """The same for a share of the parameters."""
    residual: Literal["tied", "independent"] = "tied"
    """Masks at residual adds (ResNets)."""
    shortcut: Literal["A", "B"] = "B"
    """Shortcuts into a new stage (ResNets)."""
    estimator: str = "vr-pge"
    """vr-pge, vr-pge-symmetric, vr-pge-multi, disarm, arm, pge, pge-moving-average or coin."""
    n_masks: int = 4
    """Masks of a step for vr-pge-multi."""
    baseline_decay: float = 0.9
    """Share of the old average in the baseline of pge-moving-average, in [0, 1)."""
    precondition_power: Annotated[float, tyro.conf.arg(aliases=["--alpha"])] = 0.5
    """alpha, in [0, 1]."""
    keep_prob_optimizer: Literal["adam", "sgd"] = "sgd"
    """sgd is Algorithm 1 as it stands: z = s - eta times the gradient."""
    keep_prob_lr: float = 0.1
    """eta of keep_prob."""
    batch_size: int = 64
    """Images."""
    after: int = 0
    """Steps to train before the one that is shown."""
    seed: int = 0
    """Of weights, batch and masks."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    json: bool = False
    """Print JSON."""
    save: Path | None = None
    """Write all arrays to this .npz."""
    debug: bool = False
    """Show the traceback of an error."""


def run_step(settings: StepSettings) -> tuple[Job, StepTrace]:
    """Build the job, take settings.after steps and the one that is shown.

    Raises:
        ValueError: if a setting is impossible.
    """
    if settings.after < 0:
        raise ValueError(f"--after {settings.after}: it must not be negative")
    train_settings = TrainSettings(
        network=settings.network,
        data=settings.data,
        data_dir=settings.data_dir,
        verify=settings.verify,
        limit=settings.limit,
        image_size=settings.image_size,
        width=settings.width,
        keep_rate=settings.keep_rate,
        keep_macs=settings.keep_macs,
        keep_params=settings.keep_params,
        residual=settings.residual,
        shortcut=settings.shortcut,
        estimator=settings.estimator,
        n_masks=settings.n_masks,
        baseline_decay=settings.baseline_decay,
        precondition_power=settings.precondition_power,
        keep_prob_optimizer=settings.keep_prob_optimizer,
        keep_prob_lr=settings.keep_prob_lr,
        keep_prob_schedule="constant",
        schedule="constant",
        fine_tune=0.0,
        batch_size=settings.batch_size,
        epochs=settings.after + 1,
        seed=settings.seed,
        threads=settings.threads,
        dense_probes=0,
    )
    # A first step pays for imports and first touches of memory; its seconds would mislead.
    warm = prepare(train_settings)
    warm.method.train_step(next(iter(warm.loader.epoch(0))))
    job = prepare(train_settings)
    epoch = 0
    while True:
        for batch in job.loader.epoch(epoch):
            trace = job.method.train_step(batch)
            if job.method.step > settings.after:
                return job, trace
        epoch += 1


def step_arrays(job: Job, trace: StepTrace) -> dict[str, np.ndarray]:
    """All arrays of the step, by name."""
    named = {"keep_prob_before": trace.keep_prob_before, "uniform": trace.uniform}
    for kind, masks in (("drawn", trace.masks_drawn), ("used", trace.masks_used)):
        for letter, mask in zip(LETTERS, () if masks is None else masks, strict=False):
            named[f"mask_{kind}_{letter}"] = mask
    named |= {
        "score": trace.score,
        "preconditioner": trace.preconditioner,
        "gradient": trace.gradient,
        "z": trace.z,
        "keep_prob": trace.keep_prob,
    }
    arrays = {name: array for name, array in named.items() if array is not None}
    arrays["multiplier"] = np.array(trace.multiplier)
    return arrays | {name: np.array(loss) for name, loss in _losses(trace).items()}


def _losses(trace: StepTrace) -> dict[str, float]:
    return {f"loss_{letter}": loss for letter, loss in zip(LETTERS, trace.losses, strict=False)}


def step_json(job: Job, trace: StepTrace) -> dict[str, Any]:
    """The step as plain data."""
    method = job.method
    assert isinstance(method, CompletelySparse)
    arrays = step_arrays(job, trace)
    groups = {}
    for group, place in job.full_network.groups.items():
        groups[group] = {
            name: array[place].astype(float if array.dtype.kind == "f" else int).tolist()
            for name, array in arrays.items()
            if array.ndim == 1
        } | {f"live_{which}": counts[group] for which, counts in trace.live_channels.items()}
    return {
        "network": job.settings.network,
        "data": job.settings.data,
        "step": trace.step,
        "estimator": job.settings.estimator,
        "precondition_power": trace.precondition_power,
        "keep_rate": job.settings.keep_rate,
        "budget": method.budget,
        "loss_a": trace.loss_a,
        "loss_b": trace.loss_b,
        **_losses(trace),
        "baseline": trace.baseline,
        "coin": trace.coin,
        "repaired": trace.repaired,
        "multiplier": trace.multiplier,
        "keep_prob_sum": float(method.keep_prob.sum()),
        "groups": groups,
        "macs": trace.macs,
        "macs_dense": trace.macs_dense,
        "macs_executed_total": trace.executed_macs,
        "macs_dense_total": trace.dense_macs,
        "bytes_executed_total": trace.executed_bytes,
        "seconds": trace.seconds,
    }


def print_step(console: Console, job: Job, trace: StepTrace) -> None:
    """Print the step: quantities by channel, losses and projection, MACs by layer, seconds."""
    method = job.method
    assert isinstance(method, CompletelySparse)
    s = job.settings
    console.print(
        f"[bold]Algorithm 1, step {trace.step}[/bold]: {s.network} (width {s.width:g}) on "
        f"{s.data}, {s.batch_size} images, {job.full_network.n_maskable} maskable channels, keep "
        f"rate {s.keep_rate:g}, budget K = {method.budget:g}, estimator {s.estimator}, "
        f"alpha {trace.precondition_power:g}",
    )
    console.print(_channel_table(job, trace))
    console.print(_loss_line(trace))
    assert trace.z is not None
    assert trace.keep_prob is not None
    console.print(
        f"projection: sum z = {trace.z.sum():.6f}, multiplier v = {trace.multiplier:.6f}, "
        f"sum of the new keep_prob = {trace.keep_prob.sum():.6f} <= K = {method.budget:g}; "
        f"channels revived in empty groups: {trace.repaired}",
    )
    console.print(_mac_table(trace))
    console.print(f"operands and results of these products: {trace.executed_bytes:,} bytes\n")
    console.print(_seconds_table(trace))


def _loss_line(trace: StepTrace) -> str:
    line = f"L(m) = {trace.loss_a:.6f}"
    if trace.loss_b is not None:
        line += f"    L(m') = {trace.loss_b:.6f}"
    if len(trace.losses) > 2:
        rest = ", ".join(f"{loss:.6f}" for loss in trace.losses[2:])
        mean = sum(trace.losses) / len(trace.losses)
        return f"{line}, {rest}    L(m) - mean = {trace.loss_a - mean:+.6f}"
    if trace.loss_b is not None:
        line += f"    L(m) - L(m') = {trace.loss_a - trace.loss_b:+.6f}"
    if trace.baseline is not None:
        line += f"    average of earlier losses = {trace.baseline:.6f}"
    if trace.coin is not None:
        line += f"    coin = {trace.coin:+.0f}"
    return line


def _channel_table(job: Job, trace: StepTrace) -> Table:
    names = ("group", "c", "s", "m", "m'", "score", "H^alpha", "gradient", "z", "new s")
    table = new_table("by channel (m, m' as drawn; live channels beneath the group)", *names)
    arrays = step_arrays(job, trace)
    for group, place in job.full_network.groups.items():
        live = " ".join(f"{which}:{counts[group]}" for which, counts in trace.live_channels.items())
        table.add_section()
        for i, at in enumerate(range(place.start, place.stop)):
            mask_b = arrays.get("mask_drawn_b")
            table.add_row(
                group if i == 0 else live if i == 1 else "",
                str(i),
                f"{arrays['keep_prob_before'][at]:.4f}",
                str(int(arrays["mask_drawn_a"][at])),
                "" if mask_b is None else str(int(mask_b[at])),
                f"{arrays['score'][at]:+.4f}",
                f"{arrays['preconditioner'][at]:.4f}",
                f"{arrays['gradient'][at]:+.6f}",
                f"{arrays['z'][at]:.6f}",
                f"{arrays['keep_prob'][at]:.6f}",
            )
    return table


def _mac_table(trace: StepTrace) -> Table:
    columns = [
        *(
            (name.replace("_", " "), name, "forward")
            for name in sorted(trace.macs)
            if "forward" in name
        ),
        ("weight grad", "backward", "weight_gradient"),
        ("input grad", "backward", "input_gradient"),
    ]
    table = new_table(
        "MACs executed in this step (one multiply-add = 1; FLOPs = 2 x MACs)",
        "layer",
        *(name for name, _, _ in columns),
        "dense pass",
        "of dense step",
    )
    totals = [0] * len(columns)
    for layer, dense in trace.macs_dense.items():
        counts = [
            trace.macs.get(phase, {}).get(layer, {}).get(which, 0) for _, phase, which in columns
        ]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        whole = sum(dense[which] for which in PASSES)
        table.add_row(
            layer,
            *(f"{count:,}" for count in counts),
            f"{dense['forward']:,}",
            f"{sum(counts) / whole:.1%}",
        )
    table.add_section()
    dense_forward = sum(dense["forward"] for dense in trace.macs_dense.values())
    table.add_row(
        "all",
        *(f"{count:,}" for count in totals),
        f"{dense_forward:,}",
        f"{sum(totals) / trace.dense_macs:.1%}",
    )
    return table


def _seconds_table(trace: StepTrace) -> Table:
    table = new_table("milliseconds by phase", *trace.seconds, "all", left=0)
    shown = [*trace.seconds.values(), trace.total_seconds]
    table.add_row(*(f"{seconds * 1e3:.2f}" for seconds in shown))
    return table
