"""New masks only every T steps: accuracy, cost and what happens to keep_prob.

Paper, Appendix D: "sample a new subnetwork for every 50 iterations, during training would not
affect the final accuracy". Accuracy alone is no evidence on small data, so the coin control and a
fixed random mask stand beside it.

Draw figures/resampling.png from its JSON file: python figures/resampling.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import Results, script, select, spread

from minicst.job import Job, prepare
from minicst.methods.trace import StepTrace
from minicst.pictures import new_figure, save_figure
from minicst.settings import TrainSettings
from minicst.training import Silent, train

# What is kept of a run's summary; None where a method lacks it.
KEPT = (
    "test_accuracy",
    "test_accuracy_samples",
    "test_accuracy_top_k",
    "keep_prob_sum",
    "budget",
    "keep_prob_near_0",
    "keep_prob_near_1",
    "macs_ratio_mean",
    "train_cost_saving_paper",
    "train_cost_saving_executed",
    "steps",
    "step_seconds",
)
FIXED = "fixed-mask"


class Watch(Silent):
    """Keeps CPU time, updates and the epochs' sums of keep_prob."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.updates = 0
        self.sums: list[float] = []

    def stepped(self, job: Job, trace: StepTrace) -> None:
        """Look at the clock."""
        self.times.append(time.process_time())
        self.updates += trace.gradient is not None

    def epoch_ended(self, job: Job, row: dict[str, Any]) -> None:
        """Keep the sum of keep_prob, if there is one."""
        if "keep_prob_sum" in row:
            self.sums.append(row["keep_prob_sum"])


def settings(quick: bool) -> dict[str, Any]:
    """Return what holds for all runs."""
    return {
        "network": "vgg-tiny" if quick else "vgg-small",
        "data": "digits" if quick else "fashion",
        "keep_rate": 0.5,
        "keep_prob_lr": 0.1,
        "epochs": 1 if quick else 20,
        "every": [1, 2] if quick else [1, 2, 5, 10, 20, 50],
        "coin_every": [1] if quick else [1, 20],
        "seeds": [0] if quick else [0, 1, 2],
        "accuracy_is": "of one sampled mask on the test images; test_accuracy_samples: of ten",
        "savings_are": "over dense training: by the paper's formula, 3 fD / ((3 + 1/T) fS), and "
        "by the meter",
        "cpu_seconds_per_step": "of all threads, loading and augmentation of images included",
    }


