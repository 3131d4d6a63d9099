"""Every operation against central differences, and proof that the check can fail."""

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.autograd import (
    Function,
    Tensor,
    elementary,
    gradcheck,
    loss,
    norm,
    pool,
    sparse_linear,
)
from minicst.autograd import conv as conv_module
from minicst.backend import Pattern


def draw(rng, *shape, away_from=None):
    """Normal numbers; with away_from, at least 0.3 away from that value."""
    values = rng.normal(size=shape)
    if away_from is not None:
        values = away_from + np.sign(values) * (0.3 + np.abs(values))
    return Tensor(values, requires_grad=True)


def positive(rng, *shape):
    return Tensor(rng.uniform(0.5, 2.0, shape), requires_grad=True)


def spaced(rng, *shape):
    """All values at least 0.1 apart, so that no maximum changes hands."""
    size = int(np.prod(shape))
    return Tensor(0.1 * rng.permutation(size).reshape(shape), requires_grad=True)


def batch_norm(relu, training, live=None):
    def function(x, gamma, beta):
        # Fresh statistics for every evaluation: a training pass moves them.
        mean, var = to_device([0.3, -0.5, 0.1]), to_device([0.7, 1.5, 1.0])
        return F.batch_norm(x, gamma, beta, mean, var, training, relu=relu, live=live)

    return function


def batch_norm_inputs(rng):
    return draw(rng, 3, 2, 3, 3), draw(rng, 3, away_from=0.0), draw(rng, 3)


def conv(stride=1, padding=0, groups=1):
    return lambda x, w, *b: F.conv2d(x, w, *(b or (None,)), stride, padding, groups)


def pooling(function, kernel, stride, padding):
    return lambda x: function(x, kernel, stride, padding)


LABELS = np.array([0, 3, 1, 1, 2])
PATTERN = Pattern.of_mask(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]], bool))

