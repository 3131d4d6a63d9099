"""`minicst variance`: a network against all of its masks, training undisturbed, the command."""

import importlib.util
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicst.cli import main
from minicst.data import Batch
from minicst.job import prepare
from minicst.methods.mask_loss import MaskLoss
from minicst.models import build
from minicst.settings import TrainSettings
from minicst.sparse.moments import estimator_moments
from minicst.training import train
from minicst.variance.command import (
    Measurer,
    VarianceSettings,
    fixed_batch,
    run_variance,
    spaced_epochs,
)
from minicst.variance.plots import plot_properties, plot_variance
from minicst.variance.point import REDUCTIONS, ROWS, Sizes, label, measure
from minicst.variance.report import (
    at_two_passes,
    dumps,
    point_line,
    sentences,
    summarize_points,
    with_error,
)

FIGURES = Path(__file__).resolve().parents[2] / "figures"
TINY = TrainSettings(
    network="vgg-tiny", data="digits", width=0.25, batch_size=256, epochs=3, dense_probes=2
)
WORST_Z = 4.5  # as in test_variance_moments.py


@pytest.fixture(scope="module")
def enumerated():
    """A network of 8 maskable channels: its losses of all masks, and a measuring point."""
    network = build("vgg-tiny", 5, width=0.1, image_size=8, seed=2)
    n = network.n_maskable
    assert n == 8
    rng = np.random.default_rng(0)
    batch = Batch(0, rng.normal(size=(12, 8, 8, 3)).astype(np.float32), rng.integers(0, 5, 12))
    s = np.array([0.5, 0.3, 0.7, 1.0, 0.4, 0.002, 0.5, 0.6])
    loss = MaskLoss(network, batch, s)
    masks = np.array(list(itertools.product([0, 1], repeat=n))).astype(bool)
    losses = np.array([loss(mask) for mask in masks])
    p = np.prod(np.where(masks, s, 1 - s), axis=1)
    sizes = Sizes(draws=600, pairs=100, flip_entries=2, flip_draws=40, per_channel=True)
    return s, masks, losses, p, measure(loss, sizes, 1, 0), loss


def close(estimate, exact):
    value, se = estimate
    assert abs(value - exact) < WORST_Z * se, (value, se, exact)


