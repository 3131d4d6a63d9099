"""Where the lessons are."""

from __future__ import annotations

import sysconfig
from itertools import pairwise
from pathlib import Path

from minicst.lessons.cells import Lesson, read_lesson


def lessons_folder(folder: Path | None = None) -> Path:
    """Return the folder of the lessons: the given one, this checkout's, or the installation's.

    Raises:
        ValueError: if no lesson is there.
    """
    here = Path(__file__).resolve().parents[2] / "lessons"
    installed = Path(sysconfig.get_path("data")) / "share" / "minicst" / "lessons"
    places = [folder] if folder is not None else [here, installed]
    for place in places:
        if any(place.glob("[0-9][0-9]_*.py")):
            return place
    looked = " nor in ".join(str(place) for place in places)
    raise ValueError(f"no lesson (NN_title.py) in {looked}: name their folder with --folder")


def all_lessons(folder: Path) -> list[Lesson]:
    """Read all lessons of a folder, in order.

    Raises:
        ValueError: a lesson's file is broken, or two have one number.
    """
    lessons = [read_lesson(path) for path in sorted(folder.glob("[0-9][0-9]_*.py"))]
    for one, other in pairwise(lessons):
        if one.number == other.number:
            raise ValueError(f"{one.path.name} and {other.path.name} have the same number")
    return lessons


def lesson_of(folder: Path, number: int) -> Lesson:
    """Return the lesson of a number.

    Raises:
        ValueError: if there is none.
    """
    lessons = all_lessons(folder)
    for lesson in lessons:
        if lesson.number == number:
            return lesson
    raise ValueError(
        f"there is no lesson {number}: they are {lessons[0].number} to {lessons[-1].number}, "
        "`minicst lesson` lists them"
    )
