"""Closed forms against the meter, the tape, the cut network and enumeration of all masks."""

import itertools

import numpy as np
import pytest

import minicst.functional as F
from minicst.autograd import saved_bytes
from minicst.backend import PASSES, get_backend
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import INPUT, Add, Flatten, GlobalPool, Network, Pool, Shortcut, Unit
from minicst.optim import SGD
from minicst.sparse.accounting import (
    count_macs,
    grow_efficient_saving,
    train_cost_saving,
)
from minicst.sparse.expected import expected_macs, linear_macs_cost
from minicst.sparse.liveness import repair
from minicst.sparse.masked_form import masked
from minicst.sparse.subnetwork import cut

VARIANTS = [
    (name, residual, shortcut)
    for name in NETWORKS
    for residual in ("tied", "independent")
    for shortcut in "AB"
    if residual == "tied" or "residual" in ARCHITECTURES[name].takes
    if shortcut == "B" or "shortcut" in ARCHITECTURES[name].takes
]


def network_of(variant):
    name, residual, shortcut = variant
    side = 32 if name in ("vgg11", "vgg16", "vgg19") else 12
    width = 0.0625 if side == 32 else 0.25
    options = {"residual": residual, "shortcut": shortcut, "image_size": side}
    return build(name, 5, width=width, **options), (side, side, 3)


def random_mask(network, rate, seed=0):
    rng = np.random.default_rng(seed)
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


def metered(run, shape, n, backward):
    """MACs by layer of one pass over n images."""
    x = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    meter = get_backend().meter
    with meter.in_phase("test"):
        loss = F.cross_entropy(run(x, training=True), np.arange(n) % 5)
        if backward:
            loss.backward()
    found = meter.by_layer("test")
    meter.reset()
    return found


# Meter


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "train"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_executed_equals_the_meter(variant, backward):
    network, shape = network_of(variant)
    dense = count_macs(network, shape)
    assert metered(network, shape, 3, backward) == dense.executed(3, backward)
    # The masked form runs the dense network.
    mask = random_mask(network, 0.4)
    assert metered(masked(network, mask), shape, 2, backward) == dense.executed(2, backward)
    for rate in (0.6, 0.2):
        mask = random_mask(network, rate)
        count = count_macs(network, shape, mask)
        sub = cut(network, mask)
        assert metered(sub, shape, 3, backward) == count.executed(3, backward)
        own = count_macs(sub.network, shape)  # a cut network is an ordinary one
        assert own.executed(3, backward) == count.executed(3, backward)


def test_executed_is_three_times_forward_but_for_the_layer_on_the_images():
    network, shape = network_of(("vgg-small", "tied", "B"))
    count = count_macs(network, shape)
    table = count.executed(7, backward=True)
    assert list(table["conv2"]) == list(PASSES)
    for layer in count.layers:
        n = 7 * layer.macs
        wanted = [n, n, 0 if layer.name == "conv1" else n]
        assert list(table[layer.name].values()) == wanted
    forward = count.executed(7, backward=False)
    assert sum(sum(row.values()) for row in forward.values()) == 7 * count.macs


def test_depthwise_and_grouped_convolutions():
    rng = np.random.default_rng(0)
    network = Network("mobile", 4)
    at = network.add("a", Unit.create(4, 8, 3, 2, 1, groups=2, group="a", rng=rng), INPUT)
    at = network.add("d", Unit.create(8, 8, 3, padding=1, groups=8, group="a", rng=rng), at)
    at = network.add("mean", GlobalPool(), at)
    network.add("out", Unit.create(8, 5, bias=True, norm=False, relu=False, rng=rng), at)
    count = count_macs(network, (9, 9, 4))
    assert [layer.kind for layer in count.layers] == ["conv 3x3 / 2", "depthwise 3x3", "linear"]
    assert [layer.macs for layer in count.layers] == [25 * 9 * 2 * 8, 25 * 9 * 8, 40]
    assert [layer.params for layer in count.layers] == [9 * 2 * 8 + 16, 9 * 8 + 16, 45]
    assert count.params == network.n_parameters()
    assert metered(network, (9, 9, 4), 2, True) == count.executed(2, True)


