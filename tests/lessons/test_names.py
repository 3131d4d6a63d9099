import math

import numpy as np
import pytest
from rich.console import Console

import minicst.functional as F
from minicst import Parameter, Tensor, models
from minicst.lessons.names import Watch, describe, print_names


def test_an_array_has_shape_dtype_and_range():
    row = describe("a", np.array([[1.0, 2.0], [3.0, 6.0]], np.float32))
    assert (row.type, row.shape, row.dtype) == ("ndarray", "2×2", "float32")
    assert (row.low, row.mean, row.high, row.note) == ("1", "3", "6", "")
    assert describe("a", np.array([1.0, math.nan])).note == "1 not finite"
    assert describe("a", np.zeros(0)).low == ""
    assert describe("a", np.array(["x"])).dtype == "<U1"
    assert describe("a", np.array([True, False])).mean == "0.5"


def test_a_gradient_that_is_not_there_is_never_0():
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert describe("x", x).note == "no gradient yet"
    y = (x * 3.0).sum()
    assert describe("y", y).note == "made by Sum"
    y.backward()
    assert describe("x", x).note == "gradient up to 3"
    assert describe("y", y).note == "its tape is used up"
    assert describe("z", Tensor([1.0])).note == "needs no gradient"
    zero = Parameter([1.0])
    (zero * 0.0).sum().backward()
    assert describe("zero", zero).note == "gradient up to 0"


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (3, "int", "3"),
        (0.123456, "float", "0.1235"),
        (np.float64(2.5), "float64", "2.5"),
        ("text", "str", "'text'"),
        (None, "NoneType", "None"),
        ({"a": 1, "b": 2}, "dict", "a, b"),
        ([1, 2.0], "list", "of float, int"),
        ((), "tuple", ""),
        (describe, "function", "describe(name: 'str', value: 'Any') -> 'Row'"),
        (Tensor, "class", "An array that remembers how it was computed."),
        (slice(1, 2), "slice", "slice(1, 2, None)"),
    ],
)
def test_other_values_are_said_in_a_few_words(value, kind, says):
    row = describe("v", value)
    assert (row.type, row.note) == (kind, says)


def test_a_network_has_parameters_and_maskable_channels():
    network = models.build("vgg-tiny", in_channels=1, width=0.1)
    assert describe("network", network).note == "209 parameters, 8 maskable channels"


def test_watch_sees_what_is_new_and_what_changed():
    watch, names = Watch(), {"a": np.zeros(3), "b": 1, "np": np, "_hidden": 2}
    rows, imported = watch.changes(names)
    assert [(new, row.name) for new, row in rows] == [(True, "a"), (True, "b")]
    assert imported == ["np"]
    assert watch.changes(names) == ([], [])
    names["a"][1] = 1.0  # in place
    names["b"] = 1
    rows, _ = watch.changes(names)
    assert [(new, row.name) for new, row in rows] == [(False, "a")]
    names["c"] = {"inside": [names["a"]]}
    watch.changes(names)
    names["a"][2] = 5.0
    assert [row.name for _, row in watch.changes(names)[0]] == ["a", "c"]


def test_watch_sees_weights_and_gradients_of_a_network():
    network = models.build("vgg-tiny", in_channels=1, width=0.1)
    watch = Watch()
    watch.changes({"network": network})
    assert network.groups  # cached inside: no change of the network
    assert watch.changes({"network": network})[0] == []
    x = np.zeros((2, 8, 8, 1), np.float32)
    F.cross_entropy(network(x, training=True, track=False), np.array([0, 1])).backward()
    assert len(watch.changes({"network": network})[0]) == 1
    network.parameters()[0].data[...] += 1.0
    assert len(watch.changes({"network": network})[0]) == 1


def test_names_are_printed_whole_in_80_columns(capsys):
    rows = [
        (True, describe("a_rather_long_name", np.zeros((64, 8, 8, 1)))),
        (False, describe("text", "[red]not markup[/red]")),
    ]
    print_names(Console(width=80), rows)
    out = capsys.readouterr().out
    assert "+  a_rather_long_name  ndarray  64×8×8×1  float64" in out
    assert "~  text  str  '[red]not markup[/red]'" in out
