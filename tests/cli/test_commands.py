import json
from dataclasses import fields

import numpy as np
import pytest

from minicst.cli import main
from minicst.settings import TrainSettings

SMALL = ["--data", "digits", "--network", "vgg-tiny", "--width", ".25", "--batch-size", "256"]


def printed(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "params", "macs", "channels"),
    [
        (["vgg16"], 14_724_042, 313_201_664, 4_224),
        (["vgg19"], 20_035_018, 398_136_320, 5_504),
        (["vgg19", "--num-classes", "100"], 20_081_188, 398_182_400, 5_504),
        (["resnet20", "--shortcut", "A"], 269_722, 40_551_040, 448),
        (["resnet20"], 272_474, 40_813_184, 448),
        (["resnet20", "--residual", "independent"], 272_474, 40_813_184, 784),
        (["resnet32", "--width", "2"], 1_860_522, 275_612_928, 1_344),
        (["resnet56", "--shortcut", "A"], 853_018, 125_485_696, 1_120),
    ],
)
def test_macs_json(arguments, params, macs, channels, capsys):
    counts = json.loads(printed(capsys, "macs", *arguments, "--json"))
    assert (counts["params"], counts["macs"], counts["channels"]) == (params, macs, channels)
    assert counts["network"] == arguments[0]
    assert sum(layer["macs"] for layer in counts["layers"]) == macs
    assert sum(layer["macs_sampled"] for layer in counts["layers"]) == counts["macs_sampled"]
    assert 0.2 * macs < counts["macs_expected"] < 0.3 * macs or "independent" in arguments


def test_macs_table_says_the_convention(capsys):
    out = printed(capsys, "macs", "vgg-small")
    assert "One multiply-add = 1 MAC" in out
    assert "FLOPs = 2 x MACs" in out
    assert "4,290,688" in out


@pytest.mark.parametrize("estimator", ["vr-pge", "vr-pge-symmetric", "pge"])
def test_step_can_be_recomputed_from_what_it_saves(estimator, capsys, tmp_path):
    options = ["step", "--estimator", estimator, "--alpha", ".75", "--keep-prob-lr", ".05"]
    path = tmp_path / "step.npz"
    step = json.loads(printed(capsys, *options, "--json", "--save", str(path)))
    with np.load(path) as saved:
        arrays = dict(saved)
    s, m = arrays["keep_prob_before"], arrays["mask_drawn_a"].astype(float)
    variance = s * (1 - s)
    np.testing.assert_allclose(arrays["score"], (m - s) / variance)
    np.testing.assert_allclose(arrays["preconditioner"], variance**0.75)
    weight = arrays["loss_a"] - arrays.get("loss_b", 0.0)
    centered = m - s
    if estimator == "vr-pge-symmetric":
        centered = (m - arrays["mask_drawn_b"]) / 2
    gradient = weight * centered / variance * variance**0.75
    np.testing.assert_allclose(arrays["gradient"], gradient)
    np.testing.assert_allclose(arrays["z"], s - 0.05 * gradient)
    expected = np.clip(arrays["z"] - arrays["multiplier"], 0, 1)
    np.testing.assert_allclose(arrays["keep_prob"], expected, atol=1e-12)
    assert arrays["keep_prob"].sum() <= step["budget"] + 1e-9
    assert ("mask_drawn_b" in arrays) == (estimator != "pge")
    assert step["multiplier"] == arrays["multiplier"]
    drawn = [bit for group in step["groups"].values() for bit in group["mask_drawn_a"]]
    assert drawn == arrays["mask_drawn_a"].astype(int).tolist()
    total = sum(
        count
        for layers in step["macs"].values()
        for passes in layers.values()
        for count in passes.values()
    )
    assert total == step["macs_executed_total"]
    assert {"sample", "cut", "forward_a", "backward", "structure", "paste"} <= set(step["seconds"])


def test_step_table_shows_every_quantity(capsys):
    out = printed(capsys, "step")
    for word in ("score", "H^alpha", "gradient", "new s", "multiplier", "L(m')", "forward b"):
        assert word in out
    for word in ("weight grad", "input grad", "dense pass", "milliseconds by phase", "a:"):
        assert word in out


def test_info(capsys):
    info = json.loads(printed(capsys, "info", "--json"))
    assert info["versions"]["numpy"] == np.__version__
    assert info["cuda"]
    assert "can't be used" in printed(capsys, "info")


def test_train_leaves_a_run_folder_and_a_table(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = printed(capsys, "train", *SMALL, "--epochs", "2", "--out", "run", "--controls")
    assert out.count("epoch ") >= 2
    for words in ("10 sampled masks", "top-K", "paper's formula", "as metered", "parameters left"):
        assert words in out
    assert "control: fixed-mask" in out
    assert "control: narrow" in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("settings.json", "metrics.jsonl", "checkpoint.npz"),
        *("network.npz", "summary.json", "curves.png"),
    }
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]
    assert "finished already" in printed(capsys, "train", "--resume", "run")


def test_default_folder_is_always_new(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        printed(capsys, "train", *SMALL, "--epochs", "1", "--dense-probes", "0")
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_explicit_options_win_over_the_preset(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = str(TrainSettings().keep_prob_lr)
    options = ["--epochs", "1", "--dense-probes", "0", "--out", "run", "--keep-prob-lr", plain]
    printed(capsys, "train", *SMALL, "--preset", "released-code", *options)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["keep_prob_lr"] == TrainSettings().keep_prob_lr
    assert settings["backward_masks"] == 2
    assert settings["final_mask"] == "best-of-10"
    assert settings["clip_norm"] == 3.0


def test_help_shows_every_setting_with_words(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for field in fields(TrainSettings):
        assert "--" + field.name.replace("_", "-") in out