def test_depthwise_under_a_mask():
    network = Network("depthwise", 3)
    at = network.add("a", Unit.create(3, 8, 3, padding=1, group="a"), INPUT)
    at = network.add("d", Unit.create(8, 8, 3, padding=1, groups=8, group="a"), at)
    network.add("out", Unit.create(8, 5, 6, norm=False, relu=False), at)
    mask = np.arange(8) % 3 == 0
    count = count_macs(network, (6, 6, 3), mask)
    assert [layer.macs for layer in count.layers] == [36 * 27 * 3, 36 * 9 * 3, 36 * 3 * 5]
    small = cut(network, mask).network
    assert count.params == small.n_parameters() == 27 * 3 + 6 + 9 * 3 + 6 + 36 * 3 * 5


# Parameters and kinds


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_parameters_of_the_cut_network(variant):
    network, shape = network_of(variant)
    assert count_macs(network, shape).params == network.n_parameters()
    for seed, rate in enumerate((0.8, 0.5, 0.3, 0.1)):
        mask = random_mask(network, rate, seed)
        count = count_macs(network, shape, mask)
        small = cut(network, mask).network
        assert count.params == small.n_parameters()
        assert count.macs == count_macs(small, shape).macs
        assert [layer.name for layer in count.layers if layer.kind != "norm"] == [*network.units()]
        sizes = {layer.name: (layer.c_in, layer.c_out) for layer in count.layers}
        for name, unit in small.units().items():
            assert sizes[name] == (unit.transform.c_in, unit.transform.c_out)


def test_layers_tell_kind_and_sizes():
    network = build("resnet20", width=0.25, shortcut="B")
    layers = {layer.name: layer for layer in count_macs(network, (32, 32, 3)).layers}
    stem, short = layers["stem"], layers["stage2.block1.shortcut"]
    assert (stem.kind, stem.c_in, stem.c_out, stem.out_shape) == ("conv 3x3", 3, 4, (32, 32))
    assert (short.kind, short.macs, short.out_shape) == ("conv 1x1 / 2", 256 * 4 * 8, (16, 16))
    assert layers["stage2.block1.conv1"].kind == "conv 3x3 / 2"
    assert (layers["classifier"].kind, layers["classifier"].out_shape) == ("linear", ())
    assert [name for name, layer in layers.items() if not layer.input_gradient] == ["stem"]
    mlp = count_macs(build("mlp", image_size=4), (4, 4, 3)).layers
    assert [layer.input_gradient for layer in mlp] == [False, True, True]


def test_mask_that_kills_everything_counts_nothing():
    network, shape = network_of(("resnet20", "tied", "B"))
    count = count_macs(network, shape, np.zeros(network.n_maskable))
    assert (count.macs, count.params, count.activation_bytes) == (0, 0, 0)
    assert count.executed(5, True) == {}


def test_errors():
    network, shape = network_of(("vgg-small", "tied", "B"))
    with pytest.raises(ValueError, match="mask of shape"):
        count_macs(network, shape, np.ones(3))
    with pytest.raises(ValueError, match=r"takes images \(h, w, 3\), got \(12, 12, 1\)"):
        count_macs(network, (12, 12, 1))
    with pytest.raises(ValueError, match=r"network vgg-small with 3x3x3 images: node 'pool2'"):
        count_macs(network, (3, 3, 3))
    with pytest.raises(ValueError, match=r"keep_prob of shape \(3,\): network vgg-small has"):
        expected_macs(network, shape, np.ones(3))


# Activations


