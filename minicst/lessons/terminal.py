"""A lesson in the terminal: prose, code, output, names; straight through or step by step."""

from __future__ import annotations

import bdb
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from rich.console import Console
from rich.markdown import Markdown
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from minicst.lessons.cells import Cell, Lesson, read_cells
from minicst.lessons.execute import LessonError, Output, Session
from minicst.lessons.names import Watch, print_names
from minicst.lessons.show import show
from minicst.lessons.tape import draw, tape_graph
from minicst.tables import table as new_table

FAILED = 1
HELP = (
    "Enter runs the cell  ·  p NAME: look at an array (or p EXPRESSION)  ·  g NAME: the tape "
    "behind a tensor  ·  d: this cell in the debugger  ·  b: back  ·  q: quit"
)


def print_list(console: Console, lessons: list[Lesson]) -> None:
    """List lessons, one line each."""
    table = new_table("Lessons", "", "", "on 2 cores", left=3)
    for lesson in lessons:
        takes = lesson.takes.removesuffix(".").removesuffix(" on 2 cores")
        table.add_row(f"{lesson.number:02d}", Text(lesson.title), takes)
    console.print(table)
    console.print(
        "Run one: minicst lesson 1, cell by cell: minicst lesson 1 --step. Their files are "
        "percent scripts: open them in an editor that runs cells.",
        markup=False,
    )


@dataclass
class Player:
    """Runs a lesson in a terminal.

    Args:
        lesson: which.
        console: where to print.
        figures: folder for pictures; a temporary one if None.
        ask: reads a line; only for stepping.
    """

    lesson: Lesson
    console: Console
    figures: Path | None = None
    ask: Callable[[str], str] = input

    def __post_init__(self) -> None:
        self._start_anew()
        self._drawn = 0

    def _start_anew(self) -> None:
        self.session, self.watch = Session(self.lesson.path), Watch()

    def play(self, step: bool = False, first: int = 1) -> int:
        """Run the lesson from code cell `first` on, those before in silence; return the exit code.

        Raises:
            ValueError: there is no cell `first`.
        """
        code = self.lesson.code_cells
        if not 1 <= first <= len(code):
            raise ValueError(
                f"--from {first}: lesson {self.lesson.number} has code cells 1 to {len(code)}"
            )
        if not self._replay(first - 1):
            return FAILED
        at = first - 1
        while at < len(code):
            self._show_cell(at)
            action = self._prompt() if step else "run"
            if action == "quit":
                return 0
            if action == "back":
                at = max(at - 1, 0)
                if not self._replay(at):
                    return FAILED
                continue
            try:
                output = self.session.run(code[at], debug=action == "debug")
            except bdb.BdbQuit:
                self.console.print("left the debugger; here is the cell again", style="dim")
                self._replay(at)
                continue
            except LessonError as error:
                self._show_error(at, error)
                if not step or not self._replay(at):
                    return FAILED
                continue
            self._show_output(output)
            at += 1
        for cell in self._prose_before(len(code)):
            self._prose(cell)
        while step and (action := self._prompt(end=True)) not in ("quit", "run"):
            if action == "back":
                return self.play(True, len(code))
        return 0

    def _replay(self, count: int) -> bool:
        """Run the first cells anew, in silence: back to what the names were then."""
        self._start_anew()
        for number, cell in enumerate(self.lesson.code_cells[:count]):
            try:
                self.session.run(cell)
            except LessonError as error:
                self._show_error(number, error)
                return False
        self.watch.changes(self.session.names)
        return True

    def _prose_before(self, number: int) -> list[Cell]:
        """The prose between code cell number - 1 and this one."""
        found: list[Cell] = []
        passed = 0
        for cell in self.lesson.cells:
            if cell.code:
                passed += 1
            elif passed == number:
                found.append(cell)
        return found

    def _show_cell(self, number: int) -> None:
        cell = self.lesson.code_cells[number]
        for prose in self._prose_before(number):
            self._prose(prose)
        count = len(self.lesson.code_cells)
        where = f"cell {number + 1} of {count}, {self.lesson.path.name}, line {cell.line}"
        self.console.print(Rule(where, align="left", style="dim"))
        self.console.print(
            Syntax(
                cell.source,
                "python",
                theme="ansi_dark",
                line_numbers=True,
                start_line=cell.line,
                background_color="default",
                word_wrap=True,
            )
        )

    def _prose(self, cell: Cell) -> None:
        self.console.print()
        self.console.print(Markdown(cell.source))
        self.console.print()

    def _show_output(self, output: Output) -> None:
        if output.text:
            self.console.print(Text(output.text.rstrip("\n"), style="bold"))
        for figure in output.figures:
            self._drawn += 1
            if self.figures is None:
                self.figures = Path(mkdtemp(prefix="minicst_lesson_"))
            path = self.figures / f"{self.lesson.path.stem}_{self._drawn}.png"
            figure.savefig(path, metadata={"Software": None})
            self.console.print(Text(f"picture {path}"), soft_wrap=True)
        rows, imported = self.watch.changes(self.session.names)
        print_names(self.console, rows)
        if imported:
            self.console.print(f"imported {', '.join(imported)}", style="dim", markup=False)

    def _show_error(self, number: int, error: LessonError) -> None:
        self.console.print(
            Text(f"lesson {self.lesson.number}, code cell {number + 1} failed:\n{error}"),
            soft_wrap=True,
        )

    def _prompt(self, end: bool = False) -> str:
        """Ask until it's time to move: "run", "debug", "back" or "quit"."""
        while True:
            try:
                line = self.ask("end of the lesson > " if end else "step > ").strip()
            except EOFError:
                return "quit"
            word, _, rest = line.partition(" ")
            moves = {"": "run", "b": "back", "q": "quit", "d": "debug"}
            if line in moves and not (end and line == "d"):
                return moves[line]
            try:
                if word == "p" and rest:
                    show(self.console, rest.strip(), self.session.value(rest))
                elif word == "g" and rest:
                    nodes = tape_graph(self.session.value(rest), self.session.names)
                    for row in draw(nodes):
                        self.console.print(Text(row), soft_wrap=True)
                else:
                    self.console.print(HELP, markup=False)
            except ValueError as error:
                self.console.print(Text(f"{rest.strip()}: {error}"))


def run_quietly(lesson: Lesson) -> Session:
    """Run a whole lesson without showing it.

    Raises:
        LessonError: a cell failed.
    """
    session = Session(lesson.path)
    for cell in lesson.code_cells:
        session.run(cell)
    return session


def run_answers(lesson: Lesson, path: Path, console: Console) -> Session:
    """Run a file of answers in the names that a lesson leaves; print what it prints.

    Args:
        lesson: run first, in silence.
        path: a Python file, with or without cells.
        console: where to print.

    Returns:
        The session of the answers: what they defined, beside the lesson's names.

    Raises:
        LessonError: lesson or answers failed.
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"--answers {path}: there is no such file")
    session = Session(path)
    session.names.update(
        (name, value)
        for name, value in run_quietly(lesson).names.items()
        if not name.startswith("__")
    )
    text = path.read_text(encoding="utf-8")
    cells = read_cells(path) if text.lstrip().startswith("# %%") else (Cell(True, text, 1),)
    for cell in cells:
        if cell.code:
            printed = session.run(cell).text
            if printed:
                console.print(Text(printed.rstrip("\n")), soft_wrap=True)
    return session
