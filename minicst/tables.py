"""Tables that fit a terminal of 80 columns and never cut a number."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table


def table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns are texts, the rest numbers."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    return made


def console(stderr: bool = False) -> Console:
    """Return a console; where output isn't a terminal, lines may be 120 long."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120, highlight=False)
