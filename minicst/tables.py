"""Tables that fit a terminal of 80 columns and never cut a number."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table


def table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns are texts, the rest numbers.

    Where it is too wide, texts go on in a second line.
    """
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
        text = i < left
        made.add_column(
            name,
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold" if text else "ellipsis",
        )
    return made


class _Console(Console):
    """A console that leaves a closed pipe to `cli.main`, whoever writes into it."""

    def on_broken_pipe(self) -> None:
        """Raise what rich would end the program by."""
        raise


def console(stderr: bool = False) -> Console:
    """Return a console; where output isn't a terminal, lines may be 120 long."""
    stream = sys.stderr if stderr else sys.stdout
    return _Console(stderr=stderr, width=None if stream.isatty() else 120, highlight=False)
