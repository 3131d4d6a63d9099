"""L(m) against the masked form, which defines what a sub-network computes."""

import numpy as np
import pytest

import minicst.functional as F
from minicst.backend import get_backend
from minicst.data import Batch
from minicst.job import plant
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.methods.mask_loss import MaskLoss
from minicst.models import build
from minicst.sparse.masked_form import masked

SHAPE = (8, 8, 3)


def tiny(name="vgg-tiny", width=0.25, seed=1):
    network = build(name, 5, width=width, image_size=8, seed=seed)
    return network.astype(np.float64)


def batch_of(n=6):
    rng = np.random.default_rng(3)
    return Batch(0, rng.normal(size=(n, *SHAPE)), rng.integers(0, 5, n))


def state_of(network):
    return {name: array.copy() for name, array in network.host_state().items()}


@pytest.mark.parametrize("position", ["after-norm", "filter"])
@pytest.mark.parametrize(("name", "width"), [("vgg-tiny", 0.25), ("resnet20", 0.25), ("mlp", 0.1)])
def test_it_is_the_loss_of_the_masked_network(name, width, position):
    network, batch = tiny(name, width), batch_of()
    n = network.n_maskable
    loss = MaskLoss(network, batch, np.full(n, 0.7), mask_position=position)
    rng = np.random.default_rng(0)
    for _ in range(3):
        mask = rng.random(n) < 0.7
        form = masked(network, mask, None, position)
        logits = form(batch.images, training=True, track=False)
        assert loss(mask) == pytest.approx(F.cross_entropy(logits, batch.labels).item(), abs=1e-10)
    assert loss.evaluations == 3


def test_label_smoothing_and_planted_noise_are_the_trainings():
    network, batch = tiny(), batch_of()
    plant(network, 4)
    n = network.n_maskable
    mask = np.random.default_rng(0).random(n) < 0.6
    form = masked(network, mask)

    def expected(step, smoothing):
        logits = form(batch.images, training=True, track=False, step=step)
        return F.cross_entropy(logits, batch.labels, smoothing).item()

    for step, smoothing in ((0, 0.0), (7, 0.0), (7, 0.2)):
        value = MaskLoss(network, batch, np.full(n, 0.6), smoothing, step)(mask)
        assert value == pytest.approx(expected(step, smoothing), abs=1e-10)
    assert expected(0, 0.0) != expected(7, 0.0)


@pytest.mark.parametrize("position", ["after-norm", "filter"])
def test_nothing_changes_but_the_count(position):
    network, batch = tiny("resnet20"), batch_of()
    before, images = state_of(network), batch.images.copy()
    mask = np.random.default_rng(0).random(network.n_maskable) < 0.5
    loss = MaskLoss(network, batch, np.full(network.n_maskable, 0.5), mask_position=position)
    first = loss(mask)
    assert loss(mask) == first
    assert loss.of_masks([mask, mask]).tolist() == [first, first]
    assert loss.evaluations == 4
    for name, array in network.host_state().items():
        assert np.array_equal(array, before[name]), name
    assert np.array_equal(batch.images, images)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_forward_passes_alone_are_booked_and_under_their_own_phase():
    network = tiny()
    meter = get_backend().meter
    MaskLoss(network, batch_of(), np.full(network.n_maskable, 0.5))(np.ones(network.n_maskable))
    assert meter.total("measure", "forward") == meter.total() > 0


def test_an_empty_group_is_repaired_by_keep_prob():
    network, batch = tiny(), batch_of()
    n = network.n_maskable
    first = network.groups[next(iter(network.groups))]
    keep_prob = np.full(n, 0.5)
    keep_prob[first.start + 2] = 0.6
    mask = np.ones(n, bool)
    mask[first] = False
    loss = MaskLoss(network, batch, keep_prob)
    value = loss(mask)
    assert loss.repaired == 1
    assert not mask[first].any()  # the caller's mask is left alone
    mask[first.start + 2] = True
    assert loss(mask) == value
    assert loss.repaired == 1


def test_of_a_method_reads_what_training_uses():
    network, batch = tiny(), batch_of()
    hyper = Hyper(label_smoothing=0.1, keep_rate=0.6, mask_position="filter")
    method = CompletelySparse(network, hyper, Plan(5, 5, 6, SHAPE))
    method.step = 3
    loss = MaskLoss.of(method, batch)
    assert loss.label_smoothing == 0.1
    assert loss.step == 3
    assert loss.mask_position == "filter"
    assert np.array_equal(loss.keep_prob, method.keep_prob)
    method.keep_prob[0] = 0.1
    assert loss.keep_prob[0] == 0.6  # a copy: what was measured stays what it was
    with pytest.raises(ValueError, match="'dense' has no keep_prob"):
        MaskLoss.of(Dense(tiny(), Hyper(), Plan(5, 5, 6, SHAPE)), batch)


def test_it_equals_the_losses_of_the_training_step():
    network, batch = tiny(), batch_of()
    method = CompletelySparse(network, Hyper(keep_rate=0.6), Plan(5, 5, 6, SHAPE))
    loss = MaskLoss.of(method, batch)
    masks = [method._draw()[0][i] for i in range(2)]
    values = tuple(loss(mask) for mask in masks)
    assert method.train_step(batch).losses == pytest.approx(values, abs=1e-10)


def test_bad_input():
    network, batch = tiny(), batch_of()
    n = network.n_maskable
    with pytest.raises(ValueError, match=r"shape \(3,\).*maskable channels"):
        MaskLoss(network, batch, np.full(3, 0.5))
    loss = MaskLoss(network, batch, np.full(n, 0.5))
    with pytest.raises(ValueError, match="mask of shape"):
        loss(np.ones(n + 1, bool))
    network.units()["classifier"].transform.bias.data[0] = np.nan
    with pytest.raises(ValueError, match="weights have diverged"):
        loss(np.ones(n, bool))
