"""Networks by name: exact parameters and MACs, maskable channels, seeds, errors."""

from itertools import pairwise

import numpy as np
import pytest
from arrays import host

from minicst.models import NETWORKS, build
from minicst.models.vgg import MLP_NEURONS, VGG_LAYERS
from minicst.nn import Shortcut, Unit
from minicst.sparse.accounting import count_macs

# name, options, parameters, MACs at 32x32x3, maskable channels (None: not quoted anywhere).
# From a counter in plain Python; tables published elsewhere confirm them.
COUNTS = [
    ("vgg16", {}, 14_724_042, 313_201_664, 4224),
    ("vgg19", {}, 20_035_018, 398_136_320, 5504),
    ("vgg19", {"num_classes": 100}, 20_081_188, None, 5504),
    ("resnet20", {"shortcut": "A"}, 269_722, 40_551_040, None),
    ("resnet20", {"shortcut": "B"}, 272_474, 40_813_184, None),
    ("resnet32", {"shortcut": "B"}, 466_906, 69_124_736, None),
    ("resnet32", {"shortcut": "B", "width": 2}, 1_860_522, 275_612_928, None),
    ("resnet32", {"shortcut": "B", "width": 2, "num_classes": 100}, 1_872_132, None, None),
    ("resnet56", {"shortcut": "A"}, 853_018, 125_485_696, None),
    ("resnet56", {"shortcut": "B"}, 855_770, 125_747_840, None),
    ("wrn-28-10", {}, 36_479_194, 5_243_328_768, None),
    # At 224x224 and with 1000 classes in test_wide_and_imagenet.py.
    ("resnet50", {"num_classes": 1000}, 25_557_032, None, None),
    ("mobilenetv1", {"num_classes": 1000}, 4_231_976, None, 5984),
]

MASKABLE = [
    ("resnet20", "independent", "B", 1, 784),
    ("resnet20", "independent", "A", 1, 688),
    ("resnet20", "tied", "B", 1, 448),
    ("resnet20", "tied", "A", 1, 448),
    ("resnet32", "independent", "B", 1, 1232),
    ("resnet32", "tied", "B", 1, 672),
    ("resnet32", "independent", "B", 2, 2464),
    ("resnet32", "tied", "B", 2, 1344),
    ("resnet56", "independent", "B", 1, 2128),
    ("resnet56", "independent", "A", 1, 2032),
    ("resnet56", "tied", "B", 1, 1120),
    ("resnet56", "tied", "A", 1, 1120),
    ("wrn-28-10", "independent", "B", 1, 10_096),
    ("wrn-28-10", "tied", "B", 1, 5616),
    ("resnet50", "independent", "B", 1, 26_560),
    ("resnet50", "tied", "B", 1, 11_456),
    ("mobilenetv1", "independent", "B", 1, 5984),
    ("mobilenetv1", "tied", "B", 1, 5984),
]


@pytest.mark.cpu  # sizes alone, of large networks: the ones below are counted on every device
@pytest.mark.parametrize(("name", "options", "params", "macs", "maskable"), COUNTS, ids=str)
def test_exact_counts(name, options, params, macs, maskable):
    for tying in ("tied", "independent"):  # masks change nothing of the dense network
        network = build(name, residual=tying, **options)
        count = count_macs(network, (32, 32, 3))
        assert network.n_parameters() == count.params == params
        assert macs is None or count.macs == macs
        assert maskable in (None, network.n_maskable)


@pytest.mark.cpu  # sizes alone
@pytest.mark.parametrize(("name", "residual", "shortcut", "width", "maskable"), MASKABLE, ids=str)
def test_maskable_channels(name, residual, shortcut, width, maskable):
    network = build(name, residual=residual, shortcut=shortcut, width=width)
    assert network.n_maskable == maskable
    places = list(network.groups.values())
    assert places[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(places))
    assert places[-1].stop == maskable


def chain_counts(layers, c_in, side, classes):
    """Parameters and MACs of a VGG, in plain Python."""
    params = macs = 0
    for layer in layers:
        if layer == "M":
            side //= 2
            continue
        params += 9 * c_in * layer + 2 * layer
        macs += side * side * 9 * c_in * layer
        c_in = layer
    return params + c_in * classes + classes, macs + c_in * classes


@pytest.mark.parametrize("name", VGG_LAYERS)
def test_chains_against_plain_python(name):
    side, channels = (32, 3) if name.startswith("vgg1") else (28, 1)
    network = build(name, 7, in_channels=channels)
    count = count_macs(network, (side, side, channels))
    assert (count.params, count.macs) == chain_counts(VGG_LAYERS[name], channels, side, 7)
    filters = [layer for layer in VGG_LAYERS[name] if layer != "M"]
    assert [place.stop - place.start for place in network.groups.values()] == filters
    assert network.n_maskable == sum(filters)


