"""Layers and modules: initial values, batch norm's modes, state by name."""

import numpy as np
import pytest
from arrays import host, same_memory, to_device

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.nn import BatchNorm, Conv2d, Linear, Module, he_normal


@pytest.mark.parametrize("shape", [(256, 3, 3, 64), (512, 300), (64, 1, 1, 512)])
def test_he_normal(shape):
    weight = he_normal(shape, np.random.default_rng(0))
    n, fan_in = weight.size, int(np.prod(shape[1:]))
    assert weight.dtype == np.float32
    variance = 2 / fan_in
    # Standard errors of mean and variance of n normal numbers.
    assert abs(weight.mean()) < 4 * np.sqrt(variance / n)
    assert abs(weight.var() - variance) < 4 * variance * np.sqrt(2 / n)
    fourth = np.mean(weight.astype(float) ** 4) / variance**2
    assert abs(fourth - 3) < 4 * np.sqrt(96 / n)


def test_layers_start_with_he_weights_and_zero_bias():
    conv = Conv2d(8, 64, 3, rng=np.random.default_rng(1))
    assert conv.weight.shape == (64, 3, 3, 8)
    np.testing.assert_array_equal(
        host(conv.weight), he_normal((64, 3, 3, 8), np.random.default_rng(1))
    )
    assert not conv.bias.data.any()
    depthwise = Conv2d(8, 8, 3, groups=8, bias=False, rng=np.random.default_rng(1))
    assert depthwise.weight.shape == (8, 3, 3, 1)
    assert depthwise.bias is None
    assert not Linear(5, 4).weight.data.any()  # to be loaded


def test_layers_call_the_operations():
    rng = np.random.default_rng(2)
    conv, linear = Conv2d(3, 4, 3, stride=2, padding=1, rng=rng), Linear(5, 4, rng=rng)
    conv.bias.data[...] = linear.bias.data[...] = to_device(rng.normal(size=4))
    x, z = rng.normal(size=(2, 6, 6, 3)).astype("f4"), rng.normal(size=(2, 5)).astype("f4")
    wanted = F.conv2d_loop(x, host(conv.weight), 2, 1) + host(conv.bias)
    np.testing.assert_allclose(host(conv(Tensor(x))), wanted, rtol=1e-4, atol=1e-5)
    wanted = z @ host(linear.weight).T + host(linear.bias)
    np.testing.assert_allclose(host(linear(Tensor(z))), wanted, rtol=1e-4, atol=1e-5)


# Batch norm


@pytest.fixture
def norm():
    norm = BatchNorm(3, momentum=0.25).astype(np.float64)
    rng = np.random.default_rng(3)
    names = ("gamma", "beta", "running_mean", "running_var")
    state = rng.uniform(0.5, 2, 3), rng.normal(size=3), rng.normal(size=3), rng.uniform(0.5, 2, 3)
    norm.load_state(dict(zip(names, state, strict=True)))
    return norm


def running(norm):
    return host(norm.running_mean).copy(), host(norm.running_var).copy()


@pytest.fixture
def x():
    return np.random.default_rng(4).normal(1, 2, size=(4, 5, 5, 3))


