from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import minicst.functional as F
from minicst import Tensor, models
from minicst.lessons.tape import Node, draw, tape_graph


def test_a_graph_of_a_value_that_is_used_twice():
    x, w = Tensor(np.ones((2, 2))), Tensor(np.ones((2, 2)), requires_grad=True)
    a = x @ w
    b = a * a + a
    nodes = tape_graph(b, {"x": x, "w": w, "a": a})
    add, mul, matmul = nodes
    assert add.label == "Add  2×2  float64"
    assert set(add.inputs) == {1, 2}
    assert mul.inputs == (2,)
    assert matmul.label == "MatMul  2×2  float64  = a"
    assert matmul.leaves == (
        "x  2×2  float64  (needs no gradient)",
        "w  2×2  float64  (no gradient yet)",
    )


def test_drawing():
    nodes = [Node("sum", (), (1, 2)), Node("left", ("leaf",), (2,)), Node("both", (), ())]
    assert draw(nodes) == [
        "●  sum",
        "├─╮",
        "● │  left",
        "│ │    ○ leaf",
        "╰─┤",
        "  ●  both",
    ]


def test_every_line_of_a_residual_network_ends_at_its_node():
    network = models.build("resnet20", in_channels=1, width=0.25)
    x = np.zeros((2, 8, 8, 1), np.float32)
    loss = F.cross_entropy(network(x, training=True, track=False), np.array([0, 1]))
    nodes = tape_graph(loss, {"network": network})
    text = "\n".join(draw(nodes))
    assert text.count("●") == len(nodes)
    names = [name for name, _ in network.named_parameters()]
    for name in names:
        assert text.count(f"○ network.{name}  ") == 1
    for number, node in enumerate(nodes):  # each before what it was made from
        assert all(number < parent for parent in node.inputs)
    # Between two nodes nothing but lines: every column of a node's row is a line from above.
    rows = draw(nodes)
    for above, row in pairwise(rows):
        gutter = row.split("  ")[0]
        for column, sign in enumerate(gutter):
            if sign in "│●├┤┼╰╯" and column < len(above):
                assert above[column] in "│●├┤┬┼╭╮", (above, row)


def test_a_tape_of_another_kind_is_drawn_too():
    leaf = SimpleNamespace(creator=None, grad=None, data=np.ones(3), requires_grad=True)
    made = SimpleNamespace(
        creator=SimpleNamespace(name="twice", inputs=[leaf]), grad=None, data=np.ones(3)
    )
    (node,) = tape_graph(made, {"leaf": leaf})
    assert node.label == "twice  3  float64"
    assert node.leaves == ("leaf  3  float64  (no gradient yet)",)


def test_what_has_no_tape_is_refused_with_its_reason():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match="it's a leaf, made by nobody: no gradient yet"):
        tape_graph(x, {})
    with pytest.raises(ValueError, match="a ndarray is not on a tape"):
        tape_graph(np.ones(3), {})
    y = (x * x).sum()
    y.backward()
    with pytest.raises(ValueError, match=r"used up.*Run the forward pass again"):
        tape_graph(y, {})
