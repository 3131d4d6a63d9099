import re

import pytest

from minicst.lessons.cells import read_cells, read_lesson
from minicst.lessons.find import all_lessons, lesson_of, lessons_folder

HEADER = """# %% [markdown]
# # 03 · A title: with colon
#
# **You will see** that one and
# one are two.
#
# **You need** fingers.
#
# **In the paper** Eq. (4) [eq4] and Theorem 1 [thm1].
#
# **Takes** 1 second on 2 cores.
"""


def written(tmp_path, text, name="03_title.py"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_cells_have_text_kind_line_and_tags(tmp_path):
    text = (
        HEADER + "\n# %%\n\na = 1\nb = 2\n\n# %% [markdown]\n# prose\n#\n#     indented\n"
        '# %% tags=["volatile"]\nprint(a)\n'
    )
    header, first, prose, second = read_cells(written(tmp_path, text))
    assert not header.code
    assert header.source.startswith("# 03 · A title")
    assert (first.code, first.source) == (True, "a = 1\nb = 2")
    assert text.splitlines()[first.line - 1] == "a = 1"
    assert (prose.code, prose.source) == (False, "prose\n\n    indented")
    assert second.volatile
    assert not first.volatile
    assert text.splitlines()[second.line - 1] == "print(a)"


def test_the_header_says_what_it_is_about(tmp_path):
    lesson = read_lesson(written(tmp_path, HEADER))
    assert lesson.number == 3
    assert lesson.title == "A title: with colon"
    assert lesson.claim == "that one and one are two."
    assert lesson.needs == "fingers."
    assert lesson.keys == ("eq4", "thm1")
    assert lesson.takes == "1 second on 2 cores."
    assert lesson.code_cells == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = 1\n" + HEADER, "03_title.py, line 1: text before the first cell"),
        (HEADER + "# %% [raw]\n", "line 12: '# %% [raw]' is no mark"),
        (HEADER + "# %% [markdown]\nprose\n", "line 13: prose needs '# '"),
        ("# %%\na = 1\n", "first cell must be the header"),
        ("", "first cell must be the header"),
        (HEADER.replace("03 ·", "04 ·"), "heading must be '# 03 · Title'"),
        (HEADER.replace("**Takes**", "Takes"), "lacks a paragraph '**Takes** ...'"),
    ],
)
def test_a_broken_lesson_is_named_with_its_line(tmp_path, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        read_lesson(written(tmp_path, text))


def test_two_lessons_of_one_number_are_refused(tmp_path):
    written(tmp_path, HEADER)
    written(tmp_path, HEADER, "03_other.py")
    with pytest.raises(ValueError, match="the same number"):
        all_lessons(tmp_path)


def test_lessons_are_found_by_number(tmp_path):
    written(tmp_path, HEADER)
    assert lesson_of(tmp_path, 3).title == "A title: with colon"
    with pytest.raises(ValueError, match="no lesson 4: they are 3 to 3"):
        lesson_of(tmp_path, 4)
    with pytest.raises(ValueError, match=r"no lesson .* in .*empty"):
        lessons_folder(tmp_path / "empty")
    assert lesson_of(lessons_folder(), 5).path.name == "05_cut.py"
