"""Recording, accumulation, order, memory and errors of the tape."""

import gc
import threading
import weakref

import numpy as np
import pytest
from arrays import host

import minicst.functional as F
from minicst.autograd import Function, Parameter, Tensor, no_grad, saved_bytes
from minicst.backend import get_backend


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


# accumulation


def test_a_tensor_used_twice_gets_both_gradients():
    x = leaf(2.0, 3.0)
    h = x * x  # twice in one function
    (h * 5.0 + h.sum()).backward(np.array([1.0, 10.0]))  # twice in the graph
    # d/dh = 5 u + sum(u);  dh/dx = 2 x
    assert x.grad.tolist() == [2 * 2 * (5 + 11), 2 * 3 * (50 + 11)]


def test_diamond_in_the_right_order():
    x = leaf(3.0)
    a = x * 2.0
    b = F.exp(a * 0.0) + a  # the longer arm
    c = a * b
    c.backward(np.ones(1))
    assert x.grad.tolist() == [2 * (1 + 6) + 2 * 6]


def test_gradients_add_up_over_backward_calls_until_zero_grad():
    x = leaf(2.0)
    (x * 3.0).sum().backward()
    (x * x).sum().backward()
    assert x.grad.tolist() == [7.0]
    x.zero_grad()
    assert x.grad is None
    (x * 3.0).sum().backward()
    assert x.grad.tolist() == [3.0]


def test_every_leaf_has_a_gradient_of_its_own():
    a, b, u = leaf(1.0, 2.0), leaf(3.0, 4.0), np.array([1.0, 1.0])
    (a + b).backward(u)
    a.grad *= 0.0  # as clipping in place would
    assert b.grad.tolist() == [1.0, 1.0]
    assert u.tolist() == [1.0, 1.0]
    c = leaf(5.0, 6.0)
    c.reshape(2, 1).backward(u.reshape(2, 1))
    c.grad += 1.0
    assert u.tolist() == [1.0, 1.0]


def test_only_leaves_that_require_a_gradient_get_one():
    a, b = leaf(1.0, 2.0), Tensor(np.array([3.0, 4.0]))
    h = a * b
    h.sum().backward()
    assert a.grad.tolist() == [3.0, 4.0]
    assert b.grad is None
    assert h.grad is None


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((3,), (2, 3)),
        ((1,), (4,)),
        ((), (2, 2)),
        ((3, 1), (1, 4)),
        ((2, 1, 3), (5, 1)),
        ((1, 1), (1,)),
        ((1, 3), (0, 3)),
    ],
)
def test_broadcast_gradients_are_summed(rng, shape_a, shape_b):
    a, b = (Tensor(rng.normal(size=shape), requires_grad=True) for shape in (shape_a, shape_b))
    out = a * b + a - b
    u = rng.normal(size=out.shape)
    out.backward(u)
    for x, wide in ((a, u * (host(b) + 1)), (b, u * (host(a) - 1))):
        want = np.zeros(x.shape)
        for at in np.ndindex(out.shape):
            inner = at[len(at) - x.ndim :] if x.ndim else ()
            want[tuple(i if s > 1 else 0 for i, s in zip(inner, x.shape, strict=True))] += wide[at]
        assert x.grad.shape == x.shape
        assert np.allclose(host(x.grad), want, rtol=0, atol=1e-13)


# depth, recording, memory


def test_a_chain_of_5000_additions():
    x = leaf(1.0)
    h = x
    for _ in range(5000):
        h = h + 1.0
    assert saved_bytes(h) == 0  # walks the same way
    h.backward(np.ones(1))
    assert x.grad.tolist() == [1.0]
    h = x
    for _ in range(5000):
        h = h + 1.0
    del h  # nor does the interpreter recurse when an unused tape is dropped


