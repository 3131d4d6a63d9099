"""README's blocks that are made from code and from measured numbers: python figures/readme.py [--write].

The table of estimators comes from `minicst.sparse.rules`; every number under "What held" comes from
a JSON file in this folder. A test fails where README says anything else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from minicst.sparse.rules import RULES

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def estimators() -> str:
    """Return the table of estimators, Markdown."""
    lines = ["| `--estimator` | estimate | masks, and forward passes | source |", "|---|---|---|---|"]
    for name, rule in RULES.items():
        masks = str(rule.n_masks) if rule.n_masks else "k = `--n-masks`"
        pair = ", antithetic" if rule.antithetic else ""
        formula = rule.formula.replace("|", "\\|")
        lines.append(f"| `{name}` | `{formula}` | {masks}{pair} | {rule.source} |")
    return "\n".join(lines)


def load(name: str) -> dict[str, Any]:
    """Return a JSON file of this folder."""
    return json.loads((HERE / f"{name}.json").read_text())


BLOCKS = {"estimators": estimators}


def with_blocks(text: str) -> str:
    """Return README's text with each block between its marks."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_blocks(README.read_text()))
    else:
        print("\n\n".join(make() for make in BLOCKS.values()))
