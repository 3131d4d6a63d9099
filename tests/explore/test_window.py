"""The window on a canvas without a display: sliders move the state, the panels follow."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backend_bases import KeyEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from minicst.explore.drawing import (
    contour_levels,
    feasible_corners,
    loss_surface,
    number,
    save_picture,
    text_rows,
    vector,
)
from minicst.explore.problem import State, frame
from minicst.explore.window import SIZE, Window, show


class Canvas(FigureCanvasAgg):
    """Draws when asked to, as a window's canvas: not at each move of a slider."""

    def draw_idle(self, *_, **__):
        pass


@pytest.fixture
def window():
    figure = Figure(figsize=SIZE, dpi=50)
    Canvas(figure)
    return Window(State(), figure)


def texts(window):
    return [text.get_text() for text in window.panels.text.texts]


def test_sliders_move_the_state(window):
    for name, value in (
        ("s1", 0.25),
        ("s2", 0.75),
        ("alpha", 0.0),
        ("eta", 0.5),
        ("K", 1.5),
        ("level", 3.0),
        ("loss_a", 1.25),
        ("loss_b", 0.75),
    ):
        window.sliders[name].set_val(value)
    assert window.state == State((0.25, 0.75), 0.0, 0.5, 1.5, (2.0, 0.5, 0.75, 1.25), 3.0, (3, 2))
    expected = frame(window.state)
    np.testing.assert_array_equal(window.shown.estimates, expected.estimates)
    assert vector(expected.projected) in texts(window)
    corners = [text.get_text() for text in window.panels.step.texts]
    assert "L(1,1) = 4.25" in corners
    window.figure.canvas.draw()


def test_it_says_that_s_is_outside(window):
    def notes():
        return [text.get_text() for text in window.panels.step.texts]

    assert not any("outside of the set" in note for note in notes())
    window.sliders["K"].set_val(0.9)
    assert any("outside of the set" in note for note in notes())


def test_a_level_leaves_the_picture_of_vr_pge_alone(window):
    def ellipses():
        return [(p.width, p.height) for p in window.panels.estimates.patches]

    before, limits = ellipses(), window.panels.estimates.get_xlim()
    window.sliders["level"].set_val(9.0)
    after = ellipses()
    np.testing.assert_allclose(after[1:], before[1:])
    assert after[0][0] > 5.0 * before[0][0]
    assert window.panels.estimates.get_xlim() == limits
    assert any("PGE's ellipse" in text.get_text() for text in window.panels.estimates.texts)


def test_another_pair_gets_the_loss_sliders(window):
    window.choices[0].set_active(0)
    assert window.state.drawn == (0, 2)
    assert window.sliders["loss_a"].label.get_text() == "L(m), mask (0,0)"
    assert window.sliders["loss_a"].val == 2.0
    assert window.state.losses == State.losses
    window.sliders["loss_a"].set_val(1.5)
    assert window.state.losses == (1.5, 0.5, 1.0, 0.5)
    window.choices[1].set_active(0)  # m = m': one loss, whichever slider moves
    window.sliders["loss_b"].set_val(0.25)
    assert window.sliders["loss_a"].val == 0.25
    assert window.state.losses == (0.25, 0.5, 1.0, 0.5)
    assert not window.shown.estimate.any()


def test_keys_move_sliders(window):
    def press(key):
        KeyEvent("key_press_event", window.figure.canvas, key)._process()

    press("right")
    assert window.state.keep_prob[0] == pytest.approx(0.42)
    press("down")
    press("left")
    assert window.state.keep_prob == pytest.approx((0.42, 0.58))
    assert window.sliders["s2"].label.get_fontweight() == "bold"
    press("up")
    window.sliders["s1"].set_val(0.03)
    press("left")
    assert window.state.keep_prob[0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    "state",
    [
        State(losses=(1.0, 1.0, 1.0, 1.0)),
        State(losses=(0.0, 0.0, 0.0, 0.0)),
        State((0.02, 0.98), 0.0, 1.0, 0.05, (1000.0, -5.0, 0.0, 3.0), 1000.0, (1, 1)),
        State((0.98, 0.98), 1.0, 0.01, 2.0),
    ],
)
def test_pictures_at_the_edges(state, tmp_path):
    path = tmp_path / "picture.png"
    save_picture(state, path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG")
    save_picture(state, path)
    assert path.read_bytes() == first


def test_numbers_on_the_picture():
    shown = frame(State())
    rows = {name: value for name, value, _ in text_rows(shown)}
    assert rows["m = (1,1):  L(m)"] == "0.5"
    assert rows["difference L(m) − L(m′)"] == "−0.5"
    assert rows["probability of this pair"] == "8.64%"  # .24 .36
    assert rows["multiplier v"] == number(shown.multiplier)
    assert number(-1e-9) == "0"
    assert number(1234.5) == "1.23e+03"


@pytest.mark.parametrize("budget", [0.3, 1.0, 1.4, 2.0])
def test_the_feasible_set_is_drawn_as_it_is(budget):
    corners = np.array(feasible_corners(budget))
    x, y = corners.T
    area = 0.5 * abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    over = max(0.0, 2.0 - budget)
    expected = budget**2 / 2.0 if budget <= 1.0 else 1.0 - over**2 / 2.0
    assert area == pytest.approx(expected)
    assert (corners.sum(axis=1) <= budget + 1e-12).all()


def test_contours_have_round_values_inside_the_range():
    np.testing.assert_allclose(contour_levels([2.0, 0.5, 1.0, 0.5]), np.arange(0.6, 1.9, 0.2))
    assert contour_levels([1.0, 1.0, 1.0, 1.0]).size == 0
    line, surface = loss_surface([2.0, 0.5, 1.0, 0.0], points=3)
    assert line.tolist() == [0.0, 0.5, 1.0]
    assert surface[0].tolist() == [2.0, 1.25, 0.5]
    assert surface[2, 0] == 1.0


def test_no_window_without_a_display():
    before = plt.get_backend()
    plt.switch_backend("agg")
    try:
        assert not show(State())
        assert plt.get_fignums() == []
    finally:
        plt.switch_backend(before)


def test_a_backend_that_cannot_open_a_window_is_no_window(monkeypatch):
    def fails(*_, **__):
        raise ImportError("Cannot load backend 'TkAgg'")

    monkeypatch.setattr(plt, "figure", fails)
    assert not show(State())
