"""`minicst info`: versions, BLAS, threads, devices."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_info

from minicst.backend import cpu_backend, why_no_gpu
from minicst.backend.numpy_backend import available_cores


@dataclass(frozen=True)
class InfoSettings:
    """Say versions, BLAS, threads and devices, and why a GPU can't be used."""

    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


PACKAGES = ("minicst", "numpy", "scipy", "matplotlib", "threadpoolctl", "rich", "tyro")
OPTIONAL = ("cupy-cuda13x", "cupy-cuda12x", "torch")


def collect() -> dict[str, Any]:
    """Gather it all as plain data."""
    backend = cpu_backend()
    versions = {name: metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cores": available_cores(),
        "threads": backend.threads,
        "blas": [
            {
                key: pool.get(key)
                for key in ("internal_api", "version", "architecture", "num_threads")
            }
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "devices": ["cpu"],
        "cuda": why_no_gpu(),
    }


def print_info(console: Console, info: dict[str, Any]) -> None:
    """Print a table."""
    table = Table.grid(padding=(0, 2))
    table.add_row("python", f"{info['python']} on {info['platform']}")
    table.add_row("packages", ", ".join(f"{k} {v}" for k, v in info["versions"].items()))
    table.add_row("cores", f"{info['cores']}, of which minicst uses {info['threads']} threads")
    for blas in info["blas"]:
        table.add_row(
            "BLAS",
            f"{blas['internal_api']} {blas['version']} ({blas['architecture']}), held to "
            f"{blas['num_threads']} thread: minicst's own threads share the work out",
        )
    table.add_row("devices", ", ".join(info["devices"]))
    table.add_row("GPU", f"can't be used: {info['cuda']}")
    console.print(table)
