"""The paper's Table 4 beside ours: what a saving in multiply-adds becomes in time.

Draw from the JSON file:             python figures/table4.py
From a finished bench, or a new one: python figures/table4.py --from bench.json | --run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_tables import caption, script

from minicst.bench.paper import ROWS
from minicst.pictures import in_style, new_figure, save_figure

TICKS = (1, 2, 3, 5, 8, 15, 30, 50)


def extract(results: dict[str, Any]) -> dict[str, Any]:
    """Savings by share, of the paper and of every network that was timed."""
    ours = {}
    for workload in results["workloads"]:
        ours[workload["label"]] = [
            {
                "macs": 100 * row["executed_share"],
                "train_cost": row["saving_paper_formula"],
                "executed": row["saving_macs"],
                "time": row["saving"],
                "seconds": row["seconds"],
            }
            for row in workload["steps"]["rows"]
        ]
    paper = [{"macs": row.macs, "train_cost": row.train_cost, "time": row.saving} for row in ROWS]
    return {"paper": paper, "minicst": ours}


@in_style
def draw(data: dict[str, Any], path: Path) -> None:
    """Draw time saving over the saving by the paper's formula, both logarithmic."""
    figure = new_figure(7, 5.2)
    axis = figure.subplots()
    rows = [row for rows in (data["paper"], *data["minicst"].values()) for row in rows]
    ends = [0.8, 3.0 * max(row["train_cost"] for row in rows)]
    axis.plot(ends, ends, ":", color="black", label="formula turned into time in full")
    curves = {"paper, VGG-19, RTX 2080 Ti": data["paper"]}
    curves |= {f"minicst, {label}": rows for label, rows in data["minicst"].items()}
    for i, (label, rows) in enumerate(curves.items()):
        x, y = ([row[key] for row in rows] for key in ("train_cost", "time"))
        axis.plot(x, y, "o-", color=f"C{i}", label=label)
        last = rows[-1]
        axis.annotate(
            f"{last['time']:.1f}x at {last['macs']:.2g} %",
            (last["train_cost"], last["time"]),
            textcoords="offset points",
            xytext=(8, -4),
            ha="left",
            color=f"C{i}",
        )
    axis.axhline(1.0, color="grey", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlim=ends)
    axis.set_xticks(TICKS, [f"{tick}x" for tick in TICKS], minor=False)
    axis.set_yticks(TICKS, [f"{tick}x" for tick in TICKS], minor=False)
    axis.minorticks_off()
    axis.set_xlim(ends)
    axis.set_ylim(min(0.8, *(0.9 * row["time"] for row in rows)), ends[1])
    axis.set(
        xlabel="train-cost saving by the paper's formula, 3 / (4 fS / fD)",
        ylabel="saving of computational time, dense / sparse",
    )
    axis.legend(loc="upper left")
    axis.set_title(caption(data), fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    script(__doc__, "table4", extract, draw)
