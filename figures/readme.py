"""README's blocks made from code and measured numbers: python figures/readme.py [--write].

The table of estimators comes from `minicst.sparse.rules`; measured numbers come from the JSON files
of this folder, into tables and into held.md. A test fails where README says anything else.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minicst.models import ARCHITECTURES, build
from minicst.sparse.accounting import count_macs
from minicst.sparse.rules import RULES
from minicst.variance.report import at_two_passes

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def estimators() -> str:
    """Return the table of estimators, Markdown."""
    lines = [
        "| `--estimator` | estimate | masks, and forward passes | source |",
        "|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        masks = str(rule.n_masks) if rule.n_masks else "k = `--n-masks`"
        pair = ", antithetic" if rule.antithetic else ""
        formula = rule.formula.replace("|", "\\|")
        lines.append(f"| `{name}` | `{formula}` | {masks}{pair} | {rule.source} |")
    return "\n".join(lines)


def load(name: str) -> dict[str, Any]:
    """Return a JSON file of this folder."""
    return json.loads((HERE / f"{name}.json").read_text())


def script(name: str) -> dict[str, Any]:
    """Return what a script of this folder defines."""
    return runpy.run_path(str(HERE / f"{name}.py"))


def number(x: float) -> str:
    """Three significant digits: 0.0123, 724, 24,400."""
    if x == 0.0:
        return "0"
    if x < 1e-3:
        return f"{x:.1e}"
    if x < 100:
        return f"{x:.3g}"
    return f"{float(f'{x:.3g}'):,.0f}"


def with_error(pair: list[float]) -> str:
    """Value and standard error."""
    return f"{number(pair[0])} ± {number(pair[1])}"


def mean_sd(spread: dict[str, Any], digits: int = 2) -> str:
    """Mean and standard deviation over seeds."""
    return f"{spread['mean']:.{digits}f} ± {spread['sd']:.{digits}f}"


def undecided(point: dict[str, Any]) -> str:
    """Share of channels with keep_prob strictly between 0 and 1."""
    return f"{point['channels']['undecided'] / point['channels']['all']:.0%}"


def properties_table(name: str) -> list[str]:
    """E L^2, V and Vmax over a training run."""
    results = load(name)
    rows = [
        "| epoch | loss | undecided | E L^2 | V | E L^2 / V | Vmax / V |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in results["points"]:
        v, vmax = point["v"], point["vmax"]
        ratio = "-" if point["ratio"] is None else with_error(point["ratio"])
        top = "-"
        if v[0] > 0.0:
            top = f"{number(vmax['split'][0] / v[0])} to {number(vmax['naive'][0] / v[0])}"
        rows.append(
            f"| {point['epoch']} | {point['loss'][0]:.2f} "
            f"| {undecided(point)} | {number(point['loss_square'][0])} "
            f"| {with_error(v)} | {ratio} | {top} |"
        )
    return rows


def reduction_table(name: str) -> list[str]:
    """How much of PGE's variance VR-PGE takes away, and what does it."""
    rows = [
        "| epoch | loss | undecided | PGE, alpha 0, to VR-PGE, alpha 1/2 | by layer "
        "| H^alpha alone | the difference alone | E L^2 / V |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in load(name)["points"]:
        whole = point["all"]["reduction"]
        if whole is None or whole["both"] is None:
            continue
        layers = [
            layer["reduction"]["both"][0]
            for layer in point["layers"].values()
            if layer["reduction"] and layer["reduction"]["both"]
        ]
        rows.append(
            f"| {point['epoch']} | {point['loss'][0]:.2f} | {undecided(point)} "
            f"| {with_error(whole['both'])}x "
            f"| {number(min(layers))}x to {number(max(layers))}x | {number(whole['h_alone'][0])}x "
            f"| {number(whole['difference_at_half'][0])}x | {number(point['ratio'][0])} |"
        )
    return rows


def equal_passes(name: str) -> list[str]:
    """Variance of each estimator at equal forward passes, relative to VR-PGE's, by epoch."""
    results = load(name)
    points = [p for p in results["points"] if p["all"]["variance"]]
    equal = [at_two_passes(results, point) for point in points]
    chosen = [
        label
        for label, row in results["estimators"].items()
        if row["alpha"] == 0.5 and row["rule"] != "coin"
    ]
    rows = [
        "| estimator, alpha 1/2 | " + " | ".join(f"epoch {p['epoch']}" for p in points) + " |",
        "|---" * (len(points) + 1) + "|",
    ]
    for label in chosen:
        cells = [number(row[label].value / row["vr-pge a=0.5"].value) for row in equal]
        rows.append(f"| `{results['estimators'][label]['rule']}` | " + " | ".join(cells) + " |")
    return rows


def setting(name: str) -> str:
    """What a measured run is, in words."""
    r = load(name)
    width = "" if r["width"] == 1.0 else f" (width {r['width']:g})"
    return (
        f"{r['network']}{width} on {r['training_images']:,} images of {r['data_label']}, "
        f"{r['maskable_channels']:,} maskable channels, keep rate {r['keep_rate']:g}, "
        f"{r['epochs']} epochs, batch {r['training_batch_size']}, Adam {r['keep_prob_lr']:g} on "
        f"keep_prob; {r['masks']} masks a point on one mini-batch of {r['batch_size']}"
    )


def main_job() -> str:
    """Return the main job's table, Markdown."""
    results = load("main_job")
    seeds = [str(seed) for seed in results["settings"]["seeds"]]
    lines = ["| method | " + " | ".join(seeds) + " | mean ± sd | MACs in training, forward |"]
    lines += ["|---" * (len(seeds) + 3) + "|"]
    for label, found in results["findings"].items():
        accuracy = found["test_accuracy"]
        each = " | ".join(f"{100 * x:.1f}" for x in accuracy["values"])
        lines.append(
            f"| {label} | {each} | {100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f} % "
            f"| {found['macs_ratio_mean']['mean']:.1%} |"
        )
    return "\n".join(lines)


PEERS = {
    "pytorch-nchw": "PyTorch NCHW",
    "pytorch-channels-last": "PyTorch channels last",
    "jax": "JAX",
}
PASSES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "step": "whole step",
}
MULTIPLYING = ("forward_b", "forward_a", "backward")


