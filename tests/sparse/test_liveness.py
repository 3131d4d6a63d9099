"""Liveness against the gradient itself, rule by rule in small networks, and repair.

The oracle: without batch norm, with positive weights and images, nothing cancels. Then a filter is
live exactly where the gradient of its weights isn't zero.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import INPUT, Add, Flatten, GlobalPool, Network, Pool, Shortcut, Unit
from minicst.sparse.liveness import as_mask, minimum_live, propagate, repair, spine
from minicst.sparse.subnetwork import cut

VARIANTS = [
    (name, residual, shortcut)
    for name in NETWORKS
    for residual in ("tied", "independent")
    for shortcut in "AB"
    if residual == "tied" or "residual" in ARCHITECTURES[name].takes
    if shortcut == "B" or "shortcut" in ARCHITECTURES[name].takes
]
FAST = settings(max_examples=8, deadline=None, derandomize=True, database=None)
_cache = {}


def narrow_network(variant):
    if variant not in _cache:
        name, residual, shortcut = variant
        options = {"residual": residual, "shortcut": shortcut, "image_size": 4}
        _cache[variant] = build(name, 3, width=0.04 if "vgg1" in name else 0.25, **options)
    return _cache[variant]


def positive(network):
    """Take batch norm off, make weights positive and sums moderate."""
    for unit in network.units().values():
        unit.norm = None
        weight = unit.transform.weight.data
        weight[...] = (np.abs(weight) + 0.1) / weight[0].size
    return network.astype(np.float64)


def live_by_gradient(network, mask, side):
    """{unit: (live filters, live inputs)}: where a gradient arrives when masks alone multiply."""
    mask = np.asarray(mask, bool)
    own = {
        name: np.ones(network.channels(name), bool)
        if node.group is None
        else mask[network.groups[node.group]]
        for name, node in network.nodes.items()
    }
    network.zero_grad()
    network(np.ones((1, side, side, network.in_channels)), live=own).sum().backward()
    found = {}
    for name, unit in network.units().items():
        grad = np.abs(unit.transform.weight.grad)
        rows = grad.reshape(grad.shape[0], -1).sum(axis=1) > 0
        columns = grad.reshape(-1, grad.shape[-1]).sum(axis=0) > 0
        found[name] = rows, columns
    return found


def assert_agrees(network, mask, side):
    live = propagate(network, mask)
    for name, (rows, columns) in live_by_gradient(network, mask, side).items():
        assert live[name].tolist() == rows.tolist(), name
        if rows.any() and not network.nodes[name].is_depthwise:
            assert live[network.inputs[name][0]].tolist() == columns.tolist(), name


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.05, 0.2, 0.5, 0.9]))
@FAST
def test_propagate_agrees_with_the_gradient(variant, seed, rate):
    key = (*variant, "positive")
    if key not in _cache:
        name, residual, shortcut = variant
        options = {"residual": residual, "shortcut": shortcut, "image_size": 4}
        width = 0.04 if "vgg1" in name else 0.25
        _cache[key] = positive(build(name, 3, width=width, **options))
    network = _cache[key]
    mask = np.random.default_rng(seed).random(network.n_maskable) < rate
    side = 32 if variant[0].startswith("vgg1") else 4
    assert_agrees(network, mask, side)


def test_propagate_is_monotone():
    network = narrow_network(("resnet20", "tied", "A"))
    rng = np.random.default_rng(0)
    for _ in range(30):
        more = rng.random(network.n_maskable) < 0.5
        fewer = more & (rng.random(more.size) < 0.8)
        large, small = propagate(network, more), propagate(network, fewer)
        assert all((small[name] <= large[name]).all() for name in large)


# Rules, one by one


def unit(c_in, c_out, group=None, kernel=1, **options):
    rng = np.random.default_rng(0)
    return Unit.create(c_in, c_out, kernel, norm=False, group=group, rng=rng, **options)


def chain():
    network = Network("chain", 2)
    at = network.add("a", unit(2, 3, "a"), INPUT)
    at = network.add("pool", Pool("max", 2), at)
    at = network.add("b", unit(3, 4, "b"), at)
    at = network.add("flatten", Flatten(4), at)
    network.add("out", Unit.create(16, 2, norm=False, relu=False), at)
    return network


def as_lists(live):
    return {name: channels.astype(int).tolist() for name, channels in live.items()}


def test_none_is_all_ones():
    live = propagate(chain(), None)
    assert all(channels.all() for channels in live.values())
    assert [channels.size for channels in live.values()] == [2, 3, 3, 4, 16, 2]


def test_a_chain_passes_its_masks_on():
    live = as_lists(propagate(chain(), [1, 0, 1, 0, 1, 0, 0]))
    assert live["a"] == live["pool"] == [1, 0, 1]
    assert live["b"] == [0, 1, 0, 0]
    assert live["flatten"] == [0, 1, 0, 0] * 4  # pixel by pixel
    assert live["out"] == [1, 1]


@pytest.mark.parametrize("mask", [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
def test_an_empty_group_kills_a_chain_both_ways(mask):
    live = propagate(chain(), mask)
    assert not any(live[name].any() for name in ("a", "pool", "b", "flatten", "out"))


def residual(tied=False):
    """Stem (3), branch conv1 (2) and conv2 (3), add, head."""
    network = Network("residual", 2)
    stem = network.add("stem", unit(2, 3, "stem"), INPUT)
    at = network.add("conv1", unit(3, 2, "conv1"), stem)
    at = network.add("conv2", unit(2, 3, "stem" if tied else "conv2", relu=False), at)
    at = network.add("add", Add(3), at, stem)
    at = network.add("mean", GlobalPool(), at)
    network.add("out", Unit.create(3, 2, norm=False, relu=False), at)
    return network


def test_a_stream_is_the_union_of_its_live_writers():
    live = as_lists(propagate(residual(), [1, 0, 0, 1, 1, 0, 0, 1]))
    assert live["stem"] == [1, 0, 0]
    assert live["conv2"] == [0, 0, 1]
    assert live["add"] == live["mean"] == [1, 0, 1]


def test_an_empty_branch_adds_nothing_and_is_dead_as_a_whole():
    for mask in ([1, 0, 1, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0, 0, 0]):
        live = as_lists(propagate(residual(), mask))
        assert live["conv1"] == [0, 0]
        assert live["conv2"] == [0, 0, 0]
        assert live["add"] == [1, 0, 1]
        assert live["out"] == [1, 1]


def test_an_empty_stem_kills_everything():
    live = propagate(residual(), [0, 0, 0, 1, 1, 1, 1, 1])
    assert not any(channels.any() for name, channels in live.items() if name != INPUT)


def test_tied_writers_share_a_mask():
    network = residual(tied=True)
    assert network.n_maskable == 5
    live = as_lists(propagate(network, [0, 1, 1, 1, 0]))
    assert live["stem"] == live["conv2"] == live["add"] == [0, 1, 1]


def padded(group):
    """Stem (2), then a stage of 4 channels behind a padded shortcut."""
    network = Network("padded", 2)
    stem = network.add("stem", unit(2, 2, "stem"), INPUT)
    at = network.add("conv1", unit(2, 2, "conv1", stride=2), stem)
    at = network.add("conv2", unit(2, 4, "stage2", relu=False), at)
    short = network.add("short", Shortcut(2, 4, [0, 1], [0, 1], group), stem)
    at = network.add("add", Add(4), at, short)
    network.add("out", Unit.create(4, 2, 1, norm=False, relu=False), at)
    return network


def test_padded_shortcut_places_channel_j_at_j_and_zeros_behind():
    live = as_lists(propagate(padded(None), [0, 1, 1, 1, 1, 0, 1, 0]))
    assert live["short"] == [0, 1, 0, 0]
    assert live["add"] == [1, 1, 1, 0]


def test_tied_padded_shortcut_takes_the_new_stages_mask():
    live = as_lists(propagate(padded("stage2"), [1, 1, 1, 1, 1, 0, 1, 0]))
    assert live["short"] == [1, 0, 0, 0]
    assert live["add"] == [1, 0, 1, 0]
    assert live["stem"] == [1, 1]  # conv1 reads both


def test_what_nothing_reads_is_not_live():
    live = as_lists(propagate(padded("stage2"), [1, 1, 0, 0, 1, 0, 1, 1]))
    assert live["conv2"] == [0, 0, 0, 0]
    assert live["short"] == live["add"] == [1, 0, 0, 0]
    assert live["stem"] == [1, 0]  # channel 1 is dropped by the shortcut, conv1 is empty
    assert live[INPUT] == [1, 1]


def test_what_passes_on_keeps_the_channels_of_its_inputs():
    # Only "wide" reads channel 1 of a; the pool must still fit to a.
    network = Network("two readers", 2)
    a = network.add("a", unit(2, 2, "a"), INPUT)
    pool = network.add("pool", Pool("avg", 1), a)
    short = network.add("short", Shortcut(1, 2, [0, 1], [0, 1], "b"), pool)
    wide = network.add("wide", unit(2, 2, "b"), a)
    at = network.add("add", Add(2), wide, short)
    network.add("out", Unit.create(2, 2, 1, norm=False), at)
    mask = np.array([1, 1, 1, 0])
    live = as_lists(propagate(network, mask))
    assert live["pool"] == live["a"] == [1, 1]
    assert live["short"] == [1, 0]
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype(np.float32)
    out = network(x, live=propagate(network, mask)).data
    np.testing.assert_allclose(cut(network, mask)(x, False).data, out, atol=1e-6)


def test_depthwise_passes_channels_one_by_one():
    network = Network("depthwise", 2)
    at = network.add("a", unit(2, 4, "a"), INPUT)
    at = network.add("depth", unit(4, 4, "d", kernel=3, groups=4, padding=1), at)
    network.add("out", Unit.create(4, 2, 1, norm=False), at)
    live = as_lists(propagate(network, [1, 1, 0, 0, 1, 0, 1, 0]))
    assert live["depth"] == [1, 0, 0, 0]
    assert live["a"] == [1, 0, 0, 0]  # channel 1 has a dead reader, channel 2 is off
    assert_agrees(positive(network), [1, 1, 0, 0, 1, 0, 1, 0], 3)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(6), r"mask of shape \(6,\): network chain has 7 maskable"),
        (np.ones((7, 1)), r"must have shape \(7,\)"),
        (np.full(7, 2), "only 0 and 1"),
        (np.array([1, 0, 1, 0, 1, np.nan, 0]), "only 0 and 1"),
    ],
)
def test_masks_that_do_not_fit(mask, message):
    for call in (propagate, as_mask, lambda net, m: repair(net, m, np.ones(7))):
        with pytest.raises(ValueError, match=message):
            call(chain(), mask)


def test_as_mask_takes_lists_and_numbers():
    for mask in ([1, 0, 1, 1, 0, 0, 1], np.array([1.0, 0, 1, 1, 0, 0, 1])):
        assert as_mask(chain(), mask).tolist() == [True, False, True, True, False, False, True]


# Spine and repair


def test_spine():
    assert spine(chain()) == ("a", "pool", "b", "flatten", "out")
    assert spine(residual()) == ("stem", "add", "mean", "out")
    network = narrow_network(("resnet20", "tied", "B"))
    adds = [f"stage{s}.block{b}.add" for s in (1, 2, 3) for b in (1, 2, 3)]
    assert spine(network) == ("stem", *adds, "mean", "classifier")


def test_spine_follows_a_network_that_grows():
    network = Network("grows", 2)
    network.add("a", unit(2, 3, "a"), INPUT)
    assert spine(network) == ("a",)
    network.add("b", unit(3, 3, "b"), "a")
    assert spine(network) == ("a", "b")


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        (("vgg11", "tied", "B"), 8),
        (("vgg16", "tied", "B"), 13),
        (("vgg19", "tied", "B"), 16),
        (("mlp", "tied", "B"), 2),
        (("resnet20", "tied", "B"), 3),  # one for each stage
        (("resnet56", "tied", "A"), 3),
        (("resnet56", "independent", "B"), 3),  # stem and two shortcuts
        (("resnet20", "independent", "A"), 1),  # padded shortcuts carry the stem
    ],
    ids=str,
)
def test_minimum_live(variant, wanted):
    network = narrow_network(variant)
    assert minimum_live(network) == wanted
    n = network.n_maskable
    used, added = repair(network, np.zeros(n, bool), np.random.default_rng(0).random(n))
    assert added == used.sum() == wanted
    assert propagate(network, used)[network.output].all()
    for channel in np.flatnonzero(used):  # with one channel fewer nothing arrives
        used[channel] = False
        assert not propagate(network, used)[network.output].any()
        used[channel] = True


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@given(seed=st.integers(0, 10**6), rate=st.sampled_from([0.02, 0.1, 0.3]))
@FAST
def test_repair_laws(variant, seed, rate):
    network = narrow_network(variant)
    rng = np.random.default_rng(seed)
    keep_prob = rng.random(network.n_maskable)
    drawn = rng.random(network.n_maskable) < rate
    before = drawn.copy()
    used, added = repair(network, drawn, keep_prob)
    assert (drawn == before).all()  # the drawn mask is for the score function
    assert (used >= drawn).all()
    assert added == used.sum() - drawn.sum()
    assert propagate(network, used)[network.output].all()
    if propagate(network, drawn)[network.output].all():
        assert used is drawn
    for place in network.groups.values():
        new = np.flatnonzero(used[place] & ~drawn[place])
        assert new.size <= 1
        if new.size and variant[2] == "B":
            assert not drawn[place].any()
            assert keep_prob[place][new[0]] == keep_prob[place].max()
    again, more = repair(network, used, keep_prob)
    assert again is used
    assert more == 0


def test_repair_keeps_the_most_probable_and_of_equals_the_first():
    keep_prob = np.array([0.2, 0.9, 0.3, 0.4, 0.4, 0.1, 0.4])
    used, added = repair(chain(), np.zeros(7, bool), keep_prob)
    assert used.astype(int).tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert added == 2


def test_repair_leaves_empty_branches_alone():
    drawn = np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    used, added = repair(residual(), drawn, np.ones(8))
    assert used is drawn
    assert added == 0


def test_repair_revives_the_shortcut_of_a_dead_stream():
    network = narrow_network(("resnet20", "independent", "B"))
    mask = np.ones(network.n_maskable, bool)
    for group in ("stage2.block1.conv2", "stage2.block1.shortcut"):
        mask[network.groups[group]] = False
    keep_prob = np.full(mask.size, 0.1)
    best = network.groups["stage2.block1.shortcut"].start + 5
    keep_prob[best] = 0.2
    used, added = repair(network, mask, keep_prob)
    assert added == 1
    assert np.flatnonzero(used != mask).tolist() == [best]


def test_repair_of_a_tied_padded_shortcut_keeps_a_channel_that_arrives():
    # conv1 is empty; the stage's mask has only channel 3, which the shortcut fills with zeros.
    drawn = np.array([0, 1, 0, 0, 0, 0, 0, 1], bool)
    keep_prob = np.array([0.5, 0.5, 0.5, 0.5, 0.9, 0.1, 0.9, 0.9])
    used, added = repair(padded("stage2"), drawn, keep_prob)
    assert used.astype(int).tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
    assert added == 1


@pytest.mark.parametrize("shortcut", "AB")
@pytest.mark.parametrize("tying", ["tied", "independent"])
@given(seed=st.integers(0, 10**6))
@FAST
def test_repair_ends_in_cut_networks_too(tying, shortcut, seed):
    network = narrow_network(("resnet20", tying, shortcut))
    rng = np.random.default_rng(seed)
    n = network.n_maskable
    small = cut(network, repair(network, rng.random(n) < 0.4, rng.random(n))[0]).network
    n = small.n_maskable
    drawn = rng.random(n) < 0.15
    used, added = repair(small, drawn, rng.random(n))
    assert propagate(small, used)[small.output].all()
    assert added == used.sum() - drawn.sum()


def test_repair_where_the_shortcut_has_no_place_for_what_comes_in():
    small = cut(padded("stage2"), np.array([1, 1, 1, 1, 1, 0, 1, 1])).network
    drawn = np.zeros(small.n_maskable, bool)
    drawn[small.groups["stem"].start + 1] = True  # the shortcut takes channel 0 alone
    used, added = repair(small, drawn, np.full(drawn.size, 0.5))
    assert propagate(small, used)[small.output].all()
    assert added == used.sum() - 1