def exact_variance(s, masks, losses, p, rule, alpha):
    """(n,) variance of PGE or VR-PGE; NaN where decided."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (masks - s) / (s * (1 - s)) ** (1 - alpha)
        mean = p @ (losses[:, None] * scores)
        if rule == "pge":
            square = p @ (losses[:, None] * scores) ** 2
        else:
            square = p @ (((losses[:, None] - losses) ** 2 @ p)[:, None] * scores**2)
    return square - mean**2


def test_loss_v_and_ratio_are_those_of_all_masks(enumerated):
    _, _, losses, p, point, _ = enumerated
    v = 2 * (p @ losses**2 - (p @ losses) ** 2)
    close(point["loss"], p @ losses)
    close(point["loss_square"], p @ losses**2)
    close(point["v"], v)
    close(point["ratio"], p @ losses**2 / v)


def test_variances_of_layers_are_those_of_all_masks(enumerated):
    s, masks, losses, p, point, loss = enumerated
    measured = np.array([True, True, True, False, True, False, True, True])
    assert point["channels"] == {"all": 8, "undecided": 7, "measured": 6}
    places = dict(loss.network.groups) | {"all": slice(0, 8)}
    for name, place in places.items():
        layer = point["all"] if name == "all" else point["layers"][name]
        inside = np.zeros(8, bool)
        inside[place] = True
        assert layer["channels"] == inside.sum()
        assert layer["decided"] == int(inside[3])
        assert layer["rare"] == int(inside[5])
        exact = {
            (rule, alpha): exact_variance(s, masks, losses, p, rule, alpha)[
                inside & measured
            ].mean()
            for rule in ("pge", "vr-pge")
            for alpha in (0.0, 0.5)
        }
        for row, value in exact.items():
            close(layer["variance"][label(*row)], value)
        for key, (top, bottom) in REDUCTIONS.items():
            close(layer["reduction"][key], exact[top] / exact[bottom])
        assert set(layer["variance"]) == {label(*row) for row in ROWS}


def test_every_estimators_variance_is_that_of_the_exact_theory(enumerated):
    s, masks, losses, p, point, _ = enumerated
    # enumerate_masks counts with the lowest digit first, itertools.product with the last.
    order = np.argsort(masks @ 2 ** np.arange(8))
    inside = [0, 1, 2, 4, 6, 7]
    for rule, alpha in ROWS:
        moments = estimator_moments(rule, losses[order], s, alpha, 4, baseline=float(p @ losses))
        close(
            point["all"]["variance"][label(rule, alpha)], np.diag(moments.covariance)[inside].mean()
        )


def test_channels_beside_layers(enumerated):
    s, masks, losses, p, point, _ = enumerated
    channels = point["per_channel"]
    assert channels["keep_prob"] == pytest.approx(s)
    for rule, alpha in (("pge", 0.0), ("vr-pge", 0.5)):
        exact = exact_variance(s, masks, losses, p, rule, alpha)
        table = channels["estimators"][label(rule, alpha)]
        for j, (value, se) in enumerate(zip(table["variance"], table["se"], strict=True)):
            if j in (3, 5):
                assert value is se is None
            else:
                close([value, se], exact[j])
    mean = np.mean([x for x in channels["estimators"]["arm a=0.5"]["variance"] if x is not None])
    assert mean == pytest.approx(point["all"]["variance"]["arm a=0.5"][0], rel=1e-6)


def test_vmax_and_the_bound(enumerated):
    s, masks, losses, p, point, _ = enumerated
    differences = (losses[:, None] - losses) ** 2 @ p
    table = np.full((2, 8), -np.inf)
    for b, j in itertools.product(range(2), range(8)):
        if (s[j] if b else 1 - s[j]) > 0:
            others = np.prod(np.delete(np.where(masks, s, 1 - s), j, axis=1), axis=1)
            table[b, j] = (others * (masks[:, j] == b)) @ differences
    vmax = point["vmax"]
    close(vmax["naive"], table[vmax["kept"], vmax["channel"]])
    assert vmax["naive"][0] > table.max() - WORST_Z * vmax["naive"][1]
    # All masks see a channel of keep_prob .002 at 0, hardly any at 1: forced flips do.
    entries = vmax["entries"]
    assert entries == {"pool": 14, "flipped": 1, "unmeasured": 0, "impossible": 1}
    (stratum,) = vmax["flips"]
    assert stratum["probability"] == [1e-3, 1e-2]
    close(stratum["largest"], table[1, 5])
    spread = s * (1 - s)
    inside = [0, 1, 2, 4, 6, 7]
    for alpha in (0.0, 0.5):
        factor = np.mean(spread[inside] ** (2 * alpha - 1))
        assert point["all"]["bound"][f"a={alpha:g}"] == pytest.approx(factor * vmax["naive"][0])


def test_prediction_is_e_l_squared_over_v(enumerated):
    s, _, _, _, point, _ = enumerated
    ratio = point["loss_square"][0] / point["v"][0]
    inside = [0, 1, 2, 4, 6, 7]
    shrink = np.mean(1 / (s[inside] * (1 - s[inside])))
    assert point["all"]["predicted"] == pytest.approx(
        {
            "h_alone": shrink,
            "difference_alone": ratio,
            "difference_at_half": ratio,
            "both": shrink * ratio,
        }
    )


def test_forward_passes_are_counted_and_masks_are_the_seeds(enumerated):
    *_, point, loss = enumerated
    assert point["forward_passes"] == 1200 + 2 * 100 + 40
    small = Sizes(draws=20, pairs=20)
    first = measure(loss, small, 1, 0)
    for other, same in ((measure(loss, small, 1, 0), True), (measure(loss, small, 1, 1), False)):
        assert (other["v"] == first["v"]) is same
        assert (other["all"] == first["all"]) is same
    assert measure(loss, small, 2, 0)["v"] != first["v"]
    assert "per_channel" not in first
    properties = measure(loss, replace(small, pairs=0), 1, 0)
    assert "layers" not in properties
    assert properties["v"] == first["v"]


def test_pools_are_whole_blocks():
    for draws, n_masks, pool in (
        (200, 4, 400),
        (201, 4, 408),
        (20, 3, 48),
        (21, 3, 48),
        (20, 5, 40),
    ):
        sizes = Sizes(draws, n_masks)
        assert sizes.pool == pool
        assert sizes.pool % (2 * math.lcm(2, n_masks)) == 0


def test_when_all_is_decided_nothing_is_divided(enumerated, tmp_path):
    loss = enumerated[-1]
    s = np.array([0.0, 1, 1, 0, 1, 1, 0, 1])
    point = measure(MaskLoss(loss.network, loss.batch, s), Sizes(20, pairs=20), 0, 5)
    assert point["v"] == [0.0, 0.0]
    assert point["ratio"] is None
    assert point["vmax"]["naive"] == point["vmax"]["split"] == [0.0, 0.0]
    assert point["all"] == {
        "channels": 8,
        "decided": 8,
        "rare": 0,
        "variance": None,
        "reduction": None,
        "predicted": None,
        "bound": None,
    }
    json.dumps(point, allow_nan=False)
    results = {"points": [{"epoch": 9, **point}]}
    results["summary"] = summarize_points(results)
    (said,) = sentences(results)
    assert "V = 0 after epoch 9" in said


def test_equal_losses_give_no_quotient(enumerated):
    """Channels are undecided, but the loss doesn't see them."""
    loss = enumerated[-1]

    class Constant(MaskLoss):
        def __call__(self, mask):
            self.evaluations += 1
            return 2.0

    point = measure(Constant(loss.network, loss.batch, np.full(8, 0.5)), Sizes(20, pairs=20), 0, 5)
    assert point["v"][0] == 0.0
    assert point["ratio"] is None
    assert point["all"]["predicted"] is None
    assert point["all"]["variance"]["vr-pge a=0.5"] == [0.0, 0.0]
    assert point["all"]["reduction"]["both"] is None
    assert point["all"]["reduction"]["h_alone"][0] == pytest.approx(4.0)
    json.dumps(point, allow_nan=False)


