"""Numbers of a grid of frames, which the page looks up.

Nothing is computed in the browser but pixels. A quantity is tabulated over the sliders that it
depends on: the moments over losses, s and alpha, the projection over difference, m, s, alpha, eta
and K. `Tables.build` says which index comes first in each table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from contourpy import contour_generator

from minicst.explore.drawing import contour_levels, feasible_corners, loss_surface
from minicst.explore.problem import (
    ESTIMATORS,
    MASK_NAMES,
    MASKS,
    State,
    spread,
    variance_ratio,
    view_of,
)
from minicst.sparse.estimators import pge, preconditioner, vr_pge
from minicst.sparse.masks import score_function
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.proof import variance_bound
from minicst.sparse.theory import expected_loss, expected_loss_gradient, mask_probabilities


@dataclass(frozen=True)
class Grid:
    """Positions of the page's sliders.

    Attributes:
        s: of s1 and of s2.
        alpha: of the preconditioner's power.
        lr: of eta.
        budget: of K.
        level: of what is added to all losses.
        n_losses: positions of each of the two losses.
    """

    s: tuple[float, ...] = (0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98)
    alpha: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    lr: tuple[float, ...] = (0.1, 0.3, 0.6)
    budget: tuple[float, ...] = (0.6, 1.0, 1.4)
    level: tuple[float, ...] = (0.0, 2.0, 8.0)
    n_losses: int = 4

    def holding(self, state: State) -> Grid:
        """Return the grid with a state's values in it, each in place of the nearest position."""
        s = self.s
        for value, kept in zip(state.keep_prob, ((), (state.keep_prob[0],)), strict=True):
            s = with_value(s, value, kept)
        return replace(
            self,
            s=s,
            alpha=with_value(self.alpha, state.precondition_power),
            lr=with_value(self.lr, state.keep_prob_lr),
            budget=with_value(self.budget, state.budget),
            level=with_value(self.level, state.level),
        )


def with_value(
    grid: tuple[float, ...], value: float, kept: Iterable[float] = ()
) -> tuple[float, ...]:
    """Put a value in place of the nearest one that isn't `kept`; the grid keeps its length."""
    if value in grid:
        return grid
    free = [old for old in grid if old not in kept]
    nearest = free[int(np.argmin([abs(old - value) for old in free]))]
    return tuple(sorted(value if old == nearest else old for old in grid))


