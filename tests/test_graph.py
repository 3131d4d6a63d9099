"""The picture of a network, read back from its SVG: every node, count, color, box and edge.

Widths of texts are measured with the outlines of DejaVu Sans, not with the picture's estimate.
"""

import re
import subprocess
import sys
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from minicst.counts import MacsSettings, count
from minicst.graph import GraphSettings, draw, draw_network
from minicst.graph_layout import arrange
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import INPUT, Add, GlobalPool, Network, Norm, Unit
from minicst.randomness import rng_for
from minicst.sparse.liveness import propagate, repair
from minicst.sparse.masks import sample_mask
from minicst.sparse.subnetwork import cut

SVG = "{http://www.w3.org/2000/svg}"


class Picture:
    """An SVG taken apart: nodes, boxes, routes and texts in coordinates of the page."""

    def __init__(self, svg):
        self.svg = svg
        self.root = ElementTree.fromstring(svg)
        self.width, self.height = float(self.root.get("width")), float(self.root.get("height"))
        self.nodes = {}
        self.boxes = {}
        self.routes = {}
        self.texts = []  # (text, left, top, right, bottom, node or None)
        for part in self.root.iter(f"{SVG}g"):
            if "transform" in part.attrib:
                place = re.fullmatch(r"translate\((\S+) (\S+)\)", part.get("transform"))
                self.read(part, np.array([float(number) for number in place.groups()]), None)

    def read(self, part, corner, node):
        for child in part:
            if child.get("class") == "node":
                name = child.get("data-node")
                assert name not in self.nodes
                self.nodes[name] = child
                self.read(child, corner, name)
            elif child.get("class") == "box":
                x, y, width, height = (float(child.get(k)) for k in ("x", "y", "width", "height"))
                self.boxes[node] = np.array([x, y, x + width, y + height]) + np.tile(corner, 2)
            elif child.get("class") == "edge":
                ends = child.get("data-from"), child.get("data-to")
                assert ends not in self.routes
                numbers = [float(n) for n in re.findall(r"[\d.]+", child.get("d"))]
                self.routes[ends] = np.reshape(numbers, (-1, 2)) + corner
            elif child.tag == f"{SVG}text":
                self.texts.append((child.text, *extent(child, corner), node))

    def of_class(self, node, name):
        return [part for part in self.nodes[node] if part.get("class") == name]

    def words(self, node):
        return [text for text, *_, owner in self.texts if owner == node]


def extent(element, corner):
    size, bold = float(element.get("font-size")), element.get("font-weight") == "bold"
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(element.text, font, False)
    x, y = float(element.get("x")) + corner[0], float(element.get("y")) + corner[1]
    x -= {None: 0.0, "middle": width / 2, "end": width}[element.get("text-anchor")]
    return x, y - 0.76 * size, x + width, y + 0.24 * size


def sampled(network, keep_rate, seed=0):
    keep_prob = np.full(network.n_maskable, keep_rate)
    return repair(network, sample_mask(keep_prob, rng_for(seed, "macs")), keep_prob)[0]


def overlap(a, b, by=0.05):
    """Whether two rectangles (left, top, right, bottom) share more than an edge."""
    return min(a[2], b[2]) - max(a[0], b[0]) > by and min(a[3], b[3]) - max(a[1], b[1]) > by


def crossed(route, box, by=0.05):
    """Whether a route of level and upright lines runs through the inside of a rectangle."""
    return any(
        (np.maximum(a, b) > box[:2] + by).all() and (np.minimum(a, b) < box[2:] - by).all()
        for a, b in pairwise(route)
    )


RESNETS = [name for name in NETWORKS if any(n in name for n in ("resnet", "wrn"))]
CASES = [
    *((name, {"keep_rate": 0.5}) for name in NETWORKS),
    *((name, {"keep_rate": 0.125, "residual": "independent"}) for name in RESNETS),
    ("resnet20", {"keep_rate": 0.125, "shortcut": "A"}),
    ("resnet20", {}),
    ("vgg16", {}),
]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())])
)
def case(request):
    name, options = request.param
    settings = GraphSettings(name, width=0.25, **options)
    h, w, c = ARCHITECTURES[name].image
    counts = count(
        MacsSettings(
            name,
            num_classes=ARCHITECTURES[name].num_classes,
            input=f"{c}x{h}x{w}",
            width=0.25,
            keep_rate=settings.keep_rate or 1.0,
            residual=settings.residual,
            shortcut=settings.shortcut,
        )
    )
    network = build(
        name,
        num_classes=counts["num_classes"],
        in_channels=counts["input"][0],
        width=0.25,
        residual=settings.residual,
        shortcut=settings.shortcut,
        image_size=counts["input"][1],
    )
    live = None
    if settings.keep_rate is not None:
        live = propagate(network, sampled(network, settings.keep_rate))
    return network, live, counts, Picture(draw(settings))


