import json
import os
import sys

import pytest
from rich.console import Console

from minicst.bench import BenchSettings, print_bench, run_bench
from minicst.bench.run import add_of_peak
from minicst.models import build
from minicst.sparse import count_macs

QUIET = {"torch_python": sys.executable, "jax_python": sys.executable, "peers": ()}
EVERYTHING = ("dense", "steps", "authors", "cut", "memory", "layers")


@pytest.fixture(scope="module")
def results():
    settings = BenchSettings(
        ("vgg-tiny",), batch_size=4, shares=(30.0, 10.0), pairs=2, only=EVERYTHING, **QUIET
    )
    return run_bench(settings, lambda text: None)


@pytest.fixture(scope="module")
def workload(results):
    return results["workloads"][0]


def vgg_tiny_layers():
    """MACs of one image, by hand: 3x3 convolutions of 3-16-32 at 32x32, 32-32 at 16x16, linear."""
    return [1024 * 9 * 3 * 16, 1024 * 9 * 16 * 32, 256 * 9 * 32 * 32, 32 * 10]


def test_dense_passes_count_their_work(workload):
    first, *others = vgg_tiny_layers()
    forward, both, step = workload["dense"]
    assert forward["macs"] == 4 * (first + sum(others))
    assert both["macs"] == 4 * (2 * first + 3 * sum(others))  # images need no gradient
    assert step["macs"] == both["macs"]
    for row in workload["dense"]:
        assert len(row["turns"]["minicst"]) == 2
        assert row["seconds"]["minicst"] == pytest.approx(sum(row["turns"]["minicst"]) / 2)
        rate = row["macs"] / row["seconds"]["minicst"] / 1e9
        assert row["gmacs"] == pytest.approx(rate)


def test_share_of_the_floor_is_the_rate_over_the_peak(results, workload):
    peak = results["peak"]["gmacs"]
    assert peak == max(results["peak"]["each_gmacs"]) > 0
    assert len(results["peak"]["each_gmacs"]) == 2  # before and after
    for row in workload["dense"]:
        floor = row["macs"] / (peak * 1e9)
        assert row["of_peak"] == pytest.approx(floor / row["seconds"]["minicst"])


def test_of_peak_is_added_wherever_there_is_a_rate():
    data = {"a": [{"gmacs": 5.0}, {"b": {"gmacs": 20.0}}], "c": 1}
    add_of_peak(data, 10.0)
    assert data == {
        "a": [{"gmacs": 5.0, "of_peak": 0.5}, {"b": {"gmacs": 20.0, "of_peak": 2.0}}],
        "c": 1,
    }


def test_steps_are_timed_by_phase_and_count_what_they_executed(workload):
    first, *others = vgg_tiny_layers()
    steps = workload["steps"]
    assert steps["dense"]["macs"] == 4 * (2 * first + 3 * sum(others))
    for row in steps["rows"]:
        phases = row["phases"]
        assert {"sample", "cut", "forward_a", "forward_b", "backward", "paste"} <= set(phases)
        multiplied = ("forward_a", "forward_b", "backward")
        assert all(phases[name]["macs"] > 0 for name in multiplied)
        assert "macs" not in phases["cut"]
        # Medians of two steps are means, and sums of means are means of sums.
        assert sum(phases[name]["macs"] for name in multiplied) == pytest.approx(row["macs"])
        executed = phases["forward_a"]["macs"] + phases["forward_b"]["macs"]
        dense = 2 * 4 * (first + sum(others))
        assert row["executed_share"] == pytest.approx(executed / dense)
        assert row["saving_paper_formula"] == pytest.approx(3 / (4 * row["executed_share"]))
        assert row["saving_macs"] == pytest.approx(steps["dense"]["macs"] / row["macs"])
        assert 0 < row["structure_share"] < 1
        assert row["saving"] > 0
        assert row["saving_paper"] is None  # the paper has no such network
        assert row["authors"] == {}


