"""Pictures, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minicst.pictures import in_style, new_figure, save_figure


@in_style
def plot_curves(
    history: list[dict[str, Any]], keep_prob: dict[str, np.ndarray] | None, path: Path
) -> None:
    """Draw a run: losses, cost, how far keep_prob is decided, and its final values by group.

    Args:
        history: rows of metrics.jsonl.
        keep_prob: {group: values}, or None for methods without masks.
        path: of the .png.
    """
    epochs = [row["epoch"] for row in history]
    sparse = keep_prob is not None
    figure = new_figure(11, 7 if sparse else 3.8)
    axes = np.atleast_1d(figure.subplots(2 if sparse else 1, 2)).reshape(-1)

    axes[0].plot(epochs, [row["loss_a"] for row in history], label="L(m)")
    if sparse:
        paired = [(row["epoch"], row) for row in history if "loss_b" in row]
        x = [epoch for epoch, _ in paired]
        axes[0].plot(x, [row["loss_b"] for _, row in paired], "--", label="L(m')")
        # Once all is decided both masks are the same: zero, which a log scale can't show.
        difference = [row["loss_difference_rms"] or np.nan for _, row in paired]
        axes[0].plot(x, difference, ":", label="rms of L(m) - L(m')")
    axes[0].set(yscale="log", xlabel="epoch", ylabel="training loss, nats")
    axes[0].legend()

    axes[1].plot(epochs, [row["macs_ratio"] for row in history], label="forward MACs / dense")
    axes[1].set(xlabel="epoch", ylabel="share of dense", ylim=(0, None))
    axes[1].legend()

    if keep_prob is not None:
        for key, label in (("keep_prob_near_0", "below .01"), ("keep_prob_near_1", "above .99")):
            axes[2].plot(epochs, [row[key] for row in history], label=f"keep_prob {label}")
        axes[2].set(xlabel="epoch", ylabel="share of keep_prob", ylim=(0, 1))
        axes[2].legend()
        for i, values in enumerate(keep_prob.values()):
            spread = i + np.linspace(-0.35, 0.35, len(values))
            axes[3].plot(spread, np.sort(values), ".", markersize=4)
        axes[3].set_xticks(range(len(keep_prob)), list(keep_prob), rotation=90, fontsize=8)
        axes[3].set(ylabel="final keep_prob, sorted in each group", ylim=(-0.03, 1.03))
    save_figure(figure, path)


@in_style
def plot_planted(results: dict[str, Any], path: Path) -> None:
    """Draw shares on good channels and accuracies of a planted run, one point a seed."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    labels = list(results["methods"])
    for axis, key, name in (
        (left, "good_share", "share of keep_prob on good channels"),
        (right, "test_accuracy", "test accuracy, one sampled mask"),
    ):
        for i, label in enumerate(labels):
            values = results["methods"][label][key]["values"]
            axis.plot([i] * len(values), values, "o", alpha=0.6, color=f"C{i}")
            axis.plot([i - 0.25, i + 0.25], [np.mean(values)] * 2, color=f"C{i}", linewidth=2)
        axis.set_xticks(range(len(labels)), labels, rotation=20)
        axis.set(ylabel=name, ylim=(0, 1.02))
    left.axhline(results["base_share"], color="gray", linestyle="--", label="share at the start")
    left.legend()
    seeds = len(results["seeds"])
    figure.suptitle(
        f"planted noise in half of the channels: {results['network']} on {results['data']}, keep "
        f"rate {results['keep_rate']:g}, {results['epochs']} epochs, {seeds} seeds (bar: mean)"
    )
    save_figure(figure, path)