def test_every_node_once_with_its_counts(case):
    network, live, _, picture = case
    assert set(picture.nodes) == set(picture.boxes) == {INPUT, *network.nodes}
    for name, node in picture.nodes.items():
        total = network.channels(name)
        assert int(node.get("data-total")) == total
        words = picture.words(name)
        assert words[0] == name
        if live is None:
            assert node.get("data-live") is None
            assert str(total) in words
            assert not picture.of_class(name, "bar")
            continue
        n_live = int(live[name].sum())
        assert int(node.get("data-live")) == n_live
        assert f"{n_live}/{total}" in words
        assert f"{n_live} of {total} channels live" in node.find(f"{SVG}title").text
        (bar,), filled = picture.of_class(name, "bar"), picture.of_class(name, "live")
        drawn = float(filled[0].get("width")) if filled else 0.0
        assert drawn == pytest.approx(float(bar.get("width")) * n_live / total, abs=0.11)


def test_layers_say_what_macs_counts(case):
    _, live, counts, picture = case
    for layer in counts["layers"]:
        size = "x".join(map(str, layer["out"]))
        words = picture.words(layer["name"])
        kind = {"norm": "batch norm, ReLU"}.get(layer["kind"], layer["kind"])
        assert (f"{kind}, {size}" if size else kind) in words
        title = picture.nodes[layer["name"]].find(f"{SVG}title").text
        assert f"{layer['params']:,} parameters, {layer['macs']:,} MACs an image" in title
        if live is not None:
            assert f"{layer['c_out_sampled']}/{layer['c_out']}" in words
            assert f"{layer['c_in_sampled']} input channels" in title
            assert f"{layer['macs_sampled']:,} MACs" in title


def test_head_gives_the_totals_of_macs(case):
    _, live, counts, picture = case
    head = " ".join(text for text, *_, node in picture.texts if node is None)
    size = "x".join(map(str, counts["input"]))
    assert picture.texts[0][0] == counts["network"]
    for said in (
        f"images {size}, {counts['num_classes']} classes, width 0.25",
        f"{counts['params']:,} parameters, {counts['channels']:,} maskable channels",
        f"{counts['macs']:,} forward MACs an image",
        "1 multiply-add = 1 MAC",
    ):
        assert said in head
    if live is None:
        assert "one mask sampled" not in head
        return
    share = counts["macs_sampled"] / counts["macs"]
    assert f"sampled at keep rate {counts['keep_rate']:g}, seed 0: " in head
    assert f"{counts['macs_sampled']:,} MACs ({share:.2%} of dense)" in head
    assert f"{counts['params_sampled']:,} parameters" in head
    assert f"{counts['channels_sampled']:,} channels" in head


def test_one_color_is_one_group(case):
    network, _, _, picture = case
    stripes = {}
    for name, node in network.nodes.items():
        stripe = picture.of_class(name, "stripe")
        assert picture.nodes[name].get("data-group") == node.group
        assert len(stripe) == (node.group is not None)
        if stripe:
            stripes[name] = stripe[0].get("fill")
    assert stripes
    for a, b in combinations(stripes, 2):
        same = network.nodes[a].group == network.nodes[b].group
        assert (stripes[a] == stripes[b]) == same, (a, b)
    members = [node.group for node in network.nodes.values()]
    for name, node in network.nodes.items():
        shared = node.group is not None and members.count(node.group) > 1
        note = f"group {node.group}, one mask for {members.count(node.group)}"
        assert (note in picture.words(name)) == shared
        if node.group == name and not shared:
            assert "group of its own" in picture.words(name)


def test_empty_is_drawn_faint_and_said(case):
    network, live, _, picture = case
    for name in (INPUT, *network.nodes):
        empty = live is not None and not live[name].any()
        (box,) = picture.of_class(name, "box")
        assert (box.get("stroke-dasharray") is not None) == empty
        assert ("empty" in picture.words(name)) == empty
    dashed = {
        (edge.get("data-from"), edge.get("data-to"))
        for edge in picture.root.iter(f"{SVG}path")
        if edge.get("class") == "edge" and edge.get("stroke-dasharray")
    }
    assert dashed == {
        (source, name)
        for source, name in picture.routes
        if live is not None and not (live[source].any() and live[name].any())
    }


