"""Channels, multiply-adds and memory of every drawn sub-network, against what the budget allows.

Paper, Sec. 4.2.2: "the channel size of the neural network during training can be strictly
controlled". What sum keep_prob <= K bounds is the expected number of channels; single draws exceed
it, and multiply-adds follow the shape of the sub-network, not the number of its channels alone.

Draw figures/budget.png from its JSON file: python figures/budget.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import Results, script

from minicst.job import prepare
from minicst.pictures import new_figure, save_figure
from minicst.settings import TrainSettings
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_macs, linear_macs_cost

RUNS = {
    "vgg-small, budget in channels": {
        "network": "vgg-small",
        "data": "fashion",
        "keep_rate": 0.5,
        "budget_in": "channels",
        "epochs": 15,
    },
    "vgg-small, budget in MACs": {
        "network": "vgg-small",
        "data": "fashion",
        "keep_rate": 0.5,
        "budget_in": "macs",
        "epochs": 15,
    },
    "resnet20, budget in channels": {
        "network": "resnet20",
        "data": "shapes32",
        "keep_rate": 0.25,
        "budget_in": "channels",
        "epochs": 8,
        "limit": 1000,
    },
}
QUICK = {
    f"vgg-tiny, budget in {name}": {
        "network": "vgg-tiny",
        "data": "digits",
        "keep_rate": 0.5,
        "budget_in": kind,
        "epochs": 1,
    }
    for name, kind in (("channels", "channels"), ("MACs", "macs"))
}
# Of every step, as shares of K (channels) or of the dense network (the rest).
CURVES = ("expected", "sd", "drawn", "used", "macs", "macs_expected", "macs_bound", "activations")


def settings(quick: bool) -> dict[str, Any]:
    """Return what holds for all runs."""
    return {
        "runs": QUICK if quick else RUNS,
        "keep_prob_lr": 0.1,
        "estimator": "vr-pge",
        "seeds": [0],
        "curves_are": {
            "expected": "sum keep_prob / K, before the step",
            "sd": "sqrt(sum s (1 - s)) / K, of the number of channels drawn",
            "drawn": "channels drawn in mask a / K; used: after empty groups were repaired",
            "macs": "forward MACs executed by sub-network a / dense",
            "macs_expected": "expected forward MACs under keep_prob / dense",
            "macs_bound": "sum c s / sum c, c the MACs of a channel's filters at dense input",
            "activations": "bytes that sub-network a's forward pass holds for backward / dense",
        },
        "K_is": "keep_rate * n channels; with the budget in MACs sum c s <= keep_rate sum c holds "
        "instead, and K is only a unit",
    }


def run(setting: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Train once and look at every step."""
    own = setting["runs"][what["name"]]
    job = prepare(
        TrainSettings(
            **own,
            estimator=setting["estimator"],
            keep_prob_lr=setting["keep_prob_lr"],
            seed=what["seed"],
            threads=1,
            dense_probes=0,
        )
    )
    network, shape, method = job.full_network, job.plan.input_shape, job.method
    dense, (costs, _) = count_macs(network, shape), linear_macs_cost(network, shape)
    budget = own["keep_rate"] * network.n_maskable
    curves: dict[str, list[float]] = {name: [] for name in CURVES}
    repaired, near = 0, [0.0]
    for epoch in range(own["epochs"]):
        for batch in job.loader.epoch(epoch):
            trace = method.train_step(batch)
            s, used = trace.keep_prob_before, trace.mask_used_a
            assert s is not None
            assert used is not None
            executed = sum(passes["forward"] for passes in trace.macs["forward_a"].values())
            values = {
                "expected": s.sum() / budget,
                "sd": np.sqrt((s * (1 - s)).sum()) / budget,
                "drawn": trace.mask_drawn_a.sum() / budget,
                "used": used.sum() / budget,
                "macs": executed / (dense.macs * len(batch.labels)),
                "macs_expected": expected_macs(network, shape, s) / dense.macs,
                "macs_bound": float(costs @ s / costs.sum()),
                "activations": count_macs(network, shape, used).activation_bytes
                / dense.activation_bytes,
            }
            for name, value in values.items():
                curves[name].append(float(f"{value:.4g}"))
            repaired += trace.repaired
        near.append(float(((s < 0.01) | (s > 0.99)).mean()))
    return {
        "channels": network.n_maskable,
        "steps_per_epoch": job.steps_per_epoch,
        "repaired": repaired,
        "decided_by_epoch": near,
        "group_share": {
            "start": own["keep_rate"],
            **{group: float(s[at].mean()) for group, at in network.groups.items()},
        },
        **curves,
    }


