"""Problems for keep_prob alone, Phi known in closed form, and Algorithm 1's update on them.

Arrays only: no network, no weights. The loss of a mask is multilinear in its entries, so that
Phi(s) = E L(m) is the same polynomial at s, and its minimum can be looked for exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicst.autograd import Parameter
from minicst.optim import SGD, Adam, schedule
from minicst.sparse.estimators import moving_average, preconditioner
from minicst.sparse.masks import enumerate_masks, top_k_mask
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.rules import RULES, Draws, draw_masks

Array = NDArray[np.float64]

LEVEL = 2.3  # nats: the loss of ten classes by chance, which PGE has to live with


@dataclass(frozen=True)
class Problem:
    """L(m) = LEVEL - useful . m - m' pairs m / 2 + noise.

    Attributes:
        useful: (n,) what each channel takes off the loss.
        pairs: (n, n), symmetric, diagonal 0: negative where two channels do the same work.
        budget: K.
        shared_noise: standard deviation of a step's noise that all its losses share (mini-batch).
        own_noise: standard deviation of the noise of each loss.
    """

    useful: Array
    pairs: Array
    budget: float
    shared_noise: float = 0.1
    own_noise: float = 0.03

    @property
    def n(self) -> int:
        """Number of channels."""
        return self.useful.size

    def phi(self, s: Array) -> Any:
        """Phi at s (n,), or at rows of s."""
        return LEVEL - s @ self.useful - 0.5 * ((s @ self.pairs) * s).sum(axis=-1)

    def gradient(self, s: Array) -> Array:
        """Gradient of Phi, (n,)."""
        return -self.useful - self.pairs @ s

    def start(self) -> Array:
        """Return s = rho 1."""
        return np.full(self.n, self.budget / self.n)


def draw_problem(kind: str, n: int, budget: float, seed: int) -> Problem:
    """Draw a problem.

    Args:
        kind: linear (useful ~ U(0, 0.1)); redundant (groups of four channels share half of what
            each of a pair is worth); teams (in pairs of channels, half of the worth comes only
            with both).
        n: channels, a multiple of 4.
        budget: K.
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, 1])
    useful = rng.uniform(0.0, 0.1, n)
    pairs = np.zeros((n, n))
    group = rng.permutation(n)
    if kind == "redundant":
        same = group[:, None] // 4 == group // 4
        pairs = -0.5 * np.minimum(useful[:, None], useful) * (same & ~np.eye(n, dtype=bool))
    elif kind == "teams":
        same = group[:, None] // 2 == group // 2
        pairs = np.sqrt(np.outer(useful, useful)) * (same & ~np.eye(n, dtype=bool))
        useful = 0.5 * useful
    elif kind != "linear":
        raise ValueError(f"unknown kind '{kind}': choose linear, redundant or teams")
    return Problem(useful, pairs, budget)


def kkt_residual(problem: Problem, s: Array, lower: float = 0.0) -> float:
    """Norm of s - proj(s - grad Phi(s)): 0 exactly where s meets the first-order conditions."""
    moved, _ = project_capped_simplex(s - problem.gradient(s), problem.budget, lower, 1.0 - lower)
    return float(np.linalg.norm(s - moved))


def best_vertex(problem: Problem) -> Array:
    """Return the 0/1 mask of at most K channels with the smallest loss, of all masks (n <= 20)."""
    masks = enumerate_masks(problem.n)
    masks = masks[masks.sum(axis=1) <= problem.budget + 1e-9].astype(float)
    return masks[np.argmin(problem.phi(masks))]


def best_point(problem: Problem, seed: int, n_starts: int = 40, lower: float = 0.0) -> Array:
    """Return the best end of projected gradient descent on the exact Phi, from many starts.

    Starts: s = rho 1, the K channels of steepest gradient there, and random points of the set.
    The step 1 / |pairs| never makes Phi larger; each descent ends where the KKT residual is below
    1e-9, or after 3000 steps.
    """
    rng = np.random.default_rng([seed, 2])
    bounds = (lower, 1.0 - lower)
    steepest = top_k_mask(np.clip(-problem.gradient(problem.start()), 0, 1), problem.budget)
    starts = [problem.start(), np.clip(steepest.astype(float), *bounds)]
    starts += [rng.random(problem.n) ** rng.uniform(0.3, 3.0) for _ in range(n_starts - 2)]
    curvature = max(float(np.linalg.norm(problem.pairs, 2)), 1e-3)
    best = None
    for s in starts:
        s, _ = project_capped_simplex(s, problem.budget, *bounds)
        for _ in range(3000):
            z = s - problem.gradient(s) / curvature
            s, _ = project_capped_simplex(z, problem.budget, *bounds)
            if kkt_residual(problem, s, lower) < 1e-9:
                break
        if best is None or problem.phi(s) < problem.phi(best):
            best = s
    assert best is not None
    return best


