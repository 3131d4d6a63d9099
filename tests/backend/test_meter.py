"""What the meter counts, against counts by hand."""

import numpy as np
import pytest

from minicst.backend import PASSES, Meter


def test_a_convolution_reports_its_three_products(backend):
    x, weight = np.zeros((2, 8, 8, 3), np.float32), np.zeros((5, 3, 3, 3), np.float32)
    meter = backend.meter
    meter.layer = "conv1"
    with meter.in_phase("forward_a"):
        out = backend.conv2d(x, weight, None, 2, 1)
    with meter.in_phase("backward"):
        backend.conv2d_grad_weight(x, out, weight.shape, 2, 1)
        backend.conv2d_grad_input(out, weight, x.shape, 2, 1)
    macs = 2 * 4 * 4 * 5 * 27
    n_bytes = 4 * (2 * 8 * 8 * 3 + 5 * 27 + 2 * 4 * 4 * 5)
    keys = [
        ("forward_a", "conv1", "forward"),
        ("backward", "conv1", "weight_gradient"),
        ("backward", "conv1", "input_gradient"),
    ]
    assert meter.macs == dict.fromkeys(keys, macs)
    assert meter.bytes == dict.fromkeys(keys, n_bytes)


@pytest.mark.parametrize("kernel", [1, 3])
def test_both_ways_to_the_input_gradient_count_the_same(backend, kernel):
    for c_out in (2, 64):  # by flip, by col2im
        backend.meter.reset()
        g = np.zeros((1, 5, 5, c_out), np.float32)
        weight = np.zeros((c_out, kernel, kernel, 3), np.float32)
        backend.conv2d_grad_input(g, weight, (1, 5, 5, 3), 1, kernel // 2)
        assert backend.meter.total() == 25 * c_out * kernel**2 * 3


def test_the_count_does_not_depend_on_threads_or_chunks(backend):
    x, weight = np.zeros((32, 32, 32, 8), np.float32), np.zeros((4, 3, 3, 8), np.float32)
    for threads in (1, 3):
        backend.set_threads(threads)
        backend.meter.reset()
        backend.conv2d(x, weight, None, 1, 1)
        assert backend.meter.total() == 32 * 32 * 32 * 4 * 72


def test_totals_and_tables():
    meter = Meter()
    for phase, layer, which, macs in [
        ("a", "l1", "forward", 1),
        ("a", "l1", "weight_gradient", 10),
        ("a", "l2", "forward", 100),
        ("b", "l1", "forward", 1000),
        ("a", "l1", "forward", 10000),
    ]:
        meter.layer = layer
        with meter.in_phase(phase):
            meter.record(which, macs, 0)
    assert meter.total() == 11111
    assert meter.total("a") == 10111
    assert meter.total(which="forward") == 11101
    assert meter.total("a", "forward") == 10101
    assert meter.total("c") == 0
    assert meter.by_layer("a") == {
        "l1": dict(zip(PASSES, (10001, 10, 0), strict=True)),
        "l2": dict(zip(PASSES, (100, 0, 0), strict=True)),
    }
    meter.reset()
    assert meter.total() == 0
    assert meter.by_layer("a") == {}


def test_phases_nest_and_end_with_an_exception():
    meter = Meter()
    with meter.in_phase("outer"):
        with pytest.raises(KeyError), meter.in_phase("inner"):
            raise KeyError
        assert meter.phase == "outer"
    assert meter.phase == ""
