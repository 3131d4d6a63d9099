"""Figures that need no display, in the one style of minicst's pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLE = "minicst.style"  # the file style.mplstyle of this package

Draw = TypeVar("Draw", bound=Callable[..., Any])


def in_style(draw: Draw) -> Draw:
    """Make a drawing function use the style; matplotlib takes it when axes and lines are made."""

    @wraps(draw)
    def styled(*arguments: Any, **options: Any) -> Any:
        with style.context(STYLE):
            return draw(*arguments, **options)

    return styled  # type: ignore[return-value]


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the picture, the same bytes for the same data."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