# name: the Function it exercises, the operation, its inputs
CASES = {
    "add": (elementary.Add, F.add, lambda r: (draw(r, 3, 4), draw(r, 3, 4))),
    "add, broadcast": (elementary.Add, F.add, lambda r: (draw(r, 3, 1, 4), draw(r, 5, 1))),
    "add_relu": (
        elementary.AddReLU,
        F.add_relu,
        lambda r: (draw(r, 3, 4, away_from=0.0), 0.1 * draw(r, 3, 4, away_from=0.0)),
    ),
    "sub": (elementary.Sub, F.sub, lambda r: (draw(r, 3, 4), draw(r, 3, 4))),
    "sub, broadcast": (elementary.Sub, F.sub, lambda r: (draw(r, 4), draw(r, 2, 3, 4))),
    "mul": (elementary.Mul, F.mul, lambda r: (draw(r, 3, 4), draw(r, 3, 4))),
    "mul, broadcast": (elementary.Mul, F.mul, lambda r: (draw(r, 2, 3, 4), draw(r, 3, 1))),
    "mul by 0-d": (elementary.Mul, F.mul, lambda r: (draw(r, 2, 3), draw(r))),
    "div": (elementary.Div, F.div, lambda r: (draw(r, 3, 4), draw(r, 3, 4, away_from=0.0))),
    "div, broadcast": (elementary.Div, F.div, lambda r: (draw(r, 3, 1), positive(r, 4))),
    "number / x": (elementary.Div, lambda x: 2.0 / x, lambda r: (positive(r, 4),)),
    "number - x": (elementary.Sub, lambda x: 2.0 - x, lambda r: (draw(r, 4),)),
    "power 3": (elementary.Power, lambda x: x**3, lambda r: (draw(r, 3, 4),)),
    "power -1.5": (elementary.Power, lambda x: x**-1.5, lambda r: (positive(r, 3, 4),)),
    "sqrt": (elementary.Power, F.sqrt, lambda r: (positive(r, 3, 4),)),
    "exp": (elementary.Exp, F.exp, lambda r: (draw(r, 3, 4),)),
    "log": (elementary.Log, F.log, lambda r: (positive(r, 3, 4),)),
    "relu": (elementary.ReLU, F.relu, lambda r: (draw(r, 3, 4, away_from=0.0),)),
    "sum": (elementary.Sum, F.sum, lambda r: (draw(r, 3, 4),)),
    "sum, one axis": (elementary.Sum, lambda x: F.sum(x, 1), lambda r: (draw(r, 3, 4, 2),)),
    "sum, two axes": (elementary.Sum, lambda x: F.sum(x, (0, -1)), lambda r: (draw(r, 3, 4, 2),)),
    "sum, keepdims": (
        elementary.Sum,
        lambda x: F.sum(x, (0, 2), keepdims=True),
        lambda r: (draw(r, 3, 4, 2),),
    ),
    "mean": (elementary.Sum, F.mean, lambda r: (draw(r, 3, 2),)),
    "mean, axes": (elementary.Sum, lambda x: F.mean(x, (0, 1)), lambda r: (draw(r, 2, 2, 4),)),
    "matmul": (elementary.MatMul, F.matmul, lambda r: (draw(r, 3, 4), draw(r, 4, 2))),
    "reshape": (elementary.Reshape, lambda x: F.reshape(x, (4, -1)), lambda r: (draw(r, 2, 3, 4),)),
    "transpose": (elementary.Transpose, F.transpose, lambda r: (draw(r, 3, 3),)),
    "transpose, axes": (
        elementary.Transpose,
        lambda x: F.transpose(x, (2, 0, 1)),
        lambda r: (draw(r, 3, 3, 3),),
    ),
    "transpose, negative axes": (
        elementary.Transpose,
        lambda x: F.transpose(x, (-1, 0, -2)),
        lambda r: (draw(r, 3, 3, 3),),
    ),
    "channel_slice": (
        elementary.ChannelSlice,
        lambda x: F.channel_slice(x, [4, 0, 2]),
        lambda r: (draw(r, 2, 3, 5),),
    ),
    "channel_scatter": (
        elementary.ChannelScatter,
        lambda x: F.channel_scatter(x, [4, 0, 2], 6),
        lambda r: (draw(r, 2, 2, 3),),
    ),
    "subsample": (
        elementary.Subsample,
        lambda x: F.subsample(x, 2),
        lambda r: (draw(r, 2, 5, 4, 3),),
    ),
    "linear": (
        conv_module.Conv2d,
        F.linear,
        lambda r: (draw(r, 3, 4), draw(r, 2, 4), draw(r, 2)),
    ),
    "linear, no bias": (conv_module.Conv2d, F.linear, lambda r: (draw(r, 3, 4), draw(r, 2, 4))),
    # An empty row and an empty column.
    "sparse_linear": (
        sparse_linear.SparseLinear,
        lambda x, v, b: F.sparse_linear(x, v, PATTERN, b),
        lambda r: (draw(r, 3, 4), draw(r, 5), draw(r, 3)),
    ),
    "sparse_linear, no bias": (
        sparse_linear.SparseLinear,
        lambda x, v: F.sparse_linear(x, v, PATTERN),
        lambda r: (draw(r, 3, 4), draw(r, 5)),
    ),
    "conv": (
        conv_module.Conv2d,
        conv(1, 1),
        lambda r: (draw(r, 2, 5, 4, 3), draw(r, 4, 3, 3, 3), draw(r, 4)),
    ),
    "conv, stride 2": (
        conv_module.Conv2d,
        conv(2, 1),
        lambda r: (draw(r, 2, 5, 6, 3), draw(r, 4, 3, 3, 3)),
    ),
    "conv, 1x1": (
        conv_module.Conv2d,
        conv(),
        lambda r: (draw(r, 2, 3, 3, 3), draw(r, 4, 1, 1, 3), draw(r, 4)),
    ),
    "conv, 2 groups": (
        conv_module.Conv2d,
        conv(1, 1, groups=2),
        lambda r: (draw(r, 2, 4, 4, 4), draw(r, 6, 3, 3, 2), draw(r, 6)),
    ),
    "conv, depthwise": (
        conv_module.Conv2d,
        conv(2, 1, groups=3),
        lambda r: (draw(r, 2, 5, 5, 3), draw(r, 3, 3, 3, 1)),
    ),
    "conv, depthwise, stride 1": (
        conv_module.Conv2d,
        conv(1, 2, groups=3),
        lambda r: (draw(r, 2, 4, 5, 3), draw(r, 3, 3, 2, 1), draw(r, 3)),
    ),
    "conv, depthwise, stride 3": (
        conv_module.Conv2d,
        conv(3, 1, groups=2),
        lambda r: (draw(r, 2, 6, 7, 2), draw(r, 2, 2, 2, 1), draw(r, 2)),
    ),
    "batch_norm, training": (norm.BatchNorm, batch_norm(False, True), batch_norm_inputs),
    "batch_norm, eval": (norm.BatchNorm, batch_norm(False, False), batch_norm_inputs),
    "batch_norm + relu, training": (norm.BatchNorm, batch_norm(True, True), batch_norm_inputs),
    "batch_norm + relu, eval": (norm.BatchNorm, batch_norm(True, False), batch_norm_inputs),
    "batch_norm, nothing tracked": (
        norm.BatchNorm,
        lambda x, gamma, beta: F.batch_norm(x, gamma, beta),
        batch_norm_inputs,
    ),
    "batch_norm, rows": (
        norm.BatchNorm,
        batch_norm(False, True, live=np.array([1.0, 0.0, 1.0])),
        lambda r: (draw(r, 5, 3), draw(r, 3, away_from=0.0), draw(r, 3)),
    ),
    "batch_norm of a transposed tensor": (
        norm.BatchNorm,
        lambda x, gamma, beta: batch_norm(True, True)(F.transpose(x, (0, 2, 3, 1)), gamma, beta),
        lambda r: (draw(r, 2, 3, 4, 3), draw(r, 3, away_from=0.0), draw(r, 3)),
    ),
    "max_pool2d": (
        pool.MaxPool2d,
        pooling(F.max_pool2d, 2, None, 0),
        lambda r: (spaced(r, 2, 4, 4, 2),),
    ),
    "max_pool2d, overlapping": (
        pool.MaxPool2d,
        pooling(F.max_pool2d, 3, 2, 1),
        lambda r: (spaced(r, 2, 5, 6, 2),),
    ),
    "avg_pool2d": (
        pool.AvgPool2d,
        pooling(F.avg_pool2d, 2, None, 0),
        lambda r: (draw(r, 2, 4, 5, 2),),
    ),
    "avg_pool2d, overlapping": (
        pool.AvgPool2d,
        pooling(F.avg_pool2d, 3, 2, 1),
        lambda r: (draw(r, 2, 5, 6, 2),),
    ),
    "global_avg_pool2d": (
        pool.GlobalAvgPool2d,
        F.global_avg_pool2d,
        lambda r: (draw(r, 2, 3, 4, 2),),
    ),
    "cross_entropy": (
        loss.CrossEntropy,
        lambda x: F.cross_entropy(x, LABELS),
        lambda r: (draw(r, 5, 4),),
    ),
    "cross_entropy, smoothed": (
        loss.CrossEntropy,
        lambda x: F.cross_entropy(x, LABELS, 0.1),
        lambda r: (draw(r, 5, 4),),
    ),
}