def test_training_normalizes_by_the_batch(norm, x):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    old = running(norm)
    out = host(norm(Tensor(x), training=True))
    wanted = host(norm.gamma) * (x - mean) / np.sqrt(var + 1e-5) + host(norm.beta)
    np.testing.assert_allclose(out, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(running(norm)[0], 0.75 * old[0] + 0.25 * mean)
    np.testing.assert_allclose(running(norm)[1], 0.75 * old[1] + 0.25 * var * 100 / 99)


def test_eval_normalizes_by_the_running_statistics(norm, x):
    before = {name: array.copy() for name, array in norm.host_state().items()}
    out = host(norm(Tensor(x), training=False))
    wanted = (x - before["running_mean"]) / np.sqrt(before["running_var"] + 1e-5)
    np.testing.assert_allclose(out, before["gamma"] * wanted + before["beta"], rtol=1e-10)
    for name, array in norm.host_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_untracked_training_leaves_the_running_statistics(norm, x):
    before = running(norm)
    tracked = BatchNorm(3).astype(np.float64)
    tracked.load_state(norm.state())
    out = host(norm(Tensor(x), training=True, track=False))
    np.testing.assert_array_equal(out, host(tracked(Tensor(x), training=True)))
    np.testing.assert_array_equal(running(norm), before)
    assert not np.array_equal(running(tracked)[1], before[1])


@pytest.mark.parametrize("training", [True, False])
def test_live_indicator(norm, x, training):
    """An absent channel gives 0, no gradient, and its statistics stay; others don't notice."""
    live = np.array([1.0, 0.0, 1.0])
    before = running(norm)
    plain = BatchNorm(3, momentum=0.25).astype(np.float64)
    plain.load_state(norm.state())
    a, b = Tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    out, wanted = norm(a, training, live=to_device(live)), plain(b, training)
    assert not host(out)[..., 1].any()
    np.testing.assert_allclose(host(out)[..., ::2], host(wanted)[..., ::2], rtol=1e-12)
    g = np.random.default_rng(0).normal(size=x.shape)
    out.backward(g)
    wanted.backward(g)
    grad = host(a.grad)
    assert not grad[..., 1].any()
    np.testing.assert_allclose(grad[..., ::2], host(b.grad)[..., ::2], rtol=1e-10, atol=1e-14)
    for own, its in ((norm.gamma, plain.gamma), (norm.beta, plain.beta)):
        assert own.grad[1] == 0
        np.testing.assert_allclose(host(own.grad)[::2], host(its.grad)[::2], rtol=1e-10)
    for now, old, other in zip(running(norm), before, running(plain), strict=True):
        assert now[1] == old[1]
        np.testing.assert_array_equal(now[::2], other[::2])


@pytest.mark.parametrize("training", [True, False])
def test_relu_in_the_same_pass(norm, x, training):
    fused = host(norm(Tensor(x), training, track=False, relu=True))
    apart = host(F.relu(norm(Tensor(x), training, track=False)))
    np.testing.assert_array_equal(fused, apart)
    assert (fused == 0).any()


# Modules


class Block(Module):
    def __init__(self):
        self.conv = Conv2d(2, 3, 1, rng=np.random.default_rng(0))
        self.norm = BatchNorm(3)
        self.note = "not a parameter"


NAMES = ["conv.weight", "conv.bias", "norm.gamma", "norm.beta"]
BUFFERS = ["norm.running_mean", "norm.running_var"]


def test_names_in_order_of_assignment():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [name for name, _ in block.named_buffers()] == BUFFERS
    assert list(block.state()) == NAMES + BUFFERS
    assert [name for name, _ in block.children()] == ["conv", "norm"]
    assert [p.size for p in block.parameters()] == [6, 3, 3, 3]


def test_state_is_the_state_not_a_copy():
    block = Block()
    block.state()["norm.running_mean"][0] = 7
    block.state()["conv.weight"][...] = 2
    assert block.norm.running_mean[0] == 7
    assert (block.conv.weight.data == 2).all()


def test_load_state_copies():
    block, other = Block(), Block()
    state = {name: np.random.default_rng(1).normal(size=array.shape)
             for name, array in block.state().items()}  # fmt: skip
    array = other.conv.weight.data
    other.load_state(state)
    assert other.conv.weight.data is array  # in place: an optimizer may hold the parameter
    for name, value in other.host_state().items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[name].astype(np.float32))
    third = Block()
    third.load_state(other.state())
    for name, value in third.state().items():
        assert not same_memory(value, other.state()[name])


def test_load_state_errors_change_nothing():
    block = Block()
    before = {name: array.copy() for name, array in block.host_state().items()}
    good = {name: array + 1 for name, array in before.items()}
    lacking = {name: good[name] for name in NAMES}
    too_much = good | {"norm.momentum": np.ones(1)}
    wrong = good | {"norm.running_var": np.ones(4)}  # the last one to be loaded
    for state, message in (
        (lacking, r"state lacks norm.running_mean \(and 1 more\)"),
        (too_much, "state has norm.momentum, which this network doesn't have"),
        (wrong, r"norm.running_var has shape \(3,\) here and \(4,\) in the state"),
    ):
        with pytest.raises(ValueError, match=message):
            block.load_state(state)
    for name, array in block.host_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_zero_grad_and_astype():
    block = Block()
    for parameter in block.parameters():
        parameter.grad = to_device(np.ones(parameter.shape))
    block.zero_grad()
    assert all(parameter.grad is None for parameter in block.parameters())
    assert block.astype(np.float64) is block
    assert {array.dtype for array in block.state().values()} == {np.dtype(np.float64)}
