"""Does keep_prob converge? Problems whose best keep_prob is known, arrays only.

Paper, A.3: VR-PGE is "a standard preconditioned stochastic gradient descent method. Thus, the
convergence can be guaranteed". Here Phi is a polynomial, its best point over
{0 <= s <= 1, sum s <= K} is found exactly, and the distance Phi(s) - Phi* and the KKT residual are
followed over forward passes. Beside the estimators: where the exact, noiseless update ends.

Draw figures/convergence.png from its JSON file: python figures/convergence.py
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from common import Results, band, choose, script, select, spread
from synthetic import (
    Problem,
    best_point,
    best_vertex,
    descend,
    draw_problem,
    end_of_exact_update,
    kkt_residual,
)

from minicst.backend import get_backend
from minicst.pictures import new_figure, save_figure

ESTIMATORS = ("vr-pge", "vr-pge-symmetric", "vr-pge-multi", "disarm", "pge", "coin")
KINDS = ("linear", "redundant", "teams")
# (optimizer, schedule of its learning rate); Adam has the paper's 12e-3.
UPDATES = (("sgd", "constant"), ("sgd", "cosine"), ("sgd", "sqrt"), ("adam", "constant"))
NAMES = {
    ("sgd", "constant"): "SGD, constant",
    ("sgd", "cosine"): "SGD, cosine",
    ("sgd", "sqrt"): "SGD, 1/sqrt(t)",
    ("adam", "constant"): "Adam 12e-3",
}
ADAM_LR = 12e-3  # paper, App. B
FLOORED = ("vr-pge", "vr-pge-symmetric")
LONG = "vr-pge-symmetric"  # also without preconditioner, alpha = 0, on the linear problem
EXACT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
N_POINTS = 21  # of a curve


def settings(quick: bool) -> dict[str, Any]:
    """Return what holds for all runs."""
    return {
        "n": 8 if quick else 20,
        "budget": 3 if quick else 5,
        "passes": 80 if quick else 8000,
        "passes_long": 160 if quick else 40000,
        "n_masks_of_multi": 4,
        "alpha": 0.5,
        "exact_alphas": [0.0, 0.5] if quick else list(EXACT_ALPHAS),
        "floor": 0.01,
        "seeds": [0] if quick else list(range(8)),
        "tuning_seeds": [100] if quick else [100, 101],
        "lr_grid": {
            "constant": [0.1] if quick else [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
            "cosine": [0.1] if quick else [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
            "sqrt": [1.0] if quick else [0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
        },
        "lr_is_chosen": "for each estimator and schedule: smallest mean gap at the end over "
        "the three problems and the tuning seeds, floor 0; the coin has the rate of vr-pge; a seed "
        "draws the problem too, so the reported seeds are other problems",
        "gap_is": "(Phi(s) - Phi*) / (Phi(rho 1) - Phi*)",
    }


@cache
def _known(n: int, budget: float, kind: str, seed: int, floor: float) -> tuple[Problem, Any]:
    """Return a problem and its best point with floor <= s <= 1 - floor."""
    problem = draw_problem(kind, n, budget, seed)
    return problem, best_point(problem, seed, lower=floor)


def run(setting: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Descend once; `what` names kind, estimator, optimizer, schedule, lr, floor, seed, passes."""
    n, budget = setting["n"], setting["budget"]
    problem, best = _known(n, budget, what["kind"], what["seed"], 0.0)
    _, inside = _known(n, budget, what["kind"], what["seed"], what["floor"])
    end = descend(
        problem,
        what["estimator"],
        what["seed"],
        what["passes"],
        what["lr"],
        what["optimizer"],
        what["schedule"],
        what.get("alpha", setting["alpha"]),
        what["floor"],
        setting["n_masks_of_multi"],
        N_POINTS,
    )
    s, span = end["keep_prob"], problem.phi(problem.start()) - problem.phi(best)
    gap = (np.array(end["phi"]) - problem.phi(best)) / span
    kkt = np.array(end["kkt"]) / end["kkt"][0]
    if what["seed"] in setting["tuning_seeds"]:
        return {"gap": gap[-1:]}
    return {
        "gap": gap,
        "kkt_over_start": kkt if what["passes"] == setting["passes_long"] else kkt[-1:],
        "gap_to_best_within_floor": float((end["phi"][-1] - problem.phi(inside)) / span),
        "sum": float(s.sum()),
        "at_0": int((s == 0.0).sum()),
        "at_1": int((s == 1.0).sum()),
        "needed_but_at_0": int(((best > 0.5) & (s == 0.0)).sum()),
    }