def test_an_add_says_what_it_joins(case):
    network, live, _, picture = case
    for name, node in network.nodes.items():
        if isinstance(node, Add) and live is not None:
            branch, stream = (live[read] for read in network.inputs[name])
            assert f"union of {branch.sum()} and {stream.sum()}" in picture.words(name)
            assert int(picture.nodes[name].get("data-live")) == np.sum(branch | stream)
    adds = [name for name, node in network.nodes.items() if isinstance(node, Add)]
    shortcuts = [name for name in network.nodes if name.endswith(".shortcut")]
    labels = sum(text == "identity" for text, *_ in picture.texts)
    assert labels == len(adds) - len(shortcuts)
    for name in shortcuts:  # beside its branch
        branch = [box for other, box in picture.boxes.items() if other[:14] == name[:14]]
        _, top, _, bottom = picture.boxes[name]
        firsts = [box for box in branch if box[0] > picture.boxes[name][0] + 1]
        assert min(box[1] for box in firsts) <= top + 0.2
        assert bottom <= max(box[3] for box in firsts) + 0.2


def test_the_list_of_groups(case):
    network, live, _, picture = case
    listed = [(text, after) for (text, *_), (after, *_) in pairwise(picture.texts)]
    members = [node.group for node in network.nodes.values()]
    for group, place in network.groups.items():
        n, size = members.count(group), place.stop - place.start
        count = str(size)
        if live is not None:
            alive = np.zeros(size, bool)
            for name, node in network.nodes.items():
                if node.group == group:
                    alive |= live[name]
            count = f"{alive.sum()}/{size}"
        assert ((f"{group}: {n} layers", count) in listed) == (n > 1)


def test_edges_join_what_the_network_joins(case):
    network, _, _, picture = case
    wired = {(read, name) for name, reads in network.inputs.items() for read in reads}
    assert set(picture.routes) == wired
    for (source, target), route in picture.routes.items():
        left, _, right, bottom = picture.boxes[source]
        np.testing.assert_allclose(route[0], [(left + right) / 2, bottom], atol=0.11)
        left, top, right, bottom = picture.boxes[target]
        x, y = route[-1]
        from_above = abs(x - (left + right) / 2) < 0.11 and abs(y - top) < 0.11
        from_the_side = abs(x - right) < 0.11 and top < y < bottom
        assert from_above or from_the_side
        steps = np.abs(np.diff(route, axis=0))
        assert (steps.min(axis=1) < 0.11).all()  # level or upright
        assert (steps.max(axis=1) > 1).all()


def test_boxes_stand_apart_and_no_edge_crosses_one(case):
    _, _, _, picture = case
    boxes = picture.boxes
    assert not [pair for pair in combinations(boxes, 2) if overlap(*(boxes[n] for n in pair))]
    for route in picture.routes.values():
        assert not [name for name, box in boxes.items() if crossed(route, box, 0.2)]
    page = (0, 0, picture.width, picture.height)
    for left, top, right, bottom in boxes.values():
        assert page[0] < left < right < page[2]
        assert page[1] < top < bottom < page[3]


def test_no_text_leaves_its_box_or_covers_another(case):
    _, _, _, picture = case
    for text, left, top, right, bottom, node in picture.texts:
        room = picture.boxes[node] if node else (0, 0, picture.width, picture.height)
        assert room[0] < left < right < room[2], text
        assert room[1] < top < bottom < room[3], text
    places = np.array([place[1:5] for place in picture.texts])
    low = np.maximum(places[:, None, :2], places[None, :, :2])
    high = np.minimum(places[:, None, 2:], places[None, :, 2:])
    covers = ((high - low) > 0.1).all(axis=2)
    np.fill_diagonal(covers, False)
    assert not [picture.texts[i][0] for i in np.flatnonzero(covers.any(axis=1))]
    for text, *place, node in picture.texts:
        if node is None:
            assert not any(overlap(place, box) for box in picture.boxes.values()), text
            assert not any(crossed(r, np.array(place)) for r in picture.routes.values()), text