def tape_bytes(run, shape, n):
    """Bytes on the tape for n images, without the (n, classes) float64 array of the loss."""
    x = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    loss = F.cross_entropy(run(x, training=True), np.zeros(n, int))
    return saved_bytes(loss) - n * 5 * 8


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_activation_bytes_equal_the_tape(variant):
    network, shape = network_of(variant)
    grown = tape_bytes(network, shape, 4) - tape_bytes(network, shape, 2)
    assert grown == 2 * count_macs(network, shape).activation_bytes
    for rate in (0.5, 0.15):
        sub = cut(network, random_mask(network, rate))
        grown = tape_bytes(sub, shape, 4) - tape_bytes(sub, shape, 2)
        assert grown == 2 * count_macs(network, shape, sub.mask).activation_bytes


def test_activation_bytes_of_other_nodes():
    network = Network("odd", 3)
    at = network.add("images", Pool("max", 2), INPUT)  # no gradient comes here: nothing kept
    at = network.add("a", Unit.create(3, 4, 3, padding=1, bias=True, norm=False), at)
    at = network.add("avg", Pool("avg", 3, 1, 1), at)
    at = network.add("max", Pool("max", 3, 2, 1), at)
    at = network.add("flatten", Flatten(9), at)
    at = network.add("fc", Unit.create(36, 6, relu=False), at)
    network.add("out", Unit.create(6, 5, norm=False, relu=False), at)
    grown = tape_bytes(network, (10, 10, 3), 4) - tape_bytes(network, (10, 10, 3), 2)
    count = count_macs(network, (10, 10, 3))
    assert grown == 2 * count.activation_bytes
    # ReLU of a; taps of max and its result; batch norm's input and result of fc.
    assert count.activation_bytes == 4 * 25 * 4 + 9 * 4 + 4 * 36 + 4 * 6 + 4 * 6


def test_a_flattened_array_is_held_once():
    network = Network("view", 3)
    at = network.add("a", Unit.create(3, 4, 3), INPUT)
    at = network.add("flatten", Flatten(4), at)
    network.add("out", Unit.create(16, 5, norm=False, relu=False), at)
    grown = tape_bytes(network, (4, 4, 3), 4) - tape_bytes(network, (4, 4, 3), 2)
    # Batch norm's input and ReLU's result; the linear layer's input is a view of that.
    assert grown == 2 * count_macs(network, (4, 4, 3)).activation_bytes == 2 * 2 * 4 * 16


# Expectation


def chain():
    network = Network("chain", 2)
    at = network.add("a", Unit.create(2, 4, 3, padding=1, group="a"), INPUT)
    at = network.add("pool", Pool("max", 2), at)
    at = network.add("b", Unit.create(4, 4, 3, group="b"), at)
    at = network.add("flatten", Flatten(4), at)
    at = network.add("c", Unit.create(16, 3, group="c"), at)
    network.add("out", Unit.create(3, 5, norm=False, relu=False, bias=True), at)
    return network


def residual(tied, shortcut):
    """Two stages of one block each, 3 and 4 channels."""
    network = Network("residual", 2)
    stages = ("s1", "s1", "s2", "s2") if tied else ("stem", "b2", "c2", "short")
    stem = network.add("stem", Unit.create(2, 3, 3, padding=1, group=stages[0]), INPUT)
    at = network.add("b1", Unit.create(3, 2, 3, padding=1, group="b1"), stem)
    at = network.add("b2", Unit.create(2, 3, 3, padding=1, relu=False, group=stages[1]), at)
    stream = network.add("add1", Add(3), at, stem)
    at = network.add("c1", Unit.create(3, 2, 3, 2, 1, group="c1"), stream)
    at = network.add("c2", Unit.create(2, 4, 3, padding=1, relu=False, group=stages[2]), at)
    if shortcut == "B":
        short = Unit.create(3, 4, 1, 2, relu=False, group=stages[3])
    else:
        short = Shortcut(2, 4, [0, 1, 2], [0, 1, 2], "s2" if tied else None)
    stream = network.add("add2", Add(4), at, network.add("short", short, stream))
    at = network.add("d1", Unit.create(4, 3, 3, padding=1, group="d1"), stream)
    at = network.add("mean", GlobalPool(), at)
    network.add("out", Unit.create(3, 5, norm=False, relu=False), at)
    return network


