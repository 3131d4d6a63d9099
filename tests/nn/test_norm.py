"""Norm, batch norm -> ReLU on a stream: what it computes, dead channels, wiring errors."""

import numpy as np
import pytest
from arrays import host, to_device

from minicst.autograd import Tensor
from minicst.autograd.gradcheck import gradcheck
from minicst.nn import INPUT, Add, GlobalPool, Network, Norm, Shortcut, Unit, clone
from minicst.nn.node import Context
from minicst.nn.nodes import build_node
from minicst.optim import SGD
from minicst.sparse.accounting import count_macs
from minicst.sparse.liveness import propagate
from minicst.sparse.masked_form import live_entries, masked
from minicst.sparse.subnetwork import cut


def stirred(channels=4, momentum=0.1, eps=1e-5, seed=0):
    """A Norm in float64 whose numbers differ from channel to channel; beta is above 0."""
    rng = np.random.default_rng(seed)
    node = Norm(channels, momentum, eps).astype(np.float64)
    stir(node.norm, rng)
    return node


def stir(norm, rng):
    norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
    norm.beta.data[...] = to_device(rng.uniform(0.2, 0.7, norm.beta.shape))
    norm.running_mean[...] = to_device(rng.normal(0, 0.5, norm.gamma.shape))
    norm.running_var[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))


def running(norm):
    return host(norm.running_mean).copy(), host(norm.running_var).copy()


def pre_activation(tied=False, seed=0):
    """Stem, two pre-activation blocks of 4 channels, final norm; 2 classes."""
    rng = np.random.default_rng(seed)
    network = Network("pre", 3)
    plain = {"norm": False, "relu": False, "rng": rng}
    stream = network.add("stem", Unit.create(3, 4, 3, padding=1, group="s", **plain), INPUT)
    for block in (1, 2):
        at = network.add(f"n{block}", Norm(4), stream)
        at = network.add(f"a{block}", Unit.create(4, 3, 1, group=f"a{block}", rng=rng), at)
        group = "s" if tied else f"b{block}"
        at = network.add(f"b{block}", Unit.create(3, 4, 1, group=group, **plain), at)
        stream = network.add(f"add{block}", Add(4, relu=False), at, stream)
    at = network.add("n", Norm(4), stream)
    at = network.add("mean", GlobalPool(), at)
    out = Unit.create(4, 2, norm=False, relu=False, bias=True, rng=rng)
    network.add("out", out, at)
    network.astype(np.float64)
    for norm in network.norms().values():
        stir(norm, rng)
    return network


def images(n=3, side=4, channels=3, seed=1):
    return np.random.default_rng(seed).normal(size=(n, side, side, channels))


def mask_of(network, **dead):
    """All ones, but 0 at the given channels of the given groups."""
    mask = np.ones(network.n_maskable, bool)
    for group, channels in dead.items():
        mask[network.groups[group].start + np.asarray(channels)] = False
    return mask


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_forward_by_hand(eps):
    node, x = stirred(momentum=0.25, eps=eps), images(channels=4)
    norm = node.norm
    gamma, beta = host(norm.gamma), host(norm.beta)
    mean, var = running(norm)
    wanted = np.maximum(0, gamma * (x - mean) / np.sqrt(var + eps) + beta)
    out = node.forward("n", [Tensor(x)], Context())
    np.testing.assert_allclose(host(out), wanted, atol=1e-13)
    np.testing.assert_array_equal(running(norm)[0], mean)

    flat = x.reshape(-1, 4)
    m, v = flat.mean(axis=0), flat.var(axis=0)
    wanted = np.maximum(0, gamma * (x - m) / np.sqrt(v + eps) + beta)
    for track in (False, True):
        out = node.forward("n", [Tensor(x)], Context(training=True, track=track))
        np.testing.assert_allclose(host(out), wanted, atol=1e-13)
        if not track:
            np.testing.assert_array_equal(running(norm), (mean, var))
    unbiased = v * len(flat) / (len(flat) - 1)
    np.testing.assert_allclose(running(norm)[0], 0.75 * mean + 0.25 * m, atol=1e-14)
    np.testing.assert_allclose(running(norm)[1], 0.75 * var + 0.25 * unbiased, atol=1e-14)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_dead_stream_channel_is_0_behind_the_norm(training):
    """Beta doesn't leak; the dead channel's statistics stay as they were."""
    node, x = stirred(), images(channels=4)
    live = np.array([True, False, True, False])
    x[..., ~live] = 0.0  # as it comes in the masked form
    before = running(node.norm)
    out = host(node.forward("n", [Tensor(x)], Context(training, live={"n": live})))
    assert not out[..., ~live].any()
    plain = host(stirred().forward("n", [Tensor(x)], Context(training)))
    np.testing.assert_array_equal(out[..., live], plain[..., live])
    assert plain[..., ~live].min() > 0.0 or not training  # what batch norm would leak
    for now, old in zip(running(node.norm), before, strict=True):
        np.testing.assert_array_equal(now[~live], old[~live])
        assert training == bool((now[live] != old[live]).all())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_with_mask_position_filter_beta_leaks(training):
    node, x = stirred(), images(channels=4)
    live = np.array([True, False, True, True])
    x[..., 1] = 0.0
    node.norm.running_mean[1] = 0.0
    context = Context(training, live={"n": live}, mask_position="filter")
    out = host(node.forward("n", [Tensor(x)], context))
    np.testing.assert_allclose(out[..., 1], host(node.norm.beta)[1], atol=1e-13)
    assert node.norm.beta.data[1] > 0


