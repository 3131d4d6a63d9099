"""`minicst macs`: the schema, sums over layers, limits; totals are in test_commands.py."""

import json

import pytest

from minicst.cli import main

LAYER = {
    *("name", "kind", "c_in", "c_out", "out", "params", "macs"),
    *("c_in_sampled", "c_out_sampled", "macs_sampled"),
}


def counted(capsys, *arguments):
    assert main(["macs", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("network", ["mlp", "vgg-tiny", "vgg11", "resnet20"])
def test_schema_and_sums(network, capsys):
    counts = counted(capsys, network)
    required = {"network", "params", "channels", "macs", "macs_expected", "macs_sampled", "layers"}
    assert required <= set(counts)
    assert counts["network"] == network
    assert counts["flops"] == 2 * counts["macs"]
    assert "1 MAC" in counts["convention"]
    for layer in counts["layers"]:
        assert set(layer) == LAYER
        assert 0 < layer["macs_sampled"] <= layer["macs"]
        assert 0 < layer["c_in_sampled"] <= layer["c_in"]
        assert 0 < layer["c_out_sampled"] <= layer["c_out"]
    for total in ("macs", "macs_sampled"):
        assert sum(layer[total] for layer in counts["layers"]) == counts[total]
    assert 0 < counts["channels_sampled"] < counts["channels"]
    assert counts["params_sampled"] < counts["params"]
    assert counts["activation_bytes_sampled"] < counts["activation_bytes"]


def test_first_layers_by_hand(capsys):
    first, second, *_ = counted(capsys, "vgg16")["layers"]
    assert (first["c_in"], first["c_out"], first["out"]) == (3, 64, [32, 32])
    assert first["macs"] == 32 * 32 * 9 * 3 * 64
    assert second["macs"] == 32 * 32 * 9 * 64 * 64


@pytest.mark.parametrize("network", ["vgg-small", "resnet20"])
def test_at_keep_rate_1_nothing_is_saved(network, capsys):
    counts = counted(capsys, network, "--keep-rate", "1")
    assert counts["macs_sampled"] == counts["macs"]
    assert counts["macs_expected"] == pytest.approx(counts["macs"], rel=1e-12)
    assert counts["params_sampled"] == counts["params"]
    assert counts["channels_sampled"] == counts["channels"]


def test_expected_by_hand_on_a_chain(capsys):
    # Image and classes stay whole; between two masked layers a product needs both channels.
    counts = counted(capsys, "vgg16", "--keep-rate", ".3")
    first, *inner, last = counts["layers"]
    expected = 0.3 * first["macs"] + 0.3 * last["macs"]
    expected += 0.09 * sum(layer["macs"] for layer in inner)
    assert counts["macs_expected"] == pytest.approx(expected, rel=1e-12)


def test_the_seed_draws_the_mask(capsys):
    by_seed = [counted(capsys, "vgg11", "--seed", seed) for seed in ("0", "0", "1")]
    assert by_seed[0] == by_seed[1]
    assert by_seed[0]["macs_sampled"] != by_seed[2]["macs_sampled"]
    assert by_seed[0]["macs_expected"] == by_seed[2]["macs_expected"]


def test_input_sets_the_images(capsys):
    small, large = (counted(capsys, "resnet20", "--input", size) for size in ("3x32x32", "3X64x32"))
    assert large["input"] == [3, 64, 32]
    assert large["params"] == small["params"]
    convolutions = [
        sum(layer["macs"] for layer in counts["layers"] if layer["out"])
        for counts in (small, large)
    ]
    assert convolutions[1] == 2 * convolutions[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("vgg16 --input 0x32x32", "0x32x32"),
        ("vgg16 --input 3x32", "3x32"),
        ("vgg19 --input 3x8x8", "8x8"),
        ("mlp --input 1x8x9", "1x8x9"),
        ("vgg16 --num-classes 0", "num_classes=0"),
        ("vgg16 --width -1", "width=-1.0"),
        ("vgg16 --keep-rate nan", "nan"),
        ("vgg16 --seed -1", "-1"),
        ("x[a]y", "'x[a]y'"),
    ],
)
def test_impossible_arguments_are_one_line(arguments, name, capsys):
    assert main(["macs", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minicst: error: ")
    assert captured.err.count("\n") == 1
    assert name in captured.err
