"""`minicst graph`: the file it writes, and what it says where it can't."""

import os
from xml.etree import ElementTree

import pytest

from minicst.cli import main


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_file_is_named_after_the_network(tmp_path, capsys):
    assert main(["graph", "vgg-tiny"]) == 0
    assert capsys.readouterr().out == "picture vgg-tiny.svg\n"
    assert [path.name for path in tmp_path.iterdir()] == ["vgg-tiny.svg"]
    text = (tmp_path / "vgg-tiny.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "data-live" not in text


def test_options_reach_the_picture(tmp_path):
    arguments = ["--keep-rate", ".5", "--seed", "3", "--num-classes", "7", "--input", "3x64x48"]
    arguments += ["--width", ".5", "--residual", "independent", "--shortcut", "A"]
    assert main(["graph", "resnet20", *arguments, "--out", "here.svg"]) == 0
    text = (tmp_path / "here.svg").read_text()
    assert "images 3x64x48, 7 classes, width 0.5, independent masks" in text
    assert "keep rate 0.5, seed 3" in text
    assert "zero padding / 2" in text
    assert "conv 3x3, 64x48" in text


def test_an_older_picture_is_replaced_at_once_or_stays(tmp_path, monkeypatch, capsys):
    path = tmp_path / "old.svg"
    path.write_text("an older picture")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(["graph", "mlp", "--out", "old.svg"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert path.read_text() == "an older picture"
    assert [p.name for p in tmp_path.iterdir()] == ["old.svg"]
    assert main(["graph", "mlp", "--out", "old.svg"]) == 0
    assert path.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("mlp --out nowhere/x.svg", ["--out", "nowhere", "make it first"]),
        ("mlp --out .", ["directory"]),
        ("mlp --keep-rate 0", ["keep rate 0.0", "(0, 1]"]),
        ("mlp --keep-rate 1.01", ["keep rate 1.01", "(0, 1]"]),
        ("mlp --keep-rate nan", ["nan", "(0, 1]"]),
        ("mlp --keep-rate .5 --seed -1", ["-1"]),
        ("lenet", ["'lenet'", "vgg16"]),
        ("../x", ["'../x'", "vgg16"]),
        ("vgg16 --input 3x32", ["3x32"]),
        ("vgg19 --input 3x8x8", ["8x8"]),
        ("vgg16 --width -1", ["width=-1.0"]),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_leaves_no_file(arguments, names, tmp_path, capsys):
    assert main(["graph", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minicst: error: ")
    assert captured.err.count("\n") == 1
    for name in names:
        assert name in captured.err
    assert list(tmp_path.iterdir()) == []