def test_no_grad_records_and_saves_nothing(rng):
    x = Tensor(rng.normal(size=(2, 4, 4, 3)), requires_grad=True)
    weight = Parameter(rng.normal(size=(2, 3, 3, 3)))
    made = []

    class Watch(Function):
        def forward(self, a):
            self.save(a, "kept")
            made.append(self)
            return a * 1.0

    with no_grad():
        out = F.max_pool2d(F.relu(F.conv2d(Watch.apply(x), weight)), 2)
        assert not out.requires_grad
        with no_grad():
            pass
        assert Watch.apply(x).creator is None  # the inner block doesn't end the outer one
    assert [f.saved for f in made] == [(), ()]
    assert [f.inputs for f in made] == [(), ()]
    assert out.creator is None
    assert saved_bytes(out) == 0
    assert Watch.apply(x).requires_grad
    assert made[-1].saved[1] == "kept"


def test_no_grad_ends_with_an_exception_and_holds_for_one_thread():
    x = leaf(1.0)
    seen = []

    def fail():
        with no_grad():
            other = threading.Thread(target=lambda: seen.append((x * 2.0).requires_grad))
            other.start()
            other.join()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [True]
    assert (x * 2.0).requires_grad


def test_nothing_is_recorded_if_nothing_requires_a_gradient():
    out = F.exp(Tensor(np.ones(3)) * 2.0)
    assert not out.requires_grad
    assert out.creator is None


def test_saved_arrays_die_with_backward(rng):
    x = Tensor(rng.normal(size=(3, 4)), requires_grad=True)
    h = F.relu(F.exp(x))
    loss = h.sum()
    functions = [loss.creator, h.creator, h.creator.inputs[0].creator]
    saved = [weakref.ref(f.saved[0]) for f in functions[1:]]
    del h
    assert all(ref() is not None for ref in saved)
    loss.backward()
    gc.disable()  # counting references must be enough
    try:
        assert all(ref() is None for ref in saved)
    finally:
        gc.enable()
    assert all(f.saved == () and f.inputs == () for f in functions)
    assert loss.creator is None


def test_memory_is_released_while_backward_proceeds(rng):
    alive_at = {}

    class Probe(Function):
        def forward(self, a, *, name):
            self.name = name
            return a * 1.0

        def backward(self, g):
            alive_at[self.name] = [ref() is not None for ref in activations]
            return (g,)

    x = Tensor(rng.normal(size=100), requires_grad=True)
    first = F.exp(Probe.apply(x, name="early"))
    second = F.exp(Probe.apply(first * 0.1, name="late"))
    activations = [weakref.ref(first.data), weakref.ref(second.data)]
    loss = second.sum()
    del first, second
    loss.backward()
    assert alive_at == {"late": [True, False], "early": [False, False]}


def test_an_unused_tape_dies_with_its_last_tensor(rng):
    x = Tensor(rng.normal(size=(3, 4)), requires_grad=True)
    loss = F.exp(F.exp(x)).sum()
    saved = weakref.ref(loss.creator.inputs[0].creator.saved[0])
    gc.disable()
    try:
        del loss
        assert saved() is None
    finally:
        gc.enable()


# errors of backward


def test_a_second_backward_says_that_the_tape_was_used():
    x = leaf(1.0, 2.0)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(ValueError, match="its tape was used already"):
        loss.backward()
    assert x.grad.tolist() == [2.0, 4.0]


def test_a_shared_part_of_the_tape_is_used_once():
    x = leaf(1.0, 2.0)
    h = x * 2.0
    first, second = h.sum(), (h * x).sum()
    first.backward()
    with pytest.raises(
        ValueError, match=r"through Mul reaches a tensor of shape \(2,\) whose tape"
    ):
        second.backward()  # h's part of the gradient would be missing without a word
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_used_tensor_is_a_constant_to_what_follows():
    x = leaf(2.0)
    h = x * 3.0
    h.sum().backward()
    x.zero_grad()
    (h * x).sum().backward()
    assert x.grad.tolist() == [6.0]


def test_a_leaf_that_requires_a_gradient_only_later_gets_none():
    a, b = leaf(1.0), Tensor(np.array([2.0]))
    out = (a * b).sum()
    b.requires_grad = True
    out.backward()
    assert a.grad.tolist() == [2.0]
    assert b.grad is None


