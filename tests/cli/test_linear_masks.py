"""`--linear-masks weights`: train, resume, macs, and what can't be combined with it."""

import json

import numpy as np
import pytest

from minicst.checkpoint import load
from minicst.cli import main
from minicst.job import plant, prepare
from minicst.methods.base import Hyper, Plan
from minicst.methods.chain_rule import gated
from minicst.methods.dense import FixedMask
from minicst.models import build
from minicst.settings import TrainSettings
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_macs
from minicst.variance.report import entries

MLP = ["--network", "mlp", "--data", "digits", "--linear-masks", "weights", "--batch-size", "256"]


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_end_to_end(capsys):
    arguments = ["--epochs", "2", "--keep-rate", ".2", "--controls", "--out", "run"]
    assert main(["train", *MLP, *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "8832 maskable weights" in out
    with open("run/summary.json") as file:
        summary = json.load(file)
    # Two hidden layers of 64 and ten classes on 64 pixels.
    assert summary["macs_dense"] == 64 * 64 + 64 * 64 + 640
    assert 0.05 < summary["macs"] / summary["macs_dense"] < 0.22  # idle weights don't count
    network = load("run/network.npz")
    assert network.maskable == "weights"
    assert count_macs(network, (8, 8, 1)).macs == summary["macs"]
    assert network.n_maskable == summary["macs"]
    for control in summary["controls"].values():
        assert control["macs"] == pytest.approx(summary["macs"], rel=0.1)


def test_macs_counts_weights(capsys):
    assert main(["macs", "mlp", "--linear-masks", "weights", "--keep-macs", "10%", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["maskable"] == "weights"
    assert counts["channels"] == counts["macs"] == 784 * 64 + 64 * 64 + 640
    assert counts["macs_expected"] == pytest.approx(0.1 * counts["macs"], rel=1e-9)
    assert 0.1 < counts["keep_rate"] < 0.12  # a little more: idle weights cost nothing
    assert {layer["kind"] for layer in counts["layers"]} == {"linear, by weight"}
    assert main(["macs", "vgg16", "--linear-masks", "weights"]) == 0
    assert "maskable channels and weights" in capsys.readouterr().out
    assert main(["macs", "mlp"]) == 0
    assert "maskable channels " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--method ste", ["--linear-masks weights", "ste", "completely-sparse"]),
        ("--method gumbel", ["--linear-masks weights", "gumbel"]),
        ("--planted", ["--linear-masks weights", "--planted"]),
        ("--keep-rate .0002", ["8832 weights", "3 groups of mlp"]),
        ("--keep-rate 2", ["share of weights", "(0, 1]"]),
    ],
)
def test_what_cannot_be_combined(arguments, names, capsys):
    assert main(["train", *MLP, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    for name in names:
        assert name in error


def test_the_variance_report_names_the_entries():
    assert entries({"maskable": "weights"}) == ("a weight", "weights")
    assert entries({"maskable": "channels and weights"}) == ("an entry", "channels and weights")
    assert entries({}) == entries({"maskable": "channels"}) == ("a channel", "channels")


def test_from_python_too():
    network = build("mlp", image_size=4, in_channels=1, linear_masks="weights")
    with pytest.raises(ValueError, match="masked weight by weight, and the chain-rule methods"):
        gated(network, np.ones(network.n_maskable))
    with pytest.raises(ValueError, match="'classifier' is masked weight by weight: planted"):
        plant(network, 0)


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_fixed_mask_comes_close_to_its_target(rate):
    """MACs of weights rise with the rate, not with its square."""
    network = build("mlp", image_size=8, in_channels=1, linear_masks="weights")
    plan = Plan(10, 10, 16, (8, 8, 1))
    method = FixedMask(network, Hyper(keep_rate=rate), plan)
    target = expected_macs(network, (8, 8, 1), np.full(network.n_maskable, rate))
    assert count_macs(method.network, (8, 8, 1)).macs == pytest.approx(target, rel=0.02)


def test_filter_position_trains():
    settings = TrainSettings(
        network="mlp", data="digits", linear_masks="weights", mask_position="filter", epochs=1
    )
    job = prepare(settings)
    trace = job.method.train_step(next(iter(job.loader.epoch(0))))
    forward = 64 * count_macs(job.full_network, (8, 8, 1)).macs
    assert trace.executed_macs == trace.dense_macs + forward  # everything runs dense, twice forward