def test_cut_networks_are_as_small_as_their_share(workload):
    for row in workload["cut"]:
        static, changing = row["static"], row["changing"]
        assert static[0]["macs"] < static[1]["macs"]
        dense = count_macs(build("vgg-tiny"), (32, 32, 3)).macs * 4
        assert row["executed_share"] == static[0]["macs"] / dense
        assert [r["what"] for r in changing] == ["forward", "forward_backward"]
        assert all(len(r["turns"]["minicst"]) == 2 for r in changing)
    large, small = workload["cut"]
    assert large["keep_rate"] > small["keep_rate"]
    assert large["executed_share"] > small["executed_share"]


def test_results_are_json_and_name_no_path(results):
    text = json.dumps(results)
    assert json.loads(text) == results
    assert sys.executable not in text
    assert results["machine"]["cpu"]
    assert results["machine"]["blas"]
    assert results["peers"] == {"PyTorch": None, "JAX": None}


def test_tables_fit_100_columns_and_cut_nothing(results, capsys):
    print_bench(Console(file=sys.stdout, width=100), results)
    out = capsys.readouterr().out
    assert "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    for text in ("+ backward", "of peak", "formula", "peak memory", "forward b", "rest", "30.00%"):
        assert text in out


def test_tables_of_peers(results, capsys):
    """With every peer the widest table still fits 100 columns."""
    data = json.loads(json.dumps(results))
    labels = ("pytorch-nchw", "pytorch-channels-last", "jax")
    rows = [*data["workloads"][0]["dense"]]
    for cut in data["workloads"][0]["cut"]:
        rows += [*cut["static"], *cut["changing"]]
    for row in rows:
        row["seconds"] |= dict.fromkeys(labels, 1.234)
        row["over"] = dict.fromkeys(labels, 0.567)
    for row in data["workloads"][0]["steps"]["rows"]:
        row["authors"] = {label: {"seconds": 2.0, "over": 12.34} for label in labels[:2]}
    print_bench(Console(file=sys.stdout, width=100), data)
    out = capsys.readouterr().out
    assert "1234 ms 0.57x" in out
    assert "2000 ms 12.3x" in out
    assert "…" not in out


def test_only_what_is_asked_for_is_measured():
    settings = BenchSettings(("vgg-tiny",), batch_size=2, pairs=1, only=("memory",), shares=())
    (workload,) = run_bench(settings, lambda text: None)["workloads"]
    assert set(workload) == {"network", "label", "width", "batch_size", "memory"}


def test_a_bench_beside_pytorch(torch_python):
    settings = BenchSettings(
        ("vgg-tiny",),
        batch_size=4,
        shares=(20.0,),
        pairs=1,
        only=("dense", "authors", "cut"),
        peers=("pytorch-nchw", "pytorch-channels-last"),
        torch_python=torch_python,
    )
    results = run_bench(settings, lambda text: None)
    labels = {"pytorch-nchw", "pytorch-channels-last"}
    assert results["peers"]["PyTorch"].startswith("PyTorch ")
    assert results["left_out"] == []
    (workload,) = results["workloads"]
    for row in workload["dense"]:
        assert set(row["over"]) == labels
        (own,) = row["turns"]["minicst"]
        assert row["over"]["pytorch-nchw"] == own / row["seconds"]["pytorch-nchw"]
    (row,) = workload["steps"]["rows"]
    assert set(row["authors"]) == labels
    for found in row["authors"].values():
        assert found["over"] == pytest.approx(found["seconds"] / row["seconds"])
    (cut,) = workload["cut"]
    for kind in ("static", "changing"):
        assert all(set(r["over"]) == labels for r in cut[kind])


def test_a_busy_machine_is_said(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.7, 1.0, 1.0), raising=False)
    said = []
    settings = BenchSettings(
        networks=("vgg-tiny",), batch_size=2, pairs=1, only=("dense",), peers=()
    )
    results = run_bench(settings, said.append)
    assert any("load 1.7" in line for line in said)
    print_bench(Console(file=sys.stdout, width=100), results)
    assert "not a quiet machine" in capsys.readouterr().out
