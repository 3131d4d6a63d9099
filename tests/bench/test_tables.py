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


def gpu_bench(over, faster):
    """Numbers of a run; over: of both memory formats, faster: PyTorch's dense over Algorithm 1."""
    labels = ("pytorch-nchw", "pytorch-channels-last")
    step = {
        "what": "step",
        "seconds": {"minicst": 0.0312, **dict.fromkeys(labels, 0.02)},
        "over": dict(zip(labels, over, strict=True)),
        "of_peak": 0.41,
    }
    row = {
        "share": 4.94,
        "seconds": 0.0045,
        "saving": 6.9,
        "saving_macs": 14.8,
        "saving_paper": 4.5,
        "structure_share": 0.08,
        "authors": {},
        "torch_dense": {
            label: {"seconds": 0.02, "over": x} for label, x in zip(labels, faster, strict=True)
        },
    }
    launch = {
        "batch_size": 32,
        "share": None,
        "seconds": 0.010,
        "host": 0.0096,
        "waited": 0.0004,
        "host_share": 0.96,
        "bound": "launches",
        "launches": 412.0,
        "reads": 1.0,
    }
    return {
        "settings": {"pairs": 5, "repeats": 10},
        "device": {"name": "Some Card", "cupy": "14.2.0", "runtime": "13.0", "driver": "13.1"},
        "peers": {"PyTorch": "PyTorch 2.13.0", "JAX": None},
        "left_out": ["JAX's peer is left out"],
        "peak": {"float32": {"gmacs": 25000.0, "copied_gb": 2900.0}},
        "workloads": [
            {
                "network": "vgg19",
                "label": "vgg19",
                "batch_size": 256,
                "precision": "float32",
                "dense": [step],
                "steps": {"dense": {"seconds": 0.0312}, "rows": [row]},
                "memory": [
                    {"share": None, "peak": 2_500_000_000, "torch": {"pytorch-nchw": 10**9}},
                    {"share": 4.94, "peak": 400_000_000},
                ],
                "launches": [launch],
                "workspace": [{"workspace_mb": 64, "dense": 0.03, "sparse": 0.004}],
            }
        ],
    }


@pytest.mark.parametrize(
    ("over", "faster", "said"),
    [
        ((1.2, 1.99), (9.0, 4.6), ("1.99 times PyTorch's (goal: at most 2): reached.", True)),
        ((2.01, 1.2), (4.5, 9.0), ("2.01 times PyTorch's (goal: at most 2): not reached.", False)),
    ],
)
def test_gpu_tables_say_the_goals_beside_pytorchs_faster_format(
    over, faster, said, figure, tmp_path
):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(gpu_bench(over, faster)))
    text = figure("gpu_tables").gpu(path)
    first, second = (line for line in text.splitlines() if line.startswith("- "))
    assert first.endswith(said[0])
    reached = "reached" if said[1] else "not reached"
    assert f"4.94 % of the MACs is {min(faster):.2f} times as fast" in second
    assert second.endswith(f"more than the paper's 4.50): {reached}.")
    assert text.startswith("Some Card, CuPy 14.2.0, CUDA 13.0, PyTorch 2.13.0; medians of 5 turns")
    assert "25000 GMAC/s in float32" in text
    for cell in ("| 32 | dense | 10.00 ms | 9.60 ms (96%) | 0.40 ms | 412 | launches |", "2500 MB"):
        assert cell in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_goals_are_of_their_network_batch_and_precision(figure):
    module = figure("gpu_tables")
    (workload,) = gpu_bench((1.0, 1.0), (9.0, 9.0))["workloads"]
    assert len(module.goal_lines(workload)) == 2
    assert len(module.goal_lines(workload | {"precision": "tf32"})) == 1
    assert module.goal_lines(workload | {"batch_size": 128}) == []
    assert module.goal_lines(workload | {"network": "resnet20"}) == []


def test_without_a_measured_file_nothing_is_claimed(figure, tmp_path):
    text = figure("gpu_tables").gpu(tmp_path / "gpu.json")
    assert "No time has been measured on a GPU" in text
    assert "emulation and compile checks only" in text
