"""The page: one file with sliders and all numbers, that fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from minicst.checkpoint import write_text
from minicst.explore.problem import MASK_NAMES, State
from minicst.explore.tables import Grid, Tables

PLACE = "/*DATA*/"


def page_html(state: State, grid: Grid, says: Callable[[str], None]) -> str:
    """Return the page: one file, nothing fetched."""
    tables = Tables(state, grid)
    for name, asked, taken in zip(MASK_NAMES, state.losses, tables.state.losses, strict=True):
        if asked != taken:
            says(f"the page's loss sliders have {grid.n_losses} positions: L{name} is {taken:.4g}")
    data = json.dumps(tables.build(says), separators=(",", ":"))
    template = files("minicst.explore").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace(PLACE, data)


def save_page(
    state: State,
    path: Path,
    says: Callable[[str], None] = lambda text: None,
    grid: Grid | None = None,
) -> None:
    """Compute the page and write it; an older file stays whole until then.

    Raises:
        ValueError: the file can't be written.
    """
    grid = Grid() if grid is None else grid
    write_text(path, page_html(state, grid.holding(state), says))
