"""What alpha of the preconditioner (s (1 - s))^alpha does, under SGD and under Adam.

H^alpha rescales the step too, so each alpha gets a learning rate of its own, chosen on seeds that
aren't reported. Two problems: keep_prob alone on a loss in closed form, and planted structure in a
network.

Draw figures/alpha.png from its JSON file: python figures/alpha.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from common import Results, choose, script, spread
from planted import train_planted
from synthetic import Problem, best_point, descend, draw_problem, swapped

from minicst.backend import get_backend
from minicst.pictures import new_figure, save_figure
from minicst.settings import TrainSettings

ESTIMATORS = ("vr-pge", "vr-pge-symmetric")
OPTIMIZERS = ("sgd", "adam")
PAPER_ALPHA = 0.5


def settings(quick: bool) -> dict[str, Any]:
    """Return what holds for all runs."""
    return {
        "alphas": [0.0, 0.5] if quick else [0.0, 0.25, 0.5, 0.75, 1.0],
        "synthetic": {
            "kind": "redundant",
            "n": 8 if quick else 40,
            "budget": 3 if quick else 12,
            "steps": 40 if quick else 3000,
            "seeds": list(range(2)) if quick else list(range(12)),
            "tuning_seeds": [100] if quick else [100, 101, 102],
            "lr_grid": {
                "sgd": [0.1] if quick else [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
                "adam": [0.012] if quick else [0.0013, 0.004, 0.012, 0.036, 0.11],
            },
            "schedule": "constant",
            "measure": "reached = (Phi(rho 1) - Phi(s)) / (Phi(rho 1) - Phi*), Phi* the best found "
            "by projected gradient descent from 40 starts, then exchange of single channels",
        },
        "planted": {
            "network": "vgg-tiny",
            "width": 0.25 if quick else 0.5,
            "data": "digits",
            "keep_rate": 0.5,
            "epochs": 1 if quick else 36,
            "estimator": "vr-pge",
            "seeds": [0] if quick else [0, 1, 2],
            "tuning_seeds": [100],
            "lr_grid": {
                "sgd": [0.1] if quick else [0.03, 0.1, 0.3],
                "adam": [0.012] if quick else [0.012, 0.036],
            },
            "schedule": "cosine",
            "measure": "share of keep_prob on the good channels, .5 at the start",
        },
        "lr_is_chosen": "for each problem, estimator, optimizer and alpha: largest mean on the "
        "tuning seeds; the reported seeds are others, and a seed draws the problem too",
    }


@cache
def _problem(kind: str, n: int, budget: float, seed: int) -> tuple[Problem, float]:
    """Return a problem and the smallest Phi found."""
    problem = draw_problem(kind, n, budget, seed)
    best = best_point(problem, seed)
    if np.all((best < 1e-9) | (best > 1 - 1e-9)):
        best = swapped(problem, np.rint(best))
    return problem, float(problem.phi(best))


def reached(setting: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Descend on the synthetic problem; see settings' "measure"."""
    problem, best = _problem(setting["kind"], setting["n"], setting["budget"], what["seed"])
    end = descend(
        problem,
        what["estimator"],
        what["seed"],
        2 * setting["steps"],
        what["lr"],
        what["optimizer"],
        setting["schedule"],
        what["alpha"],
        n_points=2,
    )
    s, start = end["keep_prob"], float(problem.phi(problem.start()))
    return {
        "value": (start - end["phi"][-1]) / (start - best),
        "at_0": int((s == 0.0).sum()),
        "undecided": int(((s > 0.01) & (s < 0.99)).sum()),
    }