def milliseconds(seconds: float) -> str:
    """Whole ones above 100."""
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def beside(rows: list[dict[str, Any]], first: list[list[str]], head: str) -> list[str]:
    """Rows of passes: minicst, every peer with the median ratio of pairs, share of the floor."""
    labels = [label for label in PEERS if any(label in row["over"] for row in rows)]
    columns = [head, "minicst", *(PEERS[label] for label in labels), "of the floor"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for cells, row in zip(first, rows, strict=True):
        cells = [" ".join(cells), milliseconds(row["seconds"]["minicst"])]
        for label in labels:
            cells.append(
                f"{milliseconds(row['seconds'][label])} ({row['over'][label]:.2f}x)"
                if label in row["over"]
                else ""
            )
        lines.append("| " + " | ".join([*cells, f"{row['of_peak']:.0%}"]) + " |")
    return lines


def speed() -> str:
    """Return the tables of a bench, Markdown."""
    results = load("bench")
    machine, peak, settings = results["machine"], results["peak"], results["settings"]
    frameworks = [version for version in results["peers"].values() if version]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, "
        f"{', '.join(['NumPy ' + machine['numpy'], *frameworks])}; batch {settings['batch_size']}, "
        f"medians of {settings['pairs']} turns, ratios of pairs (below 1: minicst is faster). "
        f"Floor: executed MACs over the GEMM peak, {peak['gmacs']:.0f} GMAC/s in this run; copies "
        f"ran at {peak['copied_gb']:.0f} GB/s.",
    ]
    for workload in results["workloads"]:
        lines += ["", f"**{workload['label']}**, dense:", ""]
        names = [[PASSES[row["what"]]] for row in workload["dense"]]
        lines += beside(workload["dense"], names, "pass")
        lines += ["", f"**{workload['label']}**, Algorithm 1's whole step:", ""]
        lines += steps_table(workload["steps"], workload["memory"])
        rows, names = [], []
        for entry in workload["cut"]:
            for kind, what in (("static", "the same network"), ("changing", "new each turn")):
                row = next(r for r in entry[kind] if r["what"] == "forward_backward")
                rows.append(row)
                names.append([f"{entry['share']:.2f} %, {what}"])
        lines += ["", f"**{workload['label']}**, cut network, forward + backward:", ""]
        lines += beside(rows, names, "MACs")
    return "\n".join(lines)


