import shutil
import sys

import pytest

from minicst.cli import main
from minicst.lessons.find import all_lessons, lessons_folder
from minicst.lessons.site import AREAS, _plain_docstring, _write_sources


def plain(text):
    """A docstring as Sphinx gets it."""
    lines = text.split("\n")
    _plain_docstring(None, "function", "f", None, None, lines)
    return "\n".join(lines)


def test_what_rst_takes_for_markup_is_escaped_outside_of_code():
    assert plain("|s| * a_ and `x_ * y` or ``|z|``") == r"\|s\| \* a\_ and ``x_ * y`` or ``|z|``"
    assert plain("keep_prob stays") == "keep_prob stays"


def test_sources_are_paragraphs_of_their_own():
    text = "Head.\n\nPaper: Sec. 4, Eq. (4)\n    goes on [eq4]\nDiffers: not here."
    assert plain(text) == (
        "Head.\n\n**Paper:** Sec. 4, Eq. (4)\ngoes on [eq4]\n\n**Differs:** not here."
    )


def test_formulas_keep_their_lines_and_sections_their_form():
    assert plain("if so:\n    a <- b\nelse: c") == "| if so:\n|     a <- b\n| else: c"
    assert plain("Head.\n\n    a * b\n    c") == "Head.\n\n::\n\n    a * b\n    c"
    text = "Head.\n\nArgs:\n    a: one,\n        two.\n\n    b: three.\n\nReturns:\n    c."
    assert plain(text) == text


def test_every_area_of_the_api_is_there():
    for area in AREAS:
        __import__(area)


def test_sources_of_the_site_link_to_each_other(tmp_path):
    folder = lessons_folder()
    source = tmp_path / "source"
    _write_sources(folder, source)
    page = (source / "lessons" / "05_cut.md").read_text(encoding="utf-8")
    assert "(../overview.md#equations)" in page
    assert "(../_files/05_cut.py)" in page
    assert (source / "_files" / "solutions" / "05_cut.py").is_file()
    overview = (source / "overview.md").read_text(encoding="utf-8")
    assert "(lessons/pages/" not in overview
    assert (source / "figures" / "train.svg").is_file()
    listed = (source / "lessons.md").read_text(encoding="utf-8")
    for lesson in all_lessons(folder):
        assert f"(lessons/{lesson.path.stem}.md)" in listed
    assert ".. automodule:: minicst.sparse.projection\n   :members:" in (
        source / "api" / "minicst.sparse.md"
    ).read_text(encoding="utf-8")


def test_a_missing_page_is_named(tmp_path):
    folder = tmp_path / "lessons"
    shutil.copytree(lessons_folder(), folder)
    (folder / "pages" / "05_cut.md").unlink()
    with pytest.raises(ValueError, match="no page of 05_cut: first minicst lesson --render all"):
        _write_sources(folder, tmp_path / "source")


def test_without_sphinx_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sphinx.application", None)
    assert main(["lesson", "--site", str(tmp_path / "site")]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[docs]'" in error
    assert error.count("\n") == 1


def test_a_folder_with_something_else_is_kept(tmp_path, capsys):
    pytest.importorskip("sphinx")
    (tmp_path / "precious.txt").write_text("mine")
    assert main(["lesson", "--site", str(tmp_path)]) == 2
    assert "there is something else in this folder" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.filterwarnings("default")  # Sphinx's and MyST's deprecations are theirs
def test_a_site_that_cannot_be_built_leaves_the_old_one(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sphinx")
    target = tmp_path / "site"
    target.mkdir()
    (target / "searchindex.js").write_text("old")

    def warns(folder, source):
        (source / "_static").mkdir(parents=True)
        (source / "index.md").write_text("# Head\n\n[gone](gone.md)\n")

    monkeypatch.setattr("minicst.lessons.site._write_sources", warns)
    assert main(["lesson", "--site", str(target)]) == 2
    assert "Sphinx warned" in capsys.readouterr().err
    assert (target / "searchindex.js").read_text() == "old"
