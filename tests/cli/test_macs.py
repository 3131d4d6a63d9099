"""`minicst macs`: the schema, sums over layers, limits; totals are in test_commands.py."""

import json

import numpy as np
import pytest
from rich.console import Console

from minicst.cli import main
from minicst.counts import MacsSettings, count, parse_share, print_counts
from minicst.models import build

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


# Images, classes and counts of a network's published numbers are the defaults; the other networks'
# are in test_commands.py.
@pytest.mark.parametrize(
    ("arguments", "image", "classes", "params", "macs", "channels"),
    [
        ("wrn-28-10", [3, 32, 32], 10, 36_479_194, 5_243_328_768, 5616),
        ("wrn-28-10 --residual independent", [3, 32, 32], 10, 36_479_194, 5_243_328_768, 10_096),
        ("resnet50", [3, 224, 224], 1000, 25_557_032, 4_089_184_256, 11_456),
        ("resnet50 --residual independent", [3, 224, 224], 1000, 25_557_032, 4_089_184_256, 26_560),
        ("mobilenetv1", [3, 224, 224], 1000, 4_231_976, 568_740_352, 5984),
        ("resnet32", [3, 32, 32], 10, 466_906, 69_124_736, 672),
        ("resnet32 --width 2 --residual independent", [3, 32, 32], 10, 1_860_522, 275_612_928,
         2464),
        ("resnet56 --shortcut B", [3, 32, 32], 10, 855_770, 125_747_840, 1120),
    ],
)  # fmt: skip
def test_published_counts_by_default(arguments, image, classes, params, macs, channels, capsys):
    counts = counted(capsys, *arguments.split())
    found = [counts[key] for key in ("input", "num_classes", "params", "macs", "channels")]
    assert found == [image, classes, params, macs, channels]
    assert sum(layer["params"] for layer in counts["layers"]) == params
    assert sum(layer["macs"] for layer in counts["layers"]) == macs
    norms = [layer for layer in counts["layers"] if layer["kind"] == "norm"]
    assert all(layer["macs"] == 0 for layer in norms)
    assert len(norms) == (13 if arguments.startswith("wrn") else 0)


def test_classes_and_images_that_are_given_win(capsys):
    options = ("--num-classes", "10", "--input", "1x64x96")
    counts = counted(capsys, "mobilenetv1", "--width", ".25", *options)
    assert (counts["num_classes"], counts["input"]) == (10, [1, 64, 96])
    assert counts["layers"][-1]["c_out"] == 10
    assert counts["layers"][0]["c_in"] == 1
    assert counts["layers"][0]["out"] == [32, 48]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        *(("8.7%", 0.087), (".087", 0.087), ("0.087", 0.087), ("100%", 1.0), ("1", 1.0)),
        *(("8.7 %", 0.087), ("1e-3", 0.001), ("1.56%", 0.0156), ("0.01%", 1e-4)),
    ],
)
def test_shares(text, share):
    assert parse_share(text, "--keep-macs") == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "nan", "nan%", "inf", "8,7%", "870%", "8.7", "100.1%", "0%", "%", "", "x", "-5%",
     "%5", "5%5"],
)  # fmt: skip
def test_shares_that_are_none(text):
    with pytest.raises(ValueError, match=r"--keep-params .*a share in \(0, 1\] is needed") as error:
        parse_share(text, "--keep-params")
    assert f"--keep-params {text}:" in str(error.value)
    assert "8.7% or 0.087" in str(error.value)


@pytest.mark.parametrize(("option", "what"), [("--keep-macs", "macs"), ("--keep-params", "params")])
def test_the_keep_rate_of_a_share(option, what, capsys):
    counts = counted(capsys, "resnet20", option, "25%", "--keep-rate", ".9")
    assert counts[f"{what}_expected"] / counts[what] == pytest.approx(0.25, rel=1e-9)
    assert 0.25 < counts["keep_rate"] < 0.9
    again = counted(capsys, "resnet20", "--keep-rate", repr(counts["keep_rate"]))
    assert again == counts
    # By hand: tied ResNets fall as rho^2, but for stem and classifier.
    if what == "macs":
        first, *inner, last = (layer["macs"] for layer in counts["layers"])
        rho = counts["keep_rate"]
        expected = rho * (first + last) + rho**2 * sum(inner)
        assert expected == pytest.approx(0.25 * counts["macs"], rel=1e-9)


def test_a_share_of_one_is_dense(capsys):
    counts = counted(capsys, "resnet20", "--keep-macs", "100%")
    assert counts["keep_rate"] == 1.0
    assert counts["macs_sampled"] == counts["macs"]


@pytest.mark.parametrize(
    ("network", "options"),
    [("wrn-28-10", {}), ("resnet50", {"residual": "independent"}), ("mobilenetv1", {})],
)
@pytest.mark.parametrize("width", [80, 120])
def test_tables_of_large_networks_are_not_cut(network, options, width):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        print_counts(console, count(MacsSettings(network, keep_macs="7.9%", **options)))
    out = capture.get()
    assert "…" not in out
    assert "7.90% of dense" in out
    for number in {"wrn-28-10": ("36,479,194", "5,243,328,768"), "mobilenetv1": ("568,740,352",),
                   "resnet50": ("25,557,032", "4,089,184,256")}[network]:  # fmt: skip
        assert number in out
    assert max(len(line) for line in out.splitlines()) <= width
    # Every layer on one line; at 80 columns, what the sampled mask leaves stands below.
    starts = [line.split()[0] for line in out.splitlines() if line.strip()]
    for name in build(network, width=0.1).units():
        assert starts.count(name) == (2 if width == 80 else 1), name


def test_expected_parameters_by_hand_on_a_chain(capsys):
    counts = counted(capsys, "vgg16", "--keep-rate", ".3")
    first, *inner, last = counts["layers"]
    norms = 2 * np.array([layer["c_out"] for layer in (first, *inner)])
    weights = np.array([layer["params"] for layer in (first, *inner)]) - norms
    expected = 0.3 * weights[0] + 0.09 * weights[1:].sum() + 0.3 * norms.sum()
    expected += 0.3 * (last["params"] - 10) + 10
    assert counts["params_expected"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("vgg16 --keep-macs 870%", "--keep-macs 870%"),
        ("vgg16 --keep-macs 0", "--keep-macs 0"),
        ("vgg16 --keep-params nan", "--keep-params nan"),
        ("vgg16 --keep-macs 8,7%", "--keep-macs 8,7%"),
        ("vgg16 --keep-macs 10% --keep-params 10%", "--keep-macs and --keep-params both"),
        ("resnet20 --num-classes 1", "num_classes=1"),
        ("vgg16 --shortcut A", "vgg16 can't pad its shortcuts"),
        ("wrn-28-10 --shortcut A", "wrn-28-10 can't pad its shortcuts"),
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