@pytest.mark.parametrize("live", [None, [True, False, True, True]], ids=["plain", "masked"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients(training, live):
    node = stirred()
    x = Tensor(images(channels=4), requires_grad=True)
    live = None if live is None else {"n": np.array(live)}

    def run(x, gamma, beta):
        node.norm.gamma, node.norm.beta = gamma, beta
        return node.forward("n", [x], Context(training, track=False, live=live))

    inputs = x, node.norm.gamma, node.norm.beta
    gradcheck(run, *inputs, tolerance=1e-7)
    out = run(*inputs)
    out.backward(np.random.default_rng(2).normal(size=out.shape))
    for tensor in inputs:
        assert tensor.grad[..., 0].any()
        assert tensor.grad[..., 1].any() == (live is None)


def test_liveness_passes_through_and_a_norm_costs_no_macs():
    network = pre_activation()
    live = propagate(network, mask_of(network, s=[0], b1=[0, 1], b2=[0, 2]))
    np.testing.assert_array_equal(live["n1"], [False, True, True, True])  # the stem's
    np.testing.assert_array_equal(live["n2"], [False, True, True, True])  # stem or b1
    np.testing.assert_array_equal(live["n"], [False, True, True, True])  # stem, b1 or b2
    live = propagate(network, mask_of(network, s=[0, 1], b1=[0], b2=[0, 2]))
    np.testing.assert_array_equal(live["n1"], [False, False, True, True])
    np.testing.assert_array_equal(live["n2"], [False, True, True, True])
    layers = {layer.name: layer for layer in count_macs(network, (4, 4, 3)).layers}
    assert (layers["n1"].kind, layers["n1"].params, layers["n1"].macs) == ("norm", 8, 0)
    mask = mask_of(network, s=[0, 1], b1=[0], b2=[0, 2])
    layers = {layer.name: layer for layer in count_macs(network, (4, 4, 3), mask).layers}
    assert layers["n1"].params == 4
    assert layers["n2"].params == 6
    assert layers["a1"].macs == 4 * 4 * 2 * 3


MASKS = [
    {"s": [0], "b1": [0, 3], "b2": [0, 1]},
    {"s": [1, 2], "a1": [0], "b1": [1], "a2": [1, 2], "b2": [1]},
    {"b1": [0, 1, 2, 3]},  # a branch that is gone
    {"s": [0, 1, 2], "b2": [3]},
]


@pytest.mark.parametrize("dead", MASKS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_cut_equals_masked_through_norms(dead, training):
    """Outputs, gradients, an update, running statistics; blocks are found by hand."""
    network = pre_activation()
    start = {key: array.copy() for key, array in network.host_state().items()}
    mask, x = mask_of(network, **dead), images(6)
    cotangent = np.random.default_rng(3).normal(size=(6, 2))
    results = []
    for form in (masked, cut):
        full = clone(network)
        optimizer = SGD(full, 0.1, momentum=0.9, weight_decay=0.01)
        sub = form(full, mask, optimizer)
        out = sub(x, training=training)
        out.backward(cotangent)
        sub.update()
        sub.paste()
        results.append((host(out), full.host_state()))
    (out, state), (same_out, same_state) = results
    np.testing.assert_allclose(out, same_out, atol=1e-12)
    moved = live_entries(network, propagate(network, mask), mask)
    for key, array in state.items():
        np.testing.assert_allclose(array, same_state[key], atol=1e-12, err_msg=key)
        np.testing.assert_array_equal(array[~moved[key]], start[key][~moved[key]], key)
    stream = {"n1": ("s",), "n2": ("s", "b1"), "n": ("s", "b1", "b2")}
    for name, writers in stream.items():
        alive = np.any([mask[network.groups[g]] for g in writers], axis=0)
        if name == "n1" and not mask[network.groups["b1"]].any():
            alive[:] = False  # nothing reads it
        for array in ("gamma", "beta", "running_mean", "running_var"):
            key = f"{name}.norm.{array}"
            assert not (state[key] != start[key])[~alive].any(), key
            if training and array != "gamma":
                assert (state[key] != start[key])[alive].all(), key


def test_cut_norm_has_the_live_channels_only():
    network = pre_activation(tied=True)
    sub = cut(network, mask_of(network, s=[1, 3], a1=[0]))
    for name in ("n1", "n2", "n"):
        node = sub.network.nodes[name]
        assert isinstance(node, Norm)
        assert node.channels == 2
        for array in ("gamma", "beta"):
            full = host(getattr(network.nodes[name].norm, array))
            np.testing.assert_array_equal(host(getattr(node.norm, array)), full[[0, 2]])
        full = running(network.nodes[name].norm)[1]
        np.testing.assert_array_equal(running(node.norm)[1], full[[0, 2]])


def test_a_norm_is_rebuilt_from_its_config():
    node = Norm(5, momentum=0.25, eps=0.01)
    again = build_node("norm", node.config())
    assert isinstance(again, Norm)
    assert again.config() == node.config() == {"channels": 5, "momentum": 0.25, "eps": 0.01}
    assert again.norm.eps == 0.01
    assert again.norm.momentum == 0.25
    network = pre_activation()
    copy = Network.from_spec(network.spec()).astype(np.float64)
    copy.load_state(network.state())
    x = images()
    np.testing.assert_array_equal(host(copy(x)), host(network(x)))
    assert list(network.norms()) == ["n1", "a1", "n2", "a2", "n"]
    assert network.norms()["n1"] is network.nodes["n1"].norm


# Wiring: an error names the layers, their channel counts and the rule.


def wired(*nodes):
    """Add (name, node, what it reads) to a network of 3-channel images."""
    network = Network("wired", 3)
    for name, node, *reads in nodes:
        network.add(name, node, *reads)
    return network


FIRST = ("first", Unit.create(3, 4, 1), INPUT)
OTHER = ("other", Unit.create(3, 6, 1), INPUT)


@pytest.mark.parametrize(
    ("node", "reads", "says"),
    [
        (Norm(5), ["first"], ["first (4 channels)", "normalizes 5", "[4]", "must be equal"]),
        (Unit.create(7, 2, 1), ["first"], ["first (4 channels)", "reads 7", "[4]"]),
        (Add(4), ["first", "other"],
         ["first (4 channels), other (6 channels)", "adds streams of", "must be equal"]),
        (Shortcut(1, 8, [0, 4], [0, 1]), ["first"],
         ["first (4 channels)", "takes channel 4 of an input with 4"]),
    ],
    ids=["norm", "unit", "add", "shortcut"],
)  # fmt: skip
def test_wiring_errors_name_layers_counts_and_rule(node, reads, says):
    with pytest.raises(ValueError, match="node 'last' after ") as error:
        wired(FIRST, OTHER, ("last", node, *reads))
    text = str(error.value)
    assert "\n" not in text
    for part in says:
        assert part in text


def test_wiring_errors_of_unknown_names():
    with pytest.raises(ValueError, match="node 'n' reads 'frist', which isn't there"):
        wired(FIRST, ("n", Norm(4), "frist"))
    with pytest.raises(ValueError, match="node 'n' reads nothing"):
        wired(FIRST, ("n", Norm(4)))
    with pytest.raises(ValueError, match="already has a node 'first'"):
        wired(FIRST, ("first", Norm(4), "first"))


def test_groups_of_different_size_name_the_node_and_both_counts():
    network = wired(
        ("a", Unit.create(3, 4, 1, group="shared"), INPUT),
        ("b", Unit.create(4, 6, 1, group="shared"), "a"),
    )
    with pytest.raises(ValueError, match="'shared'") as error:
        _ = network.groups
    for part in ("node 'a' has 4 channels", "has 6", "share one mask"):
        assert part in str(error.value)


def test_streams_of_different_pixels_are_an_error():
    network = wired(
        ("a", Unit.create(3, 4, 3, 1, 1), INPUT),
        ("b", Unit.create(3, 4, 3, 2, 1), INPUT),
        ("sum", Add(4), "a", "b"),
    )
    with pytest.raises(ValueError, match=r"node 'sum' adds streams.*pixels must be the same"):
        network.shapes((8, 8, 3))
