import time

import numpy as np
import pytest

from minicst.backend import Backend, NumpyBackend, get_backend
from minicst.bench import BenchSettings, hot_operations, operation_times, workloads
from minicst.bench.layers import layer_rows
from minicst.models import build
from minicst.sparse import count_macs


def test_hot_operations_are_those_that_the_backend_declares(monkeypatch):
    names = hot_operations()
    wanted = {"conv2d", "conv2d_grad_weight", "batch_norm_backward", "sgd_update"}
    assert wanted | {"depthwise_conv2d", "gather", "scatter", "take_channels"} <= set(names)
    assert not {"asarray", "to_numpy", "__init__"} & set(names)
    assert len(names) == len(set(names))
    monkeypatch.setitem(Backend.__annotations__, "brand_new", "Callable[..., Array]")
    assert "brand_new" in hot_operations()


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored(fails):
    backend = NumpyBackend(1)
    before = dict(vars(backend))
    meter = backend.meter
    try:
        with operation_times(backend):
            assert "conv2d" in vars(backend)
            assert backend.meter is not meter
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert vars(backend) == before
    assert backend.meter is meter
    assert backend.conv2d.__func__ is NumpyBackend.conv2d


def test_a_failing_operation_is_booked_and_does_not_stop_the_clock():
    backend = NumpyBackend(1)
    with operation_times(backend) as times:
        with pytest.raises(ValueError, match="not enough values"):
            backend.conv2d(np.zeros(2, np.float32), np.zeros(3, np.float32))
        backend.relu(np.zeros(2, np.float32))
    assert times.calls == {("", "", "conv2d"): 1, ("", "", "relu"): 1}


def test_seconds_go_to_the_phase_layer_and_outermost_operation(monkeypatch):
    backend = NumpyBackend(1)

    def inner(x):
        time.sleep(0.02)
        return x

    def outer(x):
        time.sleep(0.01)
        return backend.relu_backward(x)

    monkeypatch.setattr(backend, "relu_backward", inner)
    monkeypatch.setattr(backend, "relu", outer)
    with operation_times(backend) as times, backend.meter.in_phase("p"):
        backend.meter.layer = "one"
        backend.relu(1)
        backend.meter.layer = "two"
        time.sleep(0.03)
        backend.meter.layer = ""
    assert set(times.seconds) == {("p", "one", "relu")}
    assert times.seconds["p", "one", "relu"] >= 0.03
    assert times.meter.seconds["p", "one"] >= times.seconds["p", "one", "relu"]
    assert times.meter.seconds["p", "two"] >= 0.03
    assert backend.relu is outer


def test_layers_of_real_steps_add_up():
    (workload,) = workloads(BenchSettings(("vgg-tiny",), batch_size=4, shares=(30.0,)))
    dense, sparse = layer_rows(workload, 2, lambda text: None)
    assert dense["share"] is None
    assert sparse["share"] == 30.0
    for entry in (dense, sparse):
        total = sum(cell["seconds"] for cell in entry["cells"])
        assert total == pytest.approx(entry["seconds"])
        assert sum(entry["operations"].values()) == pytest.approx(total)
        for cell in entry["cells"]:
            assert sum(cell["operations"].values()) == pytest.approx(cell["seconds"])
            assert cell["macs"] == sum(cell["passes"].values())
        assert {"conv2d", "conv2d_grad_weight", "sgd_update", "rest"} <= set(entry["operations"])
    count = count_macs(build("vgg-tiny"), (32, 32, 3)).executed(4, backward=True)
    cells = {(cell["phase"], cell["layer"]): cell for cell in dense["cells"]}
    for layer, passes in count.items():
        assert cells["forward_a", layer]["macs"] == passes["forward"]
        backward = passes["weight_gradient"] + passes["input_gradient"]
        assert cells["backward", layer]["macs"] == backward
    phases = {cell["phase"] for cell in sparse["cells"]}
    assert {"forward_a", "forward_b", "backward"} <= phases
    assert "conv2d" not in vars(get_backend())
