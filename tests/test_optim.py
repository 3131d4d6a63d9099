"""Optimizers against loops over single numbers, hand-computed steps and (if there) PyTorch."""

import math

import numpy as np
import pytest
from arrays import host, to_device

from minicst.autograd import Parameter
from minicst.nn.layers import Linear
from minicst.optim import SCHEDULES, SGD, Adam, Optimizer, schedule

STEPS = 10
SGD_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
]
ADAM_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"betas": (0.0, 0.0), "weight_decay": 0.1},
]


def sgd_loop(w, grads, lrs, momentum=0.0, weight_decay=0.0, nesterov=False):
    """One number, step by step, in Python floats."""
    v = 0.0
    for g, lr in zip(grads, lrs, strict=True):
        g += weight_decay * w
        v = momentum * v + g
        w -= lr * (g + momentum * v if nesterov else v)
    return w


def adam_loop(w, grads, lrs, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    m = v = 0.0
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        g += weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        w -= lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


def run(optimizer, parameters, grads, lrs):
    """Take a step for each row of grads, with its learning rate."""
    for g, lr in zip(grads, lrs, strict=True):
        for parameter in parameters.values():
            parameter.grad = to_device(g.astype(parameter.dtype))
        optimizer.lr = lr
        optimizer.step()


def every_optimizer():
    yield from ((SGD, sgd_loop, options) for options in SGD_OPTIONS)
    yield from ((Adam, adam_loop, options) for options in ADAM_OPTIONS)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "loop", "options"), list(every_optimizer()))
def test_ten_steps_equal_the_loop(rng, kind, loop, options, dtype):
    start = rng.normal(size=(3, 2)).astype(dtype)
    grads = rng.normal(size=(STEPS, 3, 2)).astype(dtype)
    lrs = [0.1 * schedule("cosine", i / STEPS) for i in range(STEPS)]
    parameters = {"w": Parameter(start.copy()), "u": Parameter(2 * start)}
    optimizer = kind(parameters, 0.1, **options)
    run(optimizer, parameters, grads, lrs)
    assert optimizer.steps == STEPS
    for name, factor in (("w", 1), ("u", 2)):
        got = host(parameters[name])
        assert got.dtype == dtype
        for at in np.ndindex(3, 2):
            series = [float(g[at]) for g in grads]
            want = loop(factor * float(start[at]), series, lrs, **options)
            assert got[at] == pytest.approx(want, abs=1e-12 if dtype == np.float64 else 1e-5)


@pytest.mark.parametrize(("kind", "loop", "options"), list(every_optimizer()))
def test_ten_steps_equal_pytorchs(rng, kind, loop, options):
    torch = pytest.importorskip("torch")
    start, grads = rng.normal(size=(3, 2)), rng.normal(size=(STEPS, 3, 2))
    parameters = {"w": Parameter(start.copy())}
    run(kind(parameters, 0.1, **options), parameters, grads, [0.1] * STEPS)
    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, kind.__name__)([theirs], lr=0.1, **options)
    for g in grads:
        theirs.grad = torch.tensor(g)
        optimizer.step()
    assert np.allclose(host(parameters["w"]), theirs.detach().numpy(), rtol=0, atol=1e-12)


def test_steps_by_hand():
    w = Parameter(np.array([1.0, -2.0]))
    optimizer = SGD({"w": w}, lr=0.5, momentum=0.5)
    w.grad = to_device([1.0, 2.0])
    optimizer.step()
    assert w.data.tolist() == [0.5, -3.0]
    optimizer.step()  # v = 1.5 g
    assert w.data.tolist() == [-0.25, -4.5]
    assert optimizer.state["w"]["velocity"].tolist() == [1.5, 3.0]
    w = Parameter(np.array([1.0, -2.0]))
    optimizer = Adam({"w": w}, lr=0.25)
    w.grad = to_device([1e-3, -70.0])
    optimizer.step()  # lr sign(g)
    assert host(w) == pytest.approx(np.array([0.75, -1.75]), abs=1e-5)


def test_a_parameter_without_gradient_stays():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = SGD({"a": a, "b": b}, lr=0.1, momentum=0.9, weight_decay=0.1)
    a.grad = to_device(np.ones(2))
    optimizer.step()
    assert b.data.tolist() == [1.0, 1.0]
    assert optimizer.state["b"]["velocity"].tolist() == [0.0, 0.0]
    assert a.data.tolist() != [1.0, 1.0]


def test_learning_rate_zero_moves_nothing():
    w = Parameter(np.ones(2))
    for optimizer in (SGD({"w": w}, 0.0, momentum=0.9), Adam({"w": w}, 0.0)):
        w.grad = to_device(np.ones(2))
        optimizer.step()
        assert w.data.tolist() == [1.0, 1.0]


def test_weights_change_in_place():
    w = Parameter(np.ones((2, 3), np.float32))
    data = w.data
    for optimizer in (SGD({"w": w}, 0.1, momentum=0.9, nesterov=True), Adam({"w": w}, 0.1)):
        before = host(data).copy()
        w.grad = to_device(np.ones((3, 2), np.float32)).T  # in another memory layout
        optimizer.step()
        assert w.data is data
        assert (host(data) < before).all()


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_transposed_parameter_is_updated(kind):
    w = Parameter(np.ones((2, 3)).T)
    optimizer = kind({"w": w}, 0.5)
    w.grad = to_device(np.ones((3, 2)))
    optimizer.step()
    assert host(w) == pytest.approx(np.full((3, 2), 0.5), abs=1e-7)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_parameter_without_axes_is_updated(kind):
    w = Parameter(np.array(1.0))
    optimizer = kind({"w": w}, 0.5)
    (w * 2.0).backward()
    optimizer.step()
    assert w.shape == ()
    assert w.item() == pytest.approx({SGD: 0.0, Adam: 0.5}[kind], abs=1e-7)


