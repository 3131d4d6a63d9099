"""The one loop: trains any method, meters it, logs it, checkpoints it, and sums it up."""

from __future__ import annotations

import json
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minicst.backend import cpu_backend
from minicst.checkpoint import read_arrays, save, write_arrays, write_text
from minicst.job import Job, Rereadable, Totals, prepare
from minicst.methods.base import evaluate, evaluate_all, recalibrate_all
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import FixedMask, Narrow
from minicst.methods.trace import StepTrace
from minicst.nn import Network
from minicst.settings import TrainSettings
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_macs


class Stopped(Exception):
    """Training stopped between two steps, and its checkpoint is written."""


class Watcher(Protocol):
    """Who looks on while the loop runs."""

    def started(self, job: Job) -> None:
        """Everything is built, the first step comes next."""

    def stepped(self, job: Job, trace: StepTrace) -> None:
        """A step was taken."""

    def epoch_ended(self, job: Job, row: dict[str, Any]) -> None:
        """An epoch ended; row is its line of metrics.jsonl."""

    def says(self, text: str) -> None:
        """Something worth a line happened."""


class Silent:
    """Look on without a word."""

    def started(self, job: Job) -> None:
        """Say nothing."""

    def stepped(self, job: Job, trace: StepTrace) -> None:
        """Say nothing."""

    def epoch_ended(self, job: Job, row: dict[str, Any]) -> None:
        """Say nothing."""

    def says(self, text: str) -> None:
        """Say nothing."""


def train(
    job: Job,
    folder: Path | None = None,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Network, dict[str, Any]]:
    """Run the job from where it stands to its end.

    Args:
        job: from prepare(), or from resume().
        folder: of the run, existing; None writes nothing.
        watcher: looks on.
        stop: asked after every step; if true, the checkpoint is written and Stopped raised.

    Returns:
        The final small network and the summary.

    Raises:
        Stopped: see above.
        ValueError: if the loss isn't finite or a file can't be written.
    """
    # Numbers that overflow end in a loss that isn't finite, and that is reported in one line.
    with np.errstate(over="ignore", invalid="ignore"):
        return _train(job, folder, watcher or Silent(), stop)


def _train(
    job: Job, folder: Path | None, watcher: Watcher, stop: Callable[[], bool]
) -> tuple[Network, dict[str, Any]]:
    method, totals, settings = job.method, job.totals, job.settings
    watcher.started(job)
    if job.recovered is not None:
        watcher.says(job.recovered)
    if job.store is not None and not totals.steps:
        _write_checkpoint(job, folder)  # so that a crash in the first block can be resumed
    waited = job.loader.waited_seconds
    for epoch in range(totals.epoch, settings.epochs):
        for batch in job.loader.epoch(epoch, start=totals.batch):
            if method.step == job.plan.search_steps < job.plan.total_steps:
                assert isinstance(method, CompletelySparse)
                _score_candidates(job, watcher)
                method.start_fine_tuning(_metered(job, job.recalibration_batches()))
                totals.executed += method.backend.meter.total()
            if _probe_is_due(job):
                assert job.probe is not None
                totals.dense_seconds.append(job.probe.time(batch))
            trace = method.train_step(batch)
            totals.add(trace, job.loader.waited_seconds - waited)
            waited = job.loader.waited_seconds
            totals.batch += 1
            watcher.stepped(job, trace)
            if stop() and totals.batch < job.steps_per_epoch:
                _write_checkpoint(job, folder)
                raise Stopped
        method.end_epoch()
        row = _epoch_row(job)
        totals.epoch, totals.batch, totals.epoch_sums = epoch + 1, 0, {}
        if folder is not None:
            _append_row(folder / "metrics.jsonl", row)
        _write_checkpoint(job, folder)
        watcher.epoch_ended(job, row)
        if stop() and totals.epoch < settings.epochs:
            raise Stopped
    if not totals.scores:
        _score_candidates(job, watcher)
    network = method.finalize(_metered(job, job.recalibration_batches()))
    totals.executed += method.backend.meter.total()  # best-of-10 also evaluates training batches
    summary = summarize(job, network)
    if folder is not None:
        save(network, folder / "network.npz")
        write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return network, summary


