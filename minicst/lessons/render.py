"""Lessons as pages: Markdown with what was printed, and PNG; and whether they still hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minicst.checkpoint import write_text
from minicst.lessons.cells import KEYS, Lesson
from minicst.lessons.execute import LessonError, Session

PAGES = "pages"
EQUATIONS = "../../README.md#equations"
VOLATILE = "*Measured on one machine; yours will differ:*"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass
class Page:
    """A rendered lesson.

    Attributes:
        lesson: which.
        text: Markdown.
        figures: {file name: matplotlib figure}.
    """

    lesson: Lesson
    text: str
    figures: dict[str, Any]


def render(lesson: Lesson, lessons: list[Lesson]) -> Page:
    """Run a lesson and return its page.

    Args:
        lesson: which.
        lessons: all, for the links at the end.

    Raises:
        LessonError: a cell failed.
    """
    import matplotlib

    with matplotlib.rc_context():  # a lesson's style isn't the next one's
        return _render(lesson, lessons)


def _render(lesson: Lesson, lessons: list[Lesson]) -> Page:
    session = Session(lesson.path)
    parts: list[str] = []
    figures: dict[str, Any] = {}
    for cell in lesson.cells:
        if not cell.code:
            header = cell is lesson.cells[0]
            parts.append(KEYS.sub(rf"[\1]({EQUATIONS})", cell.source) if header else cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        output = session.run(cell)
        if output.text.strip():
            if cell.volatile:
                parts.append(VOLATILE)
            parts.append(f"```text\n{_without_trailing_space(output.text)}\n```")
        parts += [_picture(lesson, figure, figures) for figure in output.figures]
    parts.append(_links(lesson, lessons))
    return Page(lesson, "\n\n".join(parts) + "\n", figures)


def _without_trailing_space(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _picture(lesson: Lesson, figure: Any, figures: dict[str, Any]) -> str:
    name = f"{lesson.path.stem}_{len(figures) + 1}.png"
    figures[name] = figure
    whole = figure.get_suptitle()
    titles = [whole] if whole else [axes.get_title() for axes in figure.axes]
    said = "; ".join(" ".join(title.split()) for title in titles if title)
    return f"![{said}]({name})"


def _links(lesson: Lesson, lessons: list[Lesson]) -> str:
    at = [other.number for other in lessons].index(lesson.number)
    links = [f"[This lesson's file](../{lesson.path.name})"]
    links.append(f"[solutions](../solutions/{lesson.path.name})")
    if at > 0:
        links.append(f"before: [{_name(lessons[at - 1])}]({lessons[at - 1].path.stem}.md)")
    if at + 1 < len(lessons):
        links.append(f"next: [{_name(lessons[at + 1])}]({lessons[at + 1].path.stem}.md)")
    return "---\n\n" + " · ".join(links)


def _name(lesson: Lesson) -> str:
    return f"{lesson.number:02d} {lesson.title}"


def index(lessons: list[Lesson]) -> str:
    """The list of all pages, Markdown: README.md of the lessons' folder."""
    lines = [
        "# Lessons",
        "",
        "To be read here, or run cell by cell with `minicst lesson NUMBER --step`.",
        "",
        "| | you will see | in the paper |",
        "|---|---|---|",
    ]
    for lesson in lessons:
        paper = re.sub(f" ?{KEYS.pattern}", "", lesson.paper).replace("|", "\\|")
        claim = lesson.claim.replace("|", "\\|")
        lines.append(f"| [{_name(lesson)}]({PAGES}/{lesson.path.stem}.md) | {claim} | {paper} |")
    return "\n".join(lines) + "\n"


def write_page(page: Page, folder: Path) -> None:
    """Write a page and its pictures; pictures that it no longer has are deleted."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob(f"{page.lesson.path.stem}_*.png"):
        if old.name not in page.figures:
            old.unlink()
    for name, figure in page.figures.items():
        figure.savefig(folder / name, metadata={"Software": None})
    write_text(folder / f"{page.lesson.path.stem}.md", page.text)


def check_page(page: Page, folder: Path) -> list[str]:
    """Compare a page with the written one; return what differs, one line each.

    Prose and code must be the same. In what was printed a number may differ by one in its last
    digit (another CPU's BLAS rounds differently); what a volatile cell printed isn't compared.
    Pictures must be there, their pixels aren't compared: another matplotlib draws others.
    """
    path = folder / f"{page.lesson.path.stem}.md"
    if not path.is_file():
        return [f"{path.name} isn't there"]
    found = differences(path.read_text(encoding="utf-8"), page.text)
    for name in page.figures:
        if not (folder / name).is_file():
            found.append(f"{name} isn't there")
    pictures = {old.name for old in folder.glob(f"{page.lesson.path.stem}_*.png")}
    found += [f"{name}: no picture of the lesson" for name in sorted(pictures - set(page.figures))]
    return [f"{path.name}: {line}" for line in found]


def differences(written: str, made: str) -> list[str]:
    """Say the first line in which two pages differ in more than volatile or last digits."""
    old, new = _comparable(written), _comparable(made)
    for (number, printed, was), (_, _, now) in zip(old, new, strict=False):
        if was != now and not (printed and same_line(was, now)):
            return [f"line {number} says '{was}', the lesson now '{now}'"]
    if len(old) != len(new):
        extra = max(old, new, key=len)[min(len(old), len(new))][2]
        return [f"has {len(old)} lines, the lesson now gives {len(new)}: '{extra}'"]
    return []


def _comparable(text: str) -> list[tuple[int, bool, str]]:
    """Lines with their numbers and whether they were printed, without volatile cells' output."""
    lines: list[tuple[int, bool, str]] = []
    printed = skipping = False
    for number, line in enumerate(text.splitlines(), 1):
        if not skipping:
            lines.append((number, printed, line))
            skipping = line == VOLATILE
            printed = line == "```text" or (printed and line != "```")
        elif line == "```":
            skipping = False
    return lines


def same_line(was: str, now: str) -> bool:
    """Whether two printed lines are the same but for one in the last digit of a number."""
    if was == now:
        return True
    if NUMBER.sub("#", was) != NUMBER.sub("#", now):
        return False
    pairs = zip(NUMBER.findall(was), NUMBER.findall(now), strict=True)
    return all(_close(one, other) for one, other in pairs)


def _close(one: str, other: str) -> bool:
    if one == other:
        return True
    if not any(sign in one + other for sign in ".e"):
        return False  # whole numbers count something
    a, b = float(one.replace(",", "")), float(other.replace(",", ""))
    return abs(a - b) <= 1.01 * max(_last_digit(one), _last_digit(other))


def _last_digit(number: str) -> float:
    mantissa, _, exponent = number.replace(",", "").partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def strays(lessons: list[Lesson], folder: Path) -> list[str]:
    """Files among the pages that belong to no lesson."""
    stems = {lesson.path.stem for lesson in lessons}
    found = []
    for path in sorted(folder.glob("*")):
        stem = re.sub(r"_\d+$", "", path.stem) if path.suffix == ".png" else path.stem
        if stem not in stems:
            found.append(f"{path.name} belongs to no lesson: delete it")
    return found


def failed(lesson: Lesson, error: LessonError) -> str:
    """One line and the traceback of a lesson that can't be rendered."""
    return f"lesson {lesson.number} failed:\n{error}"
