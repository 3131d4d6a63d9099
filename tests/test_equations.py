import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("equation_map", ROOT / "tests" / "equation_map.py")
equation_map = importlib.util.module_from_spec(spec)
spec.loader.exec_module(equation_map)

LISTED = equation_map.listed()
FUNCTIONS = equation_map.documented()
TAUGHT = equation_map.taught()


def test_no_function_names_an_unknown_equation():
    assert set(FUNCTIONS) <= set(LISTED)


@pytest.mark.parametrize("key", LISTED)
def test_each_equation_has_function_and_test_or_is_pending(key):
    status = LISTED[key][2]
    if status.startswith("pending: "):
        assert key not in FUNCTIONS, f"{key} is pending, yet {FUNCTIONS[key]} names it"
        return
    assert FUNCTIONS.get(key), f"no function's Paper: line names [{key}]"
    path = ROOT / "tests" / status
    assert path.is_file(), f"{status} doesn't exist"
    names = [name.split(": ")[1] for name in FUNCTIONS[key]]
    text = path.read_text()
    assert any(re.search(rf"\b{name}\b", text) for name in names), (
        f"{status} mentions none of {names}"
    )


def test_no_lesson_names_an_unknown_equation():
    assert set(TAUGHT) <= set(LISTED)


@pytest.mark.parametrize("key", LISTED)
def test_each_equation_is_reached_by_a_lesson(key):
    """Its header names the key, and its code a function whose `Paper:` line does."""
    assert TAUGHT.get(key), f"no lesson's header names [{key}]"
    names = {name.split(": ")[1] for name in FUNCTIONS[key]}
    for lesson in TAUGHT[key]:
        assert names & equation_map.used(lesson), (
            f"{lesson.path.name} names [{key}] and calls none of {sorted(names)}"
        )


def test_readme_table_is_current():
    readme = (ROOT / "README.md").read_text()
    assert equation_map.readme_with_table(readme) == readme, "python tests/equation_map.py --write"