def all_functions(base=Function):
    """Every Function that minicst.autograd defines (other modules may add theirs)."""
    for function in base.__subclasses__():
        if function.__module__.startswith("minicst.autograd."):
            yield function
        yield from all_functions(function)


def first_case(function):
    return next(name for name, case in CASES.items() if case[0] is function)


def scale_backward(monkeypatch, function, factor):
    right = function.backward

    def wrong(self, g):
        return tuple(None if grad is None else factor * grad for grad in right(self, g))

    monkeypatch.setattr(function, "backward", wrong)


@pytest.mark.parametrize("name", CASES)
def test_gradient(rng, name):
    _, operation, inputs = CASES[name]
    assert gradcheck(operation, *inputs(rng)) < 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if "+ relu" in name])
def test_the_points_of_batch_norm_with_relu_are_away_from_its_kink(rng, name):
    _, _, inputs = CASES[name]
    x, gamma, beta = inputs(rng)
    before_relu = batch_norm(False, "training" in name)(x, gamma, beta).numpy()
    assert np.abs(before_relu).min() > 1e-4
    assert (before_relu < 0).any()
    assert (before_relu > 0).any()


def test_every_function_has_a_case():
    covered = {case[0] for case in CASES.values()}
    assert set(all_functions()) == covered


def test_every_differentiable_operation_has_a_case():
    arrays_only = {"check_labels", "conv2d_loop", "im2col", "col2im"}
    words = {name.split(",")[0].split(" ")[0] for name in CASES} | {"conv2d"}
    assert set(F.__all__) - arrays_only == words & set(F.__all__)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("name", CASES)
