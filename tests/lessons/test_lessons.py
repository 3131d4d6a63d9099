"""The lessons themselves: their form, that they run, that their pages and solutions hold."""

import ast
import re
import sys
from itertools import pairwise

import matplotlib
import pytest

from minicst.lessons.cells import read_cells
from minicst.lessons.execute import Session
from minicst.lessons.find import all_lessons, lessons_folder
from minicst.lessons.render import PAGES, VOLATILE, check_page, index, render, strays

FOLDER = lessons_folder()
LESSONS = all_lessons(FOLDER)
IDS = [lesson.path.stem for lesson in LESSONS]
LIBRARIES = {"numpy", "scipy", "matplotlib", "minicst"}


def checks(lesson):
    return re.findall(r"^def (check_\w+)", lesson.path.read_text(encoding="utf-8"), re.M)


def long_lines(source):
    return [line for line in source.splitlines() if line.strip()]


def test_they_are_numbered_without_gaps():
    assert [lesson.number for lesson in LESSONS] == list(range(1, len(LESSONS) + 1))


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
def test_form(lesson):
    """Short enough to be read in one go, prose between the code, plain libraries."""
    assert 80 <= len(lesson.path.read_text(encoding="utf-8").splitlines()) <= 180
    assert len(lesson.code_cells) <= 12
    assert len(checks(lesson)) == 2
    for before, cell in pairwise(lesson.cells):
        size = len(long_lines(cell.source))
        if cell.code:
            assert size <= (25 if "def check_" in cell.source else 15), f"line {cell.line}"
        else:
            assert 2 <= size <= 8, f"line {cell.line}"
            assert "\\" not in cell.source, f"line {cell.line}: Unicode, no LaTeX"
            assert before.code or before is lesson.cells[0]
    for cell in lesson.code_cells:
        for node in ast.walk(ast.parse(cell.source)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in LIBRARIES or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
def test_page_and_solutions_hold(lesson, monkeypatch, tmp_path):
    """What a page shows is what its lesson gives; the checks tell right from wrong answers."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    sessions = []
    monkeypatch.setattr(
        "minicst.lessons.render.Session", lambda path: sessions.append(Session(path)) or sessions[0]
    )
    page = render(lesson, LESSONS)
    assert list(tmp_path.iterdir()) == []
    assert check_page(page, FOLDER / PAGES) == []

    path = FOLDER / "solutions" / lesson.path.name
    answers = Session(path)
    answers.names.update({k: v for k, v in sessions[0].names.items() if not k.startswith("__")})
    for cell in read_cells(path):
        if cell.code:
            answers.run(cell)
    for name in checks(lesson):
        stem = name.removeprefix("check_")
        check = answers.names[name]
        verdict = check(answers.names[f"right_{stem}"])
        assert verdict.startswith("right: "), verdict
        wrong = [key for key in answers.names if re.fullmatch(rf"wrong_{stem}(_\d)?", key)]
        assert wrong
        for key in wrong:
            verdict = check(answers.names[key])
            assert verdict.startswith("wrong: "), f"{key}: {verdict}"
            assert len(verdict) > 25, f"{key}: a reason is missing"


@pytest.mark.parametrize("lesson", LESSONS, ids=IDS)
def test_numbers_are_printed_to_four_digits(lesson):
    """Further ones another CPU's rounding may change; whole numbers are counts, and exact."""
    text = (FOLDER / PAGES / f"{lesson.path.stem}.md").read_text(encoding="utf-8")
    for measured, output in re.findall(
        rf"({re.escape(VOLATILE)}\n\n)?```text\n(.*?)```", text, re.S
    ):
        for number in [] if measured else re.findall(r"(?<![\w.])\d[\d,]*\.\d+", output):
            digits = number.replace(",", "").replace(".", "").lstrip("0")
            assert len(digits) <= 4, number


def test_the_list_of_pages_is_current():
    """Otherwise: minicst lesson --render all."""
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == index(LESSONS)
    assert strays(LESSONS, FOLDER / PAGES) == []