def steps_table(steps: dict[str, Any], memory: list[dict[str, Any]]) -> list[str]:
    """Savings in time, in MACs and by the paper, share of the structure, floor, memory."""
    peaks = {
        row["share"]: f"{row['peak'] / 1e6:.0f} MB ({row['peak'] / row['closed_form']:.2f}x)"
        for row in memory
    }
    columns = (
        *("MACs", "step", "saving", "in MACs", "paper's formula", "paper measured"),
        *("authors' way", "cut, sampling, projection, paste", "forwards, backward of the floor"),
        "peak memory (over closed form)",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    dense = steps["dense"]
    of_floor = ", ".join(
        f"{dense['phases'][name]['of_peak']:.0%}" for name in MULTIPLYING if name in dense["phases"]
    )
    blank = "| " * (len(columns) - 4)
    lines.append(
        f"| dense | {milliseconds(dense['seconds'])} {blank}| {of_floor} | {peaks[None]} |"
    )
    for row in steps["rows"]:
        paper = row["saving_paper"]
        slower = [found["over"] for found in row["authors"].values()]
        of_floor = ", ".join(f"{row['phases'][name]['of_peak']:.0%}" for name in MULTIPLYING)
        cells = (
            f"{row['share']:.2f} %",
            milliseconds(row["seconds"]),
            f"{row['saving']:.2f}x",
            f"{row['saving_macs']:.1f}x",
            f"{row['saving_paper_formula']:.1f}x",
            "" if paper is None else f"{paper:.2f}x",
            f"{min(slower):.1f}x" if slower else "",  # PyTorch's faster layout
            f"{row['structure_share']:.1%}",
            of_floor,
            peaks[row["share"]],
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def variance() -> str:
    """Return the measured variance, Markdown."""
    lines = [
        f"**Variance over training**, {setting('fig3_variance')}. Mean over undecided channels:",
        "",
    ]
    lines += [*reduction_table("fig3_variance"), ""]
    lines += [
        "Variance at equal forward passes, VR-PGE = 1 (`pge-moving-average` with an idealised "
        "average, that of other masks at the same weights and batch):",
        "",
        *equal_passes("fig3_variance"),
        "",
        f"**E L^2, V and Vmax over training**, {setting('fig4_properties')} (Vmax: the largest "
        "chosen on one half of the masks and valued on the other, to the plain largest, which is "
        "biased up):",
        "",
        *properties_table("fig4_properties"),
    ]
    return "\n".join(lines)


def planted() -> str:
    """Return the planted-structure tables, Markdown."""
    results = load("planted")
    found, base = results["findings"], results["settings"]
    command = found["minicst_planted"]
    lines = ["| method | share of keep_prob on good channels | test accuracy, one sampled mask |"]
    lines += ["|---|---|---|"]
    for name, values in command["methods"].items():
        lines.append(
            f"| {name} | {mean_sd(values['good_share'], 3)} | {mean_sd(values['test_accuracy'])} |"
        )
    lines += [
        "",
        f"`figures/planted.py`, {base['channels']} channels, keep rate {base['keep_rate']:g}, "
        f"Adam, {found['estimators_adam']['vr-pge']['forward_passes']:,} forward passes each, "
        f"{len(base['seeds'])} seeds. Signal: share above the coin's, per 1,000 forward passes, "
        "and per multiply-adds of 1,000 dense training steps:",
        "",
        "| method | share on good channels | signal per passes | signal per MACs |",
        "|---|---|---|---|",
    ]
    for name, values in found["estimators_adam"].items():
        if "signal" in values:
            lines.append(
                f"| {name} | {mean_sd(values['share'], 3)} | {values['signal']:+.2f} "
                f"| {values['signal_at_equal_macs']:+.2f} |"
            )
    return "\n".join(lines)


def held() -> str:
    """Return what held and what did not: held.md with its numbers filled in."""
    fig3, fig4, quick = (
        load("fig3_variance"),
        load("fig4_properties"),
        load("fig4_properties_quick"),
    )
    both = [p["all"]["reduction"]["both"][0] for p in fig3["points"] if p["ratio"]]
    h_alone = [p["all"]["reduction"]["h_alone"][0] for p in fig3["points"] if p["ratio"]]
    alpha = load("alpha")["findings"]

    def zero_and_half(kind: str, rate: str) -> str:
        at = alpha[f"synthetic, vr-pge-symmetric, {kind}"]
        return f"{at['0'][rate]['mean']:.2f} and {at['0.5'][rate]['mean']:.2f}"

    gaps = {
        a: [
            problem["gap_where_exact_update_ends"][a]["mean"]
            for problem in load("convergence")["findings"]["problems"].values()
        ]
        for a in ("0", "0.5")
    }
    found = load("planted")["findings"]
    by_method = found["estimators_adam"]
    budget = load("budget")["findings"]["resnet20, budget in channels, seed 0"]["all"]
    again = load("resampling")["findings"]
    every = {t: again[f"vr-pge, T = {t}"] for t in (1, 10, 50)}
    numbers = {
        "reduction": ends(both),
        "h_alone": ends(h_alone),
        "ratio_first": number(ratios(fig4)[0]),
        "ratio": ends(ratios(fig4)[1:]),
        "ratio_quick": ends(ratios(quick)),
        "top": ends(tops(fig4)),
        "top_quick": ends(tops(quick)),
        "gap": f"{min(gaps['0.5']):.0%} to {max(gaps['0.5']):.0%}",
        "gap_0": f"{max(gaps['0']):.1%}",
        "share": f"{by_method['vr-pge']['share']['mean']:.2f}",
        "coin_share": f"{by_method['coin']['share']['mean']:.2f}",
        "by_steps": by_steps(found["steps_per_channel"]),
        "drawn": two([budget["drawn"]["min"], budget["drawn"]["max"]]),
        "macs": f"{budget['macs']['min']:.1%} to {budget['macs']['max']:.1%}",
        "ste_cost": f"{by_method['ste']['executed_over_dense']['mean']:.2f}",
        "cost": f"{by_method['vr-pge']['executed_over_dense']['mean']:.2f}",
        "steps": every[1]["steps"],
        "updates": every[50]["updates"],
        "sgd_own": zero_and_half("sgd", "own_lr"),
        "sgd_one": zero_and_half("sgd", "lr_of_alpha_.5"),
        "adam_own": zero_and_half("adam", "own_lr"),
        "planted_adam": two(v["own_lr"]["mean"] for v in alpha["planted, vr-pge, adam"].values()),
    }
    for t, values in every.items():
        numbers[f"accuracy_{t}"] = f"{values['test_accuracy']['mean']:.1%}"
    return (HERE / "held.md").read_text().strip().format(**numbers)


def ratios(results: dict[str, Any]) -> list[float]:
    """E L^2 / V of all points."""
    return [p["ratio"][0] for p in results["points"] if p["ratio"]]


def tops(results: dict[str, Any]) -> list[float]:
    """Vmax / V of all points, the maximum chosen and valued on halves."""
    return [p["vmax"]["split"][0] / p["v"][0] for p in results["points"] if p["ratio"]]


def ends(values: list[float]) -> str:
    """Smallest to largest, three digits."""
    return f"{number(min(values))} to {number(max(values))}"


def two(values: Iterable[float]) -> str:
    """Smallest to largest, two decimals."""
    values = list(values)
    return f"{min(values):.2f} to {max(values):.2f}"


def by_steps(shares: dict[str, Any]) -> str:
    """Share on good channels by steps per channel."""
    return ", ".join(
        f"{shares[key]['vr-pge']['share']['mean']:.2f} ({float(key):.0f})"
        for key in sorted(shares, key=float)
    )


SHOWN = ("vgg16", "vgg19", "resnet20", "resnet32", "resnet56", "wrn-28-10", "resnet50")


def networks() -> str:
    """Exact counts, as `minicst macs` gives them."""
    rows = [
        "| network | images, classes | parameters | MACs | maskable channels, tied / independent |",
        "|---|---|---|---|---|",
    ]
    for name in (*SHOWN, "mobilenetv1"):
        known = ARCHITECTURES[name]
        h, w, c = known.image
        variants = [("", {})]
        if name == "resnet32":
            variants.append((" `--width 2`", {"width": 2.0}))
        elif "shortcut" in known.takes:
            variants.append((" `--shortcut A`", {"shortcut": "A"}))
        for label, options in variants:
            tied, free = (
                build(name, known.num_classes, c, residual=residual, **options)
                for residual in ("tied", "independent")
            )
            count = count_macs(tied, known.image)
            channels = f"{tied.n_maskable:,}"
            if free.n_maskable != tied.n_maskable:
                channels += f" / {free.n_maskable:,}"
            rows.append(
                f"| `{name}`{label} | {c}x{h}x{w}, {known.num_classes} | {count.params:,} | "
                f"{count.macs:,} | {channels} |"
            )
    return "\n".join(rows)


BLOCKS = {
    "networks": networks,
    "estimators": estimators,
    "main": main_job,
    "planted": planted,
    "speed": speed,
    "variance": variance,
    "held": held,
    "gpu": lambda: script("gpu_tables")["gpu"](),
    "beyond_memory": lambda: script("beyond_memory")["table"](load("beyond_memory")),
}


def with_blocks(text: str) -> str:
    """Return README's text with each block between its marks."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_blocks(README.read_text()))
    else:
        print("\n\n".join(make() for make in BLOCKS.values()))
