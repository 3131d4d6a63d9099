"""The SVG of a network's picture: what it says of nodes and groups, boxes, edges, legend."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from minicst.graph_layout import Layout, Point, arrange
from minicst.nn import Network
from minicst.svg import FONT, INK, TEXT_SIZE, label, moved, px, text_width, wrap

QUIET, FAINT, LINE = "#525c6b", "#6e7683", "#3d4654"
NEUTRAL, PALE_LINE = "#5b6675", "#b4bac4"
MARGIN, PAD, STRIPE = 28.0, 10.0, 6.0
PANEL_GAP, PANEL_WIDTH, LEAST_WIDTH = 44.0, 262.0, 600.0
NAME_SIZE, NOTE_SIZE = 11.5, 9.5
BAR = 6.0


@dataclass(frozen=True)
class Part:
    """What the picture says about a node.

    Attributes:
        name: of the node.
        what: its kind in words, and the size of its output.
        total: channels of its output.
        live: live ones under the mask; None: no mask.
        group: of its maskable channels, or None.
        note: a line below the rest, may be empty.
        details: exact numbers, for the tooltip.
        joins: whether it is an add.
    """

    name: str
    what: str
    total: int
    live: int | None
    group: str | None
    note: str
    details: str
    joins: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is live."""
        return self.live == 0

    @property
    def count(self) -> str:
        """'37/64', or '64' without a mask."""
        return str(self.total) if self.live is None else f"{self.live}/{self.total}"


@dataclass(frozen=True)
class Group:
    """A group of maskable channels: its name, size, live channels and the nodes that it masks."""

    name: str
    total: int
    live: int | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Paint:
    """Colors of a group: of stripe and bar, and behind the text."""

    strong: str
    behind: str


UNPAINTED = Paint(NEUTRAL, "#f1f3f6")


def colors(groups: Iterable[Group]) -> dict[str, Paint]:
    """{group: paint}, all different; groups of several layers are strong, others pale."""
    found = {}
    turn = {True: 0, False: 0}
    for group in groups:
        shared = len(group.nodes) > 1
        # Steps of the golden angle: hues never come back, and neighbors differ much.
        hue = (0.58 + 0.381966 * turn[shared]) % 1.0
        turn[shared] += 1
        if shared:
            found[group.name] = Paint(_hex(hue, 0.43, 0.7), _hex(hue, 0.95, 0.7))
        else:
            found[group.name] = Paint(_hex(hue, 0.7, 0.36), "#ffffff")
    return found


