"""Recipes: the paper's numbers typed again from its tables, settings, origins, names."""

import json
from dataclasses import fields, replace
from functools import lru_cache

import numpy as np
import pytest

from minicst.counts import parse_share
from minicst.methods import METHODS
from minicst.models import ARCHITECTURES, build
from minicst.recipes import RECIPES, find_recipe
from minicst.settings import TrainSettings
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_counts, keep_rate_for

# Tables 2, 3 and 4, Sec. 5.5 and 5.2: accuracy, params %, FLOPs %, saving.
PRINTED = {
    "table2-vgg16-original": (92.9, 100, 100, 1),
    "table2-vgg16": (92.5, 4.4, 8.7, 8.69),
    "table2-resnet20-original": (91.3, 100, 100, 1),
    "table2-resnet20": (90.93, 35.1, 36.1, 2.09),
    "table2-wrn-28-10-original": (96.2, 100, 100, 1),
    "table2-wrn-28-10": (95.6, 8.4, 7.9, 9.39),
    "table3-resnet50-original": (77.0, 100, 100, 1),
    "table3-resnet50-46.8": (76.0, 48.2, 46.8, 1.60),
    "table3-resnet50-24.7": (73.5, 27.0, 24.7, 3.02),
    "table3-resnet50-10.1": (69.3, 10.8, 10.1, 7.36),
    "table4-vgg19-original": (93.84, 100, 100, 1),
    "table4-vgg19-28.57": (93.46, 23.71, 28.57, 2.64),
    "table4-vgg19-19.33": (93.11, 12.75, 19.33, 3.89),
    "table4-vgg19-10.27": (92.23, 6.69, 10.27, 7.30),
    "table4-vgg19-4.94": (90.82, 3.06, 4.94, 15.28),
    "table4-vgg19-1.70": (87.97, 0.80, 1.70, 44.68),
    "section5.5-vgg19-14.28": (92.73, 16.68, 14.28, 5.28),
    "figure2-resnet32-cifar100-1.56": (None, None, 1.56, 58.8),
}
# Figures 2 and 3 are curves: our points.
CURVES = {
    "figure2-vgg19-cifar10": ("vgg19", "cifar10"),
    "figure2-vgg19-cifar100": ("vgg19", "cifar100"),
    "figure2-resnet32-cifar10": ("resnet32", "cifar10"),
    "figure2-resnet32-cifar100": ("resnet32", "cifar100"),
    "figure3-mobilenetv1": ("mobilenetv1", "folder"),
}
RATES = ("0.75", "0.5", "0.375", "0.25", "0.1875", "0.125")

# App. B and Remark 5.
CIFAR = {
    "batch_size": 256,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "warmup": 0.0,
    "label_smoothing": 0.0,
}
IMAGENET = {
    "batch_size": 256,
    "optimizer": "sgd",
    "lr": 0.256,
    "momentum": 0.875,
    "label_smoothing": 0.1,
}
SPARSE = {
    "method": "completely-sparse",
    "preset": "paper",
    "estimator": "vr-pge",
    "keep_prob_optimizer": "adam",
    "keep_prob_lr": 12e-3,
    "keep_prob_floor": 0.0,
    "fine_tune": 0.0,
    "final_mask": "sample",
    "backward_masks": 1,
}


def expected_network(name):
    """Network and data set that a name stands for."""
    for start, (network, data) in CURVES.items():
        if name.startswith(f"{start}-"):
            return network, data
    network = name.split("-", 1)[1]
    for known in ("vgg16", "vgg19", "resnet20", "wrn-28-10", "resnet50"):
        if network.startswith(known):
            return known, "folder" if known == "resnet50" else "cifar10"
    raise AssertionError(name)


def settings_of(name, **changes):
    return TrainSettings.of_preset(None, name, **changes)


@lru_cache(maxsize=2)  # they are large
def network_of(network, classes, width, residual, shortcut):
    return build(network, classes, width=width, residual=residual, shortcut=shortcut)


def built(settings):
    classes = {"cifar10": 10, "cifar100": 100, "folder": 1000}[settings.data]
    network = network_of(
        *(settings.network, classes, settings.width, settings.residual, settings.shortcut)
    )
    side = settings.image_size if settings.data == "folder" else 32
    return network, (side, side, 3)