def run_of(folder, watcher=None):
    folder.mkdir()
    _, summary = train(prepare(TINY), folder, watcher)
    with np.load(folder / "checkpoint.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "header"}
    clocks = ("step_seconds", "dense_step_seconds", "time_saving", "data_wait_seconds")
    clocks += ("peak_memory_bytes",)
    return arrays, {key: value for key, value in summary.items() if key not in clocks}


def test_training_does_not_notice_the_measurements(tmp_path):
    sizes = Sizes(draws=20, pairs=20, flip_entries=1, flip_draws=4)
    watcher = Measurer([0, 1, 2, 3], sizes, 32)
    arrays, summary = run_of(tmp_path / "measured", watcher)
    assert [point["epoch"] for point in watcher.points] == [0, 1, 2, 3]
    plain_arrays, plain_summary = run_of(tmp_path / "plain")
    assert arrays.keys() == plain_arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, plain_arrays[name]), name
    assert summary == plain_summary


def test_the_fixed_batch_is_no_batch_of_training():
    job = prepare(replace(TINY, augment="none"))
    batch = fixed_batch(job, 32)
    assert batch.images.shape == (32, 8, 8, 1)
    assert np.array_equal(batch.images, fixed_batch(job, 32).images)
    first = next(iter(job.loader.epoch(0)))
    assert not np.array_equal(batch.images, first.images[:32])


def test_spaced_epochs():
    assert spaced_epochs(16) == [0, 1, 4, 16]
    assert spaced_epochs(20) == [0, 1, 4, 16, 20]
    assert spaced_epochs(1) == [0, 1]


# The command.


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ["--network", "vgg-tiny", "--data", "digits", "--width", ".25", "--batch-size", "32"]