def test_data_flows_downward_the_stream_is_straight_and_the_page_handy(case):
    network, _, _, picture = case
    middles = {name: (box[0] + box[2]) / 2 for name, box in picture.boxes.items()}
    columns = []
    for name in (INPUT, *network.nodes):
        on_stream = name in (INPUT, network.output) or isinstance(network.nodes[name], Add)
        if on_stream and middles[name] not in columns:
            columns.append(middles[name])
    assert columns == sorted(columns)  # one line down each column, columns from left to right
    for (source, target), route in picture.routes.items():
        if picture.boxes[target][0] - picture.boxes[source][2] > 40:  # goes on in the next column
            continue
        assert route[-1][1] > route[0][1]
    n_pages = sum(text == "to next column" for text, *_ in picture.texts) + 1
    assert n_pages == sum(text.startswith("from ") for text, *_ in picture.texts) + 1
    assert n_pages >= len(columns)
    assert 0.5 < picture.width / picture.height < 2.1


def test_the_file_is_whole_by_itself_and_white(case):
    _, _, _, picture = case
    page = next(part for part in picture.root if part.tag == f"{SVG}rect")
    assert page.get("fill") == "#ffffff"
    assert (float(page.get("width")), float(page.get("height"))) == (picture.width, picture.height)
    assert picture.root.get("viewBox") == f"0 0 {picture.width:g} {picture.height:g}"
    for foreign in ("href", "url(", "<script", "<style", "<image", "@import"):
        assert foreign not in picture.svg


def test_the_same_settings_give_the_same_bytes_in_every_process():
    script = (
        "import hashlib; from minicst.graph import GraphSettings, draw; "
        "svg = draw(GraphSettings('resnet20', keep_rate=.5, residual='independent')); "
        "print(hashlib.sha256(svg.encode()).hexdigest())"
    )
    runs = [  # both at a time
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert first == second
    assert len(first.strip()) == 64


def test_the_seed_and_the_rate_draw_the_mask():
    pictures = [
        draw(GraphSettings("vgg-small", keep_rate=rate, seed=seed))
        for rate, seed in ((0.5, 0), (0.5, 0), (0.5, 1), (0.4, 0))
    ]
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


def test_live_channels_by_hand(rng):
    """A branch that nothing is left of, a stream whose channels come from different writers."""
    network = Network("by-hand", 2)
    network.add("stem", Unit.create(2, 4, 3, padding=1, group="stem", rng=rng), INPUT)
    for name in ("a", "b"):
        unit = Unit.create(4, 4, 3, padding=1, relu=False, group=name, rng=rng)
        stream = network.output
        network.add(name, unit, stream)
        network.add(f"{name}.add", Add(4), name, stream)
    network.add("mean", GlobalPool(), "b.add")
    network.add("classifier", Unit.create(4, 3, bias=True, norm=False, rng=rng), "mean")
    mask = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0], bool)  # stem, a, b
    picture = Picture(draw_network(network, (5, 6, 2), mask))
    live = {name: int(node.get("data-live")) for name, node in picture.nodes.items()}
    assert live == {
        **{INPUT: 2, "stem": 1, "a": 2, "a.add": 3, "b": 0, "b.add": 3},
        **{"mean": 3, "classifier": 3},
    }
    assert "union of 2 and 1" in picture.words("a.add")
    assert "union of 0 and 3" in picture.words("b.add")
    assert "empty" in picture.words("b")
    assert sum(text == "identity" for text, *_ in picture.texts) == 2
    # The stem multiplies 30 pixels x 9 x 2 inputs x 1 filter, a 30 x 9 x 1 x 2, the end 3 x 3.
    assert any("1,089 MACs" in text for text, *_ in picture.texts)


def test_a_group_lives_where_any_of_its_layers_does(rng):
    network = Network("tied", 2)
    network.add("stem", Unit.create(2, 4, 3, padding=1, group="stream", rng=rng), INPUT)
    network.add("a", Unit.create(4, 2, 3, padding=1, group="a", rng=rng), "stem")
    network.add("b", Unit.create(2, 4, 3, padding=1, group="stream", rng=rng), "a")
    network.add("add", Add(4), "b", "stem")
    network.add("mean", GlobalPool(), "add")
    network.add("classifier", Unit.create(4, 3, bias=True, norm=False, rng=rng), "mean")
    mask = np.array([1, 1, 0, 1, 0, 0], bool)  # nothing of a, so nothing comes into b
    picture = Picture(draw_network(network, (4, 4, 2), mask))
    assert "0/4" in picture.words("b")
    assert "its mask keeps 3 channels" in picture.nodes["b"].find(f"{SVG}title").text
    texts = [text for text, *_, node in picture.texts if node is None]
    assert texts[texts.index("stream: 2 layers") + 1] == "3/4"


