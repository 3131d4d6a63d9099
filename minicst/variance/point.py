"""One measuring point: variance of every estimator, E L^2, V and Vmax at given weights and s.

The mini-batch and the weights are fixed, only masks are drawn. What comes out is plain data for a
JSON file; pairs [value, standard error] hold every measured number.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minicst.methods.mask_loss import MaskLoss
from minicst.randomness import rng_for
from minicst.sparse.proof import bound_factor
from minicst.sparse.rules import RULES, Draws
from minicst.variance.monte_carlo import (
    FEWEST,
    Array,
    Estimate,
    GradientMoments,
    Leaving,
    LossMoments,
    Pool,
    draw_pairs,
    draw_pool,
    gradient_moments,
    loss_moments,
)
from minicst.variance.vmax import (
    STRATA,
    Flips,
    choose_entries,
    forced_flips,
    largest_v,
    rare_entries,
)

# Rows of every table: (rule, alpha). The first four make the 2 x 2 of H^alpha and the difference.
ROWS: tuple[tuple[str, float], ...] = (
    ("pge", 0.0),
    ("pge", 0.5),
    ("vr-pge", 0.0),
    ("vr-pge", 0.5),
    ("vr-pge-symmetric", 0.5),
    ("vr-pge-multi", 0.5),
    ("arm", 0.5),
    ("disarm", 0.5),
    ("pge-moving-average", 0.5),
    ("coin", 0.5),
)
# Which quotient of two rows says what.
REDUCTIONS = {
    "h_alone": (("pge", 0.0), ("pge", 0.5)),
    "difference_alone": (("pge", 0.0), ("vr-pge", 0.0)),
    "difference_at_half": (("pge", 0.5), ("vr-pge", 0.5)),
    "both": (("pge", 0.0), ("vr-pge", 0.5)),
}


@dataclass(frozen=True)
class Sizes:
    """How much is drawn at a measuring point.

    Attributes:
        draws: independent pairs of masks: a pool of 2 draws masks serves every quantity.
        n_masks: masks of vr-pge-multi.
        pairs: antithetic pairs, for arm, disarm and the moving average's baseline; 0: no
            estimators, only E L^2, V and Vmax.
        flip_entries: rare entries (j, b) of each stratum of P(m_j = b) for forced flips.
        flip_draws: masks that are flipped for each of them, even.
        per_channel: also give each channel's numbers.
    """

    draws: int = 200
    n_masks: int = 4
    pairs: int = 200
    flip_entries: int = 0
    flip_draws: int = 16
    per_channel: bool = False

    @property
    def block(self) -> int:
        """Masks that are left out together: whole draws of every estimator."""
        return math.lcm(2, self.n_masks)

    @property
    def pool(self) -> int:
        """Masks of the pool: 2 draws, rounded up to an even number of blocks."""
        unit = 2 * self.block
        return max(-(-2 * self.draws // unit), 2) * unit

    def check(self) -> None:
        """Raise ValueError for impossible numbers."""
        if self.draws < 20 or not 2 <= self.n_masks <= 26:
            raise ValueError(
                f"--draws {self.draws}, --n-masks {self.n_masks}: 20 draws at least and 2 to 26 "
                "masks are needed"
            )


def label(rule: str, alpha: float) -> str:
    """Name of a row, for example "pge a=0.5"."""
    return f"{rule} a={alpha:g}"


def measure(
    loss: MaskLoss, sizes: Sizes, seed: int, step: int, groups: dict[str, slice] | None = None
) -> dict[str, Any]:
    """Measure everything at the loss's weights, mini-batch and keep_prob.

    Masks come from streams of their own, named by seed and step: training never sees them.

    - "variance" of a row: mean over the layer's channels of the sample variance, [value, se].
    - "reduction": quotients of these means, see REDUCTIONS; "predicted" from E L^2, V and s:
      the difference alone takes off about E L^2 / V (exactly so at s = 1/2), H^alpha alone the
      mean of 1 / (s (1 - s)).
      H^alpha scales a channel's gradient and its standard deviation alike: it is a step size,
      and what it takes off the variance it takes off the squared signal of that channel too.
    - "bound": mean over the channels of (s (1 - s))^(2 alpha - 1) Vmax, of Theorem 1.
    - Left out and counted: decided channels (s in {0, 1}, no gradient), and rare ones, which fewer
      than FEWEST of the pairs are expected to show at their less probable value.
    - The baseline of pge-moving-average is the mean loss of independent masks at these very
      weights on this mini-batch: an idealised running average.

    Paper: A.4, Fig. 4 [fig4]; Sec. 5.5, Fig. 3 (right) [fig3]

    Args:
        loss: L(m), with keep_prob.
        sizes: how much is drawn.
        seed: of the masks.
        step: of training; names the streams.
        groups: {layer: its channels}; the network's by default.

    Returns:
        {"loss", "loss_square", "v", "ratio": E L^2 / V, "vmax", "channels", "layers", "all",
        "forward_passes", "repaired", "seconds"}; None where something isn't defined.
    """
    start = time.perf_counter()
    before, repaired = loss.evaluations, loss.repaired
    s = loss.keep_prob
    groups = loss.network.groups if groups is None else groups
    pool = draw_pool(loss, s, sizes.pool, seed, "measure", "pool", step)
    n_blocks = sizes.pool // sizes.block
    moments = loss_moments(pool.losses, n_blocks)
    v = moments.v.estimate()
    point: dict[str, Any] = {
        "loss": pair(moments.mean.estimate()),
        "loss_square": pair(moments.square.estimate()),
        "v": pair(v),
        "ratio": pair((moments.square / moments.v).estimate()) if v.value > 0.0 else None,
        "vmax": _vmax(loss, pool, sizes, seed, step, n_blocks),
    }
    least = np.minimum(s, 1.0 - s)
    undecided = least > 0.0
    measured = sizes.pool // 2 * least >= FEWEST
    point["channels"] = {
        "all": s.size,
        "undecided": int(undecided.sum()),
        "measured": int(measured.sum()),
    }
    if sizes.pairs:
        pairs = draw_pairs(loss, s, sizes.pairs, seed, "measure", "pairs", step)
        rows = _rows(pool, pairs, s, sizes, seed, step)
        predicted = moments if v.value > 0.0 else None
        vmax = point["vmax"]["naive"][0]
        point["layers"] = {
            name: _layer(place, s, undecided, measured, rows, predicted, vmax)
            for name, place in groups.items()
        }
        point["all"] = _layer(slice(0, s.size), s, undecided, measured, rows, predicted, vmax)
        if sizes.per_channel:
            point["per_channel"] = _per_channel(s, measured, rows)
    point["forward_passes"] = loss.evaluations - before
    point["repaired"] = loss.repaired - repaired
    point["seconds"] = round(time.perf_counter() - start, 2)
    return point


def pair(estimate: Estimate) -> list[float | None]:
    """[value, standard error] with seven digits, for JSON; None for what isn't a number."""
    return [number(estimate.value), number(estimate.se)]


