"""README's tables of a GPU: a bench's numbers in gpu.json, or that nothing has been measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minicst.bench.paper import row_of

HERE = Path(__file__).resolve().parent
COMMAND = "minicst bench --device cuda --precision float32 tf32 --batch-size 256 --json"
NOT_MEASURED = (
    "No time has been measured on a GPU yet. The GPU path has been verified by emulation and "
    "compile checks only: the tests run it on a strict stand-in for CuPy, run every kernel's own "
    "text on the CPU against NumPy, and compile it for sm_75, sm_80 and sm_90. "
    f"`{COMMAND} > figures/gpu.json` measures it, and `python figures/readme.py --write` puts the "
    "numbers here."
)
TWICE = 2.0  # goal: minicst's dense step takes at most so many times PyTorch's
GOAL_NETWORK, GOAL_BATCH, GOAL_SHARE = "vgg19", 256, 4.94
PEERS = {"pytorch-nchw": "PyTorch NCHW", "pytorch-channels-last": "PyTorch channels last"}
PASSES = {"forward": "forward", "forward_backward": "forward + backward", "step": "whole step"}

Row = dict[str, Any]


def gpu(path: Path = HERE / "gpu.json") -> str:
    """Return the tables of a bench on a GPU, Markdown; that there is none where there is none."""
    if not path.exists():
        return NOT_MEASURED
    results = json.loads(path.read_text())
    lines = [heading(results)]
    for workload in results["workloads"]:
        if goals := goal_lines(workload):
            lines += ["", *goals]
    for workload in results["workloads"]:
        name = f"{workload['label']}, {workload['precision']}, batch {workload['batch_size']}"
        if "dense" in workload:
            lines += ["", f"**{name}**, dense:", "", *dense_table(workload["dense"])]
        if "steps" in workload:
            title = f"**{name}**, Algorithm 1's whole step:"
            lines += ["", title, "", *steps_table(workload["steps"], workload.get("memory", []))]
        if workload.get("launches"):
            short = f"{workload['label']}, {workload['precision']}"
            lines += ["", f"**{short}**, what a step waits for:", ""]
            lines += launches_table(workload["launches"])
        if workload.get("workspace"):
            lines += ["", f"**{name}**, a step by the size of the column workspace:", ""]
            lines += workspace_table(workload["workspace"])
    return "\n".join([*lines, *(["", *results["left_out"]] if results["left_out"] else [])])


def heading(results: Row) -> str:
    """Card, versions, settings and peaks."""
    device, settings = results["device"], results["settings"]
    versions = [f"CuPy {device['cupy']}", f"CUDA {device['runtime']}"]
    versions += [version for version in results["peers"].values() if version]
    peaks = " and ".join(
        f"{p['gmacs']:.0f} GMAC/s in {name}" for name, p in results["peak"].items()
    )
    copied = max(peak["copied_gb"] for peak in results["peak"].values())
    return (
        f"{device['name']}, {', '.join(versions)}; medians of {settings['pairs']} turns of "
        f"{settings['repeats']} passes or steps, ratios of pairs (below 1: minicst is faster). "
        f"Floor: executed MACs over the GEMM peak, {peaks} in this run; copies on the device ran "
        f"at {copied:.0f} GB/s. PyTorch runs in the same precision, cuDNN searching for the "
        "fastest convolutions."
    )


def goal_lines(workload: Row) -> list[str]:
    """The two goals beside what was measured, for the network and batch that they are of."""
    if (workload["network"], workload["batch_size"]) != (GOAL_NETWORK, GOAL_BATCH):
        return []
    name = f"{workload['label']}, {workload['precision']}, batch {workload['batch_size']}"
    lines = []
    step = next((row for row in workload.get("dense", []) if row["what"] == "step"), None)
    if workload["precision"] == "float32" and step is not None and step["over"]:
        slower = max(step["over"].values())  # over PyTorch's faster memory format
        lines.append(
            f"- {name}: minicst's dense step takes {slower:.2f} times PyTorch's (goal: at most "
            f"{TWICE:g}): {_reached(slower <= TWICE)}."
        )
    paper = row_of(GOAL_NETWORK, GOAL_SHARE)
    for row in workload.get("steps", {}).get("rows", []):
        beside = row.get("torch_dense", {})
        if paper is None or row["share"] != GOAL_SHARE or not beside:
            continue
        faster = min(found["over"] for found in beside.values())
        lines.append(
            f"- {name}: Algorithm 1 at {GOAL_SHARE:g} % of the MACs is {faster:.2f} times as fast "
            f"as PyTorch's dense step (goal: more than the paper's {paper.saving:.2f}): "
            f"{_reached(faster > paper.saving)}."
        )
    return lines


def _reached(yes: bool) -> str:
    return "reached" if yes else "not reached"


def dense_table(rows: list[Row]) -> list[str]:
    """Passes of the dense network: minicst, PyTorch, share of the floor."""
    labels = [label for label in PEERS if any(label in row["over"] for row in rows)]
    lines = _head("pass", "minicst", *(PEERS[label] for label in labels), "of the floor")
    for row in rows:
        cells = [PASSES[row["what"]], _ms(row["seconds"]["minicst"])]
        for label in labels:
            known = label in row["over"]
            cells.append(
                f"{_ms(row['seconds'][label])} ({row['over'][label]:.2f}x)" if known else ""
            )
        lines.append(_line(*cells, f"{row['of_peak']:.0%}"))
    return lines


def steps_table(steps: Row, memory: list[Row]) -> list[str]:
    """Savings over minicst's and PyTorch's dense step, the authors' way, memory."""
    peaks = {row["share"]: f"{row['peak'] / 1e6:.0f} MB" for row in memory}
    lines = _head(
        *("MACs", "step", "saving", "in MACs", "paper measured", "PyTorch's dense step over it"),
        *("authors' way over it", "cut, sampling, projection, paste", "peak memory"),
    )
    dense = steps["dense"]
    lines.append(_line("dense", _ms(dense["seconds"]), *[""] * 6, peaks.get(None, "")))
    for row in steps["rows"]:
        paper = row["saving_paper"]
        lines.append(
            _line(
                f"{row['share']:.2f} %",
                _ms(row["seconds"]),
                f"{row['saving']:.2f}x",
                f"{row['saving_macs']:.1f}x",
                "" if paper is None else f"{paper:.2f}x",
                _fastest(row["torch_dense"]),
                _fastest(row["authors"]),
                f"{row['structure_share']:.1%}",
                peaks.get(row["share"], ""),
            )
        )
    return lines