def test_variance_of_a_short_training(inside, capsys):
    assert main(["variance", *SMALL, "--epochs", "2", "--draws", "20"]) == 0
    out = capsys.readouterr().out
    for text in ("vr-pge-symmetric", "disarm", "E L^2 / V", "orders of magnitude", "variance.png"):
        assert text in out
    saved = json.loads((inside / "variance.json").read_text())
    assert (inside / "variance.png").read_bytes().startswith(b"\x89PNG")
    assert [point["epoch"] for point in saved["points"]] == [0, 1, 2]
    assert saved["estimators"]["vr-pge-multi a=0.5"]["passes"] == 4
    assert saved["estimators"]["pge a=0"] == {"rule": "pge", "alpha": 0.0, "passes": 1}
    assert set(saved["points"][0]["per_channel"]["estimators"]) == set(saved["estimators"])
    assert str(inside) not in (inside / "variance.json").read_text()
    row = saved["summary"]["largest"]
    point = next(p for p in saved["points"] if p["epoch"] == row["epoch"])
    assert point["layers"][row["layer"]]["reduction"]["both"] == row["reduction"]
    assert row["orders"] == pytest.approx(math.log10(row["reduction"][0]), abs=1e-5)


def test_variance_of_a_run(inside, capsys):
    folder = inside / "run"
    folder.mkdir()
    train(prepare(replace(TINY, epochs=1)), folder)
    before = (folder / "checkpoint.npz").read_bytes()
    options = ["--draws", "20", "--batch-size", "32", "--seed", "3", "--json"]
    assert main(["variance", "--run", "run", *options]) == 0
    results = json.loads(capsys.readouterr().out)
    assert (folder / "variance.png").exists()
    assert json.loads((folder / "variance.json").read_text()) == results
    assert (folder / "checkpoint.npz").read_bytes() == before
    (point,) = results["points"]
    assert point["epoch"] == 1
    # At the same place of the same training, with masks of the same seed, the same numbers.
    job = prepare(replace(TINY, epochs=1))
    train(job)
    loss = MaskLoss.of(job.method, fixed_batch(job, 32))
    expected = measure(loss, VarianceSettings(draws=20).sizes(), 3, job.method.step)
    for key in ("v", "vmax", "all", "layers"):
        assert json.loads(json.dumps(expected[key])) == point[key]
    assert (results["seed"], results["mask_seed"]) == (0, 3)


def test_out_names_picture_and_numbers(inside, capsys):
    arguments = [
        "variance",
        *SMALL,
        "--epochs",
        "1",
        "--draws",
        "20",
        "--out",
        "there.png",
        "--json",
    ]
    assert main(arguments) == 0
    assert sorted(path.name for path in inside.iterdir()) == ["there.json", "there.png"]


