"""A float32 network stays float32; the loss is float64; float64 works where asked for."""

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.autograd import Function, Parameter, Tensor
from minicst.autograd.tensor import _topological_order
from minicst.optim import SGD, Adam


def network(rng, dtype):
    """Parameters, buffers and a function from a batch to logits that uses every layer."""

    def parameter(*shape):
        return Parameter(rng.normal(size=shape).astype(dtype))

    parameters = {
        "conv": parameter(4, 3, 3, 3),
        "bias": parameter(4),
        "gamma": parameter(4),
        "beta": parameter(4),
        "depthwise": parameter(4, 3, 3, 1),
        "linear": parameter(5, 6),
    }
    buffers = [to_device(np.zeros(4, dtype)), to_device(np.ones(4, dtype))]
    p = parameters

    def forward(x, training):
        h = F.conv2d(x, p["conv"], p["bias"], 1, 1)
        h = F.batch_norm(h, p["gamma"], p["beta"], *buffers, training=training, relu=True)
        h = h * np.float64(0.5) + 1.0 - np.full(4, 0.25)  # float64 scalars and arrays, numbers
        h = 2 * h / np.float64(3.0) + np.arange(4)  # and integers
        h = F.relu(F.max_pool2d(h, 2) + F.avg_pool2d(h, 2))
        h = F.conv2d(h, p["depthwise"], None, 1, 1, groups=4)
        h = F.channel_scatter(F.channel_slice(F.subsample(h, 2), [2, 0]), [1, 4], 6)
        h = F.sqrt(F.exp(-0.1 * h)) + F.log(h**2 + 1.0)
        return F.linear(F.global_avg_pool2d(h), p["linear"])

    return parameters, buffers, forward


def mixed_scalars(x):
    yield from (x + 1, x - 1.5, 2 * x, x / np.float64(3), np.float64(2) * x, np.float64(2) - x)
    yield from (np.ones(x.shape) * x, x - np.ones(x.shape), x + np.int64(2), x ** np.float64(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_a_network_keeps_its_dtype(rng, monkeypatch, dtype, training, optimizer):
    parameters, buffers, forward = network(rng, dtype)
    options = {"momentum": np.float64(0.9), "weight_decay": 1e-4} if optimizer is SGD else {}
    optimizer = optimizer(parameters, np.float64(0.1), **options)
    gradients, run = [], Function.run

    def watched(self, g):
        grads = run(self, g)
        gradients.extend((type(self).__name__, grad.dtype) for grad in grads if grad is not None)
        return grads

    monkeypatch.setattr(Function, "run", watched)
    x = Tensor(rng.normal(size=(3, 8, 8, 3)).astype(dtype))
    loss = F.cross_entropy(forward(x, training), [0, 1, 4], label_smoothing=0.1)
    assert loss.dtype == np.float64
    activations = [(type(t.creator).__name__, t.dtype) for t in _topological_order(loss)[1:]]
    assert len(activations) > 25
    assert [a for a in activations if a[1] != dtype] == []
    loss.backward()
    assert len(gradients) > 25
    assert [g for g in gradients if g[1] != dtype] == []
    optimizer.step()
    for name, parameter in parameters.items():
        assert parameter.grad.dtype == dtype, name
        assert parameter.dtype == dtype, name
        for array in optimizer.state[name].values():
            assert array.dtype == dtype, name
    assert [b.dtype for b in buffers] == [dtype, dtype]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bare_numbers_and_arrays_take_the_tensors_dtype(dtype):
    x = Tensor(np.ones((2, 3), dtype), requires_grad=True)
    for out in mixed_scalars(x):
        assert out.dtype == dtype
        out.backward(np.ones((2, 3)))  # a float64 gradient, for either
    assert x.grad.dtype == dtype
    x = Tensor(np.array(1.0, dtype), requires_grad=True)  # numpy has rules of its own for 0-d
    for out in mixed_scalars(x):
        assert out.dtype == dtype


def test_a_float32_penalty_may_be_added_to_the_loss(rng):
    weight = Parameter(rng.normal(size=(3, 4)).astype(np.float32))
    x = Tensor(rng.normal(size=(2, 4)).astype(np.float32))
    loss = F.cross_entropy(F.linear(x, weight), [0, 2])
    loss.backward()
    without = weight.grad
    weight.zero_grad()
    loss = F.cross_entropy(F.linear(x, weight), [0, 2]) + 0.5 * (weight * weight).sum()
    assert loss.dtype == np.float64
    loss.backward()
    assert weight.grad.dtype == np.float32
    assert np.allclose(host(weight.grad), host(without) + host(weight), rtol=1e-6, atol=1e-6)


def test_integers_become_float32_and_floats_stay():
    assert Tensor([1, 2]).dtype == np.float32
    assert Tensor(np.array([True])).dtype == np.float32
    assert Tensor(np.array([1], np.uint8)).dtype == np.float32
    assert Tensor([1.0]).dtype == np.float64
    assert Tensor(np.ones(1, np.float32)).dtype == np.float32


def test_two_dtypes_in_one_product_are_refused():
    half, full = np.float32, np.float64
    x, w = Tensor(np.ones((1, 2, 2, 1), half)), Tensor(np.ones((1, 1, 1, 1), full))
    with pytest.raises(TypeError, match="conv2d of float32 and float64: use one dtype"):
        F.conv2d(x, w)
    with pytest.raises(TypeError, match="conv2d of float32 and float32 and float64"):
        F.conv2d(x, Tensor(np.ones((1, 1, 1, 1), half)), Tensor(np.ones(1, full)))
    with pytest.raises(TypeError, match="matmul of float32 with float64: use one dtype"):
        F.matmul(Tensor(np.ones((1, 2), half)), Tensor(np.ones((2, 1), full)))
    with pytest.raises(TypeError, match="batch_norm of float32 x with float64 gamma"):
        F.batch_norm(x, Tensor(np.ones(1, full)), Tensor(np.ones(1, half)))
