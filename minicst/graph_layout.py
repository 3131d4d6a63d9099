"""Where the boxes and edges of a network's picture stand: columns, lanes, routes.

Data flows from top to bottom. The main stream is a straight spine in lane 0 of its column; the
branch of a residual block stands beside it in lane 1. Where one node alone feeds all that follows,
the picture may break: the next column goes on at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from minicst.nn import INPUT, Add, Network

Point = tuple[float, float]

GAP = 18.0  # between boxes, with room for an arrow head
FORK = 28.0  # between the spine and a branch's first box: the edge turns in it
JOIN = 13.0  # from a branch's last box down to the middle of the add beside it
LANE_GAP = 26.0
GUTTER = 56.0  # between columns: the edge to the next column climbs in it
ENTRY, EXIT = 34.0, 22.0  # from the turn of that edge to a column's first and last box
LABEL = 16.0  # text beside such a turn
SHORT = 800.0  # a drawing of less height stays in one column
MAX_COLUMNS = 8


@dataclass(frozen=True)
class Box:
    """Place of a node: corner and size in pixels, its column and its lane (0: the spine)."""

    x: float
    y: float
    width: float
    height: float
    column: int
    lane: int

    @property
    def center(self) -> Point:
        """(x, y) of the middle."""
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.y + self.height


@dataclass(frozen=True)
class Layout:
    """Places of everything, in pixels from the drawing's corner.

    Attributes:
        boxes: {node: box}, with "input".
        edges: {(source, target): corners of the route}, from the source's border to the target's.
        breaks: (node, corner where its edge leaves the column, corner where it enters the next).
        width: of the drawing.
        height: of the drawing.
    """

    boxes: dict[str, Box]
    edges: dict[tuple[str, str], list[Point]]
    breaks: list[tuple[str, Point, Point]]
    width: float
    height: float


def arrange(
    network: Network,
    heights: Mapping[str, float],
    box_width: float,
    beside: tuple[float, float] = (0.0, 0.0),
    proportion: float = 1.35,
) -> Layout:
    """Place a network in as many columns as bring the page nearest to a width / height.

    Meant for chains and residual blocks: between two places where the stream is alone, what is off
    the spine must be chains that leave the spine and come back to it.

    Args:
        network: any such network.
        heights: {node: height of its box}, with "input".
        box_width: width of every box.
        beside: (width, height) of what else stands on the page, right of and above the drawing.
        proportion: width / height to aim at.
    """
    blocks = _blocks(network)
    lanes = 1 + max(lane for block in blocks for lane in block.values())
    column_width = lanes * box_width + (lanes - 1) * LANE_GAP
    tall = [_height(block, heights) for block in blocks]
    layouts = []
    most = 1 if sum(tall) <= SHORT else min(MAX_COLUMNS, len(blocks))
    for n_columns in range(1, most + 1):
        starts = _break(tall, n_columns)
        height = _tallest(tall, starts) + (ENTRY + EXIT + 2 * LABEL) * (n_columns > 1)
        width = n_columns * column_width + (n_columns - 1) * GUTTER
        off = abs(log((width + beside[0]) / (height + beside[1]) / proportion))
        layouts.append((off, starts, (width, height)))
    _, starts, (width, height) = min(layouts)
    top = ENTRY + LABEL if len(starts) > 1 else 0.0
    boxes: dict[str, Box] = {}
    for column, (start, stop) in enumerate(zip(starts, [*starts[1:], len(blocks)], strict=True)):
        left, y = column * (column_width + GUTTER), top
        for i, block in enumerate(blocks[start:stop]):
            y += _space_above(block) if i else 0.0
            y = _place(block, heights, box_width, (column, left), y, boxes)
    edges = {
        (source, name): _route(source, name, boxes, top)
        for name, reads in network.inputs.items()
        for source in reads
    }
    breaks = []
    for start in starts[1:]:
        source = list(blocks[start - 1])[-1]
        route = next(
            route
            for (read, name), route in edges.items()
            if read == source and boxes[name].column > boxes[read].column
        )
        breaks.append((source, route[1], route[4]))
    return Layout(boxes, edges, breaks, width, height)


def spine_of(network: Network) -> list[str]:
    """Return the main stream from "input" to the output; at an add it follows the shortcut."""
    name, found = network.output, [network.output]
    while name != INPUT:
        reads = network.inputs[name]
        name = reads[-1] if isinstance(network.nodes[name], Add) else reads[0]
        found.append(name)
    return found[::-1]


def _blocks(network: Network) -> list[dict[str, int]]:
    """Cut the network where one node alone feeds all that follows: [{node: lane}], ends last."""
    spine = set(spine_of(network))
    order = [INPUT, *network.nodes]
    last_reader = dict.fromkeys(order, 0)
    for i, name in enumerate(order[1:], 1):
        for read in network.inputs[name]:
            last_reader[read] = i
    blocks: list[dict[str, int]] = [{}]
    needed = 0  # the last node that reads something from before the node at hand
    for i, name in enumerate(order):
        block = blocks[-1]
        if name in spine:
            block[name] = 0
        else:
            in_block = [block[read] for read in network.inputs[name] if block.get(read, 0)]
            block[name] = in_block[0] if in_block else 1 + max(block.values(), default=0)
        if name in spine and needed <= i and i + 1 < len(order):
            blocks.append({})
        needed = max(needed, last_reader[name])
    return blocks


def _space_above(block: dict[str, int]) -> float:
    return FORK if any(block.values()) else GAP


def _stack(names: list[str], heights: Mapping[str, float]) -> float:
    return sum(heights[name] for name in names) + GAP * max(0, len(names) - 1)


def _by_lane(block: dict[str, int]) -> tuple[dict[int, list[str]], str]:
    """Return what stands in each lane, and the node that ends the block."""
    *others, end = block
    lanes: dict[int, list[str]] = {}
    for name in others:
        lanes.setdefault(block[name], []).append(name)
    return lanes, end


def _end(lanes: dict[int, list[str]], end: float, heights: Mapping[str, float]) -> float:
    """How far below a block's top the node that ends it begins; `end` is its height.

    A branch meets it from the side, so it may begin beside the branch's last box.
    """
    tallest = max((_stack(names, heights) for names in lanes.values()), default=0.0)
    spine = (tallest + _stack(lanes[0], heights)) / 2 + GAP if 0 in lanes else 0.0
    branch = tallest + JOIN - end / 2 if any(lanes) else 0.0
    return max(spine, branch)


def _height(block: dict[str, int], heights: Mapping[str, float]) -> float:
    """Height of a block with the space above it."""
    lanes, end = _by_lane(block)
    return _space_above(block) + _end(lanes, heights[end], heights) + heights[end]


def _place(
    block: dict[str, int],
    heights: Mapping[str, float],
    width: float,
    column: tuple[int, float],
    y: float,
    boxes: dict[str, Box],
) -> float:
    """Place a block's boxes from y downward; return where it ends."""
    lanes, end = _by_lane(block)
    tallest = max((_stack(names, heights) for names in lanes.values()), default=0.0)
    for lane, names in lanes.items():
        at = y + (tallest - _stack(names, heights)) / 2
        for name in names:
            x = column[1] + lane * (width + LANE_GAP)
            boxes[name] = Box(x, at, width, heights[name], column[0], lane)
            at += heights[name] + GAP
    y += _end(lanes, heights[end], heights)
    boxes[end] = Box(column[1], y, width, heights[end], column[0], 0)
    return boxes[end].bottom


