"""`minicst step`: what it saves and prints, against each other and against counts by hand."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from minicst import inspect_step
from minicst.cli import main
from minicst.inspect_step import StepSettings
from minicst.models import build
from minicst.settings import TrainSettings
from minicst.sparse import project_capped_simplex
from minicst.sparse.expected import expected_counts

BASE = ["step", "--network", "vgg-tiny", "--data", "digits", "--batch-size", "16"]


def stepped(capsys, tmp_path, *options):
    path = tmp_path / "step.npz"
    assert main([*BASE, *options, "--json", "--save", str(path)]) == 0
    with np.load(path, allow_pickle=False) as saved:
        return json.loads(capsys.readouterr().out), dict(saved)


PAIR = {"mask_drawn_b", "mask_used_b", "loss_b"}
SINGLE = {
    *("keep_prob_before", "mask_drawn_a", "mask_used_a", "score", "preconditioner", "gradient"),
    *("z", "keep_prob", "loss_a", "multiplier"),
}


@pytest.mark.parametrize("estimator", ["vr-pge", "vr-pge-symmetric", "pge", "coin"])
def test_saved_names_and_schema(estimator, capsys, tmp_path):
    step, arrays = stepped(capsys, tmp_path, "--estimator", estimator)
    assert set(arrays) == (SINGLE if estimator == "pge" else SINGLE | PAIR)
    assert {
        *("network", "data", "step", "estimator", "precondition_power", "keep_rate", "budget"),
        *("loss_a", "loss_b", "repaired", "multiplier", "keep_prob_sum", "groups", "macs"),
        *("macs_dense", "macs_executed_total", "macs_dense_total", "seconds"),
    } <= set(step)
    assert step["estimator"] == estimator
    assert (step["loss_b"] is None) == (estimator == "pge")
    assert ("forward_b" in step["macs"]) == (estimator != "pge")
    for name in set(arrays) - {"loss_a", "loss_b", "multiplier"}:
        joined = [value for group in step["groups"].values() for value in group[name]]
        np.testing.assert_array_equal(joined, arrays[name], err_msg=name)
    for group in step["groups"].values():
        assert group["live_a"] == sum(group["mask_used_a"]) >= 1


@pytest.mark.parametrize("after", ["0", "3"])
def test_algorithm_1_line_by_line(after, capsys, tmp_path):
    step, arrays = stepped(
        capsys, tmp_path, "--after", after, "--keep-prob-lr", ".3", "--keep-rate", ".4"
    )
    assert step["step"] == int(after)
    s, m = arrays["keep_prob_before"], arrays["mask_drawn_a"].astype(float)
    # After some steps entries of s may be 0 or 1: m = s there, and the gradient is 0.
    inner = (s > 0) & (s < 1)
    assert inner.any()
    variance = (s * (1 - s))[inner]
    gradient = np.zeros_like(s)
    difference = arrays["loss_a"] - arrays["loss_b"]
    gradient[inner] = difference * ((m - s)[inner] / variance) * variance**0.5
    np.testing.assert_allclose(arrays["gradient"], gradient, rtol=1e-10)
    np.testing.assert_allclose(arrays["z"], s - 0.3 * gradient, rtol=1e-12)
    new, multiplier = project_capped_simplex(arrays["z"], step["budget"])
    np.testing.assert_array_equal(arrays["keep_prob"], new)
    assert arrays["multiplier"] == multiplier >= 0
    np.testing.assert_allclose(new, np.clip(arrays["z"] - multiplier, 0, 1), atol=1e-12)
    assert new.sum() <= step["budget"] * (1 + 1e-12)
    assert step["budget"] == pytest.approx(0.4 * s.size)
    if after == "0":
        np.testing.assert_allclose(s, 0.4)


def test_pge_has_the_loss_itself_as_weight(capsys, tmp_path):
    _, arrays = stepped(capsys, tmp_path, "--estimator", "pge", "--alpha", "0")
    np.testing.assert_allclose(arrays["gradient"], arrays["loss_a"] * arrays["score"])
    np.testing.assert_array_equal(arrays["preconditioner"], np.ones(20))


def test_coin_has_the_step_sizes_of_vr_pge(capsys, tmp_path):
    _, arrays = stepped(capsys, tmp_path, "--estimator", "coin")
    size = abs(arrays["loss_a"] - arrays["loss_b"]) * arrays["score"] * arrays["preconditioner"]
    ratio = arrays["gradient"] / size
    np.testing.assert_allclose(ratio, np.full(20, ratio[0]))
    assert abs(ratio[0]) == pytest.approx(1.0)


def test_macs_by_layer_are_those_of_the_live_channels(capsys, tmp_path):
    step, _ = stepped(capsys, tmp_path)
    assert main(["macs", "vgg-tiny", "--width", ".25", "--input", "1x8x8", "--json"]) == 0
    dense = json.loads(capsys.readouterr().out)
    groups = list(step["groups"].values())
    for layer in dense["layers"]:
        assert step["macs_dense"][layer["name"]]["forward"] == 16 * layer["macs"]
    for which in "ab":
        live = [group[f"live_{which}"] for group in groups]
        c_ins, c_outs = [1, *live], [*live, 10]
        for layer, c_in, c_out in zip(dense["layers"], c_ins, c_outs, strict=True):
            executed = step["macs"][f"forward_{which}"][layer["name"]]["forward"]
            whole = layer["c_in"] * layer["c_out"]
            assert executed * whole == 16 * layer["macs"] * c_in * c_out
    first = dense["layers"][0]["name"]
    for layer, passes in step["macs"]["backward"].items():
        forward = step["macs"]["forward_a"][layer]["forward"]
        assert passes["weight_gradient"] == forward
        assert passes.get("input_gradient", 0) == (0 if layer == first else forward)
    whole = sum(sum(passes.values()) for passes in step["macs_dense"].values())
    assert step["macs_dense_total"] == whole
    assert step["macs_executed_total"] < whole


def test_the_same_seed_is_the_same_step(capsys, tmp_path):
    first, second, other = (
        stepped(capsys, tmp_path, "--seed", seed, "--threads", threads)[1]
        for seed, threads in (("1", "1"), ("1", "2"), ("2", "1"))
    )
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name)
    assert not np.array_equal(other["gradient"], first["gradient"])


def test_a_file_that_cannot_be_written_is_one_line(capsys, tmp_path):
    assert main([*BASE, "--save", str(tmp_path / "no" / "step.npz")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    assert "step.npz" in error


@pytest.mark.parametrize(("option", "which"), [("--keep-params", 0), ("--keep-macs", 1)])
def test_the_keep_rate_of_a_share(option, which, capsys, tmp_path):
    step, arrays = stepped(capsys, tmp_path, option, "20%", "--width", ".5")
    network = build("vgg-tiny", 10, 1, width=0.5)
    s = arrays["keep_prob_before"]
    found = expected_counts(network, (8, 8, 1), s)[which]
    dense = expected_counts(network, (8, 8, 1), np.ones_like(s))[which]
    assert found == pytest.approx(0.2 * dense, rel=1e-9)
    assert step["keep_rate"] == s[0] == pytest.approx(step["budget"] / s.size)


def test_the_moving_average_decays_as_asked(capsys, tmp_path):
    """With decay 0 the baseline is the loss of the step before."""
    options = ["--estimator", "pge-moving-average", "--baseline-decay", "0"]
    before, _ = stepped(capsys, tmp_path, *options, "--after", "1")
    step, _ = stepped(capsys, tmp_path, *options, "--after", "2")
    assert step["baseline"] == pytest.approx(before["loss_a"], rel=1e-6)
    slow, _ = stepped(capsys, tmp_path, *options[:2], "--after", "2")
    assert slow["baseline"] != pytest.approx(before["loss_a"], rel=1e-6)


def test_every_option_that_train_has_too_reaches_the_training(monkeypatch):
    """The values are nobody's default."""
    values = {
        **{"network": "resnet20", "data": "folder", "data_dir": Path("here"), "verify": False},
        **{"limit": 500, "image_size": 48, "width": 0.75, "keep_rate": 0.3, "keep_macs": "20%"},
        **{"keep_params": "30%", "residual": "independent", "shortcut": "A", "n_masks": 7},
        **{"estimator": "arm", "baseline_decay": 0.2, "precondition_power": 0.1, "seed": 9},
        **{"keep_prob_optimizer": "adam", "keep_prob_lr": 0.7, "batch_size": 11, "threads": 3},
    }
    shared = {f.name for f in fields(StepSettings)} & {f.name for f in fields(TrainSettings)}
    assert shared - {"debug"} == values.keys()

    def caught(settings):
        for name, value in values.items():
            assert getattr(settings, name) == value, name
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_step, "prepare", caught)
    settings = replace(StepSettings(), **values)
    assert not values.items() & asdict(StepSettings()).items()
    with pytest.raises(KeyboardInterrupt):
        inspect_step.run_step(settings)