def dense_run(folder):
    folder.mkdir()
    train(prepare(replace(TINY, method="dense", epochs=1)), folder)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--run nowhere", ["no folder nowhere", "--run"]),
        ("--run dense", ["'dense' has no keep_prob", "completely-sparse"]),
        ("--draws 3", ["--draws 3", "20 draws"]),
        ("--n-masks 1", ["--n-masks 1", "2 to 26"]),
        ("--network foo", ["'foo'", "vgg-small"]),
        ("--data foo", ["'foo'", "fashion"]),
        ("--epochs 0", ["--epochs 0"]),
        ("--batch-size 5000 --data digits --network vgg-tiny", ["5000"]),
        ("--out nowhere/x.png", ["--out", "no folder nowhere"]),
    ],
)
def test_bad_input_is_one_line(arguments, names, inside, capsys):
    if arguments == "--run dense":
        dense_run(inside / "dense")
    assert main(["variance", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: ")
    assert error.count("\n") == 1
    for name in names:
        assert name in error


# What is said and drawn.


@pytest.fixture(scope="module")
def short_training():
    settings = VarianceSettings(
        network="vgg-tiny", data="digits", width=0.25, epochs=1, draws=20, batch_size=32
    )
    return run_variance(settings)


@pytest.fixture
def results(short_training):
    return json.loads(json.dumps(short_training))


def test_summary_leaves_out_what_noise_made(results):
    point = results["points"][0]
    names = list(point["layers"])
    point["layers"][names[0]]["reduction"]["both"] = [1e9, 0.9e9]
    point["layers"][names[1]]["reduction"]["both"] = [1e6, 1e5]
    point["layers"][names[2]]["reduction"]["both"] = [10.0, 1.0]
    results["points"] = [point]
    summary = summarize_points(results)
    assert summary["largest"]["layer"] == names[1]
    assert summary["largest"]["orders"] == pytest.approx(6.0)
    assert summary["smallest"]["layer"] == names[2]
    text = sentences(results | {"summary": summary})[0]
    assert "6.0 orders" in text
    assert f"in {names[1]} after epoch 0" in text


def test_equal_numbers_of_forward_passes(results):
    point = results["points"][0]
    table, equal = point["all"]["variance"], at_two_passes(results, point)
    for name, factor in (("pge a=0.5", 0.5), ("vr-pge a=0.5", 1.0), ("vr-pge-multi a=0.5", 2.0)):
        assert equal[name] == pytest.approx([factor * x for x in table[name]])
    assert equal.keys() == table.keys()


def test_texts():
    assert with_error([12.34, 0.52]) == "12.3 ± 0.5"
    assert with_error([0.0, 0.0]) == "0"
    assert with_error([None, None]) == "-"
    data = {
        "a": [1.5, None],
        "b": [{"c": [1, 2]}],
        "d": "[ 1,2 ]",
        "e": [],
        "f": [["x,y", "[\n 1]"], [3, 4]],
    }
    assert json.loads(dumps(data)) == data
    assert '"a": [1.5, null]' in dumps(data)


def test_pictures_of_incomplete_results(results, tmp_path):
    path = tmp_path / "picture.png"
    plot_variance(results | {"points": results["points"][:1]}, path)
    first = path.read_bytes()
    plot_variance(results | {"points": results["points"][:1]}, path)
    assert path.read_bytes() == first
    point = json.loads(json.dumps(results["points"][0]))
    layer = dict.fromkeys(("variance", "reduction", "predicted", "bound"))
    point["layers"] = dict.fromkeys(point["layers"], point["all"] | layer)
    point["all"] |= layer
    point |= {"ratio": None, "v": [0.0, 0.0]}
    assert "V 0" in point_line(point)
    plot_variance(results | {"points": [point]}, path)
    plot_variance(results | {"points": [*results["points"], point]}, path)
    plot_properties(results | {"points": [*results["points"], point]}, path)


def figure_script(name):
    sys.path.insert(0, str(FIGURES))
    try:
        spec = importlib.util.spec_from_file_location(name, FIGURES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, sys.modules["over_training"]
    finally:
        sys.path.remove(str(FIGURES))


@pytest.mark.parametrize("name", ["fig3_variance", "fig4_properties"])
def test_figures_measure_save_and_draw_again(name, tmp_path, capsys):
    module, shared = figure_script(name)
    plot = plot_variance if name == "fig3_variance" else plot_properties
    tiny = replace(
        module.QUICK,
        settings=replace(TINY, epochs=1, dense_probes=0),
        epochs=(0, 1),
        sizes=replace(module.QUICK.sizes, draws=20, pairs=min(module.QUICK.sizes.pairs, 20)),
        batch_size=32,
    )
    out = ["--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        shared.script(None, name, module.WHOLE, tiny, plot, out)
    assert "measure with --run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shared.script(None, name, module.WHOLE, tiny, plot, ["--run", *out])
    assert "--data-dir" in capsys.readouterr().err
    shared.script(None, name, module.WHOLE, tiny, plot, ["--quick", *out])
    path = tmp_path / f"{name}_quick.json"
    saved, picture = path.read_bytes(), path.with_suffix(".png").read_bytes()
    assert [point["epoch"] for point in json.loads(saved)["points"]] == [0, 1]
    assert b"test_accuracy" in saved
    shared.script(None, name, module.WHOLE, tiny, plot, out)
    assert path.read_bytes() == saved
    assert path.with_suffix(".png").read_bytes() == picture


@pytest.mark.parametrize("path", sorted(FIGURES.glob("fig[34]_*.json")), ids=lambda path: path.name)
def test_published_numbers_are_complete(path):
    results = json.loads(path.read_text())
    assert results["summary"] == json.loads(json.dumps(summarize_points(results)))
    for key in (
        "network",
        "training_images",
        "keep_rate",
        "masks",
        "numpy",
        "cpu_count",
        "seconds",
    ):
        assert results[key] is not None
    assert "/" not in json.dumps({k: v for k, v in results.items() if k != "points"})
