"""Wiring, specs, clones, and what a network keeps in memory."""

import json
import tracemalloc

import numpy as np
import pytest
from arrays import host, same_memory, to_device

import minicst.functional as F
from minicst.autograd import no_grad
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import (
    INPUT,
    Add,
    ChannelNoise,
    Flatten,
    GlobalPool,
    Network,
    Pool,
    Shortcut,
    Unit,
    clone,
)
from minicst.nn.nodes import build_node


def images(side, n=2, channels=3):
    return np.random.default_rng(0).normal(size=(n, side, side, channels)).astype(np.float32)


def started():
    network = Network("net", 3)
    network.add("a", Unit.create(3, 4, 3, padding=1, group="a"), INPUT)
    network.add("b", Unit.create(3, 5, 3, padding=1, group="b"), INPUT)
    return network


@pytest.mark.parametrize(
    ("name", "node", "inputs", "message"),
    [
        ("a", Pool(), ["b"], "network net already has a node 'a'"),
        ("input", Pool(), ["b"], "already has a node 'input'"),
        ("c", Pool(), ["d"], r"node 'c' reads 'd', which isn't there \(yet\)"),
        ("c", Pool(), [], "node 'c' reads nothing"),
        ("c", Unit.create(5, 2, 1), ["a"], r"after a \(4 channels\): reads 5 .* \[4\]: one input"),
        ("c", Unit.create(4, 2, 1), ["a", "b"], r"after a \(4 channels\), b \(5 channels\)"),
        ("c", Add(4), ["a", "b"], r"a \(4 channels\), b \(5 channels\): adds .* must be equal"),
        ("c", Add(4), ["a", "b"], r"\[4, 5\] channels to a sum of 4, at \[4, 4\] of them"),
        ("c", Add(4, [[0, 1], None]), ["a", "a"], r"\[4, 4\] .* at \[2, 4\] of them: .* equal"),
        ("c", Add(4, [None, None]), ["a"], r"streams of \[4\] channels to a sum of 4, at \[4, 4\]"),
        ("c", Shortcut(2, 8, [4], [0]), ["a"], "takes channel 4 of an input with 4"),
    ],
)
def test_wiring_errors_name_layers_counts_and_the_rule(name, node, inputs, message):
    network = started()
    with pytest.raises(ValueError, match=message):
        network.add(name, node, *inputs)
    assert list(network.nodes) == ["a", "b"]


def test_nodes_of_one_group_share_one_mask():
    network = started()
    network.add("c", Unit.create(4, 5, 1, group="a"), "a")
    with pytest.raises(
        ValueError,
        match=r"node 'a' has 4 channels, node 'c' of its group 'a' has 5: .* one mask; give them",
    ):
        _ = network.groups


def test_groups_follow_additions():
    network = started()
    assert network.groups == {"a": slice(0, 4), "b": slice(4, 9)}
    network.add("c", Unit.create(4, 3, 1, group="c"), "a")
    assert network.groups["c"] == slice(9, 12)
    assert network.n_maskable == 12
    flat = np.arange(12)
    assert network.own("c", flat).tolist() == [9, 10, 11]
    network.nodes["c"].members = [2, 0, 1]
    assert network.own("c", flat).tolist() == [11, 9, 10]


def test_images_that_do_not_fit():
    network = started()
    with pytest.raises(ValueError, match=r"takes images \(n, h, w, 3\), got \(2, 8, 8, 1\)"):
        network(images(8, channels=1))
    with pytest.raises(ValueError, match=r"\(h, w, 3\), got \(8, 8\)"):
        network.shapes((8, 8))
    tall = Network("tall", 3)
    tall.add("pool", Pool("max", 9), INPUT)
    with pytest.raises(
        ValueError, match="with 8x8x3 images: node 'pool' a window of 9 does not fit"
    ):
        tall.shapes((8, 8, 3))
    uneven = started()
    uneven.add("half", Pool(), "a")
    uneven.add("add", Add(4), "a", "half")
    with pytest.raises(ValueError, match="node 'add' adds streams of shapes"):
        uneven.shapes((8, 8, 3))


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown kind of node 'lstm': known are add, flatten"):
        build_node("lstm", {})