def measure(path: Path, quick: bool) -> None:
    """Run all; sum up the first tenth, the middle and the last tenth of the steps."""
    setting = settings(quick)
    results = Results(path, setting)
    for seed in setting["seeds"]:
        for name in setting["runs"]:
            what = {"name": name, "seed": seed}
            results.measure(what, lambda what=what: run(setting, what))
    results.findings = {
        f"{row['run']['name']}, seed {row['run']['seed']}": windows(row) for row in results.rows
    }
    results.save()


def windows(row: dict[str, Any]) -> dict[str, Any]:
    """Mean, sd, extremes of each curve over parts of the run, and how often a draw exceeds K."""
    steps = len(row["drawn"])
    tenth = max(1, steps // 10)
    parts = {
        "first tenth": slice(0, tenth),
        "middle tenth": slice((steps - tenth) // 2, (steps + tenth) // 2),
        "last tenth": slice(steps - tenth, steps),
        "all": slice(0, steps),
    }
    table: dict[str, Any] = {"repaired": row["repaired"]}
    for part, at in parts.items():
        table[part] = {}
        for name in CURVES:
            values = np.array(row[name][at])
            table[part][name] = {
                "mean": values.mean(),
                "sd": values.std(ddof=1) if values.size > 1 else 0.0,
                "min": values.min(),
                "max": values.max(),
            }
        table[part]["draws_above_K"] = float((np.array(row["drawn"][at]) > 1 + 1e-9).mean())
    return table


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw channels, MACs and activations of the first seed, a column for each run."""
    seed = data["settings"]["seeds"][0]
    rows = [row for row in data["rows"] if row["run"]["seed"] == seed]
    figure = new_figure(4.8 * len(rows), 11)
    axes = figure.subplots(3, len(rows), squeeze=False)
    for (channels, macs, memory), row in zip(axes.T, rows, strict=True):
        own = data["settings"]["runs"][row["run"]["name"]]
        rho, steps = own["keep_rate"], np.arange(len(row["drawn"]))
        dot = {"linestyle": "", "marker": ".", "markersize": 2, "alpha": 0.6}
        expected, sd = np.array(row["expected"]), np.array(row["sd"])
        channels.plot(steps, row["drawn"], color="C0", label="channels drawn", **dot)
        channels.plot(steps, expected, color="black", label="sum of keep_prob")
        channels.fill_between(
            steps, expected - 2 * sd, expected + 2 * sd, color="C0", alpha=0.15, label="± 2 sd"
        )
        if own["budget_in"] == "channels":
            channels.axhline(1.0, color="red", linestyle="--", lw=1, label="K")
        channels.set(
            title=f"{row['run']['name']}, {own['data']}", ylabel="channels / K", ylim=(0.75, 1.3)
        )
        macs.plot(steps, row["macs"], color="C1", label="executed", **dot)
        macs.plot(steps, row["macs_expected"], color="black", label="expected")
        macs.axhline(rho**2, color="gray", linestyle=":", label=f"rho² = {rho**2:g}")
        if own["budget_in"] == "macs":
            macs.plot(steps, row["macs_bound"], color="C3", label="linear bound, sum c s / sum c")
            macs.axhline(rho, color="red", linestyle="--", lw=1, label=f"its budget, {rho:g}")
        macs.set(ylabel="forward MACs / dense", ylim=(0, None))
        memory.plot(steps, row["activations"], color="C2", label="held for backward", **dot)
        memory.axhline(rho, color="gray", linestyle=":", label=f"rho = {rho:g}")
        memory.set(ylabel="activation bytes / dense", ylim=(0, None), xlabel="step")
        for axis in (channels, macs, memory):
            axis.legend(fontsize=8, markerscale=4)
    figure.suptitle(f"every sub-network that was drawn, seed {seed}")
    save_figure(figure, path)


if __name__ == "__main__":
    script(__doc__, "budget", measure, draw)