def enumerated(network, shape, keep_prob):
    """Sum over all masks of their probability times their MACs."""
    free = np.flatnonzero((keep_prob > 0) & (keep_prob < 1))
    total = mass = 0.0
    for bits in itertools.product((False, True), repeat=free.size):
        mask = keep_prob == 1
        mask[free] = bits
        weight = float(np.prod(np.where(bits, keep_prob[free], 1 - keep_prob[free])))
        total += weight * count_macs(network, shape, mask).macs
        mass += weight
    assert mass == pytest.approx(1, abs=1e-12)
    return total


def never_empty(network, n_free, seed=0):
    """keep_prob with one sure channel (the first) in every group, n_free uncertain ones."""
    rng = np.random.default_rng(seed)
    keep_prob = np.ones(network.n_maskable)
    firsts = [place.start for place in network.groups.values()]
    others = np.setdiff1d(np.arange(keep_prob.size), firsts)
    keep_prob[others] = 0
    keep_prob[rng.permutation(others)[:n_free]] = rng.uniform(0.1, 0.9, n_free)
    return keep_prob


NETS = [
    ("chain", chain),
    *((f"{'tied' if t else 'independent'}-{s}", lambda t=t, s=s: residual(t, s))
      for t in (True, False) for s in "AB"),
]  # fmt: skip


@pytest.mark.parametrize("make", [make for _, make in NETS], ids=[name for name, _ in NETS])
def test_expectation_equals_enumeration(make):
    network = make()
    shape = (8, 8, 2)
    for seed in range(3):
        keep_prob = never_empty(network, min(8, network.n_maskable - len(network.groups)), seed)
        wanted = enumerated(network, shape, keep_prob)
        assert expected_macs(network, shape, keep_prob) == pytest.approx(wanted, rel=1e-12)


def test_expectation_of_a_network_with_an_unmasked_stream():
    """What has no group is always live, also in a sum with what has one."""
    network = Network("plain stem", 2)
    stem = network.add("stem", Unit.create(2, 3, 3, padding=1), INPUT)
    at = network.add("b1", Unit.create(3, 2, 1, group="b1"), stem)
    at = network.add("b2", Unit.create(2, 3, 1, relu=False, group="b2"), at)
    at = network.add("add", Add(3), at, stem)
    network.add("out", Unit.create(3, 5, 4, norm=False, relu=False), at)
    keep_prob = never_empty(network, 3)
    wanted = enumerated(network, (4, 4, 2), keep_prob)
    assert expected_macs(network, (4, 4, 2), keep_prob) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("own", ["a", "d", None])
def test_expectation_of_a_depthwise_unit(own):
    network = Network("depthwise", 2)
    at = network.add("a", Unit.create(2, 4, 3, padding=1, group="a"), INPUT)
    at = network.add("d", Unit.create(4, 4, 3, padding=1, groups=4, group=own), at)
    network.add("out", Unit.create(4, 5, 4, norm=False, relu=False), at)
    keep_prob = never_empty(network, 3)
    if own == "d":
        # A channel of a that the mask of d drops has no reader; the formula still counts it.
        keep_prob[network.groups["d"]] = 1.0
    wanted = enumerated(network, (4, 4, 2), keep_prob)
    assert expected_macs(network, (4, 4, 2), keep_prob) == pytest.approx(wanted, rel=1e-12)


def test_empty_groups_are_the_only_neglect():
    """Chain of two groups with every mask possible: the formula counts what silence removes."""
    network = Network("pair", 2)
    at = network.add("a", Unit.create(2, 2, 1, group="a"), INPUT)
    at = network.add("b", Unit.create(2, 2, 1, group="b"), at)
    network.add("out", Unit.create(2, 5, 4, norm=False, relu=False), at)
    keep_prob = np.array([0.5, 0.3, 0.6, 0.2])
    truth = neglecting = 0.0
    for bits in itertools.product((0, 1), repeat=4):
        weight = np.prod(np.where(bits, keep_prob, 1 - keep_prob))
        a, b = sum(bits[:2]), sum(bits[2:])
        neglecting += weight * (16 * 2 * a + 16 * a * b + 16 * b * 5)
        truth += weight * (16 * 2 * a + 16 * a * b + 16 * b * 5) * (a > 0 and b > 0)
    assert expected_macs(network, (4, 4, 2), keep_prob) == pytest.approx(neglecting, rel=1e-12)
    assert enumerated(network, (4, 4, 2), keep_prob) == pytest.approx(truth, rel=1e-12)
    assert truth < neglecting


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_expectation_at_ones_is_the_dense_count(variant):
    network, shape = network_of(variant)
    ones = np.ones(network.n_maskable)
    assert expected_macs(network, shape, ones) == count_macs(network, shape).macs