def _hex(hue: float, lightness: float, saturation: float) -> str:
    rgb = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def picture(
    network: Network,
    parts: dict[str, Part],
    groups: list[Group],
    title: str,
    lines: list[str],
    legend: list[str],
) -> str:
    """Draw a network.

    Args:
        network: the wiring.
        parts: {node: what to say about it}, with "input".
        groups: of maskable channels, in order.
        title: of the picture.
        lines: below the title; wrapped to the width of the page.
        legend: sentences on how to read it, on the right.

    Returns:
        The SVG, the same text for the same arguments.
    """
    paint = colors(groups)
    box_width = max(map(_needed_width, parts.values()))
    heights = {name: _box_height(part) for name, part in parts.items()}
    head_guess = 52.0 + 16.0 * len(lines)
    beside = (PANEL_GAP + PANEL_WIDTH + 2 * MARGIN, head_guess + 2 * MARGIN)
    layout = arrange(network, heights, box_width, beside)
    panel_width = max(PANEL_WIDTH, LEAST_WIDTH - layout.width - PANEL_GAP)
    panel, panel_height = _panel(legend, groups, paint, panel_width)
    inner = layout.width + PANEL_GAP + panel_width
    head, head_height = _head(title, lines, inner)
    width = inner + 2 * MARGIN
    height = head_height + max(layout.height, panel_height) + 2 * MARGIN
    body = [
        *moved("head", MARGIN, MARGIN, head),
        *moved("graph", MARGIN, MARGIN + head_height, _graph(layout, parts, paint)),
        *moved("legend", MARGIN + layout.width + PANEL_GAP, MARGIN + head_height, panel),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{px(width)}" height="{px(height)}" '
            f'viewBox="0 0 {px(width)} {px(height)}" font-family="{FONT}" '
            f'font-size="{TEXT_SIZE}" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            f'<rect class="page" width="{px(width)}" height="{px(height)}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _head(title: str, lines: list[str], width: float) -> tuple[list[str], float]:
    drawn, y = [label(0, 20, title, 22, bold=True)], 42.0
    for line in lines:
        for piece in wrap(line, width, 12):
            drawn.append(label(0, y, piece, 12, QUIET))
            y += 17
    return drawn, y + 10


def _has_note(part: Part) -> bool:
    return bool(part.note) or part.empty


def _box_height(part: Part) -> float:
    return 39.0 + (BAR + 4) * (part.live is not None) + 15 * _has_note(part)


def _needed_width(part: Part) -> float:
    """Width of a box that holds all its lines."""
    gap = 12.0
    second = text_width(part.what, TEXT_SIZE) + gap + text_width(part.count, NAME_SIZE, True)
    note = text_width(part.note, NOTE_SIZE) + part.empty * (gap + text_width("empty", 10.5, True))
    inner = max(text_width(part.name, NAME_SIZE, True), second, note, 130.0)
    return inner + 2 * PAD + STRIPE


def _graph(layout: Layout, parts: dict[str, Part], paint: dict[str, Paint]) -> list[str]:
    drawn = []
    # Living edges last: they cover empty ones where two share a way.
    pale = {
        (source, name): parts[source].empty or parts[name].empty for source, name in layout.edges
    }
    for edge in sorted(layout.edges, key=lambda edge: not pale[edge]):
        drawn += _edge(*edge, layout.edges[edge], pale[edge])
    for name, low, high in layout.breaks:
        drawn.append(label(low[0] + 6, low[1] + 12, "to next column", NOTE_SIZE, QUIET))
        after = f"from {name}"
        drawn.append(label(high[0], high[1] - 6, after, NOTE_SIZE, QUIET, anchor="middle"))
    fan_out = Counter(source for source, _ in layout.edges)
    for (source, name), route in layout.edges.items():
        # Where a branch leaves and comes back with nothing but the edge in between.
        if parts[name].joins and layout.boxes[source].lane == 0 and fan_out[source] > 1:
            (x, y), (_, end) = route[-2:]
            drawn.append(label(x + 6, (y + end) / 2 + 3, "identity", NOTE_SIZE, QUIET))
    for name, box in layout.boxes.items():
        color = paint.get(parts[name].group or "", UNPAINTED)
        drawn += _box(parts[name], (box.x, box.y, box.width, box.height), color)
    return drawn


def _edge(source: str, target: str, route: list[Point], pale: bool) -> list[str]:
    color = PALE_LINE if pale else LINE
    corners = " L".join(f"{px(x)} {px(y)}" for x, y in route)
    dash = ' stroke-dasharray="4 3"' if pale else ""
    x, y = route[-1]
    down = x == route[-2][0]  # else it points left
    head = f"M{px(x)} {px(y)} " + ("l-4 -7.5 h8 z" if down else "l7.5 -4 v8 z")
    names = f'data-from="{escape(source)}" data-to="{escape(target)}"'
    return [
        f'<path class="edge" {names} d="M{corners}" fill="none" stroke="{color}" '
        f'stroke-width="{1.2 if pale else 1.6}" stroke-linejoin="round"{dash}/>',
        f'<path class="head" d="{head}" fill="{color}"/>',
    ]


def _box(part: Part, place: tuple[float, float, float, float], paint: Paint) -> list[str]:
    """Draw a node: name; kind, size and count; bar; note."""
    x, y, width, height = place
    left, right = x + STRIPE + PAD, x + width - PAD
    ink, quiet = (FAINT, FAINT) if part.empty else (INK, QUIET)
    border = f'stroke="{PALE_LINE}" stroke-dasharray="4 3"' if part.empty else f'stroke="{LINE}"'
    fill = "#ffffff" if part.empty else paint.behind
    opacity = ' fill-opacity="0.45"' if part.empty else ""
    group = "" if part.group is None else f' data-group="{escape(part.group)}"'
    live = "" if part.live is None else f' data-live="{part.live}"'
    drawn = [
        f'<g class="node" data-node="{escape(part.name)}" data-total="{part.total}"{live}{group}>',
        f"<title>{escape(part.details)}</title>",
        f'<rect class="box" x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}" '
        f'rx="4" fill="{fill}" {border}/>',
    ]
    if part.group is not None:
        drawn.append(
            f'<path class="stripe" d="M{px(x + STRIPE)} {px(y + 0.5)} h{px(3.5 - STRIPE)} '
            f"q-3 0 -3 3 v{px(height - 7)} q0 3 3 3 h{px(STRIPE - 3.5)} z"
            f'" fill="{paint.strong}"{opacity}/>'
        )
    drawn.append(label(left, y + 15, part.name, NAME_SIZE, ink, bold=True))
    drawn.append(label(left, y + 30, part.what, TEXT_SIZE, quiet))
    drawn.append(label(right, y + 30, part.count, NAME_SIZE, ink, True, "end"))
    if part.live is not None:
        drawn += _bar(left, y + 37, right - left, part.live / part.total, paint.strong)
    if _has_note(part):
        drawn.append(label(left, y + height - 6, part.note, NOTE_SIZE, quiet))
    if part.empty:
        drawn.append(label(right, y + height - 6, "empty", TEXT_SIZE, FAINT, True, "end"))
    return [*drawn, "</g>"]


def _bar(x: float, y: float, width: float, share: float, color: str) -> list[str]:
    place = f'x="{px(x)}" y="{px(y)}" height="{px(BAR)}" rx="1.5"'
    bar = [f'<rect class="bar" {place} width="{px(width)}" fill="#e3e6ea"/>']
    if share:
        bar.append(f'<rect class="live" {place} width="{px(width * share)}" fill="{color}"/>')
    return bar


def _panel(
    legend: list[str], groups: list[Group], paint: dict[str, Paint], width: float
) -> tuple[list[str], float]:
    """Draw how to read the picture, and the groups; return it and its height."""
    drawn, y = [label(0, 12, "How to read it", 13, bold=True)], 34.0
    for sentence in legend:
        for line in wrap(sentence, width, TEXT_SIZE):
            drawn.append(label(0, y, line, TEXT_SIZE, QUIET))
            y += 15
        y += 6
    shared = [group for group in groups if len(group.nodes) > 1]
    single = len(groups) - len(shared)
    y += 18
    drawn.append(label(0, y, "Groups of maskable channels", 13, bold=True))
    y += 22
    if single:
        n = f"{single} group of one layer" if single == 1 else f"{single} groups of one layer each"
        for line in wrap(f"{n}: pale.", width, TEXT_SIZE):
            drawn.append(label(0, y, line, TEXT_SIZE, QUIET))
            y += 15
        y += 6
    if shared:
        drawn.append(label(0, y, "One mask for several layers (tied):", TEXT_SIZE, QUIET))
        y += 9
    for group in shared:
        drawn.append(
            f'<rect class="swatch" x="0" y="{px(y)}" width="12" height="12" rx="2" '
            f'fill="{paint[group.name].strong}"/>'
        )
        y += 10
        count = str(group.total) if group.live is None else f"{group.live}/{group.total}"
        text = f"{group.name}: {len(group.nodes)} layers"
        drawn.append(label(20, y, text))
        drawn.append(label(width, y, count, TEXT_SIZE, INK, True, "end"))
        y += 9
    return drawn, y