def share(setting: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """Train with planted structure; see settings' "measure"."""
    base = TrainSettings(planted=True, threads=1, dense_probes=0)
    end = train_planted(
        replace(
            base,
            **{key: setting[key] for key in ("network", "width", "data", "keep_rate", "epochs")},
            estimator=what["estimator"],
            keep_prob_optimizer=what["optimizer"],
            keep_prob_lr=what["lr"],
            precondition_power=what["alpha"],
            seed=what["seed"],
        )
    )
    return {"value": end["share"][-1], "accuracy": end["accuracy"], "decided": end["decided"]}


def measure(path: Path, quick: bool) -> None:
    """Choose a learning rate for every alpha, then run the reported seeds."""
    get_backend("cpu", 1)
    setting = settings(quick)
    results = Results(path, setting)
    for name, work, estimators in (
        ("synthetic", reached, ESTIMATORS),
        ("planted", share, (setting["planted"]["estimator"],)),
    ):
        for estimator in estimators:
            for optimizer in OPTIMIZERS:
                _sweep(results, name, work, estimator, optimizer)
    results.findings["spread_over_alpha"] = differences(results.findings)
    results.save()


def _sweep(results: Results, name: str, work: Any, estimator: str, optimizer: str) -> None:
    """Run all alphas of one problem, estimator and optimizer, and sum them up in the findings."""
    own, alphas = results.settings[name], results.settings["alphas"]

    def run(alpha: float, lr: float, seed: int) -> float:
        what = {
            "problem": name,
            "estimator": estimator,
            "optimizer": optimizer,
            "alpha": alpha,
            "lr": lr,
            "seed": seed,
        }
        return results.measure(what, lambda: work(own, what))["value"]

    grid = own["lr_grid"][optimizer]
    rates = {
        alpha: choose(
            {str(lr): [run(alpha, lr, seed) for seed in own["tuning_seeds"]] for lr in grid}
        )
        for alpha in alphas
    }
    shared = rates[PAPER_ALPHA]["chosen"]
    table = {}
    for alpha in alphas:
        lr = rates[alpha]["chosen"]
        table[f"{alpha:g}"] = {
            "own_lr": spread([run(alpha, float(lr), seed) for seed in own["seeds"]]),
            "lr": rates[alpha],
        }
        if name == "synthetic":  # what one learning rate for all would have shown
            values = [run(alpha, float(shared), seed) for seed in own["seeds"]]
            table[f"{alpha:g}"]["lr_of_alpha_.5"] = spread(values)
    results.findings[f"{name}, {estimator}, {optimizer}"] = table
    results.save()


def differences(findings: dict[str, Any]) -> dict[str, Any]:
    """For every sweep: best mean less worst over alpha, and alpha = 1/2 less 0, paired by seed."""
    table = {}
    for name, sweep in findings.items():
        if name == "spread_over_alpha":
            continue
        for kind in ("own_lr", "lr_of_alpha_.5"):
            if kind in sweep["0.5"]:
                means = {alpha: cell[kind]["mean"] for alpha, cell in sweep.items()}
                half, none = (np.array(sweep[a][kind]["values"]) for a in ("0.5", "0"))
                table[f"{name}, {kind}"] = {
                    "best_alpha": max(means, key=lambda alpha: means[alpha]),
                    "best_less_worst_mean": max(means.values()) - min(means.values()),
                    "half_less_zero": spread((half - none).tolist()),
                }
    return table


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw value over alpha, one panel for each problem and estimator."""
    found = data["findings"]
    panels = [("synthetic", estimator) for estimator in ESTIMATORS]
    panels.append(("planted", data["settings"]["planted"]["estimator"]))
    figure = new_figure(14, 4.6)
    for axis, (name, estimator) in zip(figure.subplots(1, 3), panels, strict=True):
        for i, optimizer in enumerate(OPTIMIZERS):
            sweep = found.get(f"{name}, {estimator}, {optimizer}")
            if sweep is None:
                continue
            x = np.array([float(alpha) for alpha in sweep]) + (i - 0.5) * 0.02
            cells = [cell["own_lr"] for cell in sweep.values()]
            means, deviations = ([cell[key] for cell in cells] for key in ("mean", "sd"))
            label = f"{'SGD' if optimizer == 'sgd' else 'Adam'}, lr chosen for each alpha"
            axis.errorbar(x, means, deviations, color=f"C{i}", marker="o", capsize=3, label=label)
            if name == "synthetic":
                one = [cell["lr_of_alpha_.5"]["mean"] for cell in sweep.values()]
                label = f"{'SGD' if optimizer == 'sgd' else 'Adam'}, lr of alpha = .5 for all"
                axis.plot(x, one, ":", color=f"C{i}", marker=".", label=label)
        own = data["settings"][name]
        axis.set(xlabel="alpha", xticks=data["settings"]["alphas"])
        if name == "synthetic":
            axis.set(ylabel="share of the way from Phi(rho 1) to the best", ylim=(0.6, 1.0))
            axis.set_title(f"closed form, {own['n']} channels, {estimator}", fontsize=10)
        else:
            axis.set(ylabel="share of keep_prob on good channels", ylim=(0.4, 1.0))
            axis.set_title(f"planted, {own['network']} on {own['data']}, {estimator}", fontsize=10)
            axis.axhline(0.5, color="gray", linestyle="--", lw=1)
        axis.legend(fontsize=8, loc="lower left")
    seeds = [len(data["settings"][name]["seeds"]) for name in ("synthetic", "planted")]
    figure.suptitle(f"alpha of the preconditioner: mean and sd of {seeds[0]} and {seeds[1]} seeds")
    save_figure(figure, path)


if __name__ == "__main__":
    script(__doc__, "alpha", measure, draw)