def test_gradcheck_notices_a_scaled_rule(rng, monkeypatch, name, factor):
    function, operation, inputs = CASES[name]
    scale_backward(monkeypatch, function, factor)
    with pytest.raises(ValueError, match="by differences and"):
        gradcheck(operation, *inputs(rng))


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("name", ["conv", "batch_norm, training", "batch_norm + relu, eval"])
def test_gradcheck_notices_which_input_is_wrong(rng, monkeypatch, name, position):
    function, operation, inputs = CASES[name]
    right = function.backward

    def wrong(self, g):
        return tuple(grad * (2 if i == position else 1) for i, grad in enumerate(right(self, g)))

    monkeypatch.setattr(function, "backward", wrong)
    with pytest.raises(ValueError, match=f"gradcheck: input {position}, shape"):
        gradcheck(operation, *inputs(rng))


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0, 2.0])
def test_a_gradient_of_ones_would_be_blind_for_batch_norm(rng, monkeypatch, factor):
    # sum(out) is N beta whatever x is: its gradient in x is 0, under any rule times any factor.
    scale_backward(monkeypatch, norm.BatchNorm, factor)
    x, gamma, beta = batch_norm_inputs(rng)
    batch_norm(False, True)(x, gamma, beta).backward(np.ones(x.shape))
    assert np.abs(host(x.grad)).max() < 1e-12


# gradcheck itself


def test_gradcheck_refuses_float32():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    with pytest.raises(TypeError, match="input 0 is float32; differences need float64"):
        gradcheck(F.exp, x)


def test_gradcheck_refuses_to_check_nothing():
    with pytest.raises(ValueError, match="no input requires a gradient"):
        gradcheck(F.exp, Tensor(np.ones(3)))


def test_gradcheck_notices_a_kink():
    x = Tensor(np.array([1.0, 1e-9, -1.0]), requires_grad=True)
    with pytest.raises(ValueError, match=r"suspects: .* a kink"):
        gradcheck(F.relu, x)


def test_gradcheck_notices_nan():
    x = Tensor(np.array([1.0, np.nan]), requires_grad=True)
    with pytest.raises(ValueError, match="by differences and nan"):
        gradcheck(F.exp, x)


def test_gradcheck_leaves_no_gradients_and_moves_nothing(rng):
    a, b = draw(rng, 3), Tensor(rng.normal(size=3))
    before = host(a).copy(), host(b).copy()
    gradcheck(F.mul, a, b)
    assert a.grad is None
    assert b.grad is None
    assert np.array_equal(host(a), before[0])
    assert np.array_equal(host(b), before[1])


def test_a_missing_gradient_is_noticed(rng, monkeypatch):
    monkeypatch.setattr(elementary.Exp, "backward", lambda self, g: (None,))
    with pytest.raises(
        AssertionError, match=r"Exp gave a gradient None for an input float64\(3,\)"
    ):
        F.exp(draw(rng, 3)).backward(np.ones(3))