def end_of_exact_update(problem: Problem, alpha: float, lr: float = 0.5) -> Array:
    """Return where s <- proj(s - lr H^alpha grad Phi(s)) ends from s = rho 1, without any noise.

    Where 0 < s_j < 1, a fixed point has (s_j (1 - s_j))^alpha dPhi/ds_j = -v, one v for all. The
    first-order conditions of the problem want dPhi/ds_j = -v instead, so for alpha > 0 and v > 0
    this is another point: the step is preconditioned, the projection isn't.
    """
    s = problem.start()
    for _ in range(20000):
        z = s - lr * preconditioner(s, alpha) * problem.gradient(s)
        moved, _ = project_capped_simplex(z, problem.budget)
        done = np.abs(moved - s).max() < 1e-10
        s = moved
        if done:
            break
    return s


def swapped(problem: Problem, mask: Array) -> Array:
    """Improve a 0/1 mask by exchanging single channels while that helps."""
    mask, better = mask.copy(), True
    while better:
        better = False
        for out in np.flatnonzero(mask):
            for into in np.flatnonzero(mask == 0.0):
                trial = mask.copy()
                trial[out], trial[into] = 0.0, 1.0
                if problem.phi(trial) < problem.phi(mask) - 1e-12:
                    mask, better = trial, True
                    break
            if better:
                break
    return mask


def descend(
    problem: Problem,
    estimator: str,
    seed: int,
    passes: int,
    lr: float,
    optimizer: str = "sgd",
    lr_schedule: str = "constant",
    alpha: float = 0.5,
    floor: float = 0.0,
    n_masks: int = 4,
    n_points: int = 21,
) -> dict[str, Any]:
    """Move keep_prob by Algorithm 1's update, with the package's estimator, optimizer, projection.

    Args:
        problem: gives the losses.
        estimator: of RULES.
        seed: of masks and noise.
        passes: losses that may be asked for; steps = passes / (masks a step).
        lr: learning rate.
        optimizer: sgd or adam.
        lr_schedule: constant, cosine, or sqrt: lr / sqrt(1 + step).
        alpha: power of the preconditioner.
        floor: keep_prob stays within [floor, 1 - floor].
        n_masks: masks a step of vr-pge-multi.
        n_points: points of the curves.

    Returns:
        {"passes": (n_points,), "phi", "kkt": the same at these, "keep_prob": (n,) the last s}.
    """
    rule = RULES[estimator]
    k = rule.masks_per_step(n_masks)
    steps = passes // k
    rng = np.random.default_rng([seed, 3])
    s = Parameter(problem.start())
    kinds = {"sgd": SGD, "adam": Adam}
    update = kinds[optimizer]({"s": s}, lr)
    at = set(np.unique(np.rint(np.linspace(0, steps, n_points)).astype(int)).tolist())
    curves: dict[str, list[float]] = {"passes": [], "phi": [], "kkt": []}
    baseline = None
    for step in range(steps + 1):
        if step in at:
            curves["passes"].append(step * k)
            curves["phi"].append(float(problem.phi(s.data)))
            curves["kkt"].append(kkt_residual(problem, s.data, floor))
        if step == steps:
            break
        masks, uniform = draw_masks(rule, s.data, [rng] * k)
        noise = problem.shared_noise * rng.normal() + problem.own_noise * rng.normal(size=k)
        losses = problem.phi(masks.astype(float)) + noise
        coin = 2.0 * float(rng.integers(2)) - 1.0
        s.grad = rule.estimate(Draws(losses, masks, uniform, baseline, coin), s.data, alpha)
        baseline = moving_average(baseline, float(losses[0]))
        if lr_schedule == "sqrt":
            update.lr = lr / np.sqrt(1.0 + step)
        else:
            update.lr = lr * schedule(lr_schedule, step / steps)
        update.step()
        s.data[...], _ = project_capped_simplex(s.data, problem.budget, floor, 1.0 - floor)
    return {**curves, "keep_prob": s.data.copy()}