def test_backward_off_the_tape():
    with pytest.raises(ValueError, match="not on the tape"):
        Tensor(np.ones(1)).backward()
    x = leaf(1.0)
    with no_grad():
        out = x * 2.0
    with pytest.raises(ValueError, match="made under no_grad"):
        out.backward()
    with pytest.raises(ValueError, match="not on the tape"):
        (x * 2.0).detach().backward()


def test_backward_wants_a_gradient_of_the_right_shape():
    x = leaf(1.0, 2.0)
    with pytest.raises(
        ValueError, match=r"backward of shape \(2,\) needs a gradient of that shape"
    ):
        (x * 2.0).backward()
    with pytest.raises(ValueError, match=r"gradient of shape \(3,\) for a tensor of shape \(2,\)"):
        (x * 2.0).backward(np.ones(3))
    (x * 2.0).backward([1.0, 10.0])
    assert x.grad.tolist() == [2.0, 20.0]


def test_a_rule_that_returns_a_wrong_shape_is_named():
    class Wrong(Function):
        def forward(self, a):
            return a * 1.0

        def backward(self, g):
            return (g[:1],)

    with pytest.raises(AssertionError, match=r"Wrong gave a gradient float64\(1,\) for an input"):
        Wrong.apply(leaf(1.0, 2.0)).backward(np.ones(2))


# needs_grad and the meter


def test_the_first_layer_computes_no_input_gradient(backend, rng):
    x = Tensor(rng.normal(size=(2, 6, 6, 3)))
    w1, w2 = (Parameter(rng.normal(size=(3, 3, 3, 3))) for _ in range(2))
    F.conv2d(x, w1).sum().backward()
    assert backend.meter.total(which="forward") == 2 * 16 * 3 * 27
    assert backend.meter.total(which="weight_gradient") == 2 * 16 * 3 * 27
    assert backend.meter.total(which="input_gradient") == 0
    backend.meter.reset()
    F.conv2d(F.conv2d(x, w1), w2).sum().backward()
    assert backend.meter.total(which="input_gradient") == 2 * 4 * 3 * 27  # of the second alone


