"""The paper's Table 5 beside ours: forward and backward time, relative to dense training.

Both forward passes of Algorithm 1 are in the forward time.

Draw from the JSON file:             python figures/table5.py
From a finished bench, or a new one: python figures/table5.py --from bench.json | --run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bench_tables import caption, script

from minicst.bench.paper import DENSE, ROWS
from minicst.pictures import in_style, new_figure, save_figure


def extract(results: dict[str, Any]) -> dict[str, Any]:
    """Forward and backward time over dense, by share; ours in seconds too."""
    paper = [
        {
            "macs": row.macs,
            "forward": row.forward / DENSE.forward,
            "backward": row.backward / DENSE.backward,
        }
        for row in ROWS
    ]
    ours = {}
    for workload in results["workloads"]:
        steps = workload["steps"]
        dense = passes(steps["dense"]["phases"])
        rows = []
        for row in steps["rows"]:
            seconds = passes(row["phases"])
            relative = {which: seconds[which] / dense[which] for which in dense}
            rows.append({"macs": 100 * row["executed_share"], **relative, "seconds": seconds})
        ours[workload["label"]] = {"dense_seconds": dense, "rows": rows}
    return {"paper": paper, "minicst": ours}


def passes(phases: dict[str, Any]) -> dict[str, float]:
    """Seconds of all forward passes, and of the backward pass."""
    forward = sum(phases[name]["seconds"] for name in phases if name.startswith("forward"))
    return {"forward": forward, "backward": phases["backward"]["seconds"]}


@in_style
def draw(data: dict[str, Any], path: Path) -> None:
    """Draw both times over the share of MACs that ran, all logarithmic."""
    figure = new_figure(9.5, 4.4)
    axes = figure.subplots(1, 2, sharey=True)
    curves = {"paper, VGG-19, RTX 2080 Ti": data["paper"]}
    curves |= {f"minicst, {label}": ours["rows"] for label, ours in data["minicst"].items()}
    share = np.array([1.2, 100.0])
    rows = [row for rows in curves.values() for row in rows]
    top = max(200.0, *(130.0 * max(row["forward"], row["backward"]) for row in rows))
    for axis, which, times in zip(axes, ("forward", "backward"), (2, 1), strict=True):
        what = "two sparse passes for a dense one" if times == 2 else "one for one"
        axis.plot(share, times * share, ":", color="black", label=f"MACs: {what}")
        for i, (label, rows) in enumerate(curves.items()):
            x, y = [row["macs"] for row in rows], [100 * row[which] for row in rows]
            axis.plot(x, y, "o-", color=f"C{i}", label=label)
        axis.axhline(100.0, color="grey", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlim=(100, 1.2), xlabel="forward MACs, % of dense")
        ticks = (1, 2, 5, 10, 20, 50, 100)
        axis.set_xticks(ticks, [f"{tick}" for tick in ticks])
        axis.set_yticks(ticks, [f"{tick}" for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(1, top)
        axis.set_title(f"{which} time" + (", both passes" if times == 2 else ""))
        axis.legend(fontsize=8)
    axes[0].set_ylabel("time, % of dense")
    figure.suptitle(caption(data), fontsize=9)
    save_figure(figure, path)


if __name__ == "__main__":
    script(__doc__, "table5", extract, draw)