DEEP = ("resnet32", "resnet56")  # resnet20's blocks again: not on the slow stand-in


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        pytest.param(n, s, marks=[pytest.mark.deep] * (n in DEEP))
        for n in NETWORKS
        for s in "AB"
        if s == "B" or "shortcut" in ARCHITECTURES[n].takes
    ],
)
def test_spec_round_trip(name, shortcut):
    side = 32 if name.startswith("vgg1") else 16
    network = build(name, 4, width=0.1, shortcut=shortcut, image_size=side, residual="independent")
    if shortcut == "A" or name == "vgg-small":
        unit = next(iter(network.units().values()))
        c = unit.transform.c_out
        unit.noise = ChannelNoise(1, "first", np.arange(c) % 2 == 0, np.arange(c))
    for norm in network.norms().values():
        norm.momentum, norm.eps = 0.3, 1e-3
    spec = json.loads(json.dumps(network.spec()))  # plain data
    twin = Network.from_spec(spec)
    assert twin.spec() == network.spec()
    assert not any(array.any() for key, array in twin.state().items() if key.endswith("weight"))
    twin.load_state(network.state())
    x = images(side)
    for training in (False, True):
        np.testing.assert_array_equal(
            host(network(x, training, step=5)), host(twin(x, training, step=5))
        )
    for key, array in network.host_state().items():
        np.testing.assert_array_equal(array, twin.host_state()[key])
    assert repr(twin) == repr(network)
    assert f"{network.n_parameters():,} parameters" in repr(network)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clone_is_independent(dtype):
    network = build("resnet20", 4, width=0.2).astype(dtype)
    c = network.channels("stem")
    network.nodes["stem"].noise = ChannelNoise(1, "stem", np.arange(c) == 0, np.arange(c))
    twin = clone(network)
    assert twin.spec() == network.spec()
    x = images(8).astype(dtype)
    np.testing.assert_array_equal(host(network(x, step=1)), host(twin(x, step=1)))
    before = {key: array.copy() for key, array in network.host_state().items()}
    for key, array in twin.state().items():
        assert array.dtype == dtype
        assert not same_memory(array, network.state()[key])
    F.cross_entropy(twin(x, training=True), np.array([0, 1])).backward()
    for parameter in twin.parameters():
        parameter.data += 1
    for key, array in network.host_state().items():
        np.testing.assert_array_equal(array, before[key])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_units_mask_then_activate():
    """Convolution -> batch norm -> mask -> ReLU, by hand."""
    rng = np.random.default_rng(0)
    network = Network("one", 3)
    network.add("a", Unit.create(3, 4, 3, padding=1, group="a", rng=rng), INPUT)
    norm = network.nodes["a"].norm
    norm.beta.data[...] = to_device([0.5, 1.0, -0.5, 2.0])
    x = images(5)
    z = F.conv2d_loop(x, host(network.nodes["a"].transform.weight), 1, 1)
    z = (z - z.mean((0, 1, 2))) / np.sqrt(z.var((0, 1, 2)) + 1e-5) + host(norm.beta)
    live = np.array([True, False, True, True])
    out = host(network(x, training=True, live={"a": live}))
    np.testing.assert_allclose(out, np.maximum(z, 0) * live, rtol=1e-3, atol=1e-4)


def test_noise_replaces_channels_and_stops_gradients():
    c, bad = 4, np.array([False, True, False, True])
    noise = ChannelNoise(5, "layer", bad, np.arange(c))
    network = Network("noisy", 3)
    network.add(
        "a", Unit.create(3, c, 1, relu=False, group="a", rng=np.random.default_rng(0)), INPUT
    )
    plain = clone(network)
    network.nodes["a"].noise = noise
    x = images(32, n=8)
    out, wanted = network(x, training=True, step=3), plain(x, training=True, step=3)
    np.testing.assert_array_equal(host(out)[..., ~bad], host(wanted)[..., ~bad])
    sample = host(out)[..., bad].astype(float)
    n = sample[..., 0].size
    assert np.abs(sample.mean((0, 1, 2))).max() < 4 / np.sqrt(n)
    assert np.abs(sample.var((0, 1, 2)) - 1).max() < 4 * np.sqrt(2 / n)
    assert abs(np.corrcoef(sample[..., 0].ravel(), sample[..., 1].ravel())[0, 1]) < 4 / np.sqrt(n)
    out.backward(np.random.default_rng(2).normal(size=out.shape).astype("f4"))
    grad = host(network.nodes["a"].norm.gamma.grad)
    assert not grad[bad].any()
    assert grad[~bad].all()
    again = host(network(x, training=True, track=False, step=3))
    np.testing.assert_array_equal(again, host(out))
    assert not np.array_equal(host(network(x, step=4))[..., 1], host(network(x, step=3))[..., 1])


def test_shortcut_places_input_channel_j_at_j():
    network = Network("pad", 3)
    network.add("short", Shortcut(2, 5, [0, 1, 2], [0, 1, 2]), INPUT)
    x = images(5)
    out = host(network(x))
    assert out.shape == (2, 3, 3, 5) == (2, *network.shapes((5, 5, 3))["short"])
    np.testing.assert_array_equal(out[..., :3], x[:, ::2, ::2])
    assert not out[..., 3:].any()


def test_flatten_goes_pixel_by_pixel():
    network = Network("flat", 3)
    network.add("flatten", Flatten(16), INPUT)
    x = images(4)
    np.testing.assert_array_equal(host(network(x)), x.reshape(2, 48))


@pytest.mark.cpu  # tracemalloc sees the host's memory
def test_intermediate_values_are_freed():
    """Under no_grad only what a later node reads stays: here one map of many."""
    side, channels, depth = 32, 32, 12
    network = Network("deep", 3)
    at, c_in = INPUT, 3
    for i in range(depth):
        unit = Unit.create(c_in, channels, 1, norm=False, group=f"g{i}")
        at, c_in = network.add(f"conv{i}", unit, at), channels
    network.add("mean", GlobalPool(), at)
    x = images(side, n=4)
    one = 4 * side * side * channels * 4
    network(x[:1])  # workspaces exist now

    def peak(run):
        tracemalloc.start()
        try:
            result = run()
            return tracemalloc.get_traced_memory()[1], result
        finally:
            tracemalloc.stop()

    with no_grad():
        forward, _ = peak(lambda: network(x))
    recorded, _ = peak(lambda: network(x))
    # Input and output of a node, its ReLU, and columns of a chunk (at most 2 MiB a thread).
    assert forward < 6 * one < depth * one
    assert recorded > depth * one


def test_a_value_with_two_readers_stays_until_the_last():
    network = Network("skip", 3)
    a = network.add("a", Unit.create(3, 3, 1, rng=np.random.default_rng(0)), INPUT)
    b = network.add("b", Unit.create(3, 3, 1, rng=np.random.default_rng(1)), a)
    c = network.add("c", Unit.create(3, 3, 1, rng=np.random.default_rng(2)), b)
    network.add("add", Add(3, relu=False), c, a)
    seen = {}
    for name, unit in network.units().items():
        forward = unit.forward
        unit.forward = lambda *args, f=forward, n=name: seen.setdefault(n, f(*args))
    with no_grad():
        out = host(network(images(4)))
    np.testing.assert_array_equal(out, host(seen["c"]) + host(seen["a"]))