def _metered(job: Job, batches: Rereadable) -> Rereadable:
    """Start the meter's count of what comes now."""
    job.method.backend.meter.reset()
    return batches


def _probe_is_due(job: Job) -> bool:
    probes = job.settings.dense_probes
    if probes == 0 or job.probe is None:
        return False
    every = max(job.plan.total_steps // probes, 1)
    return job.method.step % every == every // 2


def _score_candidates(job: Job, watcher: Watcher) -> None:
    """Test accuracy of each candidate, batch norm recalibrated; it decides nothing."""
    meter = job.method.backend.meter
    meter.reset()
    batches = job.recalibration_batches()
    scores: dict[str, list[float]] = {}
    for group in job.method.candidates():
        if not scores:
            watcher.says("scoring sampled masks and the most probable one")
        networks = [network for _, network in group]
        recalibrate_all(networks, batches)
        results = evaluate_all(networks, job.test_batches())  # the images are read once a group
        for (kind, _), (accuracy, _) in zip(group, results, strict=True):
            scores.setdefault(kind, []).append(accuracy)
    job.totals.scores = scores
    job.totals.executed += meter.total("recalibrate")


def _epoch_row(job: Job) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    sums, method = job.totals.epoch_sums, job.method
    n = max(sums.get("steps", 1.0), 1.0)
    row: dict[str, Any] = {
        "epoch": job.totals.epoch + 1,
        "step": method.step,
        "loss_a": sums["loss_a"] / n,
        "lr": method.lr(),
        "macs_ratio": sums["ratio"] / n,
        "executed_macs": int(sums["macs"]),
        "step_seconds": sums["seconds"] / n,
        "data_wait_seconds": sums.get("waited", 0.0),
    }
    if sums.get("paired"):
        row["loss_b"] = sums["loss_b"] / sums["paired"]
        row["loss_difference_rms"] = (sums["difference_squared"] / sums["paired"]) ** 0.5
    if isinstance(method, CompletelySparse):
        s = method.keep_prob
        row |= {
            "keep_prob_sum": float(s.sum()),
            "keep_prob_near_0": float((s < 0.01).mean()),
            "keep_prob_near_1": float((s > 0.99).mean()),
            "macs_expected": expected_macs(job.full_network, job.plan.input_shape, s),
            "repaired": int(sums["repaired"]),
            **({} if method.macs_bound() is None else {"macs_bound": method.macs_bound()}),
            "searching": method.searching,
        }
    return row


def _append_row(path: Path, row: dict[str, Any]) -> None:
    try:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise ValueError(
            f"can't write {path}: {error.strerror or error}; free some space or choose "
            "another folder with --out"
        ) from error


def summarize(job: Job, network: Network) -> dict[str, Any]:
    """Return summary.json's content for the final network."""
    settings, totals, method = job.settings, job.totals, job.method
    shape = job.plan.input_shape
    final, dense = count_macs(network, shape), method.dense_count
    accuracy, loss = evaluate(network, job.test_batches())
    samples, top_k = totals.scores.get("samples"), totals.scores.get("top_k")
    step_seconds = totals.step_seconds / max(totals.steps, 1)
    dense_seconds = statistics.median(totals.dense_seconds) if totals.dense_seconds else None
    summary: dict[str, Any] = {
        "method": settings.method,
        "network": settings.network,
        "data": settings.data,
        "seed": settings.seed,
        "device": settings.device,
        "threads": cpu_backend().threads,
        "epochs": settings.epochs,
        "steps": totals.steps,
        "keep_rate": settings.keep_rate,
        "keep_macs": settings.keep_macs,
        "keep_params": settings.keep_params,
        "recipe": settings.of_recipe(),
        "evaluated_on": job.dataset.evaluated_on,
        "data_source": job.dataset.source,
        "unreadable_files": len(job.unreadable_files()),
        "data_wait_seconds": totals.wait_seconds,
        "estimator": settings.estimator if settings.method == CompletelySparse.name else None,
        "test_images": len(job.dataset.test_labels),
        "test_accuracy": accuracy,
        "test_loss": loss,
        "test_accuracy_samples": None
        if not samples
        else {
            "mean": statistics.mean(samples),
            "sd": statistics.stdev(samples) if len(samples) > 1 else 0.0,
            "n": len(samples),
        },
        "test_accuracy_top_k": top_k[0] if top_k else None,
        "params": final.params,
        "params_dense": dense.params,
        "macs": final.macs,
        "macs_dense": dense.macs,
        "macs_ratio_mean": totals.ratio_sum / max(totals.steps, 1),
        "executed_macs": totals.executed,
        "executed_macs_dense": totals.executed_dense,
        "train_cost_saving_paper": 3.0 * totals.steps / totals.paper_cost,
        "train_cost_saving_executed": totals.executed_dense / totals.executed,
        "step_seconds": step_seconds,
        "dense_step_seconds": dense_seconds,
        "time_saving": dense_seconds / step_seconds if dense_seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_is": "largest resident set of the process so far",
        "device_memory_bytes": method.backend.device_bytes,
        "full_model": _full_model(job),
    }
    if isinstance(method, CompletelySparse):
        s = method.keep_prob
        summary |= {
            "keep_prob_sum": float(s.sum()),
            "budget": method.budget,
            "budget_in": settings.budget_in,
            "macs_bound": method.macs_bound(),
            "macs_expected": expected_macs(job.full_network, shape, s),
            "keep_prob_near_0": float((s < 0.01).mean()),
            "keep_prob_near_1": float((s > 0.99).mean()),
            "repaired": method.repaired,
        }
    return summary


def _full_model(job: Job) -> dict[str, Any] | None:
    """Where the full model was kept away from the device, and what moved since the last resume."""
    method = job.method
    if not isinstance(method, CompletelySparse) or not method.full.elsewhere:
        return None
    return {
        "where": job.settings.full_model,
        "bytes_in": method.full.bytes_in,
        "bytes_out": method.full.bytes_out,
        "writes": None if job.store is None else job.store.writes,
        "write_seconds": None if job.store is None else job.store.seconds,
    }


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_controls(
    job: Job, target_macs: int, watcher: Watcher, stop: Callable[[], bool] = lambda: False
) -> dict[str, dict[str, Any]]:
    """Train a fixed random mask and a narrow network of the same MACs, same steps and seed.

    Raises:
        Stopped: if `stop` asks for it; nothing is written.
    """
    results = {}
    for name in (FixedMask.name, Narrow.name):
        watcher.says(f"control: training '{name}' at the same MACs")
        control = prepare(replace(job.settings, method=name, dense_probes=0), target_macs)
        results[name] = train(control, stop=stop)[1]
    return results


def _write_checkpoint(job: Job, folder: Path | None) -> None:
    if folder is None:
        return
    if job.store is not None:
        job.method.end_epoch()
        job.store.write_position(job.position())
        return
    header, _ = job.position()
    write_arrays(folder / "checkpoint.npz", "checkpoint", header, job.method.state())


def resume(folder: Path, threads: int | None = None) -> Job:
    """Return load_job's job, to go on with it.

    metrics.jsonl is cut back to the epochs that the checkpoint knows.

    Raises:
        ValueError: as load_job, or if metrics.jsonl can't be written.
    """
    job = load_job(folder, threads)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()[: job.totals.epoch] if metrics.exists() else []
    write_text(metrics, "".join(line + "\n" for line in lines))
    return job


def load_job(folder: Path, threads: int | None = None) -> Job:
    """Rebuild the job of a run folder, at the position of its checkpoint; nothing is written.

    Args:
        folder: of the run.
        threads: number of CPU threads from now on; None: as before.

    Raises:
        ValueError: if the folder or its checkpoint is missing, damaged or foreign.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}: --resume and --run take one")
    header, arrays = read_arrays(folder / "checkpoint.npz", "checkpoint")
    try:
        settings = TrainSettings.from_json(header["settings"])
        if threads is not None:
            settings = replace(settings, threads=threads)
        job = prepare(settings, folder=folder, fresh=False)
        if job.store is None:
            job.method.load_state(arrays)
        else:
            job.recovered = job.store.recover(job.full_network, job.method.optimizer)
            if job.recovered is not None:
                header, arrays = read_arrays(folder / "checkpoint.npz", "checkpoint")
            job.method.load_position(arrays)
        job.totals = Totals(**header["totals"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A header that isn't made of mappings ends in AttributeError or TypeError.
        raise ValueError(f"{folder / 'checkpoint.npz'} can't be resumed: {error}") from error
    return job


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