def test_a_frozen_weight_gets_no_gradient(backend, rng):
    for groups in (1, 3):
        backend.meter.reset()
        x = Tensor(rng.normal(size=(2, 4, 4, 3)), requires_grad=True)
        weight = Tensor(rng.normal(size=(3, 3, 3, 3 // groups)))
        F.conv2d(x, weight, groups=groups).sum().backward()
        assert weight.grad is None
        assert backend.meter.total(which="weight_gradient") == 0
        assert backend.meter.total(which="input_gradient") == 2 * 4 * 3 * 27 // groups
        backend.meter.reset()
        F.conv2d(x.detach(), Parameter(weight.data), groups=groups).sum().backward()
        assert backend.meter.total(which="input_gradient") == 0


def test_backward_counts_for_the_layer_that_ran_forward(backend, rng):
    meter = backend.meter
    x = Tensor(rng.normal(size=(1, 4, 4, 2)), requires_grad=True)
    w1, w2 = Parameter(rng.normal(size=(3, 3, 3, 2))), Parameter(rng.normal(size=(1, 2, 2, 3)))
    with meter.in_phase("forward"):
        meter.layer = "first"
        h = F.conv2d(x, w1)
        meter.layer = "second"
        out = F.conv2d(h, w2)
    meter.layer = "elsewhere"
    with meter.in_phase("backward"):
        out.sum().backward()
    assert meter.layer == "elsewhere"
    first, second = 4 * 3 * 18, 12
    assert meter.by_layer("backward") == {
        "first": {"forward": 0, "weight_gradient": first, "input_gradient": first},
        "second": {"forward": 0, "weight_gradient": second, "input_gradient": second},
    }


# saved_bytes


def test_saved_bytes_of_a_small_chain_by_hand(rng):
    def parameter(*shape):
        return Parameter(rng.normal(size=shape).astype(np.float32))

    x = Tensor(rng.normal(size=(2, 6, 6, 3)).astype(np.float32))
    h = F.conv2d(x, parameter(4, 3, 3, 3), stride=1, padding=1)
    assert saved_bytes(h) == 0  # the batch and the weight are there anyway
    h = F.batch_norm(h, parameter(4), parameter(4), relu=True)
    activation = 2 * 6 * 6 * 4 * 4
    statistics = 2 * 4 * 4  # mean and 1 / std
    assert saved_bytes(h) == 2 * activation + statistics  # what went in, and what came out
    h = F.conv2d(h, parameter(5, 1, 1, 4))  # saves what batch norm saved: counted once
    assert saved_bytes(h) == 2 * activation + statistics
    h = F.max_pool2d(h, 2)  # one byte for each output number
    assert saved_bytes(h) == 2 * activation + statistics + 2 * 3 * 3 * 5
    h = F.linear(F.global_avg_pool2d(h), parameter(7, 5))  # a view of the (2, 5) average
    assert saved_bytes(h) == 2 * activation + statistics + 90 + 2 * 5 * 4
    loss = F.cross_entropy(h, [0, 6])  # softmax - target in float64
    assert saved_bytes(loss) == 2 * activation + statistics + 90 + 40 + 2 * 7 * 8
    loss.backward()
    assert saved_bytes(loss) == 0


def test_saved_bytes_of_a_batch_read_from_a_buffer(rng):
    raw = rng.normal(size=12).astype(np.float32).tobytes()
    x = Tensor(np.frombuffer(raw, np.float32).reshape(1, 2, 2, 3))
    weight = Parameter(np.ones((1, 2, 2, 3), np.float32))
    assert saved_bytes(F.relu(F.conv2d(x, weight))) == 4
    assert saved_bytes(F.exp(Tensor(x.data * 2.0, requires_grad=True))) == 48


# tensors


def test_operators(device, rng):
    near = 1e-15 if device == "cpu" else 1e-12  # a GPU's products round once where NumPy's do twice
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    s, t = Tensor(a), Tensor(b)
    for got, want in [
        (s + t, a + b),
        (s - t, a - b),
        (s * t, a * b),
        (s / t, a / b),
        (-s, -a),
        (s**2, a**2),
        (2 + s, 2 + a),
        (2 - s, 2 - a),
        (2 * s, 2 * a),
        (2 / s, 2 / a),
        (a + t, a + b),
        (a - t, a - b),
        (a * t, a * b),
        (a / t, a / b),
        (s @ t.transpose(), a @ b.T),
        (s.sum(0), a.sum(0)),
        (s.mean(1, keepdims=True), a.mean(1, keepdims=True)),
        (s.reshape(3, 2), a.reshape(3, 2)),
        (s.reshape((3, -1)), a.reshape(3, 2)),
        (s.transpose(1, 0), a.T),
    ]:
        assert isinstance(got, Tensor)
        assert np.allclose(host(got), want, rtol=near, atol=0)


def test_what_a_tensor_tells(device):
    x = Tensor(np.ones((2, 3), np.float32))
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float32)
    assert device != "cpu" or x.numpy() is x.data
    assert np.array_equal(x.numpy(), np.ones((2, 3)))
    assert Tensor([[2.5]]).item() == 2.5
    with pytest.raises(ValueError, match=r"item\(\) of a tensor of shape \(2, 3\)"):
        x.item()
    assert x.detach().data is x.data
    assert isinstance((x.sum() * 2.0).data, get_backend().xp.ndarray)  # not a scalar


def test_what_a_tensor_refuses():
    with pytest.raises(TypeError, match="Tensor of a Tensor"):
        Tensor(Tensor([1.0]))
    with pytest.raises(TypeError, match="Tensor data is complex128"):
        Tensor(np.ones(2, complex))
    with pytest.raises(TypeError, match="indexing a tensor isn't recorded"):
        Tensor([1.0])[0]
    with pytest.raises(TypeError, match="indexing a tensor isn't recorded"):
        list(Tensor([1.0]))
