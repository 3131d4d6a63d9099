"""The main job, `minicst train` as it is, beside its controls and dense training: three seeds.

Draw from the JSON file:   python figures/main_job.py
Measure (about 15 minutes of one core):   python figures/main_job.py --run
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import Results, script, select, spread

from minicst.job import prepare
from minicst.pictures import new_figure, save_figure
from minicst.settings import TrainSettings
from minicst.training import train

# Row of the table: (method, estimator).
RUNS = {
    "Algorithm 1 (`vr-pge`)": ("completely-sparse", "vr-pge"),
    "coin (no information)": ("completely-sparse", "coin"),
    "fixed random mask": ("fixed-mask", "vr-pge"),
    "uniformly narrow": ("narrow", "vr-pge"),
    "dense": ("dense", "vr-pge"),
}
KEPT = ("test_accuracy", "macs_ratio_mean", "steps", "train_cost_saving_executed", "macs")


def settings(quick: bool) -> dict[str, Any]:
    """What holds for all runs: train's defaults."""
    default = TrainSettings()
    return {
        "network": default.network,
        "data": default.data,
        "keep_rate": default.keep_rate,
        "keep_prob_lr": default.keep_prob_lr,
        "epochs": 1 if quick else default.epochs,
        "seeds": [0] if quick else [0, 1, 2],
        "accuracy_is": "of one sampled mask on 500 test images",
    }


def measure(path: Path, quick: bool) -> None:
    """Train every method on every seed."""
    setting = settings(quick)
    results = Results(path, setting)
    for seed in setting["seeds"]:
        for label in RUNS:
            results.measure(
                {"method": label, "seed": seed},
                lambda seed=seed, label=label: run(setting, label, seed),
            )
    for label in RUNS:
        rows = select(results.rows, method=label)
        results.findings[label] = {key: spread([row[key] for row in rows]) for key in KEPT}
    results.save()


def run(setting: dict[str, Any], label: str, seed: int) -> dict[str, Any]:
    """Train once."""
    method, estimator = RUNS[label]
    job = prepare(
        TrainSettings(
            method=method,
            estimator=estimator,
            epochs=setting["epochs"],
            seed=seed,
            threads=1,
            dense_probes=0,
        )
    )
    _, summary = train(job)
    values = {key: summary[key] for key in KEPT}
    if "keep_prob_near_0" in summary:
        values["decided"] = summary["keep_prob_near_0"] + summary["keep_prob_near_1"]
    return values


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw accuracy and forward cost, one point a seed."""
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    names = [label.split(" (")[0] for label in data["findings"]]
    for axis, key, what in (
        (left, "test_accuracy", "test accuracy, one sampled mask"),
        (right, "macs_ratio_mean", "forward MACs in training / dense"),
    ):
        for i, found in enumerate(data["findings"].values()):
            values = found[key]["values"]
            axis.plot([i] * len(values), values, "o", alpha=0.6, color=f"C{i}")
            axis.plot([i - 0.25, i + 0.25], [found[key]["mean"]] * 2, color=f"C{i}", linewidth=2)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axis.set(ylabel=what)
    right.set_ylim(0, 1.05)
    setting = data["settings"]
    figure.suptitle(
        f"{setting['network']} on {setting['data']}, keep rate {setting['keep_rate']:g}, "
        f"{setting['epochs']} epochs, {len(setting['seeds'])} seeds (bar: mean)"
    )
    save_figure(figure, path)


if __name__ == "__main__":
    script(__doc__, "main_job", measure, draw)