def number(x: float) -> float | None:
    """Seven digits of a number; None for NaN and infinity, which JSON lacks."""
    return float(f"{x:.7g}") if math.isfinite(x) else None


def _vmax(
    loss: MaskLoss, pool: Pool, sizes: Sizes, seed: int, step: int, n_blocks: int
) -> dict[str, Any]:
    s = loss.keep_prob
    flips = None
    if sizes.flip_entries:
        rng = rng_for(seed, "measure", "entries", step)
        rare = rare_entries(pool.masks, s)
        entries, strata = choose_entries(s, rare, sizes.flip_entries, rng)
        half, each = sizes.pool // 2, sizes.flip_draws // 2
        rows = np.concatenate([np.arange(each), half + np.arange(each)])  # as many of each half
        flips = forced_flips(loss, pool, entries, strata, rows)
    top = largest_v(pool, s, n_blocks, flips)
    return {
        "split": pair(top.split),
        "naive": pair(top.naive),
        "channel": top.channel,
        "kept": top.kept,
        "probability": number(top.probability),
        "entries": {
            "pool": top.n_pool,
            "flipped": top.n_flipped,
            "unmeasured": top.n_unmeasured,
            "impossible": top.n_impossible,
        },
        "flips": [] if flips is None else _strata(flips, pool, n_blocks),
    }