def test_zero_grad_forgets():
    layer = Linear(3, 2)
    optimizer = SGD(layer, 0.1)
    assert list(optimizer.parameters) == ["weight", "bias"]
    for parameter in optimizer.parameters.values():
        parameter.grad = to_device(np.ones(parameter.shape, np.float32))
    optimizer.zero_grad()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


# state


def test_state_has_the_shape_of_its_parameter():
    parameters = {"w": Parameter(np.ones((2, 3), np.float32)), "b": Parameter(np.ones(4))}
    expected = {
        "velocity": SGD(parameters, 0.1, momentum=0.9),
        "first second": Adam(parameters, 0.1),
        "": SGD(parameters, 0.1),
    }
    for names, optimizer in expected.items():
        assert list(optimizer.state) == ["w", "b"]
        for name, parameter in parameters.items():
            assert list(optimizer.state[name]) == names.split()
            for array in optimizer.state[name].values():
                assert array.shape == parameter.shape
                assert array.dtype == parameter.dtype
                assert not array.any()


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD({}, 0.3, momentum=0.8, weight_decay=0.01, nesterov=True),
        Adam({}, 0.3, betas=(0.7, 0.8), eps=1e-5, weight_decay=0.01),
    ],
)
def test_like_is_the_same_for_other_parameters(optimizer):
    optimizer.steps = 7
    optimizer.lr = 0.2  # as a schedule sets it
    twin = optimizer.like({"v": Parameter(np.ones(3))})
    assert type(twin) is type(optimizer)
    assert twin.options() == optimizer.options()
    assert twin.options()["lr"] == 0.2
    assert twin.steps == 7
    assert list(twin.state) == ["v"]
    assert list(twin.state["v"]) == list(optimizer.state_names)
    assert not any(array.any() for array in twin.state["v"].values())


def test_like_with_the_state_copied_goes_on_as_before(rng):
    start, grads = rng.normal(size=4), rng.normal(size=(STEPS, 4))
    for kind, options in ((SGD, {"momentum": 0.9, "nesterov": True}), (Adam, {})):
        straight, first = {"w": Parameter(start.copy())}, {"w": Parameter(start.copy())}
        run(kind(straight, 0.1, **options), straight, grads, [0.1] * STEPS)
        optimizer = kind(first, 0.1, **options)
        run(optimizer, first, grads[:4], [0.1] * 4)
        second = {"w": Parameter(first["w"].data.copy())}
        twin = optimizer.like(second)
        for name, array in optimizer.state["w"].items():
            twin.state["w"][name][...] = array
        run(twin, second, grads[4:], [0.1] * 6)
        assert np.array_equal(host(second["w"]), host(straight["w"]))


# schedules


@pytest.mark.parametrize(
    ("kind", "progress", "factor"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 1.0, 1.0),
        ("step", 0.0, 1.0),
        ("step", math.nextafter(0.5, 0), 1.0),
        ("step", 0.5, 0.1),
        ("step", math.nextafter(0.75, 0), 0.1),
        ("step", 0.75, 0.01),
        ("step", 1.0, 0.01),
        ("cosine", 0.0, 1.0),
        ("cosine", 1 / 3, 0.75),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("cosine", 1.5, 0.0),
    ],
)
def test_schedule_at_its_corners(kind, progress, factor):
    assert schedule(kind, progress) == pytest.approx(factor, abs=1e-15)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up(kind):
    assert schedule(kind, 0.0, warmup=0.2) == 0.0
    assert schedule(kind, 0.05, warmup=0.2) == pytest.approx(0.25)
    assert schedule(kind, 0.2, warmup=0.2) == 1.0
    for t in (0.1, 0.5 + 1e-9, 0.8, 1.0):
        after = schedule(kind, 0.2 + 0.8 * t, warmup=0.2)
        assert after == pytest.approx(schedule(kind, t), abs=1e-12)


# errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, -0.1), "learning rate -0.1: it must not be negative"),
        (lambda p: Adam(p, math.nan), "learning rate nan"),
        (lambda p: SGD(p, 0.1, momentum=1.0), r"momentum 1.0 must be in \[0, 1\)"),
        (lambda p: SGD(p, 0.1, momentum=-0.1), "momentum -0.1"),
        (lambda p: SGD(p, 0.1, weight_decay=-1.0), "weight decay -1.0 not negative"),
        (lambda p: SGD(p, 0.1, nesterov=True), "nesterov needs momentum > 0"),
        (lambda p: Adam(p, 0.1, betas=(0.9, 1.0)), r"betas \(0.9, 1.0\) must be in \[0, 1\)"),
        (lambda p: Adam(p, 0.1, eps=0.0), "eps 0.0 must be positive"),
        (lambda p: Adam(p, 0.1, weight_decay=-1.0), "weight decay -1.0 not negative"),
        (
            lambda p: schedule("linear", 0.5),
            "unknown schedule 'linear': choose one of constant, st",
        ),
        (lambda p: schedule("step", 0.5, warmup=1.0), "warm-up 1.0: a share of the steps"),
        (lambda p: schedule("step", 0.5, warmup=-0.1), "warm-up -0.1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make({"w": Parameter(np.ones(2))})


def test_the_base_class_has_no_update():
    w = Parameter(np.ones(2))
    w.grad = to_device(np.ones(2))
    with pytest.raises(TypeError, match="Optimizer has no update"):
        Optimizer({"w": w}, 0.1).step()
