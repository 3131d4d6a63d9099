"""Pictures of variances, of E L^2, V and Vmax; drawn from the JSON's content alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minicst.pictures import in_style, new_figure, save_figure
from minicst.variance.report import at_two_passes, entries

LABELS = {
    "h_alone": "H^α alone: PGE α=0 → α=½",
    "difference_alone": "difference alone: PGE → VR-PGE, α=0",
    "both": "both: PGE α=0 → VR-PGE α=½",
}


@in_style
def plot_properties(results: dict[str, Any], path: Path) -> None:
    """Draw E L^2, V and Vmax over epochs, and the ratios E L^2 / V and Vmax / V.

    Args:
        results: of measure_training().
        path: of the .png.
    """
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2)
    points = results["points"]
    epochs = [point["epoch"] for point in points]
    curves = (
        ("E L²(m)", [p["loss_square"] for p in points], "C0", "o-"),
        ("Vmax(s), largest value (biased up)", [p["vmax"]["naive"] for p in points], "C3", "v:"),
        ("Vmax(s), chosen and valued on halves", [p["vmax"]["split"] for p in points], "C1", "s-"),
        ("V(s)", [p["v"] for p in points], "C2", "o-"),
    )
    for name, values, color, style in curves:
        _errorbar(left, epochs, values, style, color=color, label=name)
    left.set(yscale="log", xlabel="epoch", ylabel="nats²")
    ratio = [p["ratio"] or [np.nan, np.nan] for p in points]
    _errorbar(right, epochs, ratio, "o-", color="C0", label="E L² / V")
    right.plot(
        epochs,
        [p["vmax"]["split"][0] / p["v"][0] if p["v"][0] else np.nan for p in points],
        "s-",
        color="C1",
        label="Vmax / V, chosen and valued on halves",
    )
    right.axhline(1e4, color="gray", linestyle="--", linewidth=1, label="paper: E L² / V ≈ 10⁴")
    right.set(yscale="log", xlabel="epoch", ylabel="ratio")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    _title(figure, results)
    save_figure(figure, path)


@in_style
def plot_variance(results: dict[str, Any], path: Path) -> None:
    """Draw variances per layer, the reduction over training, and all estimators.

    Args:
        results: of measure_training() or run_variance().
        path: of the .png.
    """
    figure = new_figure(12, 8.8)
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    points = [p for p in results["points"] if p["all"]["variance"]]
    shown = points if len(points) < 3 else [points[0], points[len(points) // 2], points[-1]]
    top = above.subplots(1, max(len(shown), 1), sharey=True, squeeze=False)[0]
    for axis, point in zip(top, shown, strict=False):
        _layers(axis, point)
    top[0].set_ylabel(f"variance of {entries(results)[0]}'s gradient,\nmean of the layer")
    if shown:
        top[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    over_time, others = below.subplots(1, 2)
    _reductions(over_time, results["points"])
    _estimators(others, results, shown)
    _title(figure, results)
    save_figure(figure, path)


def _layers(axis: Axes, point: dict[str, Any]) -> None:
    """Mean variance of each layer, of PGE and VR-PGE, and the bound."""
    names = list(point["layers"])
    x = np.arange(len(names))
    for row, color, style, text in (
        ("pge a=0", "C3", "o", "PGE, α=0"),
        ("pge a=0.5", "C1", "o", "PGE, α=½"),
        ("vr-pge a=0", "C0", "s", "VR-PGE, α=0"),
        ("vr-pge a=0.5", "C2", "s", "VR-PGE, α=½"),
    ):
        values = [
            layer["variance"][row] if layer["variance"] else [np.nan, np.nan]
            for layer in point["layers"].values()
        ]
        _errorbar(axis, x, values, style + "-", color=color, label=text)
    bound = [
        layer["bound"]["a=0.5"] if layer["bound"] else np.nan for layer in point["layers"].values()
    ]
    axis.plot(x, bound, "--", color="gray", label="bound, α=½: Vmax")
    axis.set_xticks(x, names, rotation=90, fontsize=7)
    axis.set(yscale="log")
    axis.set_title(f"epoch {point['epoch']}, L = {point['loss'][0]:.2g}", fontsize=10)


def _reductions(axis: Axes, points: list[dict[str, Any]]) -> None:
    """Reduction over training, measured and predicted."""
    epochs = [point["epoch"] for point in points]
    for (key, text), color in zip(LABELS.items(), ("C1", "C0", "C2"), strict=True):
        measured = [(p["all"]["reduction"] or {}).get(key) or [np.nan, np.nan] for p in points]
        _errorbar(axis, epochs, measured, "o-", color=color, label=text)
        predicted = [(p["all"]["predicted"] or {}).get(key, np.nan) for p in points]
        axis.plot(epochs, predicted, "x--", color=color, linewidth=1)
    axis.plot([], [], "x--", color="gray", label="predicted from E L² / V and s(1-s)")
    axis.set(yscale="log", xlabel="epoch", ylabel="reduction of the variance, all channels")
    axis.legend(fontsize=8)


def _estimators(axis: Axes, results: dict[str, Any], shown: list[dict[str, Any]]) -> None:
    """All estimators at two forward passes a step."""
    names = list(results["estimators"])
    y = np.arange(len(names))[::-1]
    for i, point in enumerate(shown):
        values = at_two_passes(results, point).values()
        x, error = np.array(list(values)).T
        axis.errorbar(
            x, y, xerr=error, fmt="os^"[i], color=f"C{i}", label=f"epoch {point['epoch']}"
        )
    axis.set_yticks(y, [name.replace(" a=0.5", ", α=½").replace(" a=0", ", α=0") for name in names])
    axis.tick_params(axis="y", labelsize=8)
    axis.set(xscale="log", xlabel="mean variance at two forward passes a step")
    if shown:
        axis.legend(fontsize=8)


def _errorbar(axis: Axes, x: Any, pairs: Any, style: str, **options: Any) -> None:
    value, se = np.array(
        [[np.nan if number is None else number for number in pair] for pair in pairs], float
    ).T
    value = np.where(value > 0.0, value, np.nan)  # a log scale has no zero
    axis.errorbar(x, value, yerr=se, fmt=style, capsize=2, markersize=4, linewidth=1, **options)


def _title(figure: Figure, results: dict[str, Any]) -> None:
    width = f", width {results['width']:g}" if results["width"] != 1.0 else ""
    figure.suptitle(
        f"{results['network']}{width} on {results.get('data_label', results['data'])} "
        f"({results['training_images']} images), keep rate {results['keep_rate']:g}, "
        f"{results['maskable_channels']} {entries(results)[1]}; fixed mini-batch of "
        f"{results['batch_size']}, {results['masks']} masks a point; bars: standard errors",
        fontsize=10,
    )
