"""Running a lesson's cells in one namespace, with what they print and draw."""

from __future__ import annotations

import ast
import bdb
import contextlib
import io
import pdb
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from minicst.lessons.cells import Cell


class LessonError(Exception):
    """A cell failed: the message is its traceback, from the lesson's file on."""


@dataclass
class Output:
    """What a cell gave.

    Attributes:
        text: printed, and the value of a last expression.
        figures: matplotlib figures that it left open; closed, but still to be saved.
    """

    text: str = ""
    figures: list[Any] = field(default_factory=list)


class _Debugger(pdb.Pdb):
    """Tells whether it was left by `q`: its `run` returns either way."""

    left = False

    def set_quit(self) -> None:
        self.left = True
        super().set_quit()


class Session:
    """Runs cells one after the other; their names stay, as in a notebook.

    Args:
        path: of the lesson; what tracebacks and the debugger name.

    Attributes:
        names: the namespace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A module of its own: dataclasses and the debugger look their names up there.
        self.module = ModuleType(f"lesson_{path.stem}")
        self.module.__file__ = str(path)
        self.names: dict[str, Any] = self.module.__dict__

    def run(self, cell: Cell, debug: bool = False) -> Output:
        """Run a cell of code.

        Args:
            cell: of this file.
            debug: run it in the debugger, from its first line; what it prints isn't kept then.

        Raises:
            LessonError: the cell raised; the message has file, line and traceback.
            bdb.BdbQuit: the debugger was left.
        """
        output, printed = Output(), io.StringIO()
        with self._registered():
            try:
                if debug:
                    self._execute(cell, _Debugger())
                else:
                    with contextlib.redirect_stdout(printed):
                        self._execute(cell)
            except bdb.BdbQuit:
                raise
            except Exception as error:
                raise LessonError(self._traceback(error)) from error
            finally:
                output.text = printed.getvalue()
                output.figures = _open_figures()
        return output

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the lesson's names.

        Raises:
            ValueError: it can't be evaluated.
        """
        try:
            with self._registered():
                return eval(expression, self.names)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _registered(self) -> Iterator[None]:
        sys.modules[self.module.__name__] = self.module
        try:
            yield
        finally:
            sys.modules.pop(self.module.__name__, None)

    def _execute(self, cell: Cell, debugger: _Debugger | None = None) -> None:
        # Blank lines in front: line numbers are those of the file.
        tree = ast.parse("\n" * (cell.line - 1) + cell.source, str(self.path))
        if debugger is not None:
            debugger.run(compile(tree, str(self.path), "exec"), self.names)
            if debugger.left:
                raise bdb.BdbQuit
            return
        last = tree.body[-1] if tree.body else None
        echo = isinstance(last, ast.Expr)
        if echo:
            tree.body.pop()
        exec(compile(tree, str(self.path), "exec"), self.names)
        if echo:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), str(self.path), "eval"), self.names)
            if value is not None:
                print(value if isinstance(value, str) else repr(value))

    def _traceback(self, error: Exception) -> str:
        """The traceback without the frames of this module."""
        shown = traceback.TracebackException.from_exception(error)
        frames = list(shown.stack)
        own = next((i for i, f in enumerate(frames) if f.filename == str(self.path)), len(frames))
        shown.stack = traceback.StackSummary.from_list(frames[own:])
        return "".join(shown.format()).rstrip()


def _open_figures() -> list[Any]:
    """Figures of matplotlib's pyplot that are open, closed; none if nobody has imported it."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    return figures