def test_every_row_and_point_has_its_name():
    grid = {f"{start}-rho-{rate}" for start in CURVES for rate in RATES}
    grid |= {f"{start}-original" for start in CURVES if start != "figure2-vgg19-cifar10"}
    assert set(RECIPES) == set(PRINTED) | grid
    assert all(RECIPES[name].name == name for name in RECIPES)
    assert {name for name, recipe in RECIPES.items() if recipe.ours} == grid
    # VGG-19 on CIFAR-10 dense is Table 4's.
    assert RECIPES["table4-vgg19-original"].settings["data"] == "cifar10"


@pytest.mark.parametrize("name", PRINTED)
def test_rows_as_printed(name):
    row = RECIPES[name].paper
    assert (row.accuracy, row.params, row.macs, row.saving) == PRINTED[name]
    settings = settings_of(name)
    if name.endswith("original"):
        assert settings.method == "dense"
        assert settings.keep_macs is settings.keep_params is None
        assert RECIPES[name].aim == "dense"
    else:
        assert parse_share(settings.keep_macs, "") == pytest.approx(row.macs / 100, rel=1e-12)
        assert RECIPES[name].aim == f"{row.printed['macs']}% MACs"
        assert settings.keep_macs == f"{row.printed['macs']}%"
        # C.1: 3 / (4 fS/fD), with the ratio's mean over training, prints about this number.
        if name != "figure2-resnet32-cifar100-1.56":
            assert row.saving == pytest.approx(75 / row.macs, rel=0.02)