def best_and_exact(setting: dict[str, Any]) -> dict[str, Any]:
    """Of every reported problem: is the best point a mask, and where does the exact update end?"""
    table: dict[str, Any] = {}
    for kind in KINDS:
        worse, kkt, exact = [], [], {f"{alpha:g}": [] for alpha in setting["exact_alphas"]}
        for seed in setting["seeds"]:
            problem, best = _known(setting["n"], setting["budget"], kind, seed, 0.0)
            span = problem.phi(problem.start()) - problem.phi(best)
            worse.append(float(problem.phi(best_vertex(problem)) - problem.phi(best)) / span)
            kkt.append(kkt_residual(problem, best))
            for alpha in setting["exact_alphas"]:
                s = end_of_exact_update(problem, alpha)
                exact[f"{alpha:g}"].append(float(problem.phi(s) - problem.phi(best)) / span)
        table[kind] = {
            "gap_of_best_mask": spread(worse),
            "largest_kkt_residual_of_best": max(kkt),
            "gap_where_exact_update_ends": {key: spread(gaps) for key, gaps in exact.items()},
        }
    return table


def measure(path: Path, quick: bool) -> None:
    """Choose learning rates on the tuning seeds, then run all others."""
    get_backend("cpu", 1)
    setting = settings(quick)
    results = Results(path, setting)
    rates: dict[str, Any] = {}
    tuned = [(estimator, KINDS, {}) for estimator in ESTIMATORS[:-1]]
    tuned.append((LONG, ("linear",), {"alpha": 0.0}))
    for estimator, kinds, more in tuned:
        for name, grid in setting["lr_grid"].items():
            reached = {
                str(lr): [
                    -results.measure(what, lambda what=what: run(setting, what))["gap"][-1]
                    for kind in kinds
                    for seed in setting["tuning_seeds"]
                    for what in [
                        _what(kind, estimator, "sgd", name, lr, 0.0, seed, setting["passes"]) | more
                    ]
                ]
                for lr in grid
            }
            rates[f"{estimator}, {name}{_suffix(more)}"] = choose(reached)
    results.findings = {"lr": rates, "problems": best_and_exact(setting)}

    runs = [(kind, e, u, 0.0, "passes", {}) for kind in KINDS for e in ESTIMATORS for u in UPDATES]
    floor = setting["floor"]
    runs += [(kind, e, u, floor, "passes", {}) for kind in KINDS for e in FLOORED for u in UPDATES]
    runs += [("linear", LONG, u, f, "passes_long", {}) for u in UPDATES for f in (0.0, floor)]
    plain = {"alpha": 0.0}
    runs += [("linear", LONG, u, f, "passes", plain) for u in UPDATES for f in (0.0, floor)]
    for kind, estimator, (optimizer, name), low, length, more in runs:
        for seed in setting["seeds"]:
            lr = ADAM_LR
            if optimizer == "sgd":
                like = "vr-pge" if estimator == "coin" else estimator
                lr = float(rates[f"{like}, {name}{_suffix(more)}"]["chosen"])
            what = _what(kind, estimator, optimizer, name, lr, low, seed, setting[length]) | more
            results.measure(what, lambda what=what: run(setting, what))
    results.findings["ends"] = ends(results.rows, setting)
    results.save()


def _suffix(more: dict[str, Any]) -> str:
    return f", alpha {more['alpha']:g}" if more else ""


def _what(
    kind: str, estimator: str, optimizer: str, name: str, lr: float, floor: float, seed: int, n: int
) -> dict[str, Any]:
    return {
        "kind": kind,
        "estimator": estimator,
        "optimizer": optimizer,
        "schedule": name,
        "lr": lr,
        "floor": floor,
        "seed": seed,
        "passes": n,
    }


def ends(rows: list[dict[str, Any]], setting: dict[str, Any]) -> dict[str, Any]:
    """Where the reported runs end: {kind: {estimator: {update: {length and floor: numbers}}}}."""
    table: dict[str, Any] = {}
    for row in rows:
        what = row["run"]
        if what["seed"] in setting["tuning_seeds"]:
            continue
        length = "long, " if what["passes"] == setting["passes_long"] else ""
        length += f"alpha {what['alpha']:g}, " if "alpha" in what else ""
        update = NAMES[what["optimizer"], what["schedule"]]
        cell = table.setdefault(what["kind"], {}).setdefault(what["estimator"], {})
        cell = cell.setdefault(update, {}).setdefault(f"{length}floor {what['floor']:g}", [])
        cell.append(row)
    return _map(table, _end)


def _map(table: Any, work: Any) -> Any:
    if isinstance(table, dict):
        return {key: _map(value, work) for key, value in table.items()}
    return work(table)


