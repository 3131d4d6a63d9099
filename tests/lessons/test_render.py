import pytest

from minicst.lessons.cells import read_lesson
from minicst.lessons.find import all_lessons
from minicst.lessons.render import check_page, differences, index, render, same_line, write_page

HEAD = """# %% [markdown]
# # 0{n} · Small {n}
#
# **You will see** that it runs.
#
# **You need** nothing.
#
# **In the paper** Eq. (4) [eq4].
#
# **Takes** 1 second on 2 cores.

"""
BODY = """# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots()
ax.set_title("A line")
ax.plot([0, 1])
print("x = 0.123   ")

# %% tags=["volatile"]
import time

print(time.perf_counter())
"""


@pytest.fixture
def folder(tmp_path):
    for n in (1, 2):
        (tmp_path / f"0{n}_small.py").write_text(HEAD.format(n=n) + BODY)
    return tmp_path


@pytest.fixture
def page(folder):
    lessons = all_lessons(folder)
    return render(lessons[0], lessons)


def test_a_page_has_prose_code_output_and_pictures(page):
    assert page.text.startswith("# 01 · Small 1\n")
    assert "[eq4](../../README.md#equations)" in page.text
    assert "```python\nimport matplotlib.pyplot as plt\n" in page.text
    assert "```text\nx = 0.123\n```\n\n![A line](01_small_1.png)" in page.text
    assert "*Measured on one machine; yours will differ:*\n\n```text\n" in page.text
    assert "next: [02 Small 2](02_small.md)" in page.text
    assert list(page.figures) == ["01_small_1.png"]


def test_a_style_ends_with_its_lesson(folder):
    import matplotlib

    path = folder / "01_small.py"
    path.write_text(path.read_text() + "\nplt.rcParams['lines.linewidth'] = 7.0\n")
    before = matplotlib.rcParams["lines.linewidth"]
    render(read_lesson(path), all_lessons(folder))
    assert matplotlib.rcParams["lines.linewidth"] == before != 7.0


def test_written_pages_hold_and_changed_ones_do_not(folder, page):
    pages = folder / "pages"
    (said,) = check_page(page, pages)
    assert said == "01_small.md isn't there"
    write_page(page, pages)
    assert check_page(page, pages) == []
    lessons = all_lessons(folder)
    assert check_page(render(lessons[0], lessons), pages) == []  # another time, same page
    path = folder / "01_small.py"
    path.write_text(path.read_text().replace("0.123", "0.125"))
    again = render(read_lesson(path), lessons)
    (said,) = check_page(again, pages)
    assert said.startswith("01_small.md: line ")
    (pages / "01_small_1.png").rename(pages / "01_small_2.png")
    assert [line.split(": ")[1].split(" ")[0] for line in check_page(page, pages)] == [
        "01_small_1.png",
        "01_small_2.png",
    ]
    write_page(page, pages)
    assert not (pages / "01_small_2.png").exists()


@pytest.mark.parametrize(
    ("was", "now", "same"),
    [
        ("x = 1.23", "x = 1.24", True),
        ("x = 1.23", "x = 1.25", False),
        ("x = 1.23", "y = 1.23", False),
        ("x = -1.23", "x = 1.23", False),
        ("5 of 8", "6 of 8", False),  # counts are exact
        ("1,234.5 MB", "1,234.6 MB", True),
        ("1.5e-07", "1.6e-07", True),
        ("1.5e-07", "1.5e-06", False),
        ("1.50", "1.5", True),
        ("[0.9 1.  ]", "[1.  1.  ]", False),
    ],
)
def test_a_number_may_differ_by_one_in_its_last_digit(was, now, same):
    assert same_line(was, now) is same


def test_only_what_was_printed_may_differ_in_its_last_digit():
    page = "lr is 0.1\n```python\nlr = 0.1\n```\n\n```text\nloss 0.1\n```\n"
    assert differences(page, page.replace("loss 0.1", "loss 0.2")) == []
    for part in ("lr is 0.1", "lr = 0.1"):
        changed = page.replace(part, part.replace("0.1", "0.2"))
        assert len(differences(page, changed)) == 1


def test_lines_that_are_missing_or_new_are_said():
    assert differences("a\nb\n", "a\nb\n") == []
    assert differences("a\nb\n", "a\n") == ["has 2 lines, the lesson now gives 1: 'b'"]
    assert differences("a\n", "a\nc\n") == ["has 1 lines, the lesson now gives 2: 'c'"]


def test_the_index_lists_all(folder):
    text = index(all_lessons(folder))
    assert "| [01 Small 1](pages/01_small.md) | that it runs. | Eq. (4). |" in text
