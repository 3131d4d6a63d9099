import json
import sys

import pytest
from rich.console import Console

from minicst.bench import BenchSettings, print_bench, run_bench
from minicst.models import build
from minicst.sparse import count_macs


@pytest.fixture(scope="module")
def results():
    settings = BenchSettings(network="vgg-tiny", batch_size=4, keep_rates=(0.5,), pairs=1)
    return run_bench(settings, lambda text: None)


def test_run_bench_counts_the_work_of_each_pass(results):
    macs = count_macs(build("vgg-tiny"), (32, 32, 3))
    forward, both = results["dense"]
    assert forward["macs"] == 4 * macs.macs
    first = macs.layers[0].macs  # the images need no gradient
    assert both["macs"] == 4 * (3 * macs.macs - first)


def test_run_bench_times_algorithm_1_beside_the_dense_step(results):
    (row,) = results["steps"]
    assert row["seconds"]["dense"] > 0
    assert row["seconds"]["sparse"] > 0
    assert 0 < row["macs_ratio"] < 1
    assert row["saving_paper_formula"] == pytest.approx(0.75 / row["macs_ratio"])
    assert {"cut", "forward_a", "forward_b", "backward", "paste"} <= set(row["phases"])


def test_results_are_json_and_a_table(results, capsys):
    json.dumps(results)
    print_bench(Console(file=sys.stdout, width=120), results)
    out = capsys.readouterr().out
    assert "forward + backward" in out
    assert "paper's formula" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [({"network": "resnet20"}, "resnet20"), ({"pairs": 0}, "pairs"), ({"batch_size": 1}, "batch")],
)
def test_impossible_settings(options, message):
    with pytest.raises(ValueError, match=message):
        run_bench(BenchSettings(**options), lambda text: None)


def test_a_peer_that_has_no_pytorch_is_left_out(tmp_path):
    said = []
    no_torch = tmp_path / "python"
    no_torch.write_text("#!/bin/sh\nexit 1\n")
    no_torch.chmod(0o755)
    settings = BenchSettings("vgg-tiny", 4, (), 1, torch_python=str(no_torch))
    results = run_bench(settings, said.append)
    assert results["pytorch"] is None
    assert any("no PyTorch" in text for text in said)
