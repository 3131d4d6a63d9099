"""The tables that `minicst bench --device cuda` has beside those of the CPU."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from minicst.bench.cells import TITLES, ms
from minicst.tables import table as new_table


def device_name(device: dict[str, Any]) -> str:
    """The card and its software, in words."""
    return (
        f"{device['name']}, {device['memory_bytes'] / 2**30:.0f} GiB, CuPy {device['cupy']} for "
        f"CUDA {device['runtime']}, driver for CUDA {device['driver']}"
    )


def peaks(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{precision: peak} of a GPU; of a CPU {"": peak}."""
    return results["peak"] if "device" in results else {"": results["peak"]}


def products_table(peak: dict[str, Any]) -> Table:
    """Rate of every product of the roofline, in each precision."""
    names = list(peak)
    made = new_table("Matrix products", "rows x inner x columns", *(f"{n}, GMAC/s" for n in names))
    for i, product in enumerate(peak[names[0]]["products"]):
        made.add_row(
            f"{product['rows']} x {product['inner']} x {product['columns']}",
            *(f"{peak[name]['products'][i]['gmacs']:.0f}" for name in names),
        )
    made.caption = "a square one, and VGG-19's convolutions as products of a chunk of columns"
    return made


def torch_dense_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Algorithm 1's step and PyTorch's dense one."""
    labels = list(dict.fromkeys(label for row in rows for label in row["torch_dense"]))
    columns = ("MACs", "Algorithm 1", *(TITLES[label] for label in labels))
    made = new_table(f"{title}: Algorithm 1's step beside PyTorch's dense step", *columns, left=0)
    for row in rows:
        beside = row["torch_dense"]
        cells = [
            f"{ms(beside[label]['seconds'])} {beside[label]['over']:.2f}x"
            if label in beside
            else "-"
            for label in labels
        ]
        made.add_row(f"{row['share']:.2f}%", ms(row["seconds"]), *cells)
    made.caption = "x: its time over Algorithm 1's here"
    return made


def memory_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Peaks of steps, and PyTorch's of a dense one."""
    made = new_table(f"{title}: peak memory of a step", "step", "peak", "of dense")
    for row in rows:
        made.add_row(
            "dense" if row["share"] is None else f"{row['share']:.2f}%",
            f"{row['peak'] / 1e6:.1f} MB",
            f"{row['peak'] / rows[0]['peak']:.1%}" if rows[0]["peak"] else "-",
        )
    for label, size in rows[0].get("torch", {}).items():
        name = TITLES[label].replace("\n", " ")
        made.add_row(f"{name}, dense", f"{size / 1e6:.1f} MB", "")
    made.caption = (
        "most bytes that arrays hold in the step, above those before it, column workspace "
        "included; weights, optimizer state, images, CUDA's context and blocks kept for later are "
        "not"
    )
    return made


def launches_table(rows: list[dict[str, Any]], title: str) -> Table:
    """What the host and the device do in a step, by batch size."""
    columns = (
        "batch",
        "step",
        "ms",
        "host",
        "waits",
        "host's share",
        "bound by",
        "kernels",
        "reads",
    )
    made = new_table(title, *columns, left=2)
    for row in rows:
        made.add_row(
            str(row["batch_size"]),
            "dense" if row["share"] is None else f"{row['share']:.2f}%",
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['host'] * 1e3:.2f}",
            f"{row['waited'] * 1e3:.2f}",
            f"{row['host_share']:.0%}",
            row["bound"],
            f"{row['launches']:.0f}",
            f"{row['reads']:.0f}",
        )
    made.caption = (
        "host: time in which it launches, of a step among others; waits: for the device, where "
        "losses are read and at the end; bound by launches: it hardly waits. kernels: minicst's "
        "own, the array module's calls not counted"
    )
    return made


def workspace_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Seconds of steps by the size of the column workspace."""
    columns = ("columns", "dense step", "Algorithm 1")
    made = new_table(f"{title}: a step by the size of the column workspace", *columns)
    for row in rows:
        made.add_row(f"{row['workspace_mb']} MB", ms(row["dense"]), ms(row["sparse"]))
    return made
