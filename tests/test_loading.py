"""The script that measures loading: a tiny run, and its mistakes in one line."""

import importlib
import json
import re
from pathlib import Path

import pytest

FIGURES = Path(__file__).resolve().parent.parent / "figures"
TINY = ["--images", "9", "--batch-size", "4", "--image-size", "8", "--step", "0.001"]


@pytest.fixture
def loading(monkeypatch):
    monkeypatch.syspath_prepend(str(FIGURES))
    return importlib.import_module("loading")


def test_tiny_run_prints_both_tables(loading, tmp_path, capsys):
    loading.write_folder(tmp_path / "images", 9)
    for data in ([], ["--data-dir", str(tmp_path / "images")]):
        path = tmp_path / "out.json"
        loading.main([*TINY, *data, "--repeats", "2", "--json", str(path)])
        printed = capsys.readouterr().out
        assert re.search(r"^\| 1 \| \d+ \|$", printed, re.MULTILINE)
        assert re.search(r"^\| 2 \| \d+ \|$", printed, re.MULTILINE)
        rows = re.findall(r"^\| (idle|busy) \| (on|off) \| [\d.]+ \| [\d.]+% \|$", printed, re.M)
        assert rows == [("idle", "on"), ("idle", "off"), ("busy", "on"), ("busy", "off")]
        results = json.loads(path.read_text())
        assert all(0 <= row["waiting"] <= 1 for row in results["waiting"])
        assert results["settings"]["data_dir"] == ("images" if data else None)


def test_waiting_is_the_loader_s(loading, tmp_path):
    # A step that takes no time waits all of the time.
    loading.write_folder(tmp_path, 9)
    data = loading.load_dataset("folder", data_dir=tmp_path, image_size=8)
    measured = loading.measure_waiting(data, 3, lambda: None, prefetch=False, epoch=0)
    assert 0.5 < measured["waiting"] <= 1.0
    assert measured["seconds_per_step"] > 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "3"], "two batches of images"),
        (["--step", "0"], "a step above 0"),
        (["--data-dir", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_one_line(loading, arguments, message, capsys):
    with pytest.raises(SystemExit):
        loading.main([*TINY, *arguments])
    assert message in capsys.readouterr().err
