"""Values of the operations where they aren't NumPy's own, and their error messages."""

import numpy as np
import pytest
from arrays import host, same_memory, to_device

import minicst.functional as F
from minicst.autograd import Tensor, conv


def tensor(*shape, dtype=np.float64):
    return Tensor(np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape).astype(dtype))


# convolution, linear


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_conv2d_with_groups_is_the_loop(rng, groups, bias):
    x = rng.normal(size=(2, 5, 6, 4))
    weight = rng.normal(size=(8, 3, 2, 4 // groups))
    b = rng.normal(size=8) if bias else None
    out = F.conv2d(Tensor(x), Tensor(weight), Tensor(b) if bias else None, 2, 1, groups)
    want = F.conv2d_loop(x, weight, 2, 1, groups) + (b if bias else 0)
    assert np.allclose(host(out), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (3, 0), (4, 2)])
def test_depthwise_is_the_loop_over_groups(backend, rng, monkeypatch, stride, padding):
    """One call of the backend a pass, and what a convolution of each channel alone would give."""
    x, weight = rng.normal(size=(2, 7, 6, 5)), rng.normal(size=(5, 3, 2, 1))
    b = rng.normal(size=5)

    def run(groups_apart):
        inputs = [Tensor(a, requires_grad=True) for a in (x, weight, b)]
        if groups_apart:
            monkeypatch.setattr(conv, "_is_depthwise", lambda *args: False)
        out = F.conv2d(*inputs, stride, padding, groups=5)
        out.backward(np.sin(np.arange(out.data.size)).reshape(out.shape))
        return host([out, *(t.grad for t in inputs)])

    calls = []
    for name in ("conv2d", "conv2d_grad_weight", "conv2d_grad_input"):
        monkeypatch.setattr(backend, name, lambda *args, name=name: calls.append(name))
    fast = run(False)
    assert not calls
    counts = dict(backend.meter.macs)
    monkeypatch.undo()
    backend.meter.reset()
    slow = run(True)
    assert dict(backend.meter.macs) == counts
    for a, want in zip(fast, slow, strict=True):
        assert a.shape == want.shape
        assert np.allclose(a, want, rtol=0, atol=1e-12)


def test_linear(rng):
    x, weight, bias = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), rng.normal(size=2)
    out = F.linear(Tensor(x), Tensor(weight), Tensor(bias))
    assert np.allclose(host(out), x @ weight.T + bias, rtol=0, atol=1e-14)


def test_im2col_and_col2im_are_public(rng):
    x = rng.normal(size=(1, 4, 4, 2))
    col = F.im2col(x, 3, 3, padding=1)
    assert col.shape == (16, 18)
    back = host(F.col2im(col, x.shape, 3, 3, padding=1))
    assert np.vdot(host(col), host(col)) == pytest.approx(np.vdot(back, x))


# batch norm


def test_batch_norm_in_training_moves_the_running_statistics(rng):
    x = rng.normal(3, 2, size=(4, 3, 3, 2))
    mean, var = to_device([1.0, 2.0]), to_device([0.5, 4.0])
    out = F.batch_norm(Tensor(x), Tensor([2.0, 1.0]), Tensor([0.0, 5.0]), mean, var, momentum=0.25)
    rows = x.reshape(-1, 2)
    assert np.allclose(host(mean), 0.75 * np.array([1.0, 2.0]) + 0.25 * rows.mean(0))
    assert np.allclose(host(var), 0.75 * np.array([0.5, 4.0]) + 0.25 * rows.var(0, ddof=1))
    want = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * [2.0, 1.0] + [0.0, 5.0]
    assert np.allclose(host(out), want, rtol=0, atol=1e-13)