def launches_table(rows: list[Row]) -> list[str]:
    """Whether the host or the device takes the time, by batch size."""
    columns = ("batch", "step", "time", "host launches", "host waits", "kernels", "bound by")
    lines = _head(*columns)
    for row in rows:
        lines.append(
            _line(
                str(row["batch_size"]),
                "dense" if row["share"] is None else f"{row['share']:.2f} %",
                f"{row['seconds'] * 1e3:.2f} ms",
                f"{row['host'] * 1e3:.2f} ms ({row['host_share']:.0%})",
                f"{row['waited'] * 1e3:.2f} ms",
                f"{row['launches']:.0f}",
                row["bound"],
            )
        )
    return lines


def workspace_table(rows: list[Row]) -> list[str]:
    """Time of a dense step and of Algorithm 1's at each size."""
    lines = _head("columns", *(f"{row['workspace_mb']} MB" for row in rows))
    lines.append(_line("dense", *(_ms(row["dense"]) for row in rows)))
    lines.append(_line("Algorithm 1", *(_ms(row["sparse"]) for row in rows)))
    return lines


def _fastest(beside: dict[str, Row]) -> str:
    """The smallest ratio: over PyTorch's faster memory format."""
    return f"{min(found['over'] for found in beside.values()):.2f}x" if beside else ""


def _head(*names: str) -> list[str]:
    return [_line(*names), "|---" * len(names) + "|"]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    print(gpu())