def _end(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "gap": spread([row["gap"][-1] for row in rows]),
        "gap_to_best_within_floor": spread([row["gap_to_best_within_floor"] for row in rows]),
        "kkt_over_start": spread([row["kkt_over_start"][-1] for row in rows]),
        "needed_but_at_0": spread([row["needed_but_at_0"] for row in rows]),
        "runs_with_gap_below_.01": sum(row["gap"][-1] < 0.01 for row in rows),
        "runs": len(rows),
    }


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw gaps over forward passes, problems by updates; long runs; ends of the exact update."""
    setting, rows = data["settings"], data["rows"]
    problems, alpha = data["findings"]["problems"], f"{setting['alpha']:g}"
    figure = new_figure(15, 14)
    axes = figure.subplots(4, 4)
    passes = np.linspace(0, setting["passes"], N_POINTS)
    for i, kind in enumerate(KINDS):
        for j, (optimizer, name) in enumerate(UPDATES):
            axis = axes[i][j]
            for c, estimator in enumerate(ESTIMATORS):
                chosen = _reported(rows, setting, kind, estimator, optimizer, name, 0.0)
                gaps = np.maximum([row["gap"] for row in chosen], 1e-4)
                band(axis, passes, gaps, estimator, f"C{c}")
            chosen = _reported(rows, setting, kind, LONG, optimizer, name, setting["floor"])
            gaps = np.array([row["gap"] for row in chosen]).mean(axis=0)
            axis.plot(passes, gaps, ":", color="C1", label=f"{LONG}, floor {setting['floor']:g}")
            if optimizer == "sgd":
                exact = problems[kind]["gap_where_exact_update_ends"][alpha]["mean"]
                axis.axhline(exact, color="black", linestyle="--", lw=1, label="exact update ends")
            axis.set(yscale="log", ylim=(1e-2, 4))
            if i == 0:
                axis.set_title(NAMES[optimizer, name])
        axes[i][0].set_ylabel(f"{kind}: gap to the best, start = 1")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    for axis, update in zip(axes[3][:2], (UPDATES[1], UPDATES[3]), strict=True):
        _draw_long(axis, rows, setting, update)
    axes[3][0].set_ylabel(f"linear, {LONG}")
    axes[3][0].legend(fontsize=7, loc="upper right")
    for j, (optimizer, name) in enumerate(UPDATES):
        for c, floor in enumerate((0.0, setting["floor"])):
            for shift, power in ((-0.1, None), (0.1, 0.0)):
                chosen = _reported(
                    rows, setting, "linear", LONG, optimizer, name, floor, alpha=power
                )
                gaps = [max(row["gap"][-1], 1e-3) for row in chosen]
                label = f"alpha {alpha if power is None else '0'}, floor {floor:g}"
                style = {"color": f"C{c + 6}", "alpha": 0.7, "ms": 5}
                axes[3][2].plot(
                    np.full(len(gaps), j + shift),
                    gaps,
                    "o" if power is None else "^",
                    label=None if j else label,
                    **style,
                )
    axes[3][2].set_xticks(range(4), [NAMES[update] for update in UPDATES], fontsize=7)
    axes[3][2].set(yscale="log", title=f"linear, {LONG}: gap at the end", ylim=(1e-3, 4))
    axes[3][2].legend(fontsize=7)
    for c, kind in enumerate(KINDS):
        table = problems[kind]["gap_where_exact_update_ends"]
        x = np.array([float(key) for key in table]) + 0.01 * (c - 1)
        means, deviations = ([cell[part] for cell in table.values()] for part in ("mean", "sd"))
        axes[3][3].errorbar(x, means, deviations, marker="o", capsize=3, label=kind, color=f"C{c}")
    axes[3][3].set(title="gap where the exact update ends", xlabel="alpha", ylim=(-0.01, None))
    axes[3][3].legend(fontsize=7)
    for axis in (*axes[2], *axes[3][:2]):
        axis.set_xlabel("forward passes")
    figure.suptitle(
        f"keep_prob on problems with a known best point, {setting['n']} channels, K = "
        f"{setting['budget']}, alpha {alpha}: mean and range of {len(setting['seeds'])} seeds"
    )
    save_figure(figure, path)


def _draw_long(
    axis: Any, rows: list[dict[str, Any]], setting: dict[str, Any], update: tuple[str, str]
) -> None:
    """Draw gap and KKT residual of the long runs, with and without floor."""
    passes = np.linspace(0, setting["passes_long"], N_POINTS)
    for c, floor in enumerate((0.0, setting["floor"])):
        chosen = _reported(rows, setting, "linear", LONG, *update, floor, setting["passes_long"])
        for key, style in (("gap", "-"), ("kkt_over_start", "--")):
            curves = np.maximum([row[key] for row in chosen], 1e-4)
            label = f"{'gap' if key == 'gap' else 'KKT residual'}, floor {floor:g}"
            band(axis, passes, curves, label, f"C{c + 6}", linestyle=style)
    axis.set(yscale="log", ylim=(1e-2, 4), title=f"{NAMES[update]}, five times as long")


def _reported(
    rows: list[dict[str, Any]],
    setting: dict[str, Any],
    kind: str,
    estimator: str,
    optimizer: str,
    name: str,
    floor: float,
    passes: int | None = None,
    alpha: float | None = None,
) -> list[dict[str, Any]]:
    found = select(
        rows,
        kind=kind,
        estimator=estimator,
        optimizer=optimizer,
        schedule=name,
        floor=floor,
        passes=passes or setting["passes"],
        alpha=alpha,
    )
    return [row for row in found if row["run"]["seed"] in setting["seeds"]]


if __name__ == "__main__":
    script(__doc__, "convergence", measure, draw)
