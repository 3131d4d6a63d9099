"""`minicst step`: what it saves and prints, against each other and against counts by hand."""

import json

import numpy as np
import pytest

from minicst.cli import main
from minicst.sparse import project_capped_simplex

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