def run(setting: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Train once."""
    fixed = what["estimator"] == FIXED
    job = prepare(
        TrainSettings(
            network=setting["network"],
            data=setting["data"],
            method=FIXED if fixed else "completely-sparse",
            estimator="vr-pge" if fixed else what["estimator"],
            keep_rate=setting["keep_rate"],
            keep_prob_lr=setting["keep_prob_lr"],
            epochs=setting["epochs"],
            resample_every=what["every"] or 1,
            seed=what["seed"],
            threads=1,
            dense_probes=0,
        )
    )
    watch = Watch()
    _, summary = train(job, watcher=watch)
    return {
        **{key: summary.get(key) for key in KEPT},
        "cpu_seconds_per_step": (watch.times[-1] - watch.times[0]) / (len(watch.times) - 1),
        "updates": watch.updates,
        "keep_prob_sums": watch.sums,
    }


def measure(path: Path, quick: bool) -> None:
    """Run all, one seed after the other."""
    setting = settings(quick)
    results = Results(path, setting)
    runs: list[tuple[str, int | None]] = [("vr-pge", every) for every in setting["every"]]
    runs += [("coin", every) for every in setting["coin_every"]] + [(FIXED, None)]
    for seed in setting["seeds"]:
        for estimator, every in runs:
            what = {"estimator": estimator, "every": every, "seed": seed}
            results.measure(what, lambda what=what: run(setting, what))
    results.findings = {
        f"{estimator}, T = {every}" if every else estimator: _cell(
            select(results.rows, estimator=estimator, every=every)
        )
        for estimator, every in runs
    }
    results.save()


def _cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def numbers(key: str) -> list[float]:
        return [row[key]["mean"] if isinstance(row[key], dict) else row[key] for row in rows]

    cell: dict[str, Any] = {
        key: spread(numbers(key))
        for key in (*KEPT, "cpu_seconds_per_step")
        if key not in ("steps", "budget", "step_seconds") and rows[0][key] is not None
    }
    cell |= {"steps": rows[0]["steps"], "updates": rows[0]["updates"]}
    if rows[0]["keep_prob_sum"] is not None:
        sums = [row["keep_prob_sum"] / row["budget"] for row in rows]
        cell["sum_over_budget"] = spread(sums)
        near = [row["keep_prob_near_0"] + row["keep_prob_near_1"] for row in rows]
        cell["decided"] = spread(near)
    return cell


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw accuracy, keep_prob at the end, cost and seconds over T."""
    setting, found = data["settings"], data["findings"]
    figure = new_figure(13, 8.5)
    axes = figure.subplots(2, 2).reshape(-1)
    every = setting["every"]
    cells = [found[f"vr-pge, T = {t}"] for t in every]
    coins = [(t, found[f"coin, T = {t}"]) for t in setting["coin_every"]]
    fixed = found[FIXED]

    _line(axes[0], every, cells, "test_accuracy", "vr-pge, one sampled mask", "C0")
    _line(axes[0], every, cells, "test_accuracy_samples", "vr-pge, mean of ten masks", "C2")
    _line(axes[0], *_unzip(coins), "test_accuracy", "coin, one sampled mask", "C1", "")
    _band(axes[0], fixed["test_accuracy"], "fixed random mask")
    axes[0].set(ylabel="test accuracy")

    _line(axes[1], every, cells, "sum_over_budget", "sum of keep_prob / K", "C0")
    _line(axes[1], every, cells, "decided", "keep_prob within .01 of 0 or 1", "C2")
    _line(axes[1], *_unzip(coins), "decided", "the same, coin", "C1", "")
    axes[1].set(ylabel="share, at the end", ylim=(0, 1.05))

    _line(axes[2], every, cells, "train_cost_saving_paper", "paper's formula", "C0")
    _line(axes[2], every, cells, "train_cost_saving_executed", "meter", "C2")
    _line(axes[2], every, cells, "macs_ratio_mean", "forward MACs / dense, mean", "C3")
    _band(axes[2], fixed["train_cost_saving_executed"], "fixed random mask, meter")
    axes[2].set(ylabel="saving over dense (times), share of MACs", ylim=(0, None))

    own = list(zip(every, cells, strict=True))
    for name, color, points in (("vr-pge", "C0", own), ("coin", "C1", coins)):
        x, shown = _unzip(points)
        style = "-" if name == "vr-pge" else ""
        _line(axes[3], x, shown, "cpu_seconds_per_step", name, color, style)
    _band(axes[3], fixed["cpu_seconds_per_step"], "fixed random mask")
    axes[3].set(ylabel="CPU seconds a step, one thread", ylim=(0, None))
    for axis in axes:
        axis.set_xscale("log")
        axis.set_xticks(every, [str(t) for t in every])
        axis.minorticks_off()
        axis.set_xlabel("T, steps between new masks")
        axis.legend(fontsize=8)
    updates = ", ".join(str(cell["updates"]) for cell in cells)
    figure.suptitle(
        f"new masks every T steps: {setting['network']} on {setting['data']}, keep rate "
        f"{setting['keep_rate']:g}, {setting['epochs']} epochs, {cells[0]['steps']} steps\n"
        f"({updates} updates of keep_prob), mean and sd of {len(setting['seeds'])} seeds"
    )
    save_figure(figure, path)


def _unzip(pairs: Any) -> tuple[list[Any], list[Any]]:
    pairs = list(pairs)
    return [x for x, _ in pairs], [cell for _, cell in pairs]


def _line(
    axis: Any, x: Any, cells: Any, key: str, label: str, color: str, style: str = "-"
) -> None:
    means, deviations = ([cell[key][part] for cell in cells] for part in ("mean", "sd"))
    axis.errorbar(
        x, means, deviations, label=label, color=color, marker="o", capsize=3, linestyle=style
    )


def _band(axis: Any, numbers: dict[str, Any], label: str) -> None:
    axis.axhline(numbers["mean"], color="gray", linestyle="--", label=label)
    axis.axhspan(
        numbers["mean"] - numbers["sd"], numbers["mean"] + numbers["sd"], color="gray", alpha=0.12
    )


if __name__ == "__main__":
    script(__doc__, "resampling", measure, draw)
