"""`minicst info`: versions, BLAS, threads, devices."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
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
    """Gather it all as plain data.

    Under "cuda": usable, then facts of the card, or why_not with the way out.
    """
    versions = {name: metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda: dict[str, Any]
    if (reason := why_no_gpu()) is None:
        cuda = {"usable": True, **cuda_facts(importlib.import_module("cupy"))}
    else:
        cuda = {"usable": False, "why_not": reason}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        **cpu_facts(),
        "blas": [
            {
                key: pool.get(key)
                for key in ("internal_api", "version", "architecture", "num_threads")
            }
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "devices": ["cpu", "cuda"] if cuda["usable"] else ["cpu"],
        "cuda": cuda,
    }


def cpu_facts() -> dict[str, Any]:
    """Cores that this process may use, and threads of the CPU backend."""
    return {"cores": available_cores(), "threads": cpu_backend().threads}


def cuda_facts(cupy: Any) -> dict[str, Any]:
    """What is known of the card in use.

    Args:
        cupy: the module; its device must be usable.

    Returns:
        name; number, of how many visible ones (count); compute_capability, as "9.0"; memory_bytes;
        driver, the newest CUDA that it supports; runtime, the CUDA that CuPy was built with; cupy.
    """
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    name = properties["name"]
    capability = str(device.compute_capability)
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "number": int(device.id),
        "count": int(runtime.getDeviceCount()),
        "compute_capability": f"{capability[:-1]}.{capability[-1]}",
        "memory_bytes": int(properties["totalGlobalMem"]),
        "driver": _cuda_version(runtime.driverGetVersion()),
        "runtime": _cuda_version(runtime.runtimeGetVersion()),
        "cupy": str(cupy.__version__),
    }


def _cuda_version(number: int) -> str:
    """Write 12040 as 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


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
    # An error's own words may hold [brackets].
    table.add_row("GPU", Text(_gpu_line(info["cuda"])))
    console.print(table)


def _gpu_line(cuda: dict[str, Any]) -> str:
    if not cuda["usable"]:
        return f"can't be used: {cuda['why_not']}"
    return (
        f"{cuda['name']} (device {cuda['number']}; {cuda['count']} visible), compute capability "
        f"{cuda['compute_capability']}, {cuda['memory_bytes'] / 2**30:.1f} GiB; driver for CUDA "
        f"{cuda['driver']}, CuPy {cuda['cupy']} for CUDA {cuda['runtime']}; see also minicst "
        "selftest --device cuda"
    )
