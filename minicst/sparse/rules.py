"""What a training step must know of an estimator: how many masks, drawn how, and its function.

One table serves training (`--estimator`), the exact theory and the measurements on real networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicst.sparse import estimators as e
from minicst.sparse.masks import sample_antithetic_masks, sample_mask

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """What an estimator may look at: numbers and masks of one step, or rows of steps.

    Attributes:
        losses: L(m_i), (k,) or (n_draws, k), k masks a step.
        masks: m_i as drawn, 0/1, (k, n) or (n_draws, k, n).
        uniform: U of an antithetic pair, (n,) or (n_draws, n).
        baseline: average of earlier losses, a number; None before the first step.
        coin: +1 or -1, a number or (n_draws,).
    """

    losses: NDArray[np.float64]
    masks: NDArray[np.bool_]
    uniform: NDArray[np.float64] | None = None
    baseline: float | None = None
    coin: float | NDArray[np.float64] | None = None

    def loss(self, i: int) -> NDArray[np.float64]:
        """L(m_i), () or (n_draws,)."""
        return self.losses[..., i]

    def mask(self, i: int) -> NDArray[np.bool_]:
        """m_i, (n,) or (n_draws, n)."""
        return self.masks[..., i, :]


@dataclass(frozen=True)
class Rule:
    """An estimator as training uses it.

    Attributes:
        formula: of the estimate.
        source: where it comes from.
        n_masks: masks, and forward passes, of a step; 0: as many as asked for.
        antithetic: whether the masks are an antithetic pair instead of independent.
        estimate: (draws, keep_prob, precondition_power) -> estimate of H^alpha grad Phi(s), shape
            (n,) or (n_draws, n).
        informed: whether the estimate has anything to do with the gradient.
        needs_average: whether it takes off the average of earlier losses.
    """

    formula: str
    source: str
    n_masks: int
    estimate: Callable[[Draws, Array, float], Array]
    antithetic: bool = False
    informed: bool = True
    needs_average: bool = False

    def masks_per_step(self, asked: int = 2) -> int:
        """Masks, and forward passes, of a step; `asked` counts where the rule leaves it open."""
        return self.n_masks or asked


def draw_masks(
    rule: Rule, keep_prob: Array, rngs: list[np.random.Generator]
) -> tuple[NDArray[np.bool_], NDArray[np.float64] | None]:
    """Draw the masks of one step, one generator for each (an antithetic pair uses the first).

    Args:
        rule: of the estimator.
        keep_prob: s, shape (n,), in [0, 1].
        rngs: as many generators as masks.

    Returns:
        ``(masks, uniform)``: bool (k, n), and U (n,) of an antithetic pair or None.
    """
    if rule.antithetic:
        mask_a, mask_b, uniform = sample_antithetic_masks(keep_prob, rngs[0])
        return np.stack([mask_a, mask_b]), uniform
    return np.stack([sample_mask(keep_prob, rng) for rng in rngs]), None


def _vr_pge(d: Draws, s: Array, alpha: float) -> Array:
    return e.vr_pge(d.loss(0), d.loss(1), d.mask(0), s, alpha)


def _symmetric(d: Draws, s: Array, alpha: float) -> Array:
    return e.vr_pge_symmetric(d.loss(0), d.loss(1), d.mask(0), d.mask(1), s, alpha)


def _multi(d: Draws, s: Array, alpha: float) -> Array:
    return e.vr_pge_multi(d.losses, d.masks, s, alpha)


def _disarm(d: Draws, s: Array, alpha: float) -> Array:
    return e.disarm(d.loss(0), d.loss(1), d.mask(0), d.mask(1), s, alpha)


def _arm(d: Draws, s: Array, alpha: float) -> Array:
    if d.uniform is None:
        raise ValueError("arm needs the uniform numbers of its masks: draw them with draw_masks")
    return e.arm(d.loss(0), d.loss(1), d.uniform, s, alpha)


def _pge(d: Draws, s: Array, alpha: float) -> Array:
    return e.pge(d.loss(0), d.mask(0), s, alpha)


def _moving_average(d: Draws, s: Array, alpha: float) -> Array:
    # Before the first step there is no average: its own loss, and so no update, takes its place.
    baseline = d.loss(0) if d.baseline is None else d.baseline
    return e.pge_moving_average(d.loss(0), baseline, d.mask(0), s, alpha)


def _coin(d: Draws, s: Array, alpha: float) -> Array:
    if d.coin is None:
        raise ValueError("the coin control needs a coin, +1 or -1")
    return e.coin_flip(d.loss(0), d.loss(1), d.mask(0), s, d.coin, alpha)


RULES: dict[str, Rule] = {
    "vr-pge": Rule(
        "(L(m) - L(m')) H^a (m - s) / (s (1 - s))", "the paper, (VR-PGE), Algorithm 1", 2, _vr_pge
    ),
    "vr-pge-symmetric": Rule(
        "(L(m) - L(m')) H^a (m - m') / (2 s (1 - s))", "the released code", 2, _symmetric
    ),
    "vr-pge-multi": Rule(
        "1/(k-1) sum_i (L_i - mean L) H^a (m_i - s) / (s (1 - s))",
        "leave-one-out baseline of k masks",
        0,
        _multi,
    ),
    "disarm": Rule(
        "(L(m) - L(m~)) H^a (m - m~)/2 max(s, 1-s) / (s (1 - s))",
        "Dong, Mnih and Tucker 2020",
        2,
        _disarm,
        antithetic=True,
    ),
    "arm": Rule(
        "(L(m) - L(m~)) H^a (1/2 - U) / (s (1 - s))", "Yin and Zhou 2019", 2, _arm, antithetic=True
    ),
    "pge": Rule("L(m) H^a (m - s) / (s (1 - s))", "the paper, (PGE), Eq. (3)", 1, _pge),
    "pge-moving-average": Rule(
        "(L(m) - b) H^a (m - s) / (s (1 - s)), b: average of earlier losses",
        "Williams 1992",
        1,
        _moving_average,
        needs_average=True,
    ),
    "coin": Rule(
        "|L(m) - L(m')| coin H^a (m - s) / (s (1 - s))",
        "a control without information",
        2,
        _coin,
        informed=False,
    ),
}