def loss_positions(losses: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Return evenly spaced positions from the smallest to the largest of the four losses."""
    low, high = min(losses), max(losses)
    if high == low:
        high = low + 1.0
    return tuple(float(x) for x in np.linspace(low, high, count))


class Tables:
    """Everything the page shows, by name; flat lists, the first index named varies slowest.

    Args:
        state: where the sliders stand at the start.
        grid: positions of the sliders; holds the state's values.

    Attributes:
        positions: of the two losses that have sliders.
        state: as given, the losses at the nearest of `positions`.
        free: numbers of the masks whose losses have sliders.
        z: s - eta times the estimate, of one channel: (eta, difference, alpha, m_j, s_j).
        data: what the page holds.
    """

    def __init__(self, state: State, grid: Grid) -> None:
        self.grid, self.positions = grid, loss_positions(state.losses, grid.n_losses)
        losses = [self.positions[self._nearest(loss)] for loss in state.losses]
        self.state = replace(state, losses=(losses[0], losses[1], losses[2], losses[3]))
        # m = m' has one loss: its slider and that of another mask.
        a, b = state.drawn
        self.free = (a, b) if a != b else (a, (a + 1) % 4)
        self.z: Any = None
        self.data: dict[str, Any] = {}

    def _nearest(self, loss: float) -> int:
        """Return the number of the position nearest to a loss."""
        return int(np.argmin([abs(position - loss) for position in self.positions]))

    def build(self, says: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """Compute all tables."""
        state, grid = self.state, self.grid
        at = self._nearest
        self.data = {
            "masks": list(MASK_NAMES),
            "mask": MASKS.astype(int).tolist(),
            "s": grid.s,
            "alpha": grid.alpha,
            "eta": grid.lr,
            "K": grid.budget,
            "level": grid.level,
            "loss": self.positions,
            "free": self.free,
            "base": [at(loss) for loss in state.losses],
            "start": {
                "s1": grid.s.index(state.keep_prob[0]),
                "s2": grid.s.index(state.keep_prob[1]),
                "alpha": grid.alpha.index(state.precondition_power),
                "eta": grid.lr.index(state.keep_prob_lr),
                "K": grid.budget.index(state.budget),
                "level": grid.level.index(state.level),
                "la": at(state.losses[self.free[0]]),
                "lb": at(state.losses[self.free[1]]),
                "m": state.drawn[0],
                "mprime": state.drawn[1],
            },
            "corners": [feasible_corners(budget) for budget in grid.budget],
        }
        says(f"computing {self.count():,} frames; this takes a while")
        self._add_parts()
        self._add_problems()
        says("computing the projections")
        self._add_projections()
        return self.data

    def count(self) -> int:
        """Return how many combinations of losses, s, alpha and level have moments of their own."""
        grid = self.grid
        return grid.n_losses**2 * len(grid.s) ** 2 * len(grid.alpha) * len(grid.level)

    def differences(self) -> Any:
        """L(m) - L(m') of all pairs of positions: number 0 is the most negative one."""
        steps = range(1 - len(self.positions), len(self.positions))
        # Evenly spaced positions: the difference depends on the distance alone.
        return np.array([self.positions[max(k, 0)] - self.positions[max(-k, 0)] for k in steps])

    def losses(self, first: float, second: float) -> Any:
        """Return the four losses with those of the two free masks replaced."""
        losses = np.array(self.state.losses)
        losses[list(self.free)] = first, second
        return losses

    def _add_parts(self) -> None:
        """Quantities of one channel at a time, and probabilities."""
        grid, data = self.grid, self.data
        s = np.array(grid.s)
        both = [np.full(s.size, False), np.full(s.size, True)]  # m_j = 0, 1 at every s_j
        data["level_loss"] = packed(x + level for level in grid.level for x in self.positions)
        data["difference"] = packed(self.differences())
        data["score"] = packed(x for mask in both for x in score_function(mask, s))
        data["precond"] = packed(x for a in grid.alpha for x in preconditioner(s, a))
        data["pge"] = packed(
            x
            for level, loss, a, mask in itertools.product(
                grid.level, self.positions, grid.alpha, both
            )
            for x in pge(loss + level, mask, s, a)
        )
        estimates = np.array(
            [
                [[vr_pge(d, 0.0, mask, s, a) for mask in both] for a in grid.alpha]
                for d in self.differences()
            ]
        )
        self.z = np.stack([s - lr * estimates for lr in grid.lr])  # (lr, difference, a, m_j, s_j)
        data["vr"], data["z"] = packed(estimates.reshape(-1)), packed(self.z.reshape(-1))
        p = [mask_probabilities(point) for point in itertools.product(grid.s, grid.s)]
        data["p"] = packed(np.array(p).reshape(-1))
        data["pairs"] = packed(np.array([np.outer(row, row) for row in p]).reshape(-1))

    def _add_problems(self) -> None:
        """Phi and its contours, gradient and spreads, by (la, lb), then s1, s2, then alpha."""
        grid, data = self.grid, self.data
        contours, phi, rows = [], [], []
        for first, second in itertools.product(self.positions, self.positions):
            losses = self.losses(first, second)
            contours.append(contour_paths(losses, grid.level))
            for s in itertools.product(grid.s, grid.s):
                value = expected_loss(losses, s)
                phi += [value + level for level in grid.level]
                rows += [x for a in grid.alpha for x in self._row(losses, s, a)]
        data["contours"] = contours
        data["phi"] = packed(phi)
        data["columns"] = self.columns()
        data["problem"] = packed(rows)

    def columns(self) -> list[str]:
        """Names of the numbers of one problem, s and alpha."""
        names = ["g1", "g2"]
        names += [f"mean{j}_{i}" for i in range(len(self.grid.lr)) for j in (1, 2)]
        shapes = [("vr", ""), ("sym", "")] + [("pge", str(i)) for i in range(len(self.grid.level))]
        for name, suffix in shapes:
            names += [f"{name}{suffix}_{x}" for x in ("total", "major", "minor", "angle")]
        names += [f"ratio{i}" for i in range(len(self.grid.level))]
        return [*names, "bound", "view"]

    def _row(self, losses: Any, s: tuple[float, float], alpha: float) -> list[float]:
        gradient = expected_loss_gradient(losses, s, alpha)
        vr, symmetric = (spread(name, losses, np.array(s), alpha) for name in ESTIMATORS[1:])
        pges = [spread("pge", losses + level, np.array(s), alpha) for level in self.grid.level]
        row = [*gradient]
        for lr in self.grid.lr:
            row += [*(np.array(s) - lr * gradient)]
        for part in (vr, symmetric, *pges):
            ellipse = part.ellipse
            row += [part.total_variance, ellipse.major, ellipse.minor, ellipse.angle]
        row += [variance_ratio(part, vr) for part in pges]
        return [*row, variance_bound(losses, s, alpha), view_of(vr)]

    def _add_projections(self) -> None:
        """The new s and v by (K, eta, difference, alpha, mask, s1, s2)."""
        found: list[float] = []
        places = range(len(self.grid.s))
        for budget, by_difference in itertools.product(self.grid.budget, self.z):
            for by_alpha in by_difference:
                for by_value, mask in itertools.product(by_alpha, MASKS.astype(int)):
                    for i, j in itertools.product(places, places):
                        z = np.array([by_value[mask[0], i], by_value[mask[1], j]])
                        projected, multiplier = project_capped_simplex(z, budget)
                        found += [*projected, multiplier]
        self.data["projected"] = packed(found)


def contour_paths(losses: Any, levels: tuple[float, ...]) -> list[dict[str, Any]]:
    """Contours of Phi: polylines in thousandths of the square, a label for each level."""
    line, surface = loss_surface(losses)
    generator: Any = contour_generator(line, line, surface)
    return [
        {
            "label": [f"{value + level:.4g}" for level in levels],
            "lines": [(1000.0 * path).round().astype(int).tolist() for path in paths],
        }
        for value in contour_levels(losses)
        if (paths := generator.lines(float(value)))
    ]


def packed(values: Iterable[float]) -> str:
    """Numbers with 4 digits, separated by spaces; the page splits and reads them."""
    return " ".join(map(_short, values))


def _short(value: float) -> str:
    if abs(value) < 5e-7:
        return "0"
    text = f"{value:.4g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
