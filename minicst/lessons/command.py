"""`minicst lesson`: list, run, render and check the lessons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from minicst.lessons.find import all_lessons, lesson_of, lessons_folder

FAILED = 1


@dataclass(frozen=True)
class LessonSettings:
    """List the lessons, or run one cell by cell: prose, code, output, every new name."""

    number: Annotated[int | None, tyro.conf.Positional] = None
    """Run this lesson."""
    step: bool = False
    """Wait before each cell; look at arrays, the tape, the debugger."""
    first: Annotated[int, tyro.conf.arg(name="from")] = 1
    """Begin at this code cell; those before run in silence."""
    answers: Path | None = None
    """Run the lesson in silence, then this file in its names: your answers to its exercises."""
    figures: Path | None = None
    """Folder for the pictures of a lesson; a temporary one by default."""
    render: str | None = None
    """Write pages (Markdown and PNG) of a lesson's number, or of 'all'."""
    check: bool = False
    """With --render: write nothing, say what differs from the written pages; exit code 1 if so."""
    site: Path | None = None
    """Build the static site of pages and API into this folder (needs '.[docs]')."""
    folder: Path | None = None
    """Folder of the lessons, if it isn't the installation's."""
    debug: bool = False
    """Show the traceback of an error."""

    def checked(self) -> LessonSettings:
        """Return self.

        Raises:
            ValueError: options that don't go together.
        """
        if self.number is None and (self.step or self.first != 1 or self.answers):
            raise ValueError("--step, --from and --answers run a lesson: name its number")
        if self.check and self.render is None:
            raise ValueError("--check compares rendered pages: minicst lesson --render all --check")
        if self.render is not None and self.number is not None:
            raise ValueError(
                f"--render {self.render} beside lesson {self.number}: --render takes the number"
            )
        if self.figures is not None and not self.figures.is_dir():
            raise ValueError(f"--figures {self.figures}: there is no such folder; make it first")
        return self


def run_lesson(settings: LessonSettings, console: Console) -> int:
    """Run the command; return the exit code, 1 if a lesson failed or a page differs.

    Raises:
        ValueError: an impossible setting, a broken lesson file.
    """
    settings.checked()
    folder = lessons_folder(settings.folder)
    if settings.site is not None:
        from minicst.lessons.site import build_site

        build_site(folder, settings.site, _says(console))
        return 0
    from minicst.lessons import terminal

    if settings.render is None and settings.number is None:
        terminal.print_list(console, all_lessons(folder))
        return 0
    # Pictures go to files, also where there's no display.
    import matplotlib

    matplotlib.use("agg")
    if settings.render is not None:
        return render_pages(folder, settings.render, settings.check, _says(console))
    assert settings.number is not None
    lesson = lesson_of(folder, settings.number)
    if settings.answers is None:
        return terminal.Player(lesson, console, settings.figures).play(
            settings.step, settings.first
        )
    try:
        terminal.run_answers(lesson, settings.answers, console)
    except terminal.LessonError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return FAILED
    return 0


def _says(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def render_pages(folder: Path, which: str, check: bool, says: Callable[[str], None]) -> int:
    """Render pages, or compare them; return 1 if one failed or differs.

    Args:
        folder: of the lessons; pages are in its folder `pages`.
        which: a lesson's number, or "all".
        check: compare, write nothing.
        says: called with a line at a time.

    Raises:
        ValueError: `which` is neither, or a lesson's file is broken.
    """
    from minicst.checkpoint import write_text
    from minicst.lessons import render
    from minicst.lessons.execute import LessonError

    lessons = all_lessons(folder)
    if which != "all" and not which.isdecimal():
        raise ValueError(f"--render {which}: give a lesson's number, or all")
    chosen = lessons if which == "all" else [lesson_of(folder, int(which))]
    pages = folder / render.PAGES
    found: list[str] = []
    for lesson in chosen:
        try:
            page = render.render(lesson, lessons)
        except LessonError as error:
            found.append(render.failed(lesson, error))
            continue
        if check:
            found += render.check_page(page, pages)
        else:
            render.write_page(page, pages)
            says(f"{lesson.path.stem}: {len(page.figures)} pictures")
    table, written = render.index(lessons), folder / "README.md"
    if not check:
        write_text(written, table)
    else:
        if not written.is_file() or written.read_text(encoding="utf-8") != table:
            found.append("README.md of the lessons isn't current")
        found += render.strays(lessons, pages)
    for line in found:
        says(line)
    if check and not found:
        says(f"{len(chosen)} pages say what their lessons give")
    elif check:
        says("after a change that is right: minicst lesson --render all")
    return FAILED if found else 0