@pytest.mark.parametrize("residual_masks", ["tied", "independent"])
@pytest.mark.parametrize("shortcut", "AB")
def test_expectation_within_the_standard_error_of_samples(residual_masks, shortcut):
    network = build("resnet20", residual=residual_masks, shortcut=shortcut)
    rng = np.random.default_rng(0)
    # At 16 channels and s >= 0.4 a group is empty in 3e-4 of the draws: far below the error.
    keep_prob = rng.uniform(0.4, 0.9, network.n_maskable)
    draws = np.array([
        count_macs(network, (32, 32, 3), rng.random(keep_prob.size) < keep_prob).macs
        for _ in range(400)
    ])  # fmt: skip
    error = draws.std(ddof=1) / np.sqrt(draws.size)
    expected = expected_macs(network, (32, 32, 3), keep_prob)
    assert abs(draws.mean() - expected) < 4 * error
    assert error < 0.005 * expected


def test_expectation_of_a_cut_network():
    for shortcut, tying in itertools.product("AB", ("tied", "independent")):
        network = build("resnet20", width=0.5, residual=tying, shortcut=shortcut)
        small = cut(network, random_mask(network, 0.5)).network
        ones = np.ones(small.n_maskable)
        wanted = count_macs(small, (32, 32, 3)).macs
        assert expected_macs(small, (32, 32, 3), ones) == pytest.approx(wanted, rel=1e-12)


def test_uniform_keep_rate_costs_its_square():
    """Remark 1: tied and chain networks fall to rho^2, but for first layer and classifier."""
    for name in ("vgg16", "resnet20"):
        network = build(name)
        count = count_macs(network, (32, 32, 3))
        ends = count.layers[0].macs + count.layers[-1].macs
        keep_prob = np.full(network.n_maskable, 0.25)
        wanted = (count.macs - ends) / 16 + ends / 4
        assert expected_macs(network, (32, 32, 3), keep_prob) == pytest.approx(wanted, rel=1e-12)


# Linear cost


def depthwise(own):
    network = Network("depthwise", 2)
    at = network.add("a", Unit.create(2, 4, 3, padding=1, group="a"), INPUT)
    at = network.add("d", Unit.create(4, 4, 3, padding=1, groups=4, group=own), at)
    network.add("out", Unit.create(4, 5, 4, norm=False, relu=False), at)
    return network


COSTED = [
    ("vgg-tiny", lambda: build("vgg-tiny"), (8, 8, 3)),
    ("mlp", lambda: build("mlp", image_size=8), (8, 8, 3)),
    *(
        (f"resnet20-{tying}-{s}", lambda t=tying, s=s: build("resnet20", residual=t, shortcut=s),
         (32, 32, 3))
        for tying in ("tied", "independent") for s in "AB"
    ),
    *((f"depthwise-{own}", lambda own=own: depthwise(own), (4, 4, 2)) for own in ("a", "d", None)),
]  # fmt: skip
costed = pytest.mark.parametrize(
    ("make", "shape"), [case[1:] for case in COSTED], ids=[case[0] for case in COSTED]
)


