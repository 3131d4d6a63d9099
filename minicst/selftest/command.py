"""`minicst selftest`: settings, the parts one after the other, the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from minicst.backend import Backend, cpu_backend, get_backend, why_no_gpu
from minicst.info import cpu_facts, cuda_facts
from minicst.selftest.check import DTYPES
from minicst.tables import table as new_table

if TYPE_CHECKING:
    from minicst.selftest.check import Result

FAILED = 1  # exit code


@dataclass(frozen=True)
class SelftestSettings:
    """Test the device of this machine: operations, networks, cut == masked, training, repetition.

    Exit code 1 if an equality fails, 2 if the device can't be used.
    """

    device: Literal["cuda", "cpu", "auto"] = "auto"
    """What to test: cuda against the CPU, or the CPU against plain NumPy; auto: the GPU where one
    is usable."""
    precision: Literal["float32", "tf32"] = "float32"
    """Of float32 products on a GPU, as in train."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""


def run_selftest(
    settings: SelftestSettings, says: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run all checks on the device.

    The device is set to settings.precision and a small workspace, so that convolutions run in
    chunks, and back to the defaults at the end.

    Args:
        settings: what to test.
        says: takes a line before each part.

    Returns:
        Plain data: device and its facts, reference, checks, failed (their names), passed, seconds
        of each part; on a GPU peak_bytes of its memory; where auto took the CPU, no_gpu: why.

    Raises:
        ValueError: if the device or the precision can't be had.
    """
    from minicst.selftest.plain import PlainBackend

    device = get_backend(settings.device)
    device.configure(settings.precision, workspace_mb=1)
    on_gpu = device is not cpu_backend()
    reference = cpu_backend() if on_gpu else PlainBackend()
    results: list[Result] = []
    seconds = {}
    try:
        for part, check in _parts(device, reference, settings.precision).items():
            says(part)
            start = time.perf_counter()
            results += check()
            seconds[part] = time.perf_counter() - start
    finally:
        device.configure()
        device.meter.reset()
    failed = [f"{result.part}: {result.name}" for result in results if not result.passed]
    found = {
        "device": "cuda" if on_gpu else "cpu",
        **(cuda_facts(device.xp) if on_gpu else cpu_facts()),
        "reference": "minicst on the CPU" if on_gpu else "plain NumPy",
        "precision": settings.precision,
        "passed": not failed,
        "failed": list(dict.fromkeys(failed)),
        "seconds": seconds,
        "checks": [result.as_json() for result in results],
    }
    if on_gpu:  # the pool keeps what it once had
        found["peak_bytes"] = int(device.xp.get_default_memory_pool().total_bytes())
    elif settings.device == "auto":
        found["no_gpu"] = why_no_gpu()
    return found


def _parts(
    device: Backend, reference: Backend, precision: str
) -> dict[str, Callable[[], list[Result]]]:
    """{part: its checks}, in the order in which they run."""
    from minicst.selftest import networks, operations, runs

    return {
        operations.PART: lambda: operations.check_operations(device, reference, precision),
        networks.NETWORKS: lambda: networks.check_networks(device, reference, precision),
        networks.CUT: lambda: networks.check_cut(device),
        runs.TRAINING: lambda: runs.check_training(device, reference),
        runs.REPEATED: lambda: runs.check_repeated(device),
    }


def print_selftest(console: Console, found: dict[str, Any]) -> None:
    """Print a table for each part, and the verdict."""
    for part, seconds in found["seconds"].items():
        checks = [check for check in found["checks"] if check["part"] == part]
        console.print(_table(f"{part}, {seconds:.1f} s", checks))
        console.print()
    _print_plain(console, _device_line(found))
    total = sum(found["seconds"].values())
    n = len(found["checks"])
    if found["passed"]:
        _print_plain(console, f"all {n} checks passed in {total:.1f} s")
        return
    wrong = [check for check in found["checks"] if not check["passed"]]
    _print_plain(console, f"{len(wrong)} of {n} checks FAILED in {total:.1f} s:")
    for check in wrong:
        said = check.get("raised", f"error {_number(check)}, at most {check['tolerance']:.0e}")
        _print_plain(console, f"  {check['part']}: {check['name']} ({check['dtype']}): {said}")


def _device_line(found: dict[str, Any]) -> str:
    if found["device"] == "cpu":
        no_gpu = f"; no GPU: {found['no_gpu']}" if "no_gpu" in found else ""
        threads = found["threads"]
        return f"tested: minicst on the CPU ({threads} threads), against plain NumPy{no_gpu}"
    peak = found["peak_bytes"] / 2**20
    return (
        f"tested: {found['name']}, driver for CUDA {found['driver']}, CUDA runtime "
        f"{found['runtime']}, CuPy {found['cupy']}, precision {found['precision']}, against "
        f"{found['reference']}; peak memory {peak:,.0f} MiB"
    )


def _table(title: str, checks: list[dict[str, Any]]) -> Table:
    """A row for each name, both dtypes side by side."""
    dtypes = [dtype for dtype in DTYPES if any(check["dtype"] == dtype for check in checks)]
    columns = [column for dtype in dtypes for column in (dtype, "at most")]
    table = new_table(title, "largest relative error", *columns, "")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for check in checks:
        rows.setdefault(check["name"], {})[check["dtype"]] = check
    for name, by_dtype in rows.items():
        cells = []
        for dtype in dtypes:
            if (found := by_dtype.get(dtype)) is None:
                cells += ["", ""]
            else:
                allowed = found["tolerance"]
                cells += [_number(found), f"{allowed:.0e}" if allowed else "equal"]
        passed = all(check["passed"] for check in by_dtype.values())
        table.add_row(name, *cells, "ok" if passed else "[bold red]FAILED[/bold red]")
    reasons: dict[str, list[str]] = {}
    for check in checks:
        allowed = f"{check['tolerance']:.0e}" if check["tolerance"] else "equal"
        values = reasons.setdefault(check["reason"], [])
        if allowed not in values:
            values.append(allowed)
    table.caption = "\n".join(f"{', '.join(v)}: {reason}" for reason, v in reasons.items())
    return table


def _number(check: dict[str, Any]) -> str:
    if "raised" in check:
        return "raised"
    if check["error"] is None:
        return "inf"
    return f"{check['error']:.0e}" if check["error"] else "0"


def _print_plain(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
