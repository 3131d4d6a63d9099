"""figures/table4.py and table5.py: their numbers from a bench, and that they draw."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from minicst.bench.paper import ROWS

FIGURES = Path(__file__).resolve().parents[2] / "figures"


@pytest.fixture
def figure(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FIGURES))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FIGURES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def bench():
    phases = {"cut": {"seconds": 9.0}, "backward": {"seconds": 1.0}}
    row = {
        "share": 5.0,
        "executed_share": 0.0625,
        "saving_paper_formula": 12.0,
        "saving_macs": 11.0,
        "saving": 8.0,
        "seconds": 0.5,
        "phases": phases | {"forward_a": {"seconds": 0.3}, "forward_b": {"seconds": 0.2}},
    }
    dense = {"phases": {"forward_a": {"seconds": 2.0}, "backward": {"seconds": 8.0}}}
    return {
        "settings": {"batch_size": 4, "pairs": 1},
        "machine": {"threads": 2, "cpu": "a CPU"},
        "workloads": [{"label": "vgg19", "steps": {"dense": dense, "rows": [row]}}],
    }


def test_table_4_holds_savings(figure):
    table = figure("table4").extract(bench())
    (row,) = table["minicst"]["vgg19"]
    assert row == {
        "macs": 6.25,
        "train_cost": 12.0,
        "executed": 11.0,
        "time": 8.0,
        "seconds": 0.5,
    }
    assert [row["time"] for row in table["paper"]] == [1.55, 2.09, 3.20, 4.50, 7.41]


def test_table_5_holds_both_forward_passes_over_dense(figure):
    table = figure("table5").extract(bench())
    (row,) = table["minicst"]["vgg19"]["rows"]
    assert row["forward"] == pytest.approx(0.5 / 2.0)
    assert row["backward"] == pytest.approx(1.0 / 8.0)
    first = table["paper"][0]
    assert first["forward"] == pytest.approx(6.41 / 6.89)
    assert first["backward"] == pytest.approx(7.63 / 14.96)
    assert len(table["paper"]) == len(ROWS)


@pytest.mark.parametrize("name", ["table4", "table5"])
def test_draws_from_a_bench_then_from_its_own_file(name, figure, tmp_path, monkeypatch):
    source = tmp_path / "bench.json"
    source.write_text(json.dumps(bench()))
    module, script = figure(name), figure("bench_tables").script
    out = ["--out", str(tmp_path / "out")]
    script(None, name, module.extract, module.draw, ["--from", str(source), *out])
    picture = tmp_path / "out" / f"{name}.png"
    first = picture.read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    picture.unlink()
    monkeypatch.setattr(figure("bench_tables"), "run_bench", lambda *_: pytest.fail("ran"))
    script(None, name, module.extract, module.draw, out)
    assert picture.read_bytes() == first


@pytest.mark.parametrize("name", ["table4", "table5"])
def test_the_committed_file_draws(name, figure, tmp_path):
    module = figure(name)
    module.draw(json.loads((FIGURES / f"{name}.json").read_text()), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--quick"], "--out"), (["--from", "nowhere.json"], "nowhere"), ([], "measure with --run")],
)
def test_errors_are_one_line(arguments, message, figure, tmp_path, capsys):
    if arguments != ["--quick"]:
        arguments = [*arguments, "--out", str(tmp_path)]
    module = figure("table4")
    with pytest.raises(SystemExit) as stop:
        figure("bench_tables").script(None, "table4", module.extract, module.draw, arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
