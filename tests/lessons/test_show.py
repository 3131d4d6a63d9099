import numpy as np
import pytest
from rich.console import Console

from minicst import Tensor
from minicst.lessons.show import show


def shown(value, color=None):
    console = Console(width=100, color_system=color, force_terminal=True, record=True)
    with console.capture() as capture:
        show(console, "v", value)
    return capture.get()


def test_a_small_array_is_a_table_of_numbers():
    text = shown(np.array([[1.0, 2.5], [-3.25, 1e-9]]))
    assert text.splitlines()[0] == "v, 2×2"
    assert text.splitlines()[2].split() == ["0", "1", "2.5"]
    assert text.splitlines()[3].split() == ["1", "-3.25", "1e-09"]
    assert shown(np.array([True, False])).splitlines()[-1].split() == ["0", "1", "0"]


def test_of_more_axes_the_first_plane_is_shown_and_said():
    text = shown(np.arange(24.0).reshape(4, 1, 3, 2))
    assert text.splitlines()[0] == "v[0, :, :], of 4×1×3×2 float64"
    assert text.splitlines()[-1].split() == ["2", "4", "5"]


def test_a_large_array_is_a_heat_map_with_its_range():
    text = shown(np.linspace(0.0, 1.0, 30 * 20).reshape(30, 20))
    rows = text.splitlines()[1:-1]
    assert len(rows) == 15  # pairs of rows are averaged to fit
    assert rows[0].strip() == ""  # the lowest are blank
    assert rows[-1] == "@" * 40
    assert "each cell is the mean of 2 × 1 numbers" in text.splitlines()[-1]
    assert "\x1b[48;" in shown(np.eye(20), "truecolor")


def test_a_long_vector_is_wrapped_and_nan_is_blank():
    values = np.arange(100.0)
    values[50] = np.nan
    rows = shown(values).splitlines()[1:-1]
    assert len(rows) == 3
    assert rows[1][28:30] == "  "


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Tensor([1.0], requires_grad=True), "v: Tensor, no gradient yet"),
        ({"a": 1}, "v = {'a': 1}"),
        (np.zeros((0, 3)), "v, 0×3 float64"),
        (np.array(["a", "b"]), "v, 2 <U1"),
        (np.array(3.0), "v, scalar"),
        (np.full(40, 2.0), "2 "),
    ],
)
def test_what_is_no_plain_array_is_shown_as_it_is(value, says):
    assert says in shown(value)
