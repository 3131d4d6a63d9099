import doctest
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_library_example_prints_what_its_comments_say():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.strip().splitlines()) <= 30
    said = [line.split("# ")[1] for line in code.splitlines() if line.startswith("print(")]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == said


def test_the_session_of_exact_theory_prints_what_it_says():
    (session,) = re.findall(r"```pycon\n(.*?)```", README, re.S)
    test = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted >= 6
    assert result.failed == 0


def test_every_command_is_listed():
    for command in (
        "train",
        "recipes",
        "graph",
        "step",
        "macs",
        "variance",
        "planted",
        "bench",
        "info",
        "lesson",
        "explore",
    ):
        assert f"minicst {command}" in README


def test_pictures_exist():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README):
        assert (ROOT / picture).is_file()


def test_blocks_say_what_code_and_measured_numbers_say():
    """Otherwise: python figures/readme.py --write."""
    blocks = runpy.run_path(str(ROOT / "figures" / "readme.py"))
    assert blocks["with_blocks"](README) == README