def test_batch_norm_in_eval_uses_them_and_leaves_them(rng):
    x = rng.normal(size=(4, 2))
    mean, var = to_device([1.0, 2.0]), to_device([0.5, 4.0])
    args = Tensor([2.0, 1.0]), Tensor([0.0, 5.0]), mean, var
    out = F.batch_norm(Tensor(x), *args, training=False, relu=True)
    want = (x - [1.0, 2.0]) / np.sqrt(np.array([0.5, 4.0]) + 1e-5) * [2.0, 1.0] + [0.0, 5.0]
    assert np.allclose(host(out), np.maximum(want, 0), rtol=0, atol=1e-14)
    assert mean.tolist() == [1.0, 2.0]
    assert var.tolist() == [0.5, 4.0]


def test_backward_in_eval_ignores_that_the_statistics_moved_since(rng):
    x = Tensor(rng.normal(size=(6, 2)), requires_grad=True)
    mean, var = to_device(np.zeros(2)), to_device(np.ones(2))
    gamma, beta = Tensor([2.0, 1.0], requires_grad=True), Tensor([0.0, 0.0], requires_grad=True)
    out = F.batch_norm(x, gamma, beta, mean, var, training=False, eps=0.0)
    F.batch_norm(x, gamma, beta, mean, var)
    assert host(mean).any()
    out.backward(np.ones((6, 2)))
    assert np.allclose(host(x.grad), np.tile([2.0, 1.0], (6, 1)))
    assert np.allclose(host(gamma.grad), host(x).sum(axis=0))


def test_batch_norm_moves_live_channels_only(rng):
    x = Tensor(rng.normal(size=(4, 3)))
    mean, var = to_device(np.zeros(3)), to_device(np.ones(3))
    ones, zeros = Tensor(np.ones(3)), Tensor(np.zeros(3))
    F.batch_norm(x, ones, zeros, mean, var, live=np.array([1.0, 0.0, 1.0]))
    mean, var = host([mean, var])
    assert (mean[1], var[1]) == (0.0, 1.0)
    assert mean[0] != 0
    assert mean[2] != 0


def test_batch_norm_of_one_image_of_one_pixel():
    mean, var = to_device(np.zeros(2)), to_device(np.ones(2))
    one = Tensor([1.0, 1.0])
    out = F.batch_norm(Tensor(np.array([[3.0, 4.0]])), one, Tensor([7.0, 8.0]), mean, var)
    assert out.data.tolist() == [[7.0, 8.0]]
    assert var.tolist() == [0.9, 0.9]


def test_batch_norm_of_a_transposed_tensor(rng):
    x = Tensor(rng.normal(size=(3, 4, 5, 2)))
    ones, zeros = Tensor(np.ones(2)), Tensor(np.zeros(2))
    out = F.batch_norm(F.transpose(x, (1, 0, 2, 3)), ones, zeros)
    want = F.transpose(F.batch_norm(x, ones, zeros), (1, 0, 2, 3))
    assert np.allclose(host(out), host(want), rtol=0, atol=1e-13)


# pooling, loss


def test_pooling_takes_the_kernel_as_stride():
    x = tensor(1, 4, 4, 1)
    assert F.max_pool2d(x, 2).data.ravel().tolist() == [6, 8, 14, 16]
    assert F.avg_pool2d(x, 2).data.ravel().tolist() == [3.5, 5.5, 11.5, 13.5]
    assert F.max_pool2d(x, 2, 1).shape == (1, 3, 3, 1)
    assert F.global_avg_pool2d(x).data.tolist() == [[8.5]]


