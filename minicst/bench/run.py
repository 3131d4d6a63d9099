"""Run a bench: the sections in order, the roofline before, between and after them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from minicst.backend import cpu_backend
from minicst.bench.cut import cut_rows
from minicst.bench.dense import dense_rows
from minicst.bench.layers import layer_rows
from minicst.bench.memory import memory_rows
from minicst.bench.peers import Peers, Says, started
from minicst.bench.roofline import Roofline
from minicst.bench.settings import BUSY, BenchSettings, Workload, use_threads, workloads
from minicst.bench.steps import step_rows
from minicst.info import collect

FORMAT = 2  # of the results


def run_bench(settings: BenchSettings, says: Says) -> dict[str, Any]:
    """Time everything that the settings ask for.

    Paper: App. C.2, Table 5: measured time, dense against sparse [time]
    Differs: a whole step is timed, sampling, cut, both updates, projection and paste included,
    where the paper adds up its forward and backward passes. It says nothing of what it cuts with.

    Args:
        settings: see there.
        says: takes lines of progress.

    Returns:
        Plain data: {"format", "settings", "machine", "peers": {framework: version or None},
        "left_out": lines, "peak": {"gmacs", "each_gmacs" (before, between and after the
        workloads), "copied_gb"}, "workloads": [{"network", "label", "width", "batch_size", and by
        section "dense", "steps", "cut", "memory", "layers"}]}; see dense_rows, step_rows, cut_rows,
        memory_rows, layer_rows. Whatever has a rate "gmacs" also has "of_peak", that rate over the
        GEMM peak: the share of the floor that was reached.

    Raises:
        ValueError: if a setting is impossible, before anything is timed.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    chosen = workloads(settings)
    threads = use_threads(settings)
    roofline = Roofline(cpu_backend())
    if load > BUSY:
        says(
            f"others use this machine (load {load:.1f}): don't trust these times. A peer that "
            "waits for all of its threads suffers most"
        )
    says(f"GEMM peak of {threads} threads")
    roofline.measure()
    used = settings.peers if {"dense", "steps", "cut"} & set(settings.sections) else ()
    with started(used, settings.torch_python, settings.jax_python, threads, says) as peers:
        found = []
        for workload in chosen:
            found.append(_sections(settings, workload, peers, says))
            roofline.measure()
        results = {
            "format": FORMAT,
            "settings": _settings(settings),
            "machine": machine(threads) | {"load": load},
            "peers": {name: peers.version(name) for name in ("PyTorch", "JAX")},
            "left_out": peers.left_out,
            "peak": {
                "gmacs": roofline.gmacs,
                "each_gmacs": roofline.each,
                "copied_gb": roofline.copied,
            },
            "workloads": found,
        }
    add_of_peak(results["workloads"], roofline.gmacs)
    return results


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
        found["memory"] = memory_rows(settings, workload, says)
    if "layers" in sections:
        found["layers"] = layer_rows(workload, pairs, says)
    return found


def _settings(settings: BenchSettings) -> dict[str, Any]:
    """What was asked for, without paths of this machine."""
    return {
        "networks": list(settings.networks),
        "batch_size": settings.batch_size,
        "shares": list(settings.shares),
        "pairs": settings.pairs,
        "sections": list(settings.sections),
        "residual": settings.residual,
        "shortcut": settings.shortcut,
        "seed": settings.seed,
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
