"""The page: its numbers, looked up as its script does, are those of frames; and it is one file."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from minicst.explore.page import save_page
from minicst.explore.problem import State, frame
from minicst.explore.tables import Grid, Tables, loss_positions, packed, with_value

SMALL = Grid(
    s=(0.02, 0.4, 0.6, 0.9),
    alpha=(0.0, 0.5),
    lr=(0.1, 0.3),
    budget=(0.6, 1.0),
    level=(0.0, 8.0),
    n_losses=4,
)
TINY = Grid((0.4, 0.6), (0.5,), (0.3,), (1.0,), (0.0,), 2)
START = State()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    save_page(START, path, grid=SMALL)
    return path


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))


class Lookup:
    """Tables as arrays of many dimensions."""

    def __init__(self, data):
        s, a, e, k, level, loss = (
            len(data[x]) for x in ("s", "alpha", "eta", "K", "level", "loss")
        )
        d, columns = 2 * loss - 1, len(data["columns"])
        shapes = {
            "level_loss": (level, loss),
            "difference": (d,),
            "score": (2, s),
            "precond": (a, s),
            "pge": (level, loss, a, 2, s),
            "vr": (d, a, 2, s),
            "z": (e, d, a, 2, s),
            "p": (s, s, 4),
            "pairs": (s, s, 4, 4),
            "phi": (loss, loss, s, s, level),
            "problem": (loss, loss, s, s, a, columns),
            "projected": (k, e, d, a, 4, s, s, 3),
        }
        for name, shape in shapes.items():
            values = np.array([float(x) for x in data[name].split(" ")])
            setattr(self, name, values.reshape(shape))
        self.columns = data["columns"]


def close(found, expected):
    """Four digits were kept."""
    np.testing.assert_allclose(found, expected, rtol=6e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(60))
def test_every_number_is_a_frame_s(data, seed):
    table, rng = Lookup(data), np.random.default_rng(seed)
    at = {name: int(rng.integers(len(data[name]))) for name in ("alpha", "eta", "K", "level")}
    i, j = rng.integers(len(data["s"]), size=2)
    la, lb = rng.integers(len(data["loss"]), size=2)
    m, other = (int(x) for x in rng.integers(4, size=2))
    position = list(data["base"])
    position[data["free"][0]], position[data["free"][1]] = la, lb
    shown = frame(
        State(
            keep_prob=(data["s"][i], data["s"][j]),
            precondition_power=data["alpha"][at["alpha"]],
            keep_prob_lr=data["eta"][at["eta"]],
            budget=data["K"][at["K"]],
            losses=tuple(data["loss"][k] for k in position),
            level=data["level"][at["level"]],
            drawn=(m, other),
        )
    )
    a, e, level = at["alpha"], at["eta"], at["level"]
    bits = [[0, 0], [1, 0], [0, 1], [1, 1]]
    close([table.level_loss[level, k] for k in position], shown.losses)
    close(table.p[i, j], shown.mask_probability)
    close(table.pairs[i, j], shown.pair_probability)
    close(table.phi[la, lb, i, j, level], shown.expected_loss)
    close([table.precond[a, i], table.precond[a, j]], shown.preconditioner)
    for mask, other_mask in itertools.product(range(4), range(4)):
        d = position[mask] - position[other_mask] + len(data["loss"]) - 1
        first, second = bits[mask]
        close([table.score[first, i], table.score[second, j]], shown.score[mask])
        estimate = [table.vr[d, a, first, i], table.vr[d, a, second, j]]
        close(estimate, shown.estimates[mask, other_mask])
        step = [table.z[e, d, a, first, i], table.z[e, d, a, second, j]]
        close(step, shown.steps[mask, other_mask])
        plain = table.pge[level, position[mask], a]
        close([plain[first, i], plain[second, j]], shown.pge_estimates[mask])
    d = position[m] - position[other] + len(data["loss"]) - 1
    close(table.difference[d], shown.difference)
    found = table.projected[at["K"], e, d, a, m, i, j]
    close(found, [*shown.projected, shown.multiplier])
    row = dict(zip(table.columns, table.problem[la, lb, i, j, a], strict=True))
    close([row["g1"], row["g2"]], shown.gradient)
    close([row[f"mean1_{e}"], row[f"mean2_{e}"]], shown.mean_step)
    for name, estimator in (("vr", "vr-pge"), ("sym", "vr-pge-symmetric"), (f"pge{level}", "pge")):
        spread = shown.spreads[estimator]
        close(row[f"{name}_total"], spread.total_variance)
        assert row[f"{name}_major"] == pytest.approx(spread.ellipse.major, rel=6e-4, abs=1e-6)
        # The smaller variance is what rounding leaves of larger ones where it is 0.
        small = 1e-6 * max(1.0, spread.ellipse.major)
        assert row[f"{name}_minor"] == pytest.approx(spread.ellipse.minor, rel=1e-3, abs=small)
        if spread.ellipse.major > 1.01 * spread.ellipse.minor:
            turned = (row[f"{name}_angle"] - spread.ellipse.angle + 90.0) % 180.0 - 90.0
            assert abs(turned) < 0.05
    np.testing.assert_allclose(row[f"ratio{level}"], shown.ratio, rtol=6e-4)
    close([row["bound"], row["view"]], [shown.bound, shown.view])


def test_start_is_the_state(data):
    start = data["start"]
    assert [data["s"][start[x]] for x in ("s1", "s2")] == list(START.keep_prob)
    assert data["alpha"][start["alpha"]] == START.precondition_power
    assert data["eta"][start["eta"]] == START.keep_prob_lr
    assert data["K"][start["K"]] == START.budget
    assert [data["loss"][k] for k in data["base"]] == list(START.losses)
    assert (start["m"], start["mprime"]) == START.drawn == tuple(data["free"])
    assert [data["loss"][start[x]] for x in ("la", "lb")] == [0.5, 1.0]


def test_contours_are_where_phi_has_their_value(data):
    (first, second), positions = data["free"], data["loss"]
    for k, (la, lb) in enumerate(itertools.product(positions, positions)):
        losses = [positions[x] for x in data["base"]]
        losses[first], losses[second] = la, lb
        assert len(data["contours"][k]) >= 4
        for contour in data["contours"][k]:
            assert len(contour["label"]) == len(data["level"])
            for x, y in itertools.chain(*contour["lines"]):
                s, t = x / 1000.0, y / 1000.0
                phi = (1 - t) * ((1 - s) * losses[0] + s * losses[1])
                phi += t * ((1 - s) * losses[2] + s * losses[3])
                assert phi == pytest.approx(float(contour["label"][0]), abs=0.01)


def test_values_asked_for_are_positions(tmp_path):
    state = State(
        keep_prob=(0.41, 0.39),
        precondition_power=0.6,
        keep_prob_lr=0.2,
        budget=1.5,
        losses=(0.0, 1.0, 0.4, 3.0),
        level=7.0,
        drawn=(2, 2),
    )
    grid = Grid().holding(state)
    assert grid.s == (0.02, 0.1, 0.25, 0.39, 0.41, 0.6, 0.75, 0.9, 0.98)
    assert (grid.alpha, grid.lr) == ((0.0, 0.25, 0.6, 1.0), (0.1, 0.2, 0.6))
    assert (grid.budget, grid.level) == ((0.6, 1.0, 1.5), (0.0, 2.0, 7.0))
    said = []
    save_page(state, tmp_path / "page.html", said.append, TINY)
    assert "the page's loss sliders have 2 positions: L(0,1) is 0" in said
    tables = Tables(state, grid)
    assert tables.free == (2, 3)
    assert tables.state.losses == (0.0, 1.0, 0.0, 3.0)


def test_grids():
    assert with_value((0.0, 1.0, 2.0), 1.2) == (0.0, 1.2, 2.0)
    assert with_value((0.0, 1.0, 2.0), 1.2, kept=[1.0]) == (0.0, 1.0, 1.2)
    assert with_value((0.0, 1.0), 1.0) == (0.0, 1.0)
    assert loss_positions((2.0, 0.5, 1.0, 0.5), 4) == (0.5, 1.0, 1.5, 2.0)
    assert loss_positions((1.0, 1.0, 1.0, 1.0), 2) == (1.0, 2.0)
    assert packed([0.5, -0.25, 1234.56, 0.0, 10.5, 1e-9, float("nan")]) == (
        ".5 -.25 1235 0 10.5 0 nan"
    )


class Inputs(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts = []
        self.fetched = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "script":
            self.scripts.append(found)
        for name in ("src", "href"):
            if name in found and not found[name].startswith("#"):
                self.fetched.append(found[name])
        assert tag not in ("link", "iframe", "img")


def test_the_page_is_one_file_that_fetches_nothing(text):
    parser = Inputs()
    parser.feed(text)
    assert len(parser.scripts) == 2
    assert parser.fetched == []
    for word in ("http:", "https:", "fetch(", "XMLHttp", "@import", "url(#", "/*DATA*/"):
        assert (word in text) == (word == "url(#"), word


def test_an_older_page_is_replaced_at_once_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("an older page")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ValueError, match="No space left"):
            save_page(START, path, grid=TINY)
    assert path.read_text() == "an older page"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    save_page(START, path, grid=TINY)
    assert path.read_text().startswith("<!doctype html>")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("address", "state"),
    [
        ("", START),
        (
            "#s1=.9&s2=.02&alpha=0&level=8&la=2&lb=1.5&eta=.1&K=.6&m=10&mprime=11",
            State((0.9, 0.02), 0.0, 0.1, 0.6, (2.0, 0.5, 1.5, 2.0), 8.0, (1, 3)),
        ),
    ],
)
def test_a_browser_shows_the_numbers_of_a_frame(page, address, state, tmp_path):
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    run = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", page.as_uri() + address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    dom = html.unescape(re.sub("<script.*?</script>", "", run.stdout, flags=re.DOTALL))
    shown = frame(state)
    assert len(re.findall(r'<input type="range"', dom)) == 8
    for name in re.findall(r'<input type="range" id="(\w+)"', dom):
        assert f'<label for="{name}">' in dom
    rows = re.findall(r"<tr[^>]*><td>(.*?)</td><td>(.*?)</td></tr>", dom)
    written = {
        re.sub("<.*?>", "", name): [
            float(x)
            for x in re.findall(r"-?\d[\d.e-]*", re.sub("<.*?>", "", value).replace("−", "-"))
        ]
        for name, value in rows
    }
    a, b = state.drawn
    expected = {
        "probability of drawing this pair": shown.pair_probability[a, b],
        "L(m) − L(m′)": shown.difference,
        "× score (m − s) / (s (1 − s))": shown.score[a],
        "× H^α = (s (1 − s))^α": shown.preconditioner,
        "= estimate": shown.estimate,
        "z = s − η · estimate": shown.z,
        "multiplier v of the projection": shown.multiplier,
        "new s = clip(z − v, 0, 1)": shown.projected,
        "Φ(s) = E L(m)": shown.expected_loss,
        "mean of all three: exact H^α ∇Φ": shown.gradient,
        "PGE (same α) over VR-PGE": shown.ratio,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(written[name], np.atleast_1d(value), rtol=6e-4, err_msg=name)
    for spread in shown.spreads.values():
        assert dom.count("<ellipse") == 3
        assert spread.total_variance > 0.0
