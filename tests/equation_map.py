"""Make README's table equation -> function -> test: python tests/equation_map.py [--write]."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

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


def table() -> str:
    """Return README's table, Markdown."""
    functions = documented()
    lines = ["| paper | what | function | test |", "|---|---|---|---|"]
    for key, (where, what, status) in listed().items():
        if status.startswith("pending:"):
            lines.append(f"| {where} | {what} | | *{status}* |")
            continue
        names = "<br>".join(f"`{name}`" for name in functions.get(key, []))
        lines.append(f"| {where} | {what} | {names} | `tests/{status}` |")
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
