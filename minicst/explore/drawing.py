"""Draws a frame with matplotlib: the step, the estimates, their variance, the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse as EllipsePatch
from matplotlib.patches import Polygon

from minicst.explore.problem import ESTIMATORS, MASK_NAMES, MASKS, Frame, State, frame
from minicst.sparse.theory import expected_loss

# Okabe and Ito's colors, which people with any color vision tell apart.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GRAY = "#CC79A7", "#56B4E9", "#000000", "#767676"
COLORS = {"pge": VERMILLION, "vr-pge": BLUE, "vr-pge-symmetric": GREEN}
LABELS = {"pge": "PGE", "vr-pge": "VR-PGE", "vr-pge-symmetric": "VR-PGE symmetric"}
DASHES = {"pge": "--", "vr-pge": "-", "vr-pge-symmetric": ":"}
SQUARE = (-0.35, 1.35)  # the step's axes: some room around the unit square
_HEAD: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "zorder": 4}


@dataclass(frozen=True)
class Panels:
    """The four axes of a picture."""

    step: Axes
    estimates: Axes
    text: Axes
    variance: Axes


def panels_of(figure: Any, bottom: float) -> Panels:
    """Place the four axes in the part of a figure above `bottom` (0 to 1)."""
    height = 1.0 - bottom

    def box(x: float, y: float, width: float, tall: float) -> Axes:
        return figure.add_axes((x, bottom + y * height, width, tall * height))

    text = box(0.755, 0.36, 0.23, 0.595)
    text.set_axis_off()
    return Panels(
        step=box(0.05, 0.205, 0.31, 0.75),
        estimates=box(0.41, 0.205, 0.31, 0.75),
        text=text,
        variance=box(0.805, 0.09, 0.18, 0.18),
    )


def draw(shown: Frame, panels: Panels) -> None:
    """Draw a frame; what was there before goes."""
    draw_step(shown, panels.step)
    draw_estimates(shown, panels.estimates)
    draw_variance(shown, panels.variance)
    draw_text(shown, panels.text)


def save_picture(state: State, path: Path) -> None:
    """Draw the frame of a state into a .png or .svg file."""
    figure = Figure(figsize=(15.0, 6.2))
    FigureCanvasAgg(figure)
    draw(frame(state), panels_of(figure, 0.0))
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=110, metadata=metadata)


def feasible_corners(budget: float) -> list[tuple[float, float]]:
    """Corners of {0 <= s <= 1, s1 + s2 <= K}, in order, for K in (0, 2]."""
    if budget <= 1.0:
        return [(0.0, 0.0), (budget, 0.0), (0.0, budget)]
    return [(0.0, 0.0), (1.0, 0.0), (1.0, budget - 1.0), (budget - 1.0, 1.0), (0.0, 1.0)]


def loss_surface(losses: Any, points: int = 21) -> tuple[Any, Any]:
    """Phi(s) on a grid of the unit square: (coordinates, Phi[s2, s1])."""
    line = np.linspace(0.0, 1.0, points)
    return line, np.array([[expected_loss(losses, (x, y)) for x in line] for y in line])


def contour_levels(losses: Any) -> Any:
    """Return about eight round values between the smallest and the largest loss."""
    low, high = float(np.min(losses)), float(np.max(losses))
    if high - low <= 1e-9 * max(1.0, abs(high)):
        return np.empty(0)
    rough = (high - low) / 8.0
    power = 10.0 ** np.floor(np.log10(rough))
    width = power * next(f for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= rough * 0.999)
    levels = width * np.arange(np.ceil(low / width), np.floor(high / width) + 1.0)
    return levels[(levels > low + 0.02 * width) & (levels < high - 0.02 * width)]


def draw_step(shown: Frame, axes: Axes) -> None:
    """The step from s to z and its projection, in the plane of keep_prob."""
    axes.clear()
    state, s = shown.state, np.array(shown.state.keep_prob)
    axes.add_patch(
        Polygon(
            feasible_corners(state.budget),
            facecolor="#E3F4EE",
            edgecolor=GREEN,
            linewidth=1.5,
            label=f"feasible set: 0 ≤ s ≤ 1, s₁ + s₂ ≤ {state.budget:g}",
        )
    )
    levels = contour_levels(shown.losses)
    if levels.size:
        line, surface = loss_surface(shown.losses)
        lines = axes.contour(line, line, surface, levels, colors=GRAY, linewidths=0.8)
        axes.clabel(lines, fontsize=8, fmt="%.4g")
    for corner, name, loss in zip(MASKS, MASK_NAMES, shown.losses, strict=True):
        axes.annotate(
            f"L{name} = {loss:.4g}",
            corner.astype(float),
            xytext=(0, 8 if corner[1] else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if corner[1] else "top",
            fontsize=9,
        )
    axes.plot(*MASKS.T.astype(float), "s", color=BLACK, markersize=4)
    share = np.sqrt(shown.pair_probability / shown.pair_probability.max())
    arrows = (shown.steps - s).reshape(16, 2)
    moved = np.abs(arrows).max(axis=1) > 0.0
    opacity = (0.15 + 0.85 * share.reshape(16))[moved]
    # One arrow for the legend, then all: an opacity for each has no place in a legend.
    axes.plot([], [], color=SKY, label="−η · estimate of each pair (faint: rare)")
    if moved.any():
        axes.quiver(*_from(s, arrows[moved]), color=SKY, alpha=opacity, width=0.006, **_HEAD)
    _arrow(axes, s, shown.z, ORANGE, "−η · estimate of the drawn pair: s → z", 0.013)
    _arrow(axes, s, shown.mean_step, BLACK, "−η · exact gradient H^α ∇Φ", 0.006)
    axes.plot(
        *np.stack([shown.z, shown.projected]).T,
        ls=":",
        color=PURPLE,
        linewidth=2.0,
        label=f"projection of z, multiplier v = {number(shown.multiplier)}",
    )
    axes.plot(*s, "o", color=BLACK, markersize=8, zorder=6, label="s")
    axes.plot(*shown.z, "o", markersize=8, mfc="white", mec=ORANGE, mew=2, zorder=6, label="z")
    axes.plot(*shown.projected, "D", color=PURPLE, markersize=8, zorder=7, label="the new s")
    if s.sum() > state.budget + 1e-9:
        note = "s is outside of the set: the projection brings it in"
        axes.text(0.5, 0.02, note, transform=axes.transAxes, ha="center", fontsize=8.5)
    axes.set(xlim=SQUARE, ylim=SQUARE, aspect="equal")
    axes.set(xlabel="s₁, keep probability of channel 1", ylabel="s₂, of channel 2")
    axes.set_title("One step, true to scale: z = s − η · estimate, projected", fontsize=11)
    _legend_below(axes)


def draw_estimates(shown: Frame, axes: Axes) -> None:
    """All estimates as arrows from 0, and the 1-sigma ellipses around their mean."""
    axes.clear()
    view = shown.view
    axes.axhline(0.0, color="#DDDDDD", linewidth=0.8, zorder=0)
    axes.axvline(0.0, color="#DDDDDD", linewidth=0.8, zorder=0)
    share = np.sqrt(shown.pair_probability / shown.pair_probability.max()).reshape(16)
    for arrow, weight in zip(shown.estimates.reshape(16, 2), share, strict=True):
        axes.plot(*_line(arrow), color=SKY, alpha=0.1 + 0.6 * weight, linewidth=1.2, zorder=2)
        axes.plot(*arrow, "o", color=SKY, alpha=0.15 + 0.85 * weight, markersize=2 + 6 * weight)
    axes.plot([], [], "o-", color=SKY, label="VR-PGE of each pair (faint: rare)")
    weights = np.sqrt(shown.mask_probability / shown.mask_probability.max())
    for point, weight in zip(shown.pge_estimates, weights, strict=True):
        axes.plot(*point, "x", color=VERMILLION, alpha=0.25 + 0.75 * weight, markersize=7, mew=2)
    axes.plot([], [], "x", color=VERMILLION, mew=2, label="PGE of each mask")
    for name in ESTIMATORS:
        part, color = shown.spreads[name], COLORS[name]
        axes.add_patch(
            EllipsePatch(
                (float(part.moments.mean[0]), float(part.moments.mean[1])),
                2.0 * part.ellipse.major,
                2.0 * part.ellipse.minor,
                angle=part.ellipse.angle,
                fill=False,
                edgecolor=color,
                linestyle=DASHES[name],
                linewidth=2.2,
                zorder=3,
                label=f"1-σ ellipse of {LABELS[name]}",
            )
        )
    _arrow(axes, np.zeros(2), shown.estimate, ORANGE, "VR-PGE of the drawn pair", 0.013)
    _arrow(axes, np.zeros(2), shown.gradient, BLACK, "mean of all three: exact H^α ∇Φ", 0.006)
    axes.set(xlim=(-view, view), ylim=(-view, view), aspect="equal")
    axes.set(xlabel="estimate of channel 1", ylabel="estimate of channel 2")
    axes.set_title("All estimates of the gradient, and how they scatter", fontsize=11)
    _legend_below(axes)
    wider = shown.spreads["pge"].ellipse.major / view
    if wider > 1.0:
        axes.text(
            0.5,
            0.02,
            f"PGE's ellipse: half axis {wider:.3g} times the picture's half width",
            transform=axes.transAxes,
            ha="center",
            color=VERMILLION,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )


def draw_variance(shown: Frame, axes: Axes) -> None:
    """Total variances as bars on a log scale, and Theorem 1's bound."""
    axes.clear()
    low, high = 1e-3, 1e4
    for row, name in enumerate(reversed(ESTIMATORS)):
        value = shown.spreads[name].total_variance
        axes.barh(row, max(value, low), color=COLORS[name], height=0.6)
        axes.text(
            max(value, low) * 1.25,
            row,
            number(value),
            va="center",
            fontsize=9,
            zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9},
        )
    if shown.bound > 0.0:
        axes.axvline(shown.bound, color=BLACK, linestyle="--", linewidth=1.5)
    axes.set_yticks(range(3), ["symmetric", "VR-PGE", "PGE"])
    axes.set(xscale="log", xlim=(low, high))
    axes.set_xlabel("total variance (sum of both channels)", fontsize=9)
    title = f"dashed: Theorem 1's bound, {number(shown.bound)}"
    axes.set_title(title, fontsize=9, loc="left")


