import io

import pytest
from rich.console import Console

from minicst.lessons.cells import read_lesson
from minicst.lessons.execute import LessonError
from minicst.lessons.terminal import Player, run_answers

LESSON = """# %% [markdown]
# # 03 · Small
#
# **You will see** that it runs.
#
# **You need** nothing.
#
# **In the paper** not there.
#
# **Takes** 1 second on 2 cores.

# %%
import numpy as np

from minicst import Tensor

a = np.arange(4.0)
print("first")

# %% [markdown]
# Prose between.

# %%
x = Tensor(a, requires_grad=True)
y = (x * x).sum()
a = a + 1

# %%
print("third", a.sum())

# %% [markdown]
# **Exercise.**
"""


@pytest.fixture
def lesson(tmp_path):
    path = tmp_path / "03_small.py"
    path.write_text(LESSON)
    return path


def play(path, typed=None, first=1):
    """Run a lesson as in a terminal 100 wide; return (exit code, what was printed)."""
    out = io.StringIO()
    lines = iter(typed or [])

    def ask(prompt):
        try:
            line = next(lines)
        except StopIteration:
            raise EOFError from None
        out.write(f"{prompt}{line}\n")
        return line

    console = Console(file=out, width=100, color_system=None)
    player = Player(read_lesson(path), console, path.parent, ask)
    return player.play(typed is not None, first), out.getvalue()


def test_straight_through(lesson):
    code, text = play(lesson)
    assert code == 0
    places = ["Small", "cell 1 of 3, 03_small.py, line 13", "first", "imported np", "Prose between"]
    places += ["cell 2 of 3", "no gradient yet", "cell 3 of 3", "third 10.0", "Exercise."]
    found = [text.index(place) for place in places]
    assert found == sorted(found)
    assert "+  a     ndarray  4" in text
    assert "~  a  " in text


def test_from_a_later_cell(lesson):
    code, text = play(lesson, first=3)
    assert code == 0
    assert "third 10.0" in text
    assert "first" not in text
    with pytest.raises(ValueError, match="--from 4: lesson 3 has code cells 1 to 3"):
        play(lesson, first=4)


def test_stepping_looks_at_names_and_the_tape_and_quits(lesson):
    _, text = play(lesson, ["", "", "p a", "p a[1:3] * 10", "g y", "p nowhere", "g a", "what", "q"])
    assert "step > p a" in text
    assert ["0", "20", "30"] in [line.split() for line in text.splitlines()]
    assert "●  Sum  scalar  float64  = y" in text
    assert "○ x  4  float64  (no gradient yet)" in text
    assert "nowhere: NameError: name 'nowhere' is not defined" in text
    assert "a: a ndarray is not on a tape" in text
    assert "Enter runs the cell" in text  # help for what it doesn't know
    assert "third 10.0" not in text


def test_back_runs_the_cells_before_anew(lesson):
    _, text = play(lesson, ["", "", "b", "p a", "", "p a", "q"])
    before, after = text.split("step > b")
    assert "cell 3 of 3" in before
    assert after.index("cell 2 of 3") < after.index("cell 3 of 3")
    rows = [line.split() for line in after.splitlines() if line.startswith(" 0 ")]
    assert rows == [["0", "0", "1", "2", "3"], ["0", "1", "2", "3", "4"]]


def test_at_the_end_one_may_look_and_go_back(lesson):
    code, text = play(lesson, ["", "", "", "p a", "b", "", "q"])
    assert code == 0
    assert text.count("third 10.0") == 2
    assert "end of the lesson > p a" in text


def test_the_debugger_stops_at_the_cell(lesson, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\np a.sum()\nc\n"))
    _, _ = play(lesson, ["", "d", "q"])
    out = capsys.readouterr().out
    assert "03_small.py(24)" in out
    assert "x = Tensor(a, requires_grad=True)" in out
    assert "6.0" in out


def test_the_debugger_stops_at_a_last_expression_too(lesson, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("p 'stopped'\nc\n"))
    _, text = play(lesson, ["", "", "d", "q"])
    out = capsys.readouterr().out
    assert "03_small.py(29)" in out
    assert "'stopped'" in out
    assert "third 10.0" in out
    assert "end of the lesson" in text


def test_a_debugger_that_is_left_shows_the_cell_again(lesson, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    _, text = play(lesson, ["", "d", "", "q"])
    assert "left the debugger" in text
    assert text.count("cell 2 of 3") == 2
    assert "cell 3 of 3" in text
    capsys.readouterr()


def test_a_failing_cell_names_file_and_line(lesson):
    lesson.write_text(LESSON.replace('print("third", a.sum())', "assert a.sum() == 0, 'no'"))
    code, text = play(lesson)
    assert code == 1
    assert "lesson 3, code cell 3 failed:" in text
    assert '03_small.py", line 29' in text
    assert "AssertionError: no" in text
    code, text = play(lesson, ["", "", "", "p a", "q"])  # stepping stays there
    assert code == 0
    assert text.count("cell 3 of 3") == 2


def test_answers_run_in_the_lessons_names(lesson, tmp_path, capsys):
    answers = tmp_path / "mine.py"
    answers.write_text("print('sum', a.sum())\na\n")
    run_answers(read_lesson(lesson), answers, Console(width=100, color_system=None))
    assert capsys.readouterr().out == "sum 10.0\narray([1., 2., 3., 4.])\n"
    answers.write_text("# %% [markdown]\n# Prose.\n# %%\nb = a * 2\n# %%\nb.max()\n")
    session = run_answers(read_lesson(lesson), answers, Console(width=100, color_system=None))
    assert "8.0" in capsys.readouterr().out
    assert session.names["b"][0] == 2.0
    answers.write_text("\nundefined\n")
    with pytest.raises(LessonError, match=r"(?s)mine.py\", line 2.*NameError"):
        run_answers(read_lesson(lesson), answers, Console())
    with pytest.raises(ValueError, match=r"--answers .*gone.py: there is no such file"):
        run_answers(read_lesson(lesson), tmp_path / "gone.py", Console())