def _strata(flips: Flips, pool: Pool, n_blocks: int) -> list[dict[str, Any]]:
    """Mean and largest V_jb of each stratum of forced flips."""
    v = loss_moments(pool.losses, n_blocks).v.estimate()
    value, se = flips.values(v.value, v.se, np.ones(flips.rows.size, bool))
    rows = []
    for stratum in np.unique(flips.strata):
        at = np.flatnonzero(flips.strata == stratum)
        top = at[np.argmax(value[at])]
        rows.append(
            {
                "probability": [STRATA[stratum], STRATA[stratum + 1]],
                "entries": int(at.size),
                "mean": number(float(value[at].mean())),
                "largest": pair(Estimate(float(value[top]), float(se[top]))),
            }
        )
    return rows


def _rows(
    pool: Pool, pairs: Pool, s: Array, sizes: Sizes, seed: int, step: int
) -> dict[str, GradientMoments]:
    """Moments of every rule, at alpha = 0."""
    moments = {}
    for name in dict.fromkeys(rule for rule, _ in ROWS):
        rule = RULES[name]
        if rule.antithetic:
            draws, n_blocks = Draws(pairs.losses, pairs.masks, pairs.uniform), len(pairs.losses)
        else:
            k, n_blocks = rule.masks_per_step(sizes.n_masks), sizes.pool // sizes.block
            losses = pool.losses.reshape(-1, k)
            heads = rng_for(seed, "measure", "coin", step).integers(2, size=len(losses)) == 1
            draws = Draws(
                losses,
                pool.masks.reshape(len(losses), k, -1),
                # The running average, idealised: all losses of other masks at these weights.
                baseline=float(pairs.losses.mean()),
                coin=np.where(heads, 1.0, -1.0),
            )
        moments[name] = gradient_moments(rule, draws, s, n_blocks)
    return moments


def _layer(
    place: slice,
    s: Array,
    undecided: NDArray[np.bool_],
    measured: NDArray[np.bool_],
    rows: dict[str, GradientMoments],
    predicted: LossMoments | None,
    vmax: float,
) -> dict[str, Any]:
    """Means over a layer's measured channels: variances, reductions, bound."""
    inside = np.zeros(s.size, bool)
    inside[place] = True
    chosen = inside & measured
    layer: dict[str, Any] = {
        "channels": int(inside.sum()),
        "decided": int((inside & ~undecided).sum()),
        "rare": int((inside & undecided & ~measured).sum()),
    }
    if not chosen.any():
        return layer | {"variance": None, "reduction": None, "predicted": None, "bound": None}
    spread = s * (1.0 - s)
    means: dict[tuple[str, float], Leaving] = {
        row: rows[row[0]].at(spread ** (2.0 * row[1])).mean_over(chosen) for row in ROWS
    }
    layer["variance"] = {label(*row): pair(mean.estimate()) for row, mean in means.items()}
    layer["reduction"] = {
        name: pair((means[top] / means[bottom]).estimate()) if means[bottom].whole > 0.0 else None
        for name, (top, bottom) in REDUCTIONS.items()
    }
    layer["predicted"] = None
    if predicted is not None:
        difference = float(predicted.square.whole / predicted.v.whole)
        shrink = float((1.0 / spread[chosen]).mean())
        values = (shrink, difference, difference, shrink * difference)
        layer["predicted"] = {k: number(x) for k, x in zip(REDUCTIONS, values, strict=True)}
    layer["bound"] = {
        f"a={alpha:g}": number(float(bound_factor(s[chosen], alpha).mean() * vmax))
        for alpha in (0.0, 0.5)
    }
    return layer


def _per_channel(
    s: Array, measured: NDArray[np.bool_], rows: dict[str, GradientMoments]
) -> dict[str, Any]:
    """Every channel's variance and standard error; None where it can't be measured."""

    def column(values: Array) -> list[float | None]:
        return [number(float(x)) if ok else None for x, ok in zip(values, measured, strict=True)]

    spread = s * (1.0 - s)
    table = {}
    for name, alpha in ROWS:
        weights = spread ** (2.0 * alpha)
        table[label(name, alpha)] = {
            "variance": column(rows[name].variance.whole * weights),
            "se": column(rows[name].se * weights),
        }
    return {"keep_prob": [number(float(x)) for x in s], "estimators": table}