# As the tables print them where a float would not: trailing zeros, "1x" in two and "1.00x" in one.
TEXTS = {
    "table2-vgg16-original": ("92.9", "100", "100", "1"),
    "table3-resnet50-original": ("77.0", "100", "100", "1"),
    "table3-resnet50-46.8": ("76.0", "48.2", "46.8", "1.60"),
    "table3-resnet50-24.7": ("73.5", "27.0", "24.7", "3.02"),
    "table4-vgg19-original": ("93.84", "100.00", "100.00", "1.00"),
    "table4-vgg19-10.27": ("92.23", "6.69", "10.27", "7.30"),
    "table4-vgg19-1.70": ("87.97", "0.80", "1.70", "44.68"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_numbers_have_the_digits_of_the_paper(name):
    row, keys = RECIPES[name].paper, ("accuracy", "params", "macs", "saving")
    numbers = {key: getattr(row, key) for key in keys}
    assert row.printed.keys() == {key for key in keys if numbers[key] is not None}
    assert all(float(text) == numbers[key] for key, text in row.printed.items())
    if name in TEXTS:
        assert tuple(row.printed.values()) == TEXTS[name]
    else:
        for key, text in row.printed.items():
            assert text == f"{numbers[key]:g}"


@pytest.mark.parametrize(
    ("name", "network", "share"),
    [
        ("table2-vgg16", "Table 2", "Table 2"),
        ("table3-resnet50-46.8", "Table 3", "Table 3"),
        ("table4-vgg19-1.70", "Table 4", "Table 4"),
        ("section5.5-vgg19-14.28", "Figure 3", "Sec. 5.5"),  # Figure 3's caption names it
        ("figure2-resnet32-cifar100-1.56", "Figure 2", "Sec. 5.2"),
        ("figure3-mobilenetv1-rho-0.25", "Figure 3", None),
    ],
)
def test_where_the_paper_says_so(name, network, share):
    origin = RECIPES[name].origin
    assert origin["network"] == origin["data"] == f"paper, {network}"
    if share is None:
        assert origin["keep_rate"] == "ours"
    else:
        assert origin["keep_macs"] == f"paper, {share}"
    assert origin["method"] == "paper, Algorithm 1"
    assert origin["preset"] == "paper, Algorithm 1; App. B"


def test_where_the_paper_says_nothing():
    strs = {"image_size", "warmup", "epochs", "schedule", "weight_decay", "augment"}
    for name in ("table3-resnet50-46.8", "figure3-mobilenetv1-rho-0.25"):
        origin = RECIPES[name].origin
        assert {key for key, text in origin.items() if text.startswith("STR")} == strs
    assert RECIPES["table3-resnet50-original"].origin["method"] == "paper, Table 3"
    assert RECIPES["figure3-mobilenetv1-original"].origin["method"] == "ours"


def test_the_keep_rate_of_figure_2s_number():
    """As the comment beside the recipe says."""
    for residual, rate in (("independent", 0.0874), ("tied", 0.1235)):
        network = network_of("resnet32", 100, 2.0, residual, "B")
        assert keep_rate_for(network, (32, 32, 3), 0.0156) == pytest.approx(rate, abs=5e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_settings_build_and_have_an_origin(name):
    recipe = RECIPES[name]
    assert set(recipe.origin) == set(recipe.settings)
    assert set(recipe.settings) <= {field.name for field in fields(TrainSettings)}
    assert all(origin for origin in recipe.origin.values())
    settings = settings_of(name)
    settings.check()
    assert settings.recipe == name
    for key, value in recipe.settings.items():
        assert getattr(settings, key) == value, key
    network, data = expected_network(name)
    assert (settings.network, settings.data) == (network, data)
    assert settings.method in METHODS
    assert network in ARCHITECTURES
    # A recipe that names an origin for what the network can't take would be misleading.
    assert ("shortcut" in recipe.settings) <= ("shortcut" in ARCHITECTURES[network].takes)
    assert ("residual" in recipe.settings) == ("residual" in ARCHITECTURES[network].takes)


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_of_appendix_b(name):
    recipe, settings = RECIPES[name], settings_of(name)
    wanted = IMAGENET if settings.data == "folder" else CIFAR
    if not name.endswith("original"):
        wanted = wanted | SPARSE
    for key, value in wanted.items():
        assert getattr(settings, key) == value, key
    printed = [*IMAGENET, *(["warmup"] if settings.data != "folder" else [])]
    for key in printed:
        assert recipe.origin[key] == "paper, App. B", key
    if settings.data == "folder":  # warm-up: yes, but not how long
        assert 0 < settings.warmup < 1
        assert recipe.origin["warmup"] != "paper, App. B"
    for key in ("epochs", "schedule", "weight_decay", "augment"):  # not printed anywhere
        assert not recipe.origin[key].startswith("paper"), key
    assert (settings.epochs, settings.weight_decay) == (
        (100, 2**-15) if settings.data == "folder" else (300, 5e-4)
    )
    # A dense step timed in between would take dense memory: 84 MB for each image of 224x224.
    if settings.data == "folder":
        assert settings.dense_probes == 0
    assert settings.schedule == "cosine"
    assert settings.augment == ("resized-crop" if settings.data == "folder" else "crop-flip")
    doubled = settings.network == "resnet32"  # Remark 5
    assert settings.width == (2.0 if doubled else 1.0)
    assert ("width" in recipe.origin) == doubled


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if "keep_macs" in r.settings])
def test_the_share_that_is_expected_is_the_aim(name):
    settings = settings_of(name)
    network, shape = built(settings)
    aim = PRINTED[name][2] / 100
    rate = keep_rate_for(network, shape, parse_share(settings.keep_macs, "--keep-macs"))
    dense = count_macs(network, shape).macs
    found = expected_counts(network, shape, np.full(network.n_maskable, rate))[1] / dense
    assert found == pytest.approx(aim, rel=1e-9)
    # MACs lie between those of a chain (rho^2) and of one masked side (rho).
    assert rate**2 < aim * 1.001
    assert aim < rate


@pytest.mark.parametrize("name", sorted({f"{start}-rho-0.25" for start in CURVES}))
def test_networks_of_the_curves(name):
    settings = settings_of(name)
    assert settings.keep_rate == 0.25
    assert settings.keep_macs is None
    assert RECIPES[name].aim == "rho 0.25"
    network, shape = built(settings)
    params = {"vgg19-cifar10": 20_035_018, "vgg19-cifar100": 20_081_188,
              "resnet32-cifar10": 1_860_522, "resnet32-cifar100": 1_872_132,
              "mobilenetv1": 4_231_976}  # fmt: skip
    assert count_macs(network, shape).params == params[name.split("-", 1)[1][: -len("-rho-0.25")]]


def test_resnets_of_the_recipes_have_the_issues_channels():
    for name, channels in (
        *(("table2-wrn-28-10", 10_096), ("table3-resnet50-10.1", 26_560)),
        ("figure2-resnet32-cifar100-1.56", 2464),
    ):
        assert built(settings_of(name))[0].n_maskable == channels


# Finding one, and what is given beside it


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(ValueError, match=r"unknown recipe 'table2-vgg-16': did you mean") as error:
        find_recipe("table2-vgg-16")
    assert "table2-vgg16" in str(error.value)
    assert "minicst recipes" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^unknown recipe 'zzz': `minicst recipes` lists all$"):
        find_recipe("zzz")
    assert find_recipe("table2-vgg16") is RECIPES["table2-vgg16"]


def test_what_is_given_beside_a_recipe_wins():
    settings = settings_of("table2-vgg16", lr=0.05, epochs=1, limit=512)
    assert (settings.lr, settings.epochs, settings.limit) == (0.05, 1, 512)
    assert (settings.momentum, settings.keep_prob_lr) == (0.9, 12e-3)
    # A preset beside it gives what the recipe doesn't set; the recipe's own settings stay.
    released = TrainSettings.of_preset("released-code", "table2-vgg16")
    assert (released.preset, released.backward_masks, released.final_mask) == (
        *("released-code", 2, "best-of-10"),
    )
    assert released.epochs == 300
    assert released.keep_macs == "8.7%"
    again = TrainSettings.of_preset("released-code", "table2-vgg16", backward_masks=1)
    assert again.backward_masks == 1
    assert TrainSettings.of_preset(None, None) == TrainSettings()
    with pytest.raises(ValueError, match="unknown preset 'x'"):
        TrainSettings.of_preset("x", "table2-vgg16")


@pytest.mark.parametrize("name", ["table2-vgg16", "table3-resnet50-original"])
def test_changes_and_trials(name):
    recipe = RECIPES[name]
    epochs = recipe.settings["epochs"]

    def told(**changes):
        return settings_of(name, **changes).of_recipe()

    whole = told()
    assert whole["changed"] == {}
    assert whole["trial"] is False
    assert (whole["name"], whole["where"], whole["aim"]) == (name, recipe.where, recipe.aim)
    assert whole["paper"]["accuracy"] == PRINTED[name][0]
    assert whole["epochs"] == epochs
    same = recipe.settings["momentum"]
    assert told(lr=0.5, batch_size=8, momentum=same)["changed"] == {"lr": 0.5, "batch_size": 8}
    assert told(epochs=epochs + 1)["trial"] is False
    assert told(epochs=epochs - 1)["trial"] is True
    assert told(limit=512)["trial"] is True
    assert told(epochs=1, limit=512)["changed"] == {"epochs": 1, "limit": 512}
    assert TrainSettings().of_recipe() is None


@pytest.mark.parametrize(
    "change",
    [{"estimator": "coin"}, {"width": 0.25}, {"nesterov": True}, {"fine_tune": 0.1},
     {"network": "vgg11"}, {"validation": 0.1}, {"test_limit": 5}],
    ids=str,
)  # fmt: skip
def test_every_change_is_told(change):
    """Also of settings that the recipe doesn't name."""
    assert settings_of("table2-vgg16", **change).of_recipe()["changed"] == change


def test_where_a_run_is_run_is_no_change(tmp_path):
    outside = {"data_dir": tmp_path, "out": tmp_path, "threads": 1, "seed": 3, "verify": False}
    told = settings_of("table2-vgg16", **outside).of_recipe()
    assert told["changed"] == {}
    json.dumps(told, allow_nan=False)


def test_a_keep_rate_that_was_found_is_no_change():
    found = replace(settings_of("table2-vgg16"), keep_rate=0.293)  # as a job's settings hold it
    assert found.of_recipe()["changed"] == {}


@pytest.mark.parametrize(
    "given", [{"keep_rate": 0.6}, {"keep_params": "20%"}, {"keep_macs": "20%"}], ids=str
)
@pytest.mark.parametrize("name", ["table2-vgg16", "figure2-vgg19-cifar10-rho-0.25"])
def test_only_what_is_given_sets_the_keep_rate(name, given):
    settings = settings_of(name, **given)
    (key,) = given
    assert getattr(settings, key) == given[key]
    others = {"keep_rate": TrainSettings().keep_rate, "keep_macs": None, "keep_params": None}
    for other, default in others.items():
        assert other == key or getattr(settings, other) == default
    assert settings.of_recipe()["changed"][key] == given[key]


def test_a_summary_is_a_copy(monkeypatch):
    row = find_recipe("table2-vgg16").paper
    monkeypatch.setitem(settings_of("table2-vgg16").of_recipe()["paper"], "accuracy", 0.0)
    assert row.accuracy == 92.5


def test_an_unknown_recipe_is_an_error_before_training():
    with pytest.raises(ValueError, match="unknown recipe 'table2-vgg15'"):
        TrainSettings(recipe="table2-vgg15").check()
