"""What a measurement of variances says: its summary, sentences, tables and JSON text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rich.console import Console

from minicst.tables import table as new_table
from minicst.variance.monte_carlo import Estimate
from minicst.variance.point import label, number


def summarize_points(results: dict[str, Any]) -> dict[str, Any]:
    """Largest and smallest reduction from PGE to VR-PGE over layers and points, and E L^2 / V.

    Reductions below two standard errors say nothing, and don't take part.
    """
    layers = [
        {
            "epoch": point["epoch"],
            "loss": point["loss"][0],
            "layer": name,
            "reduction": layer["reduction"]["both"],
            "orders": number(math.log10(layer["reduction"]["both"][0])),
        }
        for point in results["points"]
        for name, layer in point.get("layers", {}).items()
        if _sure((layer["reduction"] or {}).get("both"))
    ]
    ratios = [point["ratio"] for point in results["points"] if point["ratio"]]
    return {
        "largest": max(layers, key=lambda row: row["reduction"][0], default=None),
        "smallest": min(layers, key=lambda row: row["reduction"][0], default=None),
        "ratio_largest": max(ratios, default=None),
        "ratio_smallest": min(ratios, default=None),
        "all_decided": [p["epoch"] for p in results["points"] if p["v"][0] == 0.0],
    }


def _sure(estimate: list[float | None] | None) -> bool:
    if estimate is None or estimate[0] is None or estimate[1] is None:
        return False
    return estimate[0] > 2.0 * estimate[1]


def sentences(results: dict[str, Any]) -> list[str]:
    """Say in words how large the reduction is; computed from the results."""
    summary, said = results["summary"], []
    if summary["largest"]:
        top, low = summary["largest"], summary["smallest"]
        said.append(
            f"PGE (a=0) to VR-PGE (a=0.5): variance falls by up to {top['orders']:.1f} orders of "
            f"magnitude ({_where(top)}), and by {low['orders']:.1f} at least ({_where(low)})"
        )
    if summary["ratio_largest"]:
        said.append(
            f"E L^2 / V, what the difference alone promises: {summary['ratio_largest'][0]:.3g} at "
            f"most, {summary['ratio_smallest'][0]:.3g} at least"
        )
    if summary["all_decided"]:
        epochs = ", ".join(map(str, summary["all_decided"]))
        said.append(
            f"V = 0 after epoch {epochs}: all masks have the same loss there (channels decided), "
            "no gradient is left to measure"
        )
    return said


def _where(row: dict[str, Any]) -> str:
    return (
        f"{with_error(row['reduction'])}x in {row['layer']} after epoch {row['epoch']}, at loss "
        f"{row['loss']:.3g}"
    )


def at_two_passes(results: dict[str, Any], point: dict[str, Any]) -> dict[str, Estimate]:
    """Each estimator's mean variance if two forward passes a step are spent on it.

    variance x passes / 2: the mean of 2 / passes independent estimates. For one pass that is two
    estimates, for four masks half of one.

    Args:
        results: of measure_training() or run_variance().
        point: one of its points, with measured channels.
    """
    factors = {name: row["passes"] / 2 for name, row in results["estimators"].items()}
    table = point["all"]["variance"]
    return {
        name: Estimate(table[name][0] * factor, (table[name][1] or 0.0) * factor)
        for name, factor in factors.items()
    }


def with_error(estimate: list[float | None]) -> str:
    """12.34 and 0.5 -> '12.3 ± 0.5'."""
    value, se = estimate
    if value is None:
        return "-"
    if not se:
        return f"{value:.3g}"
    return f"{value:.3g} ± {se:.1g}"


def point_line(point: dict[str, Any]) -> str:
    """Progress line of a measuring point."""
    parts = [
        f"measured at epoch {point['epoch']}: L {point['loss'][0]:.4g}",
        f"E L^2 {point['loss_square'][0]:.3g}, V {point['v'][0]:.3g}, "
        f"Vmax {point['vmax']['split'][0]:.3g}",
    ]
    whole = point.get("all")
    if whole and whole["reduction"] and whole["reduction"]["both"]:
        parts.append(f"PGE / VR-PGE {whole['reduction']['both'][0]:.3g}x")
    parts.append(f"{point['forward_passes']} passes, {point['seconds']:.0f} s")
    return ", ".join(parts)


def entries(results: dict[str, Any]) -> tuple[str, str]:
    """What an entry of keep_prob belongs to, and many: ("a channel", "channels")."""
    many = results.get("maskable", "channels")  # results of older versions are of channels
    return {"channels": "a channel", "weights": "a weight"}.get(many, "an entry"), many


def print_variance(console: Console, results: dict[str, Any]) -> None:
    """Print the last point's table of estimators, and one row a point."""
    point = results["points"][-1]
    where = f"{results['network']} on {results['data']}, epoch {point['epoch']}"
    variance = point["all"]["variance"]
    if variance is not None:
        one, many = entries(results)
        table = new_table(
            f"variance of {one}'s gradient, mean over {point['channels']['measured']} "
            f"{many}: {where}",
            *("estimator", "passes", "variance", "at 2 passes", "PGE / it"),
        )
        equal = at_two_passes(results, point)
        first = equal[label("pge", 0.0)].value
        for name, row in results["estimators"].items():
            value = equal[name].value
            table.add_row(
                name,
                str(row["passes"]),
                with_error(variance[name]),
                f"{value:.3g}",
                f"{first / value:.3g}x" if value else "-",
            )
        decided, rare = point["all"]["decided"], point["all"]["rare"]
        table.caption = (
            f"left out: {decided} decided {many} (no variance), {rare} too rare to be drawn; "
            f"bound at a=0.5: {point['all']['bound']['a=0.5']:.3g}; at 2 passes: variance x passes "
            "/ 2, of as many estimates as 2 passes pay for, averaged; pge-moving-average: its "
            "baseline is the mean loss at these weights"
        )
        console.print(table)
    names = ("epoch", "L", "E L^2 / V", "difference", "H^a", "both", "V", "Vmax")
    rows = new_table("reduction, PGE's variance over VR-PGE's, and why", *names, left=0)
    for point in results["points"]:
        reduction = point["all"]["reduction"] or {}

        def cell(key: str, reduction: dict[str, Any] = reduction) -> str:
            return with_error(reduction[key]) if reduction.get(key) else "-"

        rows.add_row(
            str(point["epoch"]),
            f"{point['loss'][0]:.3g}",
            with_error(point["ratio"]) if point["ratio"] else "-",
            *(cell(key) for key in ("difference_alone", "h_alone", "both")),
            f"{point['v'][0]:.3g}",
            f"{point['vmax']['split'][0]:.3g}",
        )
    console.print(rows)
    for sentence in sentences(results):
        console.print(sentence)


def dumps(results: dict[str, Any]) -> str:
    """JSON with a line for each key, and short lists on one line: [value, standard error]."""

    def joined(match: re.Match[str]) -> str:
        return "[" + re.sub(r"\n\s*", " ", match.group(1)) + "]"

    # Within a JSON string there is no line break, so none of this touches one.
    text = json.dumps(results, indent=1, allow_nan=False)
    return re.sub(r"\[\n\s*([^\[\]{}\n]*(?:\n[^\[\]{}\n]*)*?)\n\s*\]", joined, text) + "\n"