def test_linear_cost_by_hand():
    network = build("vgg-tiny")
    costs, constant = linear_macs_cost(network, (8, 8, 3))
    # 3x3 filters at 8x8, 8x8 and (after pooling) 4x4 pixels; the classifier's 32 x 10.
    assert costs[:16].tolist() == [64 * 9 * 3] * 16
    assert costs[16:48].tolist() == [64 * 9 * 16] * 32
    assert costs[48:].tolist() == [16 * 9 * 32] * 32
    assert constant == 320.0
    assert (costs.dtype, type(constant)) == (np.float64, float)


@pytest.mark.parametrize("shortcut", "AB")
def test_linear_cost_of_a_tied_stream_sums_over_its_writers(shortcut):
    network = build("resnet20", shortcut=shortcut)
    costs, constant = linear_macs_cost(network, (32, 32, 3))
    one_by_one = {"A": 0, "B": 1}[shortcut]
    wanted = {
        "stage1": 1024 * 27 + 3 * 1024 * 9 * 16,  # stem and three blocks
        "stage2": 3 * 256 * 9 * 32 + one_by_one * 256 * 16,
        "stage3": 3 * 64 * 9 * 64 + one_by_one * 64 * 32,
        "stage1.block1.conv1": 1024 * 9 * 16,
        "stage2.block1.conv1": 256 * 9 * 16,
        "stage3.block3.conv1": 64 * 9 * 64,
    }
    for group, cost in wanted.items():
        assert set(costs[network.groups[group]]) == {cost}
    assert constant == 640.0


@pytest.mark.parametrize(
    ("own", "wanted", "constant"),
    [
        ("a", [16 * 9 * 2 + 16 * 9] * 4, 16 * 4 * 5),  # a filter goes with its producer's
        ("d", [16 * 9 * 2] * 4 + [16 * 9] * 4, 16 * 4 * 5),
        (None, [16 * 9 * 2] * 4, 16 * 4 * 5 + 4 * 16 * 9),
    ],
)
def test_linear_cost_of_a_depthwise_unit(own, wanted, constant):
    network = depthwise(own)
    costs, found = linear_macs_cost(network, (4, 4, 2))
    assert costs.tolist() == wanted
    assert found == constant


@costed
def test_linear_cost_is_what_the_writers_save_without_the_channel(make, shape):
    """No unit reads a group that it writes, so its inputs stay as they are."""
    network = make()
    costs, _ = linear_macs_cost(network, shape)
    dense = {layer.name: layer.macs for layer in count_macs(network, shape).layers}
    for group, place in network.groups.items():
        for channel in {place.start, place.stop - 1}:  # with padding the last one is another kind
            mask = np.ones(network.n_maskable)
            mask[channel] = 0
            layers = count_macs(network, shape, mask).layers
            writers = [layer for layer in layers if network.nodes[layer.name].group == group]
            assert sum(dense[layer.name] - layer.macs for layer in writers) == costs[channel]


@costed
def test_linear_cost_bounds_the_expectation(make, shape):
    network = make()
    costs, constant = linear_macs_cost(network, shape)
    rng = np.random.default_rng(0)
    n = network.n_maskable
    draws = [rng.uniform(0, 1, n), rng.random(n) < 0.3, np.zeros(n), np.full(n, 0.1)]
    draws += [rng.random(n) ** power for power in (0.1, 0.5, 3.0)] + [rng.uniform(0.9, 1, n)]
    for keep_prob in draws:
        keep_prob = keep_prob.astype(float)
        bound = constant + costs @ keep_prob
        assert bound >= expected_macs(network, shape, keep_prob) - 1e-9 * bound


@costed
def test_linear_cost_is_the_dense_count_at_ones(make, shape):
    network = make()
    costs, constant = linear_macs_cost(network, shape)
    assert constant + costs.sum() == count_macs(network, shape).macs
    ones = np.ones(network.n_maskable)
    assert constant + costs @ ones == pytest.approx(expected_macs(network, shape, ones), rel=1e-14)


