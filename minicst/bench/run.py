"""Run a bench: the sections in order, the roofline before, between and after them."""

from __future__ import annotations

import os
import platform
from functools import partial
from pathlib import Path
from typing import Any

from minicst.backend import Backend, cpu_backend, get_backend, using
from minicst.bench.cut import cut_rows
from minicst.bench.dense import dense_rows
from minicst.bench.launches import free_blocks, launch_rows, workspace_rows
from minicst.bench.layers import layer_rows
from minicst.bench.memory import gpu_memory_rows, memory_rows
from minicst.bench.peers import JAX, Peers, Says, started
from minicst.bench.roofline import GpuRoofline, Roofline
from minicst.bench.settings import (
    BUSY,
    BenchSettings,
    Workload,
    use_threads,
    workloads,
)
from minicst.bench.steps import step_rows
from minicst.info import collect, cuda_facts

FORMAT = 2  # of the results
FRAMEWORKS = ("PyTorch", "JAX")
PEER_DEVICE = "cuda"  # where PyTorch's peers run beside minicst on a GPU


def run_bench(settings: BenchSettings, says: Says) -> dict[str, Any]:
    """Time everything that the settings ask for.

    Paper: App. C.2, Table 5: measured time, dense against sparse [time]
    Differs: a whole step is timed, sampling, cut, both updates, projection and paste included,
    where the paper adds up its forward and backward passes. It says nothing of what it cuts with.

    On a GPU everything is timed in each precision, beside PyTorch in the same one: cuDNN may round
    to TF32 only where minicst does. JAX's peer runs on the CPU, so there it is left out.

    Args:
        settings: see there.
        says: takes lines of progress.

    Returns:
        Plain data: {"format", "settings", "machine", "peers": {framework: version or None},
        "left_out": lines, "peak": {"gmacs", "each_gmacs" (before, between and after the
        workloads), "copied_gb"}, "workloads": [{"network", "label", "width", "batch_size", and by
        section "dense", "steps", "cut", "memory", "layers"}]}; see dense_rows, step_rows, cut_rows,
        memory_rows, layer_rows. Whatever has a rate "gmacs" also has "of_peak", that rate over the
        GEMM peak: the share of the floor that was reached. Of a GPU also "device" (cuda_facts);
        "peak" is by precision, with "products": [{"rows", "inner", "columns", "gmacs"}]; a workload
        has its "precision", "launches" and "workspace" (launch_rows, workspace_rows), and "memory"
        as gpu_memory_rows says.

    Raises:
        ValueError: if a setting is impossible, before anything is timed; if there is no GPU.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    backend = get_backend(settings.device)
    for precision in settings.precision:  # refuses what this device hasn't
        backend.configure(precision, settings.workspace_mb)
    chosen = workloads(settings)
    threads = use_threads(settings)
    if load > BUSY:
        says(
            f"others use this machine (load {load:.1f}): don't trust these times. A peer that "
            "waits for all of its threads suffers most"
        )
    if backend.name == "cuda":
        measured = _run_on_gpu(settings, backend, chosen, threads, says)
    else:
        measured = _run_on_cpu(settings, chosen, threads, says)
    return {
        "format": FORMAT,
        "settings": _settings(settings),
        "machine": machine(threads) | {"load": load},
        **measured,
    }


def _run_on_cpu(
    settings: BenchSettings, chosen: list[Workload], threads: int, says: Says
) -> dict[str, Any]:
    roofline = Roofline(cpu_backend())
    says(f"GEMM peak of {threads} threads")
    roofline.measure()
    used = _used(settings)
    with started(used, settings.torch_python, settings.jax_python, threads, says) as peers:
        found = []
        for workload in chosen:
            found.append(_sections(settings, workload, peers, says))
            roofline.measure()
        versions = {name: peers.version(name) for name in FRAMEWORKS}
    add_of_peak(found, roofline.gmacs)
    peak = {
        "gmacs": roofline.gmacs,
        "each_gmacs": roofline.each,
        "copied_gb": roofline.copied,
    }
    return {"peers": versions, "left_out": peers.left_out, "peak": peak, "workloads": found}


def _run_on_gpu(
    settings: BenchSettings, backend: Backend, chosen: list[Workload], threads: int, says: Says
) -> dict[str, Any]:
    labels = tuple(label for label in _used(settings) if label != JAX)
    left_out: list[str] = []
    if len(labels) < len(_used(settings)):
        left_out.append("JAX's peer runs on the CPU only: its rows are left out")
        says(left_out[-1])
    versions: dict[str, str | None] = dict.fromkeys(FRAMEWORKS)
    peaks: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    configure = partial(backend.configure, workspace_mb=settings.workspace_mb)
    try:
        for precision in settings.precision:
            configure(precision)
            options = {"device": PEER_DEVICE, "precision": precision}
            python = (settings.torch_python, settings.jax_python)
            with using(backend), started(labels, *python, threads, says, **options) as peers:
                there, peak = _at_precision(settings, backend, precision, chosen, peers, says)
            found += there
            peaks[precision] = peak
            # Both precisions leave out for the same reasons: each is said once.
            left_out += [line for line in peers.left_out if line not in left_out]
            versions |= {"PyTorch": peers.version("PyTorch")}
    finally:
        configure("float32")
    return {
        "device": cuda_facts(backend.xp),
        "peers": versions,
        "left_out": left_out,
        "peak": peaks,
        "workloads": found,
    }


def _at_precision(
    settings: BenchSettings,
    backend: Backend,
    precision: str,
    chosen: list[Workload],
    peers: Peers,
    says: Says,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    roofline = GpuRoofline(backend, settings.batch_size)
    says(f"GEMM peak in {precision}")
    roofline.measure()
    free_blocks(backend)
    found = []
    for workload in chosen:
        there = workload.on_gpu(backend, settings.repeats)
        entry = _sections(settings, there, peers, says) | {"precision": precision}
        if "launches" in settings.sections:
            entry["launches"] = launch_rows(settings, there, peers, says)
        if "workspace" in settings.sections:
            entry["workspace"] = workspace_rows(settings, there, precision, peers, says)
        found.append(entry)
        free_blocks(backend)
        roofline.measure()
        free_blocks(backend)
    add_of_peak(found, roofline.gmacs)
    names = ("rows", "inner", "columns", "gmacs")
    products = [
        dict(zip(names, (*shape, rate), strict=True)) for shape, rate in roofline.products.items()
    ]
    return found, {
        "gmacs": roofline.gmacs,
        "each_gmacs": roofline.each,
        "copied_gb": roofline.copied,
        "products": products,
    }


def _used(settings: BenchSettings) -> tuple[str, ...]:
    """Peers that take turns in a section that is measured."""
    with_peers = {"dense", "steps", "authors", "cut"}
    if settings.device == "cuda":
        with_peers |= {"memory"}
    return settings.peers if with_peers & set(settings.sections) else ()


def _sections(
    settings: BenchSettings, workload: Workload, peers: Peers, says: Says
) -> dict[str, Any]:
    pairs, sections = settings.pairs, settings.sections
    found: dict[str, Any] = {
        "network": workload.name,
        "label": workload.label,
        "width": workload.options["width"],
        "batch_size": workload.batch_size,
    }
    if "dense" in sections:
        found["dense"] = dense_rows(workload, pairs, peers, says)
    if "steps" in sections or "authors" in sections:
        found["steps"] = step_rows(workload, pairs, "authors" in sections, peers, says)
    if "cut" in sections:
        found["cut"] = cut_rows(workload, pairs, peers, says, settings.seed)
    if "memory" in sections:
        found["memory"] = (
            gpu_memory_rows(workload, peers, says)
            if settings.device == "cuda"
            else memory_rows(settings, workload, says)
        )
    if "layers" in sections:
        found["layers"] = layer_rows(workload, pairs, says)
    return found


def _settings(settings: BenchSettings) -> dict[str, Any]:
    """What was asked for, without paths of this machine."""
    of_a_gpu = {
        "device": settings.device,
        "precision": list(settings.precision),
        "workspace_mb": settings.workspace_mb,
        "launch_batches": list(settings.launch_batches),
        "launch_share": settings.launch_share,
        "repeats": settings.repeats,
    }
    return {
        "networks": list(settings.networks),
        "batch_size": settings.batch_size,
        "shares": list(settings.shares),
        "pairs": settings.pairs,
        "sections": list(settings.sections),
        "residual": settings.residual,
        "shortcut": settings.shortcut,
        "seed": settings.seed,
        **(of_a_gpu if settings.device == "cuda" else {}),
    }


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads and versions."""
    info = collect()
    return {
        "cpu": cpu_name(),
        "cores": info["cores"],
        "threads": threads,
        "python": info["python"],
        "numpy": info["versions"]["numpy"],
        "blas": [f"{b['internal_api']} {b['version']} ({b['architecture']})" for b in info["blas"]],
    }


def cpu_name() -> str:
    """The processor's name, as the operating system says it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def add_of_peak(value: Any, peak: float) -> None:
    """Wherever plain data has a rate "gmacs", add "of_peak", the share of the GEMM peak."""
    if isinstance(value, dict):
        if "gmacs" in value:
            value["of_peak"] = value["gmacs"] / peak
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            add_of_peak(entry, peak)