def draw_text(shown: Frame, axes: Axes) -> None:
    """Write the numbers, from the two losses to the new keep_prob."""
    axes.clear()
    axes.set_axis_off()
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0))
    y = 1.0
    for name, value, color in text_rows(shown):
        weight = "bold" if not value else "normal"
        axes.text(0.0, y, name, fontsize=9.5, va="top", color=color, weight=weight)
        axes.text(1.0, y, value, fontsize=9.5, va="top", ha="right", color=color)
        y -= 0.0625


def text_rows(shown: Frame) -> list[tuple[str, str, str]]:
    """(name, value, color) of the numbers in the order of the computation."""
    a, b = shown.state.drawn
    spreads = shown.spreads
    ratio = "-" if np.isnan(shown.ratio) else f"{number(shown.ratio)} times VR-PGE's"
    return [
        ("From two losses to the new s", "", BLACK),
        (f"m = {MASK_NAMES[a]}:  L(m)", number(shown.loss_a), BLACK),
        (f"m′ = {MASK_NAMES[b]}:  L(m′)", number(shown.loss_b), BLACK),
        ("probability of this pair", f"{shown.pair_probability[a, b]:.2%}", BLACK),
        ("difference L(m) − L(m′)", number(shown.difference), BLACK),
        ("× score (m − s) / (s (1 − s))", vector(shown.score[a]), BLACK),
        ("× H^α = (s (1 − s))^α", vector(shown.preconditioner), BLACK),
        ("= estimate", vector(shown.estimate), "#8A5A00"),
        ("z = s − η · estimate", vector(shown.z), "#8A5A00"),
        ("multiplier v", number(shown.multiplier), "#8F3F6B"),
        ("new s = clip(z − v, 0, 1)", vector(shown.projected), "#8F3F6B"),
        ("All masks together", "", BLACK),
        ("Φ(s) = E L(m)", number(shown.expected_loss), BLACK),
        ("exact H^α ∇Φ", vector(shown.gradient), BLACK),
        ("total variance of PGE", ratio, VERMILLION),
        (
            "of the symmetric form",
            f"{number(variance_share(spreads))} times VR-PGE's",
            "#00694C",
        ),
    ]