def test_boxes_of_any_height_keep_their_distance(rng):
    network = build("resnet20", width=0.25)
    for _ in range(20):
        heights = {name: float(rng.uniform(20, 200)) for name in (INPUT, *network.nodes)}
        layout = arrange(network, heights, 100.0, proportion=float(rng.uniform(0.3, 3)))
        assert layout.boxes.keys() == heights.keys()
        for a, b in combinations(layout.boxes.values(), 2):
            if a.x == b.x:
                upper, lower = sorted((a, b), key=lambda box: box.y)
                assert lower.y - upper.bottom > 17.9
            assert not overlap(*((c.x, c.y, c.x + c.width, c.bottom) for c in (a, b)))
        for name, box in layout.boxes.items():
            assert box.height == heights[name]
            assert box.bottom <= layout.height + 0.01
            assert box.x + box.width <= layout.width + 0.01
        for route in layout.edges.values():
            for box in layout.boxes.values():
                place = np.array([box.x, box.y, box.x + box.width, box.bottom])
                assert not crossed(np.array(route), place)


def test_a_dead_channel_stays_absent_behind_a_batch_norm(rng):
    network = Network("pre-activation", 3)
    network.add("stem", Unit.create(3, 8, 3, padding=1, norm=False, group="stream", rng=rng), INPUT)
    network.add("norm", Norm(8), "stem")
    network.add("conv", Unit.create(8, 8, 3, padding=1, group="stream", rng=rng), "norm")
    network.add("add", Add(8, relu=False), "conv", "stem")
    network.add("mean", GlobalPool(), "add")
    network.add("classifier", Unit.create(8, 3, bias=True, norm=False, rng=rng), "mean")
    mask = np.arange(8) < 5
    picture = Picture(draw_network(network, (4, 4, 3), mask))
    assert picture.nodes["norm"].get("data-live") == "5"
    assert "a dead channel stays absent" in picture.words("norm")
    legend = " ".join(text for text, *_, node in picture.texts if node is None)
    assert "its beta doesn't revive it" in legend
    assert "stream: 2 layers" in legend
    dense = draw_network(network, (4, 4, 3))
    assert "stays absent" not in dense
    assert "beta" not in dense


def test_a_depthwise_layer_has_its_producers_color(rng):
    network = Network("separable", 3)
    network.add("point1", Unit.create(3, 6, 1, group="point1", rng=rng), INPUT)
    depthwise = Unit.create(6, 6, 3, 2, padding=1, groups=6, group="point1", rng=rng)
    network.add("depth", depthwise, "point1")
    network.add("point2", Unit.create(6, 4, 1, group="point2", rng=rng), "depth")
    network.add("mean", GlobalPool(), "point2")
    network.add("classifier", Unit.create(4, 3, bias=True, norm=False, rng=rng), "mean")
    picture = Picture(draw_network(network, (8, 8, 3), np.arange(10) % 3 > 0))
    colors = [
        picture.of_class(name, "stripe")[0].get("fill") for name in ("point1", "depth", "point2")
    ]
    assert colors[0] == colors[1] != colors[2]
    assert "depthwise 3x3 / 2, 4x4" in picture.words("depth")
    assert "group point1, one mask for 2" in picture.words("depth")


def test_a_cut_network_is_drawn_like_any_other():
    network = build("resnet20", width=0.5, residual="independent", shortcut="A")
    small = cut(network, sampled(network, 0.2)).network
    picture = Picture(draw_network(small, (32, 32, 3)))
    assert set(picture.nodes) == {INPUT, *small.nodes}
    totals = {name: int(node.get("data-total")) for name, node in picture.nodes.items()}
    assert totals == {name: small.channels(name) for name in picture.nodes}


def test_names_are_escaped(rng):
    network = Network("<b> & 'c'", 1)
    network.add('"a" <&>', Unit.create(1, 2, 3, group="x < y & z", rng=rng), INPUT)
    network.add("mean", GlobalPool(), '"a" <&>')
    network.add("end", Unit.create(2, 2, bias=True, norm=False, rng=rng), "mean")
    picture = Picture(draw_network(network, (5, 5, 1)))
    assert picture.root.find(f"{SVG}title").text == "<b> & 'c'"
    assert picture.nodes['"a" <&>'].get("data-group") == "x < y & z"
    assert "group of its own: x < y & z" in picture.words('"a" <&>')
