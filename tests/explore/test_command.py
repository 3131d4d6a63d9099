"""`minicst explore`: options, files and what it says to bad input."""

from pathlib import Path

import pytest
import tyro

from minicst.explore import window
from minicst.explore.command import ExploreSettings, run_explore
from minicst.explore.problem import State
from minicst.explore.tables import Grid

TINY = Grid((0.4, 0.6), (0.5,), (0.3,), (1.0,), (0.0,), 2)


def parsed(text):
    config = (tyro.conf.OmitArgPrefixes,)
    return tyro.cli(ExploreSettings, args=text.split(), config=config)


def test_options_become_the_state():
    assert parsed("").state() == State()
    text = "--s .2 .3 --alpha 0 --eta .5 --budget .7 --losses 3 2 1 0 --level 4 --pair 10 00"
    assert parsed(text).state() == State(
        (0.2, 0.3), 0.0, 0.5, 0.7, (3.0, 2.0, 1.0, 0.0), 4.0, (1, 0)
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"keep_prob": (0.0, 0.5)}, ["--keep-prob", "s1 is 0", "[0.02, 0.98]", "m != s"]),
        ({"keep_prob": (0.5, 1.0)}, ["s2 is 1"]),
        ({"keep_prob": (0.5, float("nan"))}, ["s2 is nan"]),
        ({"precondition_power": 1.5}, ["--alpha 1.5", "[0, 1]"]),
        ({"keep_prob_lr": 0.0}, ["--eta 0", "(0, 1]"]),
        ({"budget": 2.5}, ["--budget 2.5", "(0, 2]"]),
        ({"losses": (0.0, 1.0, float("inf"), 2.0)}, ["--losses inf", "1000"]),
        ({"level": -1.0}, ["--level -1", "0 or more"]),
        ({"level": 1e9}, ["--level 1e+09", "1000"]),
        ({"pair": ("10", "2")}, ["--pair 2", "00, 10, 01, 11"]),
        ({"out": Path("nowhere/explore.html")}, ["--out", "no folder nowhere", "make it first"]),
        ({"out": Path("explore.gif")}, ["explore.gif", ".html"]),
        ({"out": Path("folder.html")}, ["is a directory"]),
    ],
)
def test_bad_input_says_what_and_what_to_do(changes, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run_explore(ExploreSettings(**changes))
    for name in names:
        assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_out_writes_a_page_or_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("minicst.explore.page.Grid", lambda: TINY)
    for name, start in (("a.html", b"<!doctype"), ("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        path = tmp_path / name
        assert run_explore(ExploreSettings(out=path)) == path
        assert path.read_bytes().startswith(start)


def test_without_a_display_a_page_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minicst.explore.page.Grid", lambda: TINY)
    monkeypatch.setattr(window, "show", lambda state, says: False)
    said = []
    assert run_explore(ExploreSettings(), said.append) == Path("explore.html")
    assert "no display" in said[0]
    assert (tmp_path / "explore.html").exists()


def test_with_a_display_a_window_opens(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(window, "show", lambda state, says: seen.append(state) or True)
    assert run_explore(ExploreSettings(level=2.0)) is None
    assert seen == [State(level=2.0)]
    assert not any(tmp_path.iterdir())
