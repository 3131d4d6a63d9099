"""`minicst recipes` and `minicst train --recipe NAME`, from the command line."""

import json
import re

import numpy as np
import pytest
from rich.console import Console

from minicst.cli import main
from minicst.display import as_option, final_table, recipe_note
from minicst.job import prepare
from minicst.recipe_table import RecipesSettings, print_recipes
from minicst.recipes import RECIPES
from minicst.settings import TrainSettings
from minicst.training import Stopped, resume, train

# A trial of seconds; the recipe's network, but narrow, on images that are in the package.
TRIAL = {
    "data": "shapes32",
    "epochs": 1,
    "limit": 64,
    "batch_size": 16,
    "width": 0.25,
    "dense_probes": 0,
    "recalibration_batches": 1,
}
OPTIONS = [part for key, value in TRIAL.items() for part in (f"--{key.replace('_', '-')}", value)]


def run(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("minicst: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def shown(width, settings):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        print_recipes(console, settings)
    return capture.get()


def test_the_list_shows_every_recipe_with_its_numbers(capsys):
    out = run(capsys, "recipes")
    for name in RECIPES:
        assert re.search(rf"^ ?{re.escape(name)} ", out, re.MULTILINE), name
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["table2-vgg16"].split()[1:] == ["8.7%", "MACs", "92.5", "4.4", "8.7", "8.69"]
    assert lines["table4-vgg19-28.57"].split()[-4:] == ["93.46", "23.71", "28.57", "2.64"]
    assert lines["table4-vgg19-1.70"].split()[1:] == [
        "1.70%",
        "MACs",
        "87.97",
        "0.80",
        "1.70",
        "44.68",
    ]
    assert lines["table3-resnet50-original"].split()[1:] == ["dense", "77.0", "100", "100", "1"]
    assert lines["table4-vgg19-original"].split()[1:] == [
        "dense",
        "93.84",
        "100.00",
        "100.00",
        "1.00",
    ]
    # Nothing of these is printed; of its neighbours two numbers are, in one row.
    assert lines["figure3-mobilenetv1-rho-0.25"].split()[1:] == ["rho", "0.25"]
    assert lines["figure2-resnet32-cifar100-1.56"].split()[1:] == ["1.56%", "MACs", "1.56", "58.8"]
    assert lines["figure2-vgg19-cifar100-rho-0.5"].split()[1:] == ["rho", "0.5", "-", "-"]
    for title in ("Table 2, CIFAR-10", "Table 3, ImageNet", "Table 4, CIFAR-10", "Figure 3"):
        assert title in out


@pytest.mark.parametrize("name", [None, *RECIPES])
def test_nothing_is_cut_at_80_columns(name):
    out = shown(80, RecipesSettings(name))
    assert "…" not in out
    assert max(len(line) for line in out.splitlines()) <= 80
    words = out.split()  # on one line each
    if name is None:
        assert set(RECIPES) <= set(words)
    else:
        for key, value in RECIPES[name].settings.items():
            assert {f"--{key.replace('_', '-')}", str(value)} <= set(words)


@pytest.mark.parametrize("name", [None, *RECIPES])
def test_nothing_is_cut_at_120_columns(name):
    out = shown(120, RecipesSettings(name))
    assert "…" not in out
    assert max(len(line) for line in out.splitlines()) <= 120


def test_json_holds_all_of_it(capsys):
    listed = json.loads(run(capsys, "recipes", "--json"))
    assert [recipe["name"] for recipe in listed] == list(RECIPES)
    for recipe in listed:
        assert set(recipe) == {"name", "where", "settings", "origin", "paper", "ours", "aim"}
        assert recipe["settings"] == RECIPES[recipe["name"]].settings
        assert set(recipe["paper"]) == {"accuracy", "params", "macs", "saving", "printed"}
    one = json.loads(run(capsys, "recipes", "table3-resnet50-46.8", "--json"))
    assert one in listed
    assert one["aim"] == "46.8% MACs"
    assert one["origin"]["lr"] == "paper, App. B"
    json.dumps(listed, allow_nan=False)


def test_one_recipe_shows_settings_as_options_and_their_origin(capsys):
    out = run(capsys, "recipes", "table3-resnet50-46.8")
    for key, value in RECIPES["table3-resnet50-46.8"].settings.items():
        (line,) = [
            x for x in out.splitlines() if x.strip().startswith(f"--{key} ".replace("_", "-"))
        ]
        assert line.split()[1] == str(value)
        assert RECIPES["table3-resnet50-46.8"].origin[key] in line
    assert "The paper prints: accuracy 76.0 %, parameters 48.2 %, MACs 46.8 %, saving 1.60x." in out
    out = run(capsys, "recipes", "figure3-mobilenetv1-rho-0.25")
    assert "the point is ours" in out
    assert "ours" in next(line for line in out.splitlines() if "--keep-rate" in line)
    out = run(capsys, "recipes", "figure2-resnet32-cifar100-1.56")
    assert "MACs 1.56 %, saving 58.8x" in out
    assert "accuracy" not in out


def test_unknown_names_are_one_line(capsys):
    error = refused(capsys, "recipes", "table2-vgg")
    assert "unknown recipe 'table2-vgg'" in error
    assert "did you mean table2-vgg16" in error
    error = refused(capsys, "train", "--recipe", "table2-vgg")
    assert "unknown recipe 'table2-vgg'" in error
    error = refused(capsys, "train", "--recipe=table9")
    assert "unknown recipe 'table9'" in error


def test_a_trial_run_from_end_to_end(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run(capsys, "train", "--recipe", "table2-resnet20", *OPTIONS, "--out", "run")
    assert "recipe table2-resnet20 (Table 2, ResNet-20, Ours), changed: " in " ".join(out.split())
    changes = ("--data shapes32", "--batch-size 16", "--epochs 1", "--limit 64", "--width 0.25")
    for change in changes:
        assert change in " ".join(out.split())
    assert "trial run, 1 of 300 epochs" in " ".join(out.split())
    assert "…" not in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    recipe = summary["recipe"]
    assert recipe["name"] == "table2-resnet20"
    assert recipe["trial"] is True
    assert recipe["paper"] == {
        **{"accuracy": 90.93, "params": 35.1, "macs": 36.1, "saving": 2.09},
        "printed": {"accuracy": "90.93", "params": "35.1", "macs": "36.1", "saving": "2.09"},
    }
    assert recipe["changed"] == TRIAL
    assert (summary["network"], summary["estimator"]) == ("resnet20", "vr-pge")
    assert summary["keep_macs"] == "36.1%"
    assert summary["test_images"] == 64  # as many as --limit
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["recipe"], settings["residual"]) == ("table2-resnet20", "independent")
    assert settings["keep_rate"] == summary["keep_rate"]
    # keep_prob starts uniform, at the share that was asked for; four small steps stay near.
    assert summary["macs_expected"] / summary["macs_dense"] == pytest.approx(0.361, abs=0.02)
    rows = {line.strip().split("  ")[0]: line for line in out.splitlines()}
    assert rows["the share that was asked for"].split()[-1] == "36.1%"
    assert "90.93 %" in rows["paper, Table 2, ResNet-20, Ours"]
    assert rows["paper, Table 2, ResNet-20, Ours"].split()[-1] == "2.09x"
    assert rows["its parameters"].split()[-2:] == ["35.1", "%"]
    assert rows["its MACs"].split()[-2:] == ["36.1", "%"]
    assert "this was a trial run: don't compare" in out
    again = run(capsys, "train", "--resume", "run")
    assert "finished already" in again
    assert "90.93 %" in again
    assert "trial run" in again


def test_the_dense_row(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [*OPTIONS, "--out", "run", "--label-smoothing", ".1"]
    out = run(capsys, "train", "--recipe", "table2-resnet20-original", *options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == "dense"
    assert summary["macs"] == summary["macs_dense"]
    assert summary["keep_macs"] is None
    assert summary["recipe"]["changed"]["label_smoothing"] == 0.1
    assert "91.3 %" in out
    assert "asked for" not in out


def test_a_recipe_that_is_resumed_is_the_same_bit_for_bit(tmp_path):
    settings = TrainSettings.of_preset(None, "table2-resnet20", **TRIAL, threads=1)
    folders = [tmp_path / name for name in ("whole", "resumed")]
    for folder in folders:
        folder.mkdir()
    job = prepare(settings)
    _, summary = train(job, folders[0])
    stopped = prepare(settings)
    with pytest.raises(Stopped):
        train(stopped, folders[1], stop=lambda: stopped.method.step >= 2)
    other = resume(folders[1])
    assert other.method.step == 2
    assert other.settings == job.settings
    _, same = train(other, folders[1])
    one, two = job.method.state(), other.method.state()
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert np.array_equal(array, two[name]), name

    def timeless(record):
        return {k: v for k, v in record.items() if "seconds" not in k and "memory" not in k}

    assert timeless(summary) == timeless(same)
    assert summary["recipe"]["trial"] is True


def test_the_note_of_a_run():
    assert recipe_note(TrainSettings()) is None
    whole = TrainSettings.of_preset(None, "table2-vgg16")
    assert recipe_note(whole) == "recipe table2-vgg16 (Table 2, VGG-16, Ours)"
    longer = TrainSettings.of_preset(None, "table2-vgg16", epochs=400)
    note = recipe_note(longer)
    assert note.endswith(", changed: --epochs 400")
    note = recipe_note(TrainSettings.of_preset(None, "table2-vgg16", limit=512))
    assert "changed: --limit 512" in note
    assert "trial run, 300 of 300 epochs" in note


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("table2-vgg16", {"keep_rate": 0.75}, "--keep-rate 0.75"),
        ("table2-vgg16", {"keep_rate": 0.5}, "--keep-rate 0.5"),  # the default of no recipe
        ("table2-vgg16", {"keep_params": "20%"}, "--keep-params 20%"),
        ("table2-vgg16", {"keep_macs": "20%"}, "--keep-macs 20%"),
        ("figure3-mobilenetv1-rho-0.5", {"keep_macs": "20%"}, "--keep-macs 20%"),
        ("table2-vgg16", {"nesterov": True}, "--nesterov"),
    ],
)
def test_the_note_tells_changes_as_options_that_can_be_given(name, changes, told):
    note = recipe_note(TrainSettings.of_preset(None, name, **changes))
    assert note.endswith(f", changed: {told}")


def test_a_switch_that_is_off_as_it_is_given():
    assert as_option("verify", False) == "--no-verify"
    assert main(["recipes", "--no-json"]) == 0


@pytest.fixture(scope="module")
def summary():
    settings = TrainSettings.of_preset(None, "table2-resnet20", **TRIAL | {"width": 0.125})
    return train(prepare(settings))[1]


def drawn(summary, columns, controls):
    console = Console(width=columns, highlight=False)
    with console.capture() as capture:
        console.print(final_table(summary, controls))
    return capture.get()


@pytest.mark.parametrize("name", RECIPES)
def test_the_final_table_of_every_recipe_fits_120_columns(summary, name):
    """With the longest of everything: numbers of a whole run, controls, validation images."""
    recipe = TrainSettings.of_preset(None, name).of_recipe()
    long = summary | {
        "recipe": recipe,
        "evaluated_on": "validation",
        "test_images": 50_000,
        "keep_params": "12.75%",
        "macs": 4_089_184_256,
        "macs_dense": 5_243_328_768,
        "params_dense": 36_479_194,
        "unreadable_files": 12_345,
        "time_saving": 1.234,
        "dense_step_seconds": 12.3456,
        "macs_bound": 1.5e9,
    }
    controls = {"fixed-mask": {"test_accuracy": 0.5, "macs": 1.5e9}}
    out = drawn(long, 120, controls)
    assert "…" not in out
    assert "validation accuracy, final network" in out
    assert "on 50,000 images" in out
    assert "12345" in out
    assert ("prints no numbers" in out) == RECIPES[name].ours
    assert f"paper, {recipe['where']}" in out


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("table2-vgg16", 14_724_042, 313_201_664),
        ("table4-vgg19-28.57", 20_035_018, 398_136_320),
        ("figure3-mobilenetv1-rho-0.1875", 4_231_976, 568_740_352),
        ("table2-wrn-28-10", 36_479_194, 5_243_328_768),
        ("table3-resnet50-24.7", 25_557_032, 4_089_184_256),
    ],
)
def test_the_final_table_of_a_recipe_fits_80_columns(summary, name, params, macs):
    """A run as the recipe is written, with the numbers that its network has."""
    settings = TrainSettings.of_preset(None, name)
    whole = {"recipe": settings.of_recipe(), "test_images": 10_000, "data": settings.data}
    whole |= {"network": settings.network, "keep_macs": settings.keep_macs}
    whole |= {"params_dense": params, "params": params // 10}
    whole |= {"macs_dense": macs, "macs": macs // 10}
    out = drawn(summary | whole, 80, {})
    assert "…" not in out
    assert f"% of {macs:,} \n" in out
    lines = [line.strip() for line in out.splitlines()]
    # Texts go on in a second line only where numbers leave no room: here they do leave it.
    for start in (
        "test accuracy, final network ",
        "MACs left, forward, an image ",
        "training cost",
    ):
        assert sum(line.startswith(start) for line in lines) == 1


def test_the_final_table_shows_the_papers_zeros(summary):
    for name in ("table3-resnet50-46.8", "table4-vgg19-1.70"):
        recipe = TrainSettings.of_preset(None, name).of_recipe()
        out = drawn(summary | {"recipe": recipe}, 80, {})
        for key, text in recipe["paper"]["printed"].items():
            assert f" {text}{'x' if key == 'saving' else ' %'} " in out
        # A folder of an earlier run has the numbers only.
        numbers = {key: value for key, value in recipe["paper"].items() if key != "printed"}
        assert numbers["macs"] in (46.8, 1.7)
        out = drawn(summary | {"recipe": recipe | {"paper": numbers}}, 80, {})
        assert f" {numbers['macs']:g} % " in out


def test_the_longest_numbers_are_never_cut(summary):
    long = {
        "keep_prob_sum": 2_017_120.5,
        "budget": 2_017_120.5,
        "macs": 4_089_184_256,
        "macs_dense": 15_243_328_768,
        "macs_bound": 1.5e9,
        "time_saving": 1.234,
        "dense_step_seconds": 12345.6789,
        "evaluated_on": "validation",
        "test_images": 50_000,
    }
    out = drawn(summary | long, 80, {})
    assert "…" not in out
    assert "% of 15,243,328,768 \n" in out
    assert "sum 2017120.5, K 2.01712e+06 \n" in out
    assert max(len(line) for line in out.splitlines()) <= 80


# What is given beside a recipe wins: a keep rate too.


def kept(tmp_path, *arguments):
    options = [*OPTIONS, *arguments, "--out", tmp_path / "run"]
    options = ["train", "--recipe", "table2-resnet20", *options]
    assert main([str(option) for option in options]) == 0
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize("given", [["--keep-rate", ".75"], ["--keep-rate=.75"]], ids=str)
def test_a_keep_rate_beside_a_recipe_of_a_share(tmp_path, given):
    summary = kept(tmp_path, *given)
    assert (summary["keep_rate"], summary["keep_macs"]) == (0.75, None)
    assert summary["recipe"]["changed"] == TRIAL | {"keep_rate": 0.75}


def test_a_share_of_the_parameters_beside_a_recipe_of_a_share(tmp_path):
    summary = kept(tmp_path, "--keep-params", "50%")
    assert (summary["keep_params"], summary["keep_macs"]) == ("50%", None)


def test_a_keep_rate_spelled_with_an_underscore(tmp_path):
    assert kept(tmp_path, "--keep_rate", ".75")["keep_rate"] == 0.75


def test_a_dense_run_was_asked_for_no_share(tmp_path, capsys):
    kept(tmp_path, "--method", "dense")
    assert "asked for" not in capsys.readouterr().out