def variance_share(spreads: dict[str, Any]) -> float:
    """Total variance of the symmetric form over VR-PGE's; 0 where both are 0."""
    whole = spreads["vr-pge"].total_variance
    return spreads["vr-pge-symmetric"].total_variance / whole if whole > 0.0 else 0.0


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}".replace("-", "−") if abs(value) >= 5e-7 else "0"


def vector(values: Any) -> str:
    """Both channels' values."""
    return f"({', '.join(number(float(value)) for value in values)})"


def _legend_below(axes: Axes) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.115), fontsize=8, ncols=2, frameon=False
    )


def _line(tip: Any) -> Any:
    return np.stack([np.zeros(2), tip]).T


def _from(start: Any, arrows: Any) -> tuple[Any, ...]:
    origin = np.broadcast_to(start, arrows.shape)
    return (*origin.T, *arrows.T)


def _arrow(axes: Axes, start: Any, tip: Any, color: str, label: str, width: float) -> None:
    """Draw an arrow; one without length keeps its place in the legend."""
    axes.plot([], [], color=color, linewidth=2.5, label=label)
    arrow = (np.asarray(tip) - start)[None]
    if np.abs(arrow).max() > 0.0:
        axes.quiver(*_from(start, arrow), color=color, width=width, **(_HEAD | {"zorder": 5}))