def _break(tall: list[float], n_columns: int) -> list[int]:
    """First block of every column, so that the tallest column is as short as can be."""
    low, high = max(tall), sum(tall)
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(tall, middle)) <= n_columns else (middle, high)
    return _fill(tall, high)


def _fill(tall: list[float], limit: float) -> list[int]:
    """First block of every column, filled one after the other up to a limit."""
    starts, used = [0], 0.0
    for i, height in enumerate(tall):
        if used + height > limit:
            starts.append(i)
            used = 0.0
        used += height
    return starts


def _tallest(tall: list[float], starts: list[int]) -> float:
    return max(sum(tall[a:b]) for a, b in zip(starts, [*starts[1:], len(tall)], strict=True))


def _route(source: str, target: str, boxes: dict[str, Box], top: float) -> list[Point]:
    """Corners of an edge."""
    a, b = boxes[source], boxes[target]
    (ax, _), (bx, by) = a.center, b.center
    route: list[Point] = [(ax, a.bottom)]
    if b.column > a.column:
        # Down, into the gutter left of the target's column, up to its top, onto its spine.
        left = min(box.x for box in boxes.values() if box.column == b.column)
        spine, gutter = left + b.width / 2, left - GUTTER / 2
        low, high = a.bottom + EXIT, top - ENTRY
        route += [(ax, low), (gutter, low), (gutter, high), (spine, high)]
        ax = spine
    if b.lane > a.lane:
        # Beside the spine from the middle of the space above the branch's lane.
        turn = top - FORK / 2 if b.column > a.column else a.bottom + FORK / 2
        return [*route, (ax, turn), (bx, turn), (bx, b.y)]
    if b.lane < a.lane:
        return [*route, (ax, by), (b.x + b.width, by)]
    return [*route, (bx, b.y)]
