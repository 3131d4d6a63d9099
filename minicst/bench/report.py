"""The tables of `minicst bench`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from minicst.bench import gpu_report as gpu
from minicst.bench.cells import TITLES, ms
from minicst.bench.dense import OWN
from minicst.bench.settings import BUSY
from minicst.tables import table as new_table

PASS_NAMES = {"forward": "forward", "forward_backward": "+ backward", "step": "whole step"}
SHOWN_OPERATIONS = 3  # of a layer; the largest


def print_bench(console: Console, results: dict[str, Any]) -> None:
    """Print the tables of run_bench's results."""
    machine = results["machine"]
    head = Table.grid(padding=(0, 2))
    if "device" in results:
        head.add_row("device", gpu.device_name(results["device"]))
    head.add_row("machine", f"{machine['cpu']}, {machine['threads']} threads")
    if machine.get("load", 0.0) > BUSY:
        head.add_row("load", f"{machine['load']:.1f} before it began: not a quiet machine")
    versions = [f"NumPy {machine['numpy']}", *machine["blas"]]
    versions += [version for version in results["peers"].values() if version]
    head.add_row("versions", ", ".join(versions))
    for precision, peak in gpu.peaks(results).items():
        each = [f"{rate:.0f}" for rate in peak["each_gmacs"]]
        head.add_row(
            f"peak {precision}".strip(),
            f"{peak['gmacs']:.0f} GMAC/s in matrix products (measured in turn {', '.join(each)}), "
            f"{peak['copied_gb']:.0f} GB/s copied",
        )
    times = f"medians of {results['settings']['pairs']} turns; ratios too, of pairs"
    if "device" in results:
        times += (
            f"; a turn is {results['settings']['repeats']} passes or steps, one after the other"
        )
    head.add_row("times", times)
    console.print(head)
    console.print()
    if "device" in results:
        console.print(gpu.products_table(results["peak"]))
    for workload in results["workloads"]:
        for made in tables(workload):
            console.print(made)
    for line in results["left_out"]:
        console.print(line, markup=False)


def tables(workload: dict[str, Any]) -> list[Table]:
    """All tables of one network."""
    title = f"{workload['label']}, batch {workload['batch_size']}"
    if "precision" in workload:
        title += f", {workload['precision']}"
    made = []
    if "dense" in workload:
        made.append(_dense(workload["dense"], title))
    if "steps" in workload:
        made.append(_steps(workload["steps"], title))
        if any(row["authors"] for row in workload["steps"]["rows"]):
            made.append(_authors(workload["steps"]["rows"], title))
        if any(row.get("torch_dense") for row in workload["steps"]["rows"]):
            made.append(gpu.torch_dense_table(workload["steps"]["rows"], title))
        made += [_phases(workload["steps"], title), _floors(workload["steps"], title)]
        if "precision" in workload:
            made[-2].caption = "of further steps, in which the device is waited for in each phase"
    if workload.get("cut"):
        made += [_cut(workload["cut"], kind, title) for kind in ("static", "changing")]
    if "memory" in workload:
        kind = _memory if "closed_form" in workload["memory"][0] else gpu.memory_table
        made.append(kind(workload["memory"], title))
    if workload.get("launches"):
        name = f"{workload['label']}, {workload['precision']}: launches"
        made.append(gpu.launches_table(workload["launches"], name))
    if workload.get("workspace"):
        made.append(gpu.workspace_table(workload["workspace"], title))
    for entry in workload.get("layers", []):
        made += [_layers(entry, title), _operations(entry, title)]
    return made


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    """Peers of any row, in the order of the first."""
    return list(dict.fromkeys(label for row in rows for label in row["over"]))


def _against(row: dict[str, Any], label: str) -> str:
    if label not in row["over"]:
        return "-"
    return f"{ms(row['seconds'][label])} {row['over'][label]:.2f}x"


def _dense(rows: list[dict[str, Any]], title: str) -> Table:
    labels = _labels(rows)
    columns = ("pass", "minicst", *(TITLES[label] for label in labels), "GMAC/s", "of peak")
    made = new_table(f"{title}: the dense network", *columns)
    for row in rows:
        made.add_row(
            PASS_NAMES[row["what"]],
            ms(row["seconds"][OWN]),
            *(_against(row, label) for label in labels),
            f"{row['gmacs']:.0f}",
            f"{row['of_peak']:.0%}",
        )
    if labels:
        made.caption = "x: minicst's time over the other's, below 1 is faster"
    return made


def _steps(steps: dict[str, Any], title: str) -> Table:
    made = new_table(
        f"{title}: Algorithm 1's whole step, dense step {ms(steps['dense']['seconds'])}",
        *("MACs", "keep rate", "executed", "step", "saving", "in MACs", "formula", "paper"),
        "structure",
        left=0,
    )
    for row in steps["rows"]:
        paper = row["saving_paper"]
        made.add_row(
            f"{row['share']:.2f}%",
            f"{row['keep_rate']:.3f}",
            f"{row['executed_share']:.2%}",
            ms(row["seconds"]),
            f"{row['saving']:.2f}x",
            f"{row['saving_macs']:.1f}x",
            f"{row['saving_paper_formula']:.1f}x",
            "-" if paper is None else f"{paper:.2f}x",
            f"{row['structure_share']:.1%}",
        )
    made.caption = (
        "saving: dense step over this one, in time, in executed MACs, and by the paper's formula "
        "(3/4 of dense over sparse MACs); paper: measured there. structure: share of the step in "
        "sampling, cut, update and projection of keep_prob, paste"
    )
    return made