def test_the_first_of_equals_gets_the_gradient():
    x = Tensor(np.zeros((1, 2, 2, 1)), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.ravel().tolist() == [1, 0, 0, 0]


def test_relu_at_zero_has_gradient_zero():
    x = Tensor(np.array([-1.0, 0.0, 1.0]), requires_grad=True)
    F.relu(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1]


def test_cross_entropy_by_hand(device):
    near = 1e-15 if device == "cpu" else 1e-14  # a GPU's exp and log are off by a unit or so
    logits = Tensor(np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    loss = F.cross_entropy(logits, [0, 2]).item()
    assert loss == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2, abs=near)
    smooth = F.cross_entropy(logits, [0, 2], 0.3).item()
    uniform = -np.log([0.5, 0.25, 0.25, 0.1, 0.1, 0.8]).sum() / 3 / 2
    assert smooth == pytest.approx(0.7 * loss + 0.3 * uniform, abs=near)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = Tensor(np.array([[1e4, -1e4, 0.0], [-1e30, 0.0, 0.0]], np.float32), requires_grad=True)
    loss = F.cross_entropy(logits, [0, 1])
    assert loss.item() == pytest.approx(np.log(2) / 2)
    loss.backward()
    assert np.allclose(host(logits.grad), [[0, 0, 0], [0, -0.25, 0.25]])


def test_channel_slice_and_scatter():
    x = tensor(1, 4)
    assert F.channel_slice(x, [3, 0]).data.tolist() == [[4, 1]]
    assert F.channel_scatter(x, np.array([5, 0, 2, 1]), 6).data.tolist() == [[2, 4, 3, 0, 0, 1]]
    assert F.channel_slice(x, []).shape == (1, 0)
    assert F.channel_scatter(F.channel_slice(x, []), [], 2).data.tolist() == [[0, 0]]


def test_subsample():
    assert F.subsample(tensor(1, 3, 5, 1), 2).data.ravel().tolist() == [1, 3, 5, 11, 13, 15]


# messages


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.conv2d(tensor(3, 4), tensor(1, 1, 1, 4)), ValueError, r"\(3, 4\) and \(1, 1, 1"),
        (
            lambda: F.conv2d(tensor(1, 4, 4, 3), tensor(2, 3, 3, 4)),
            ValueError,
            r"x has 3 channels \(the last axis\), the filters \(2, 3, 3, 4\) read 4 each",
        ),
        (
            lambda: F.conv2d(tensor(1, 4, 4, 4), tensor(3, 3, 3, 2), groups=2),
            ValueError,
            "c_out a multiple of groups",
        ),
        (
            lambda: F.conv2d(tensor(1, 4, 4, 1), tensor(3, 3, 3, 1), tensor(1)),
            ValueError,
            r"bias of shape \(1,\) for filters \(3, 3, 3, 1\): one number per filter",
        ),
        (
            lambda: F.conv2d(tensor(1, 4, 4, 1), tensor(1, 3, 3, 1), stride=0),
            ValueError,
            "stride 0 must be at least 1",
        ),
        (
            lambda: F.conv2d(tensor(1, 4, 4, 1), tensor(1, 3, 3, 1), padding=-1),
            ValueError,
            "padding -1 at least 0",
        ),
        (
            lambda: F.conv2d(tensor(1, 2, 4, 1), tensor(1, 3, 3, 1)),
            ValueError,
            r"window of 3 does not fit into 2 \+ 2 \* 0 pixels",
        ),
        (
            lambda: F.linear(tensor(2, 3), tensor(4, 5)),
            ValueError,
            r"x \(n, c_in\) and weight \(c_out, c_in\), got \(2, 3\) and \(4, 5\)",
        ),
        (
            lambda: F.matmul(tensor(2, 3), tensor(2, 3)),
            ValueError,
            r"\(n, k\) and \(k, m\), got shapes \(2, 3\) and \(2, 3\)",
        ),
        (lambda: F.matmul(tensor(2, 3), tensor(3)), ValueError, r"shapes \(2, 3\) and \(3,\)"),
        (lambda: F.add(tensor(2, 3), tensor(4)), ValueError, r"\(2,3\) \(4,\)"),
        (lambda: F.mul(tensor(2, 3), tensor(3, 2)), ValueError, r"\(2,3\) \(3,2\)"),
        (lambda: F.reshape(tensor(2, 3), (4,)), ValueError, r"size 6 into shape \(4,\)"),
        (
            lambda: F.batch_norm(tensor(2, 3), tensor(2), tensor(3)),
            ValueError,
            r"3 channels \(the last axis\) needs gamma and beta of shape \(3,\), got \(2,\) and",
        ),
        (
            lambda: F.batch_norm(tensor(2, 3), tensor(3), tensor(3), training=False),
            ValueError,
            "eval mode needs running_mean and running_var",
        ),
        (
            lambda: F.batch_norm(tensor(2, 3), tensor(3), tensor(3), running_mean=np.zeros(3)),
            ValueError,
            "running_mean and running_var, or neither",
        ),
        (
            lambda: F.batch_norm(tensor(0, 3), tensor(3), tensor(3)),
            ValueError,
            r"shape \(0, 3\): there is nothing to average",
        ),
        (
            lambda: F.max_pool2d(tensor(4, 4), 2),
            ValueError,
            r"takes \(n, h, w, c\), got .*\(4, 4\)",
        ),
        (lambda: F.avg_pool2d(tensor(1, 4, 4, 1), 16), ValueError, "kernel=16.*kernel <= 15"),
        (lambda: F.max_pool2d(tensor(1, 4, 4, 1), 2, 1, 2), ValueError, "padding=2.*kernel / 2"),
        (lambda: F.global_avg_pool2d(tensor(4, 4)), ValueError, r"got shape \(4, 4\)"),
        (lambda: F.subsample(tensor(4, 4), 2), ValueError, r"got \(4, 4\) and 2"),
        (lambda: F.subsample(tensor(1, 4, 4, 1), 0), ValueError, "a stride of at least 1"),
        (
            lambda: F.cross_entropy(tensor(2, 3), [0]),
            ValueError,
            r"logits \(n, k\) and labels \(n,\), got \(2, 3\) and \(1,\)",
        ),
        (lambda: F.cross_entropy(tensor(2, 3), [0, 3]), ValueError, r"labels must be 0 \.\.\. 2"),
        (lambda: F.cross_entropy(tensor(2, 3), [-1, 0]), ValueError, r"labels must be 0 \.\.\. 2"),
        (lambda: F.cross_entropy(tensor(2, 3), [0.0, 1.0]), TypeError, "labels are float64"),
        (lambda: F.cross_entropy(tensor(0, 3), np.zeros(0, int)), ValueError, "at least one"),
        (lambda: F.cross_entropy(tensor(2, 3), [0, 1], 1.0), ValueError, "1.0 is not in"),
        (lambda: F.channel_slice(tensor(1, 3), [0, 3]), ValueError, r"\[0, 3\].*within 0 \.\.\. 2"),
        (lambda: F.channel_slice(tensor(1, 3), [-1]), ValueError, r"\[-1\] is not within"),
        (lambda: F.channel_slice(tensor(1, 3), [1, 1]), ValueError, "names a channel twice"),
        (lambda: F.channel_slice(tensor(1, 2), [True, False]), TypeError, "bool.*not a mask"),
        (lambda: F.channel_slice(tensor(1, 2), [1.0, 0.0]), TypeError, "float64.*not a mask"),
        (
            lambda: F.channel_scatter(tensor(1, 3), [0], 4),
            ValueError,
            r"x \(1, 3\) needs one index per channel \(the last axis\), got \(1,\)",
        ),
    ],
)
def test_errors_name_what_came_and_the_rule(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_add_relu_is_relu_of_the_sum(rng):
    a, b = (Tensor(rng.normal(size=(4, 5)), requires_grad=True) for _ in range(2))
    out = F.add_relu(a, b)
    assert np.array_equal(host(out), np.maximum(host(a) + host(b), 0))
    with pytest.raises(ValueError, match=r"one shape and dtype"):
        F.add_relu(a, Tensor(np.ones(5)))


@pytest.mark.parametrize("recorded", [False, True])
def test_batch_norm_overwrites_only_what_it_is_given_and_the_tape_does_not_need(rng, recorded):
    gamma, beta = (Tensor(rng.normal(size=3), requires_grad=recorded) for _ in range(2))
    values = rng.normal(size=(8, 3))
    kept, given = Tensor(values.copy()), Tensor(values.copy())
    out = F.batch_norm(kept, gamma, beta)
    again = F.batch_norm(given, gamma, beta, overwrite=True)
    assert np.array_equal(host(out), host(again))
    assert np.array_equal(host(kept), values)
    assert same_memory(again.data, given.data) == (not recorded)
