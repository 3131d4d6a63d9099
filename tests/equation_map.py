"""Make README's table equation -> function -> test -> lesson: equation_map.py [--write]."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from minicst.lessons.cells import Lesson
from minicst.lessons.find import all_lessons

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- equations: begin -->", "<!-- equations: end -->"


def listed() -> dict[str, tuple[str, str, str]]:
    """{key: (where, what, test or 'pending: capability')} of tests/equations.txt."""
    table = {}
    for line in (ROOT / "tests" / "equations.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, where, what, status = (p.strip() for p in re.split(r"(?<!\\)\|", line))
            table[key] = (where, what, status)
    return table


def documented() -> dict[str, list[str]]:
    """{key: functions, as 'package/module.py: name'} named in `Paper:` lines of docstrings."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "minicst").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            # A `Paper:` paragraph goes on until a blank line or the next `Word:`.
            for text in re.findall(
                r"^Paper:(.*?)(?=\n\s*\n|\n\w+:|\Z)", ast.get_docstring(node) or "", re.S | re.M
            ):
                for key in re.findall(r"\[([a-z][a-z0-9-]*)\]", text):
                    name = f"{path.relative_to(ROOT / 'minicst').as_posix()}: {node.name}"
                    found.setdefault(key, []).append(name)
    return found


def taught() -> dict[str, list[Lesson]]:
    """{key: lessons whose header names it}."""
    found: dict[str, list[Lesson]] = {}
    for lesson in all_lessons(ROOT / "lessons"):
        for key in lesson.keys:
            found.setdefault(key, []).append(lesson)
    return found


def used(lesson: Lesson) -> set[str]:
    """Names that a lesson's code uses."""
    names: set[str] = set()
    for cell in lesson.code_cells:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names}
    return names


def table() -> str:
    """Return README's table, Markdown."""
    functions, lessons = documented(), taught()
    lines = ["| paper | what | function | test | lesson |", "|---|---|---|---|---|"]
    for key, (where, what, status) in listed().items():
        if status.startswith("pending:"):
            lines.append(f"| {where} | {what} | | *{status}* | |")
            continue
        names = "<br>".join(f"`{name}`" for name in functions.get(key, []))
        pages = ", ".join(
            f"[{lesson.number:02d}](lessons/pages/{lesson.path.stem}.md)"
            for lesson in lessons.get(key, [])
        )
        lines.append(f"| {where} | {what} | {names} | `tests/{status}` | {pages} |")
    return "\n".join(lines)


def readme_with_table(text: str) -> str:
    """Return README's text with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--write" in sys.argv:
        readme.write_text(readme_with_table(readme.read_text()))
    else:
        print(table())