def _authors(rows: list[dict[str, Any]], title: str) -> Table:
    labels = list(dict.fromkeys(label for row in rows for label in row["authors"]))
    columns = ("MACs", "Algorithm 1", *(TITLES[label] for label in labels))
    made = new_table(f"{title}: Algorithm 1's step beside the authors' way", *columns, left=0)
    for row in rows:
        cells = [
            f"{ms(row['authors'][label]['seconds'])} {row['authors'][label]['over']:.1f}x"
            if label in row["authors"]
            else "-"
            for label in labels
        ]
        made.add_row(f"{row['share']:.2f}%", ms(row["seconds"]), *cells)
    made.caption = (
        "authors' way: dense convolutions of weight * mask, two forward, two backward passes; "
        "x: its time over Algorithm 1's here"
    )
    return made


def _phases(steps: dict[str, Any], title: str) -> Table:
    entries = [("dense", steps["dense"])]
    entries += [(f"{row['share']:.2f}%", row) for row in steps["rows"]]
    names = list(dict.fromkeys(name for _, entry in reversed(entries) for name in entry["phases"]))
    made = new_table(f"{title}: ms by phase", "step", *(name.replace("_", " ") for name in names))
    for label, entry in entries:
        phases = entry["phases"]
        cells = [f"{phases[n]['seconds'] * 1e3:.1f}" if n in phases else "-" for n in names]
        made.add_row(label, *cells)
    return made


def _floors(steps: dict[str, Any], title: str) -> Table:
    names = ("forward_b", "forward_a", "backward")
    made = new_table(
        f"{title}: share of the floor that was reached",
        *("step", *(name.replace("_", " ") for name in names), "whole step"),
    )
    entries = [("dense", steps["dense"])]
    entries += [(f"{row['share']:.2f}%", row) for row in steps["rows"]]
    for label, entry in entries:
        phases = entry["phases"]
        cells = [
            f"{phases[n]['of_peak']:.0%}" if "of_peak" in phases.get(n, {}) else "-" for n in names
        ]
        made.add_row(label, *cells, f"{entry['of_peak']:.0%}")
    made.caption = "floor: executed MACs over the GEMM peak"
    return made


def _cut(rows: list[dict[str, Any]], kind: str, title: str) -> Table:
    labels = _labels([row for entry in rows for row in entry[kind]])
    what = "one cut network" if kind == "static" else "a newly cut network each turn"
    columns = ("MACs", "pass", "minicst", *(TITLES[label] for label in labels), "GMAC/s", "of peak")
    made = new_table(f"{title}: {what}", *columns, left=2)
    for entry in rows:
        for row in entry[kind]:
            made.add_row(
                f"{entry['share']:.2f}%",
                PASS_NAMES[row["what"]],
                ms(row["seconds"][OWN]),
                *(_against(row, label) for label in labels),
                f"{row['gmacs']:.0f}",
                f"{row['of_peak']:.0%}",
            )
    if labels:
        made.caption = "PyTorch: a physically narrow network of the same widths"
    return made


def _memory(rows: list[dict[str, Any]], title: str) -> Table:
    columns = ("step", "peak", "of dense", "closed form", "peak over it")
    made = new_table(f"{title}: peak memory of a step", *columns)
    for row in rows:
        made.add_row(
            "dense" if row["share"] is None else f"{row['share']:.2f}%",
            f"{row['peak'] / 1e6:.1f} MB",
            f"{row['peak'] / rows[0]['peak']:.1%}",
            f"{row['closed_form'] / 1e6:.1f} MB",
            f"{row['peak'] / row['closed_form']:.2f}x",
        )
    made.caption = (
        "allocated within the step, threads' workspaces included; weights, optimizer state and "
        "images, which are there before it, are not"
    )
    return made


def _step_name(entry: dict[str, Any]) -> str:
    return "dense step" if entry["share"] is None else f"Algorithm 1 at {entry['share']:g} %"


def _layers(entry: dict[str, Any], title: str) -> Table:
    columns = ("phase", "layer", "ms", "MMAC", "of peak", "operations")
    name = f"{title}: {_step_name(entry)}, {ms(entry['seconds'])}"
    made = new_table(name, *columns, left=2)
    made.columns[-1].justify = "left"
    for cell in entry["cells"]:
        largest = list(cell["operations"].items())[:SHOWN_OPERATIONS]
        parts = [f"{name} {part / cell['seconds']:.0%}" for name, part in largest if part > 0.0]
        made.add_row(
            cell["phase"] or "-",
            cell["layer"] or "-",
            f"{cell['seconds'] * 1e3:.2f}",
            f"{cell['macs'] / 1e6:.0f}" if cell["macs"] else "-",
            f"{cell['of_peak']:.0%}" if cell["macs"] else "-",
            "\n".join(parts),
        )
    return made


def _operations(entry: dict[str, Any], title: str) -> Table:
    made = new_table(f"{title}: {_step_name(entry)} by operation", "operation", "ms", "of the step")
    for name, seconds in entry["operations"].items():
        made.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / entry['seconds']:.1%}")
    made.caption = "rest: Python, and NumPy outside of these operations"
    return made