def test_mlp():
    network = build("mlp", 10, in_channels=1, image_size=8)
    a, b = MLP_NEURONS
    count = count_macs(network, (8, 8, 1))
    assert count.macs == 64 * a + a * b + b * 10
    assert count.params == 64 * a + a * b + b * 10 + 2 * (a + b) + 10
    assert network.n_maskable == a + b


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [
        *((name, 32, 3) for name in NETWORKS),
        ("vgg-small", 28, 1),
        ("vgg-small", 32, 1),
        ("mlp", 28, 1),
        ("resnet20", 28, 1),
    ],
)
def test_runs(name, side, channels):
    network = build(name, 4, in_channels=channels, width=0.125, image_size=side)
    x = np.random.default_rng(0).normal(size=(2, side, side, channels)).astype(np.float32)
    for training in (True, False):
        out = network(x, training=training)
        assert out.shape == (2, 4)
        assert out.dtype == np.float32
        assert np.isfinite(host(out)).all()
        assert np.ptp(host(out)) > 0
    assert network.shapes((side, side, channels))[network.output] == (4,)
    assert network.num_classes == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_seeds(name):
    one, again, other = (build(name, width=0.1, seed=seed) for seed in (3, 3, 4))
    states = (network.host_state() for network in (one, again, other))
    for (key, a), (_, b), (_, c) in zip(*(state.items() for state in states), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32
        assert key.endswith("weight") != np.array_equal(a, c)


@pytest.mark.parametrize("shortcut", "AB")
def test_residual_wiring(shortcut):
    tied = build("resnet20", shortcut=shortcut, residual="tied")
    independent = build("resnet20", shortcut=shortcut, residual="independent")
    other = independent.host_state()
    for name, array in tied.host_state().items():
        np.testing.assert_array_equal(array, other[name])
    assert list(tied.nodes) == list(independent.nodes)
    for stage in (1, 2, 3):
        writers = [name for name, node in tied.nodes.items() if node.group == f"stage{stage}"]
        wanted = [f"stage{stage}.block{block}.conv2" for block in (1, 2, 3)]
        wanted.insert(stage > 1, "stem" if stage == 1 else f"stage{stage}.block1.shortcut")
        assert sorted(writers) == sorted(wanted)
    kind = Unit if shortcut == "B" else Shortcut
    shorts = [name for name in tied.nodes if name.endswith("shortcut")]
    assert shorts == ["stage2.block1.shortcut", "stage3.block1.shortcut"]
    assert all(type(tied.nodes[name]) is kind for name in shorts)
    if shortcut == "A":
        node = tied.nodes[shorts[1]]
        assert (node.stride, node.channels, node.take, node.place) == (
            *(2, 64),
            list(range(32)),
            list(range(32)),
        )
        assert independent.nodes[shorts[0]].group is None
    groups = [node.group for node in independent.nodes.values() if node.group]
    assert len(set(groups)) == len(groups)
    assert tied.nodes["classifier"].group is None


def test_last_unit_of_a_block_has_no_relu_of_its_own():
    network = build("resnet20", shortcut="B")
    without = {name for name, unit in network.units().items() if not unit.relu}
    ends = ("conv2", "shortcut", "classifier")
    assert without == {name for name in network.units() if name.endswith(ends)}
    assert all(unit.transform.bias is None for name, unit in network.units().items()
               if name != "classifier")  # fmt: skip


@pytest.mark.parametrize("width", [0.001, 0.03, 0.25, 0.5, 1.7])
def test_width(width):
    network = build("vgg11", width=width)
    for name, place in network.groups.items():
        full = build_sizes()[name]
        assert place.stop - place.start == max(1, round(full * width))


def build_sizes():
    filters = [layer for layer in VGG_LAYERS["vgg11"] if layer != "M"]
    return {f"conv{i}": n for i, n in enumerate(filters, 1)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "alexnet"}, "unknown network 'alexnet': choose one of vgg-"),
        ({"residual": "untied"}, "residual 'untied': choose tied or independent"),
        ({"shortcut": "C"}, r"shortcut 'C': choose A \(pad\) or B"),
        ({"num_classes": 1}, "num_classes=1.*at least 2 classes"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"width": 0.0}, "width=0.0"),
        ({"width": -1.0}, "width=-1.0"),
        ({"width": float("nan")}, "width=nan"),
        ({"width": 65}, "width=65"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"name": "resnet20"} | options)


def test_images_that_are_too_small_name_the_node():
    with pytest.raises(ValueError, match="network vgg16 with 16x16x3 images: node 'pool5'"):
        build("vgg16", width=0.1).shapes((16, 16, 3))
    with pytest.raises(ValueError, match="node 'flatten' gives 48 features where 3072 are wired"):
        build("mlp").shapes((4, 4, 3))
