import pytest

from minicst.cli import main

LESSON = """# %% [markdown]
# # 0{n} · Small {n}
#
# **You will see** that it runs.
#
# **You need** nothing.
#
# **In the paper** not there.
#
# **Takes** 1 second on 2 cores.

# %%
x = {n} / 8
print("x", x)
"""


@pytest.fixture
def folder(tmp_path):
    for n in (1, 2):
        (tmp_path / f"0{n}_small.py").write_text(LESSON.format(n=n))
    return tmp_path


def lesson(folder, *arguments):
    return main(["lesson", "--folder", str(folder), *arguments])


def test_the_list_has_a_line_a_lesson(folder, capsys):
    assert lesson(folder) == 0
    out = capsys.readouterr().out
    assert "01  Small 1" in out
    assert "02  Small 2" in out
    assert "1 second" in out


def test_the_lessons_of_this_checkout_are_found(capsys):
    assert main(["lesson"]) == 0
    assert "05  Masks, cut and paste" in capsys.readouterr().out


def test_a_lesson_runs(folder, capsys):
    assert lesson(folder, "2") == 0
    assert "x 0.25" in capsys.readouterr().out


def test_render_then_check_then_a_change_is_found(folder, capsys):
    assert lesson(folder, "--render", "all") == 0
    assert sorted(path.name for path in (folder / "pages").iterdir()) == [
        "01_small.md",
        "02_small.md",
    ]
    assert "(pages/01_small.md)" in (folder / "README.md").read_text()
    assert lesson(folder, "--render", "all", "--check") == 0
    assert "2 pages say what their lessons give" in capsys.readouterr().out
    path = folder / "02_small.py"
    path.write_text(path.read_text().replace("/ 8", "/ 4"))
    assert lesson(folder, "--render", "1", "--check") == 0
    assert lesson(folder, "--render", "all", "--check") == 1
    out = capsys.readouterr().out
    assert "02_small.md: line " in out
    assert "x = 2 / 4" in out
    assert lesson(folder, "--render", "2") == 0
    assert lesson(folder, "--render", "all", "--check") == 0


def test_check_finds_pages_of_no_lesson_and_an_old_index(folder, capsys):
    lesson(folder, "--render", "all")
    (folder / "02_small.py").unlink()
    assert lesson(folder, "--render", "all", "--check") == 1
    out = capsys.readouterr().out
    assert "README.md of the lessons isn't current" in out
    assert "02_small.md belongs to no lesson" in out


def test_a_lesson_that_fails_gives_1_and_keeps_its_page(folder, capsys):
    lesson(folder, "--render", "all")
    page = (folder / "pages" / "02_small.md").read_text()
    path = folder / "02_small.py"
    path.write_text(path.read_text() + "\n1 / 0\n")
    assert lesson(folder, "--render", "all") == 1
    assert lesson(folder, "2") == 1
    out = capsys.readouterr().out
    assert "lesson 2 failed:" in out
    assert '02_small.py", line 16' in out
    assert (folder / "pages" / "02_small.md").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["9"], "there is no lesson 9: they are 1 to 2"),
        (["1", "--from", "7"], "--from 7: lesson 1 has code cells 1 to 1"),
        (["--step"], "name its number"),
        (["--check"], "--check compares rendered pages"),
        (["1", "--render", "all"], "--render takes the number"),
        (["--render", "some"], "--render some: give a lesson's number, or all"),
        (["1", "--answers", "nowhere.py"], "--answers nowhere.py: there is no such file"),
        (["1", "--figures", "nowhere"], "--figures nowhere: there is no such folder"),
    ],
)
def test_bad_input_is_one_line_and_2(folder, arguments, says, capsys):
    assert lesson(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_no_lessons_says_where_it_looked(tmp_path, capsys):
    assert lesson(tmp_path / "nothing") == 2
    assert "nothing: name their folder with --folder" in capsys.readouterr().err


def test_answers(folder, tmp_path, capsys):
    answers = tmp_path / "mine.py"
    answers.write_text("x * 8\n")
    assert lesson(folder, "2", "--answers", str(answers)) == 0
    assert capsys.readouterr().out == "2.0\n"
    answers.write_text("nothing_here\n")
    assert lesson(folder, "2", "--answers", str(answers)) == 1
    assert 'mine.py", line 1' in capsys.readouterr().out