def test_gap_of_the_linear_cost_is_the_missing_inputs():
    """Chain: the bound exceeds the expectation by filters times inputs that may be absent."""
    network = build("vgg-tiny")
    costs, constant = linear_macs_cost(network, (8, 8, 3))
    rng = np.random.default_rng(0)
    first, second, third = rng.uniform(0, 1, 16), rng.uniform(0, 1, 32), rng.uniform(0, 1, 32)
    keep_prob = np.concatenate([first, second, third])
    gap = 64 * 9 * (16 - first.sum()) * second.sum() + 16 * 9 * (32 - second.sum()) * third.sum()
    gap += (32 - third.sum()) * 10
    found = constant + costs @ keep_prob - expected_macs(network, (8, 8, 3), keep_prob)
    assert found == pytest.approx(gap, rel=1e-12)
    # All inputs certain but the classifier's.
    keep_prob[:48] = 1.0
    found = constant + costs @ keep_prob - expected_macs(network, (8, 8, 3), keep_prob)
    assert found == pytest.approx((32 - third.sum()) * 10, rel=1e-9)


def test_linear_cost_of_a_cut_network():
    """Nodes of one group keep different channels there."""
    for shortcut, tying in itertools.product("AB", ("tied", "independent")):
        network = build("resnet20", width=0.5, residual=tying, shortcut=shortcut)
        small = cut(network, random_mask(network, 0.5)).network
        costs, constant = linear_macs_cost(small, (32, 32, 3))
        assert costs.shape == (small.n_maskable,)
        assert constant + costs.sum() == count_macs(small, (32, 32, 3)).macs


def test_linear_cost_where_a_unit_writes_some_channels_of_its_group():
    network = Network("members", 2)
    network.add("a", Unit.create(2, 3, 3, padding=1, relu=False, group="g"), INPUT)
    network.add("b", Unit.create(2, 2, 1, relu=False, group="g", members=[0, 2]), INPUT)
    network.add("add", Add(3, [None, [0, 2]]), "a", "b")
    network.add("out", Unit.create(3, 5, 4, norm=False, relu=False), "add")
    costs, constant = linear_macs_cost(network, (4, 4, 2))
    assert costs.tolist() == [16 * 2 * (9 + 1), 16 * 2 * 9, 16 * 2 * (9 + 1)]
    assert constant == 16 * 3 * 5
    keep_prob = np.array([0.3, 0.5, 0.9])
    assert constant + costs @ keep_prob >= expected_macs(network, (4, 4, 2), keep_prob)


def test_linear_cost_without_maskable_channels():
    network = Network("plain", 2)
    network.add("out", Unit.create(2, 5, 4, norm=False, relu=False), INPUT)
    costs, constant = linear_macs_cost(network, (4, 4, 2))
    assert (costs.shape, constant) == ((0,), 16 * 2 * 5)
    with pytest.raises(ValueError, match=r"takes images \(h, w, 2\)"):
        linear_macs_cost(network, (4, 4, 3))


# The paper's formulas


def test_savings_of_the_paper():
    assert round(train_cost_saving(0.087), 2) == 8.62  # VGG-16: 8.7 % of the FLOPs
    assert train_cost_saving(0.75) == 1.0  # break-even
    assert train_cost_saving(1.0) == 0.75
    assert train_cost_saving(0.74) > 1.0 > train_cost_saving(0.76)
    # Released code: two backward passes.
    assert round(train_cost_saving(0.087, backwards=2), 2) == 5.75
    assert train_cost_saving(1.0, forwards=1, backwards=1) == 1.0


def test_grow_efficient_never_reaches_one_and_a_half():
    for ratio in np.linspace(0.0, 1.0, 11)[1:]:
        assert 1.0 <= grow_efficient_saving(ratio) < 1.5
    assert round(grow_efficient_saving(0.459), 2) == 1.22
    assert round(grow_efficient_saving(0.655), 2) == 1.13
    assert round(grow_efficient_saving(0.564), 2) == 1.17


def test_a_training_step_counts_the_update_as_nothing():
    network, shape = network_of(("vgg-small", "tied", "B"))
    meter = get_backend().meter
    optimizer = SGD(network, 0.1)
    metered(network, shape, 2, True)
    optimizer.step()
    assert meter.total() == 0
