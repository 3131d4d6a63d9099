"""The figure scripts: their arithmetic, a tiny run of each, and that each JSON file redraws."""

import importlib
import json
import math
import re
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

from minicst.planted import PlantedSettings, run_planted
from minicst.sparse.masks import enumerate_masks
from minicst.sparse.theory import expected_loss, expected_loss_gradient

FIGURES = Path(__file__).resolve().parent.parent / "figures"
NAMES = ("alpha", "budget", "convergence", "main_job", "planted", "resampling")


@pytest.fixture
def figure(monkeypatch):
    """Import a module of figures/ as its script would."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FIGURES))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and FIGURES in Path(sys.modules[name].__file__).parents
        ):
            del sys.modules[name]


def run(figure, name, *arguments):
    module = figure(name)
    figure("common").script(module.__doc__, name, module.measure, module.draw, list(arguments))


def is_picture(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


def spreads(value):
    """Every {mean, sd, values} in a JSON value."""
    if isinstance(value, dict):
        if {"mean", "sd", "values"} <= value.keys():
            yield value
        for entry in value.values():
            yield from spreads(entry)


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from numbers(entry)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("name", NAMES)
def test_redraws_from_its_json_without_running(name, figure, tmp_path, monkeypatch):
    shutil.copy(FIGURES / f"{name}.json", tmp_path)
    monkeypatch.setattr(figure(name), "measure", lambda *_: pytest.fail("measured anew"))
    run(figure, name, "--out", str(tmp_path))
    assert is_picture(tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.json").read_bytes() == (FIGURES / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_json_is_whole_and_says_where_its_numbers_come_from(name, figure):
    text = (FIGURES / f"{name}.json").read_text()
    data = json.loads(text)
    module = figure(name)
    assert data["settings"] == json.loads(json.dumps(module.settings(quick=False)))
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["numpy"])
    assert data["findings"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert all(map(math.isfinite, numbers(data)))
    runs = [json.dumps(row["run"]) for row in data["rows"]]
    assert len(set(runs)) == len(runs) > 0
    assert all(row["cpu_seconds"] >= 0.0 for row in data["rows"])
    assert data["cpu_seconds_in_all"] == pytest.approx(
        sum(row["cpu_seconds"] for row in data["rows"]), rel=1e-3
    )
    found = list(spreads(data["findings"]))
    for cell in found:
        assert cell["mean"] == pytest.approx(statistics.mean(cell["values"]), rel=1e-3, abs=1e-4)
        assert cell["sd"] == pytest.approx(statistics.stdev(cell["values"]), rel=1e-2, abs=1e-4)
    assert found or name == "budget"


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_run_measures_draws_and_is_not_repeated(name, figure, tmp_path, monkeypatch):
    run(figure, name, "--quick", "--out", str(tmp_path))
    first = json.loads((tmp_path / f"{name}.json").read_text())
    assert first["settings"] == json.loads(json.dumps(figure(name).settings(quick=True)))
    assert is_picture(tmp_path / f"{name}.png")
    for worker in ("run", "reached", "share", "train_planted", "run_planted"):
        if hasattr(figure(name), worker):
            monkeypatch.setattr(figure(name), worker, lambda *_: pytest.fail("repeated"))
    run(figure, name, "--quick", "--out", str(tmp_path))
    assert json.loads((tmp_path / f"{name}.json").read_text()) == first


def test_quick_keeps_away_from_the_measured_numbers(figure, capsys):
    with pytest.raises(SystemExit) as stop:
        run(figure, "alpha", "--quick")
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_nothing_to_draw_is_one_line(figure, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(figure, "alpha", "--out", str(tmp_path))
    assert stop.value.code == 2
    assert "measure with --run" in capsys.readouterr().err


def test_results_go_on_where_they_stood(figure, tmp_path):
    common = figure("common")
    results = common.Results(tmp_path / "x.json", {"epochs": 2})
    first = results.measure({"seed": 0}, lambda: {"value": 1.0})
    results.save()
    again = common.Results(tmp_path / "x.json", {"epochs": 2})
    assert again.measure({"seed": 0}, lambda: pytest.fail("repeated"))["value"] == 1.0
    assert again.measure({"seed": 1}, lambda: {"value": 2.0})["value"] == 2.0
    assert again.rows[0] == first
    with pytest.raises(ValueError, match="other settings"):
        common.Results(tmp_path / "x.json", {"epochs": 3})


def test_small_arithmetic(figure):
    common = figure("common")
    assert common.spread([1.0, 3.0]) == {"mean": 2.0, "sd": math.sqrt(2.0), "values": [1.0, 3.0]}
    assert common.spread([5.0])["sd"] == 0.0
    best = common.choose({"1": [0.0, 2.0], "3": [2.0, 2.0], "9": [3.0, 0.0]})
    assert (best["chosen"], best["at_an_end"]) == ("3", False)
    assert common.choose({"1": [2.0], "3": [1.0]})["at_an_end"]
    given = {"a": np.float64(1 / 3), "b": [np.int64(2), np.bool_(True), np.inf]}
    assert common.rounded(given) == {"a": 0.33333, "b": [2, True, None]}
    rows = [{"run": {"a": 1, "b": 2}}, {"run": {"a": 1}}]
    assert common.select(rows, a=1, b=None) == rows[1:]


def losses_of(problem):
    """All 2^n losses, monomial by monomial."""
    table = []
    for mask in enumerate_masks(problem.n):
        on = np.flatnonzero(mask)
        pairs = sum(problem.pairs[i, j] for i in on for j in on if i < j)
        table.append(2.3 - sum(problem.useful[i] for i in on) - pairs)
    return np.array(table)


@pytest.mark.parametrize("kind", ["linear", "redundant", "teams"])
def test_phi_is_the_expected_loss_of_all_masks(kind, figure):
    problem = figure("synthetic").draw_problem(kind, 8, 3, seed=5)
    table = losses_of(problem)
    for seed in range(3):
        s = np.random.default_rng(seed).random(8)
        assert problem.phi(s) == pytest.approx(expected_loss(table, s), abs=1e-12)
        exact = expected_loss_gradient(table, s, 0.0)
        np.testing.assert_allclose(problem.gradient(s), exact, atol=1e-12)
    masks = enumerate_masks(8)
    vertex = figure("synthetic").best_vertex(problem)
    assert problem.phi(vertex) == pytest.approx(table[masks.sum(axis=1) <= 3].min(), abs=1e-12)


def test_best_point_of_a_linear_loss_is_the_most_useful_channels(figure):
    synthetic = figure("synthetic")
    problem = synthetic.draw_problem("linear", 8, 3, seed=1)
    expected = np.zeros(8)
    expected[np.argsort(problem.useful)[-3:]] = 1.0
    np.testing.assert_allclose(synthetic.best_point(problem, 1), expected, atol=1e-9)
    assert synthetic.kkt_residual(problem, expected) < 1e-12
    assert synthetic.kkt_residual(problem, problem.start()) > 1e-3
    floored = synthetic.best_point(problem, 1, lower=0.01)
    assert floored.min() == pytest.approx(0.01)
    assert floored.sum() == pytest.approx(3.0)


def test_best_point_of_a_redundant_loss_is_the_best_mask(figure):
    synthetic = figure("synthetic")
    for seed in range(4):
        problem = synthetic.draw_problem("redundant", 12, 4, seed)
        best = problem.phi(synthetic.best_vertex(problem))
        assert problem.phi(synthetic.best_point(problem, seed)) == pytest.approx(best, abs=1e-9)


def test_best_point_can_lie_between_the_masks(figure):
    """Two channels, K = 1, worth 1 each and 2 more together: -(a + b + 2 a b) on a + b = 1."""
    synthetic = figure("synthetic")
    problem = synthetic.Problem(np.ones(2), np.array([[0.0, 2.0], [2.0, 0.0]]), 1.0)
    best = synthetic.best_point(problem, 0)
    np.testing.assert_allclose(best, [0.5, 0.5], atol=1e-7)
    assert problem.phi(best) == pytest.approx(2.3 - 1.5)
    assert problem.phi(synthetic.best_vertex(problem)) == pytest.approx(2.3 - 1.0)


def test_swapped_finds_a_better_mask(figure):
    synthetic = figure("synthetic")
    problem = synthetic.draw_problem("linear", 12, 4, seed=2)
    worst = np.zeros(12)
    worst[np.argsort(problem.useful)[:4]] = 1.0
    best = synthetic.best_vertex(problem)
    np.testing.assert_array_equal(synthetic.swapped(problem, worst), best)


def test_descend_asks_for_as_many_losses_as_it_is_given(figure):
    synthetic = figure("synthetic")
    problem = synthetic.draw_problem("linear", 8, 3, seed=1)
    for estimator, masks in (("pge", 1), ("vr-pge", 2), ("vr-pge-multi", 4), ("disarm", 2)):
        end = synthetic.descend(problem, estimator, 0, passes=40, lr=0.01, n_points=5)
        assert end["passes"] == [0, 10, 20, 30, 40] or masks == 4
        assert end["passes"][-1] == 40
        assert end["phi"][0] == pytest.approx(problem.phi(problem.start()))
        assert end["phi"][-1] == pytest.approx(problem.phi(end["keep_prob"]))
        assert end["keep_prob"].sum() <= 3.0 + 1e-9


def test_descend_learns_and_the_coin_does_not(figure):
    synthetic = figure("synthetic")
    ends = {"vr-pge": [], "coin": []}
    for estimator, values in ends.items():
        for seed in range(6):
            problem = synthetic.draw_problem("linear", 12, 4, seed)
            span = problem.phi(problem.start()) - problem.phi(synthetic.best_vertex(problem))
            end = synthetic.descend(problem, estimator, seed, passes=1500, lr=0.1, n_points=2)
            values.append((problem.phi(problem.start()) - end["phi"][-1]) / span)
    # 24 seeds gave .87 and -.37, with standard deviations of .07 and .41 a seed.
    assert statistics.mean(ends["vr-pge"]) > 0.75
    assert statistics.mean(ends["coin"]) < 0.3


def test_floor_keeps_every_channel_alive(figure):
    synthetic = figure("synthetic")
    problem = synthetic.draw_problem("linear", 8, 3, seed=1)
    end = synthetic.descend(problem, "vr-pge", 0, 400, 0.3, floor=0.02)
    assert end["keep_prob"].min() >= 0.02
    assert end["keep_prob"].max() <= 0.98
    assert synthetic.descend(problem, "vr-pge", 0, 400, 0.3)["keep_prob"].min() == 0.0


def test_equal_forward_passes(figure):
    epochs = figure("planted").epochs_at_equal_passes
    assert [epochs(label, 36, 4) for label in ("vr-pge", "pge", "ste", "vr-pge-multi")] == [
        36,
        72,
        72,
        18,
    ]
    assert epochs("vr-pge-multi", 36, 2) == 36


def test_planted_training_is_that_of_minicst_planted(figure):
    """The loop of the figure, which scores no candidates, ends where `train` does."""
    setting = figure("planted").settings(quick=True) | {"width": 1.0}
    ours = figure("planted").train_planted(
        figure("planted").train_settings(setting, "vr-pge", "adam", 0.012, 0.25, 1, 3)
    )
    theirs = run_planted(
        PlantedSettings(epochs=1, seeds=1, first_seed=3, methods=("vr-pge",), threads=1)
    )["methods"]["vr-pge"]
    assert ours["share"][0] == pytest.approx(0.5)
    assert ours["share"][-1] == theirs["good_share"]["mean"]
    assert ours["accuracy"] == theirs["test_accuracy"]["mean"]
    assert (ours["steps"], ours["forward_passes"], len(ours["share"])) == (22, 44, 21)


def planted_row(label, share, seed, passes=500, **changes):
    what = {"estimator": label, "optimizer": "adam", "lr": 0.1, "keep_rate": 0.5, "epochs": 1}
    numbers = dict.fromkeys(("accuracy", "decided", "sum_over_budget", "executed_over_dense"), 0.5)
    return {
        "run": what | {"seed": seed} | changes,
        "share": [0.5, share],
        "steps": 2,
        "forward_passes": passes,
        **numbers,
    }


def test_signal_is_share_beyond_the_coin_in_1000_passes(figure):
    planted = figure("planted")
    setting = planted.settings(quick=True) | {"seeds": [0, 1]}
    labels = ("vr-pge", "vr-pge-symmetric", "coin")
    rows = [
        planted_row(label, share, seed, optimizer=optimizer)
        for optimizer in ("adam", "sgd")
        for label, shares in zip(
            (*labels, "pge"), ([0.7, 0.9], [0.6, 0.8], [0.4, 0.5], [0.5, 0.5]), strict=False
        )
        for seed, share in enumerate(shares)
    ]
    rows.append(planted_row("vr-pge", 0.0, 100))  # a tuning seed
    rates = {optimizer: {"chosen": "0.1"} for optimizer in ("adam", "sgd")}
    found = planted.slices(rows, setting, rates)
    cell = found["estimators_adam"]["vr-pge"]
    assert cell["share"]["values"] == [0.7, 0.9]
    assert cell["signal"] == pytest.approx((0.8 - 0.45) / 0.5)
    assert cell["signal_at_equal_macs"] == pytest.approx((0.8 - 0.45) / (0.5 * 2 / 1000))
    assert found["estimators_adam"]["coin"]["signal"] == 0.0
    assert found["keep_rates"]["0.5"]["vr-pge"]["signal"] == pytest.approx(0.35 / 0.5)
    assert list(found["steps_per_channel"]) == ["1.1"]


def test_windows_of_a_budget_run(figure):
    budget = figure("budget")
    row = {name: [1.0] * 30 for name in budget.CURVES} | {"repaired": 4}
    row["drawn"] = [0.9] * 3 + [1.0] * 24 + [1.1, 1.2, 1.3]
    table = budget.windows(row)
    assert table["repaired"] == 4
    assert table["first tenth"]["drawn"] == pytest.approx(
        {"mean": 0.9, "sd": 0.0, "min": 0.9, "max": 0.9}, abs=1e-12
    )
    assert table["last tenth"]["drawn"] == pytest.approx(
        {"mean": 1.2, "sd": 0.1, "min": 1.1, "max": 1.3}
    )
    assert table["middle tenth"]["drawn"]["mean"] == 1.0
    assert [table[part]["draws_above_K"] for part in ("first tenth", "last tenth")] == [0.0, 1.0]
    assert table["all"]["draws_above_K"] == pytest.approx(0.1)


def test_differences_over_alpha(figure):
    spread = figure("common").spread
    sweep = {
        "0": {"own_lr": spread([0.2, 0.3]), "lr_of_alpha_.5": spread([0.0, 0.1])},
        "0.5": {"own_lr": spread([0.4, 0.7]), "lr_of_alpha_.5": spread([0.4, 0.7])},
        "1": {"own_lr": spread([0.5, 0.7]), "lr_of_alpha_.5": spread([0.1, 0.1])},
    }
    table = figure("alpha").differences({"synthetic, vr-pge, sgd": sweep})
    own = table["synthetic, vr-pge, sgd, own_lr"]
    assert own["best_alpha"] == "1"
    assert own["best_less_worst_mean"] == pytest.approx(0.35)
    assert own["half_less_zero"]["values"] == pytest.approx([0.2, 0.4])
    assert table["synthetic, vr-pge, sgd, lr_of_alpha_.5"]["best_alpha"] == "0.5"


def test_exact_update_ends_at_the_best_point_without_preconditioner_only(figure):
    """With alpha > 0, (s (1 - s))^alpha useful is the same for all channels that are undecided."""
    synthetic = figure("synthetic")
    problem = synthetic.draw_problem("linear", 12, 4, seed=3)
    best = synthetic.best_vertex(problem)
    np.testing.assert_allclose(synthetic.end_of_exact_update(problem, 0.0), best, atol=1e-8)
    for lr in (0.2, 0.5):
        s = synthetic.end_of_exact_update(problem, 0.5, lr)
        undecided = (s > 0.0) & (s < 1.0)
        assert undecided.sum() > 4  # more channels than the budget has room for
        assert s.sum() == pytest.approx(4.0)
        step = (np.sqrt(s * (1.0 - s)) * problem.useful)[undecided]
        np.testing.assert_allclose(step, step[0], rtol=1e-5)
        span = problem.phi(problem.start()) - problem.phi(best)
        assert problem.phi(s) - problem.phi(best) > 0.01 * span
        assert synthetic.kkt_residual(problem, s) > 0.01
