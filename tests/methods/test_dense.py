import numpy as np
import pytest

from minicst.methods.base import Hyper, Plan
from minicst.methods.dense import Dense, FixedMask, Narrow
from minicst.models import build
from minicst.sparse import count_macs, expected_macs

SHAPE = (28, 28, 1)
OPTIONS = {"name": "vgg-small", "in_channels": 1, "width": 1.0}


def plan_of():
    return Plan(10, 10, 4, SHAPE)


def batch_of():
    from minicst.data import Batch

    rng = np.random.default_rng(0)
    return Batch(0, rng.normal(size=(4, *SHAPE)).astype(np.float32), rng.integers(0, 10, 4))


def test_dense_step_costs_three_forward_passes_less_the_images_gradient():
    network = build(**OPTIONS)
    trace = Dense(network, Hyper(), plan_of()).train_step(batch_of())
    count = count_macs(network, SHAPE)
    assert trace.executed_macs == 4 * (3 * count.macs - count.layers[0].macs)
    assert trace.executed_macs == trace.dense_macs
    assert trace.cost_ratio == 1.0
    assert trace.passes == (1, 1)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("control", [FixedMask, Narrow])
def test_controls_come_near_the_macs_they_are_given(control, rate):
    full = build(**OPTIONS)
    target = expected_macs(full, SHAPE, np.full(full.n_maskable, rate))
    extra = {} if control is FixedMask else {"options": OPTIONS}
    hyper = Hyper(keep_rate=rate, seed=4)
    given = control(full, hyper, plan_of(), target_macs=target, **extra)
    default = control(full, hyper, plan_of(), **extra)
    for method in (given, default):
        macs = count_macs(method.network, SHAPE).macs
        assert macs == pytest.approx(target, rel=0.1)
        trace = method.train_step(batch_of())
        assert trace.cost_ratio == pytest.approx(macs / count_macs(full, SHAPE).macs)
        assert trace.dense_macs > trace.executed_macs


def test_fixed_mask_is_keyed_by_the_seed():
    full = build(**OPTIONS)
    masks = [FixedMask(full, Hyper(seed=seed), plan_of()).mask for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
