"""`g NAME`: the tape behind a tensor, drawn in the terminal as a graph.

Anything with a `creator` whose `inputs` are such things again is a tape: minicst's tensors, and
those of a lesson that builds its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minicst.lessons.names import gradient_note
from minicst.nn import Module

# Directions in which lines leave a cell -> the character.
UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
LINES = {
    0: " ",
    UP: "│",
    DOWN: "│",
    UP | DOWN: "│",
    LEFT | RIGHT: "─",
    UP | RIGHT: "╰",
    UP | LEFT: "╯",
    DOWN | RIGHT: "╭",
    DOWN | LEFT: "╮",
    UP | DOWN | RIGHT: "├",
    UP | DOWN | LEFT: "┤",
    LEFT | RIGHT | UP: "┴",
    LEFT | RIGHT | DOWN: "┬",
    UP | DOWN | LEFT | RIGHT: "┼",
}


@dataclass(frozen=True)
class Node:
    """A result on the tape.

    Attributes:
        label: what made it, shape, dtype, and what it's called.
        leaves: of what it was made from, what nobody made: parameters, images, numbers.
        inputs: numbers of the nodes that it was made from.
    """

    label: str
    leaves: tuple[str, ...]
    inputs: tuple[int, ...]


def tape_graph(tensor: Any, names: dict[str, Any]) -> list[Node]:
    """Return the graph behind a tensor, the tensor first, each node before what it was made from.

    Args:
        tensor: the result.
        names: a namespace: what is in it (or a parameter of a network in it) is called so.

    Raises:
        ValueError: it's no tensor, or has no tape.
    """
    if not hasattr(tensor, "creator") or not hasattr(tensor, "grad"):
        raise ValueError(f"a {type(tensor).__name__} is not on a tape: name a tensor")
    if getattr(tensor, "place", None) is not None and tensor.creator is None:
        raise ValueError(
            "its tape is used up: backward let go of it as it passed. Run the forward pass again "
            "and look before backward"
        )
    if tensor.creator is None:
        raise ValueError(f"it's a leaf, made by nobody: {gradient_note(tensor)}")
    called = _called(names)
    order = _order(_spot(tensor))
    number = {id(spot): i for i, spot in enumerate(order)}
    nodes = []
    for spot in order:
        parents = {id(_spot(parent)): _spot(parent) for parent in spot.creator.inputs}.values()
        leaves = tuple(_label(parent, called) for parent in parents if parent.creator is None)
        made = tuple(number[id(parent)] for parent in parents if parent.creator is not None)
        nodes.append(Node(_label(spot, called), leaves, made))
    return nodes


def _spot(thing: Any) -> Any:
    """What identifies a result: its place on the tape if it has one, else itself."""
    place = getattr(thing, "place", None)
    return thing if place is None else place


def _order(last: Any) -> list[Any]:
    """What was made, each before all that it was made from; not recursive, networks are deep."""
    done: list[Any] = []
    seen: set[int] = set()
    stack = [(last, False)]
    while stack:
        spot, inputs_done = stack.pop()
        if inputs_done:
            done.append(spot)
        elif id(spot) not in seen:
            seen.add(id(spot))
            stack.append((spot, True))
            parents = [_spot(parent) for parent in spot.creator.inputs]
            stack.extend((parent, False) for parent in parents if parent.creator is not None)
    return done[::-1]


def _called(names: dict[str, Any]) -> dict[int, str]:
    called: dict[int, str] = {}
    for name, value in names.items():
        if name.startswith("_"):
            continue
        if isinstance(value, Module):
            for inner, parameter in value.named_parameters():
                called.setdefault(id(parameter), f"{name}.{inner}")
        elif hasattr(value, "creator") and hasattr(value, "grad"):
            called[id(_spot(value))] = name
    return called


def _label(spot: Any, called: dict[int, str]) -> str:
    data = getattr(spot, "data", spot)
    shape = "×".join(map(str, getattr(data, "shape", ()))) or "scalar"
    dtype = getattr(data, "dtype", "")
    name = called.get(id(spot), "")
    if spot.creator is not None:
        made = getattr(spot.creator, "name", type(spot.creator).__name__)
        return f"{made}  {shape}  {dtype}" + (f"  = {name}" if name else "")
    return f"{name or type(spot).__name__}  {shape}  {dtype}  ({gradient_note(spot)})"


def draw(nodes: list[Node]) -> list[str]:
    """Draw the graph: a node a line, its leaves beneath; lines run down to its inputs."""
    columns: list[int | None] = [0]
    lines = []
    for number, node in enumerate(nodes):
        at = columns.index(number)
        lines.append(f"{_gutter(columns, at, '●')}  {node.label}")
        below = _gutter(columns, at, "│" if node.inputs else " ")
        lines += [f"{below}    ○ {leaf}" for leaf in node.leaves]
        before = list(columns)
        columns[at] = None
        targets = []
        for parent in node.inputs:
            if parent not in columns:
                free = at if columns[at] is None else _free(columns)
                columns[free] = parent
            targets.append(columns.index(parent))
        if targets and targets != [at]:
            lines.append(_link(before, columns, at, targets))
        while columns and columns[-1] is None:
            columns.pop()
    return lines


def _gutter(columns: list[int | None], at: int, sign: str) -> str:
    signs = (sign if i == at else " " if c is None else "│" for i, c in enumerate(columns))
    return " ".join(signs)


def _free(columns: list[int | None]) -> int:
    if None in columns:
        return columns.index(None)
    columns.append(None)
    return len(columns) - 1


def _link(before: list[int | None], after: list[int | None], at: int, targets: list[int]) -> str:
    """The line between two nodes in which lines branch off."""
    cells = [0] * (2 * len(after) - 1)
    for i, column in enumerate(after):
        if column is not None and i != at and i < len(before) and before[i] is not None:
            cells[2 * i] = UP | DOWN
    cells[2 * at] = UP
    for target in targets:
        if target == at:
            cells[2 * at] |= DOWN
            continue
        step = 1 if target > at else -1
        ahead, back = (RIGHT, LEFT) if step > 0 else (LEFT, RIGHT)
        cells[2 * at] |= ahead
        for i in range(2 * at + step, 2 * target, step):
            cells[i] |= LEFT | RIGHT
        cells[2 * target] |= back | DOWN
    return "".join(LINES[cell] for cell in cells).rstrip()
