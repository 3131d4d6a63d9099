import sys

import pytest

from minicst.lessons.cells import Cell
from minicst.lessons.execute import LessonError, Session


def session(tmp_path, text="", name="07_x.py"):
    path = tmp_path / name
    path.write_text(text)
    return Session(path)


def test_names_stay_and_a_last_expression_is_shown(tmp_path):
    run = session(tmp_path).run
    assert run(Cell(True, "a = 2\nprint('two')", 1)).text == "two\n"
    assert run(Cell(True, "b = a + 1\nb", 3)).text == "3\n"
    assert run(Cell(True, "None", 5)).text == ""
    assert run(Cell(True, "'as it is'", 6)).text == "as it is\n"
    assert run(Cell(True, "", 7)).text == ""


def test_a_traceback_names_file_and_line_of_the_lesson_and_nothing_of_the_runner(tmp_path):
    text = "# %%\nx = 1\n# %%\ndef f():\n    return x / 0\n\n\nf()\n"
    run = session(tmp_path, text).run
    run(Cell(True, "x = 1", 2))
    with pytest.raises(LessonError) as caught:
        run(Cell(True, "def f():\n    return x / 0\n\n\nf()", 4))
    message = str(caught.value)
    assert '07_x.py", line 8' in message
    assert '07_x.py", line 5' in message
    assert "return x / 0" in message
    assert message.endswith("ZeroDivisionError: division by zero")
    assert "execute.py" not in message


def test_a_syntax_error_has_its_line(tmp_path):
    with pytest.raises(LessonError, match=r"(?s)07_x.py.*line 11.*SyntaxError"):
        session(tmp_path, "\n" * 10 + "a = = 1\n").run(Cell(True, "a = = 1", 11))


def test_cells_may_define_dataclasses(tmp_path):
    text = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 3\nA()"
    run = session(tmp_path)
    assert run.run(Cell(True, text, 1)).text == "A(x=3)\n"
    assert not any(name.startswith("lesson_") for name in sys.modules)


def test_figures_are_handed_over_and_closed(tmp_path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    run = session(tmp_path).run
    text = "import matplotlib.pyplot as plt\nfor _ in range(2):\n    plt.subplots()"
    assert len(run(Cell(True, text, 1)).figures) == 2
    assert pyplot.get_fignums() == []
    assert run(Cell(True, "1", 4)).figures == []


def test_expressions_are_evaluated_in_the_names(tmp_path):
    at = session(tmp_path)
    at.run(Cell(True, "a = [1, 2]", 1))
    assert at.value("a[1] + 1") == 3
    with pytest.raises(ValueError, match="NameError: name 'b' is not defined"):
        at.value("b")
