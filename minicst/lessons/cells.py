"""A lesson's file: cells of prose and of code, and the header that says what it is about.

The format is jupytext's py:percent, so editors step through it and jupytext makes notebooks of it:

    # %% [markdown]
    # Prose, each line behind '# '.
    # %%
    code = 1
    # %% tags=["volatile"]
    print("what differs from machine to machine")
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=\[(?P<tags>[^]]*)\])?\s*$")
KEYS = re.compile(r"\[([a-z][a-z0-9-]*)\]")
FIELDS = ("You will see", "You need", "In the paper", "Takes")


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson.

    Attributes:
        code: whether it's code; else Markdown, without its comment signs.
        source: the text.
        line: number of its first line in the file, from 1.
        tags: of the cell; "volatile" says that its output differs from machine to machine.
    """

    code: bool
    source: str
    line: int
    tags: frozenset[str] = frozenset()

    @property
    def volatile(self) -> bool:
        """Whether the output isn't compared."""
        return "volatile" in self.tags


@dataclass(frozen=True)
class Lesson:
    """A lesson as its file says it.

    Attributes:
        path: of the file, NN_title.py.
        number: NN.
        title: what stands after the number in the heading.
        claim: the sentence after "You will see".
        needs: what one should know before.
        paper: where in the paper, with keys of equations in brackets.
        takes: time on two cores.
        cells: all, the header first.
    """

    path: Path
    number: int
    title: str
    claim: str
    needs: str
    paper: str
    takes: str
    cells: tuple[Cell, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the equations that it teaches, as tests/equations.txt has them."""
        return tuple(KEYS.findall(self.paper))

    @property
    def code_cells(self) -> tuple[Cell, ...]:
        """The cells of code."""
        return tuple(cell for cell in self.cells if cell.code)


def read_cells(path: Path) -> tuple[Cell, ...]:
    """Cut a percent script into cells.

    Raises:
        ValueError: a line before the first mark, a wrong mark, prose without '#'.
    """
    cells: list[Cell] = []
    start = 1
    mark: re.Match[str] | None = None
    lines: list[str] = []

    def close() -> None:
        if mark is not None:
            cells.append(_cell(path, mark, lines, start))

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("# %%"):
            close()
            mark, lines, start = MARK.match(line), [], number + 1
            if mark is None:
                raise ValueError(
                    f"{path.name}, line {number}: '{line}' is no mark of a cell; '# %%', "
                    "'# %% [markdown]' and '# %% tags=[\"volatile\"]' are"
                )
        elif mark is None and line.strip():
            raise ValueError(
                f"{path.name}, line {number}: text before the first cell; begin with "
                "'# %% [markdown]'"
            )
        else:
            lines.append(line)
    close()
    return tuple(cells)


def _cell(path: Path, mark: re.Match[str], lines: list[str], start: int) -> Cell:
    blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    lines, start = lines[blank:], start + blank
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    tags = frozenset(re.findall(r'"([^"]+)"', mark["tags"] or ""))
    if not mark["markdown"]:
        return Cell(True, "\n".join(lines), start, tags)
    for number, line in enumerate(lines, start):
        if line and line != "#" and not line.startswith("# "):
            raise ValueError(f"{path.name}, line {number}: prose needs '# ' before it: '{line}'")
    return Cell(False, "\n".join(line[2:] for line in lines), start, tags)


def read_lesson(path: Path) -> Lesson:
    """Read a lesson: its cells, and what its header says.

    Raises:
        ValueError: no cell, a header without one of its fields, another number than the name's.
    """
    cells = read_cells(path)
    if not cells or cells[0].code:
        raise ValueError(f"{path.name}: its first cell must be the header, '# %% [markdown]'")
    header = cells[0].source
    heading = re.match(r"# (\d\d) · (.+)", header)
    if heading is None or not path.name.startswith(heading[1] + "_"):
        raise ValueError(
            f"{path.name}: its heading must be '# {path.name[:2]} · Title', "
            f"not '{header.splitlines()[0]}'"
        )
    said = {}
    for field in FIELDS:
        found = re.search(rf"^\*\*{field}\*\* (.+?)(?=\n\s*\n|\Z)", header, re.S | re.M)
        if found is None:
            raise ValueError(f"{path.name}: the header lacks a paragraph '**{field}** ...'")
        said[field] = " ".join(found[1].split())
    claim, needs, paper, takes = (said[field] for field in FIELDS)
    number, title = int(heading[1]), heading[2].strip()
    return Lesson(path, number, title, claim, needs, paper, takes, cells)
