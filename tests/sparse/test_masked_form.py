"""The masked form: absent means absent, only live entries move, and the filter position leaks."""

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.models import build
from minicst.nn import INPUT, Network, Unit, clone
from minicst.optim import SGD, Adam
from minicst.sparse.liveness import propagate, repair
from minicst.sparse.masked_form import live_entries, masked


def small_network(residual="independent", shortcut="B"):
    network = build("resnet20", 5, width=0.25, residual=residual, shortcut=shortcut)
    rng = np.random.default_rng(0)
    for unit in network.units().values():
        if unit.norm is not None:
            unit.norm.beta.data[...] = to_device(rng.normal(0.5, 0.5, unit.norm.beta.shape))
    return network.astype(np.float64)


def random_mask(network, rate=0.5, seed=0):
    rng = np.random.default_rng(seed)
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return rng.normal(size=(4, 8, 8, 3)), rng.integers(0, 5, 4)


def outputs_of_units(network, run):
    """{name: output} of every unit during `run()`."""
    seen = {}
    before = Unit.forward

    def spy(self, name, inputs, context):
        out = before(self, name, inputs, context)
        seen[name] = out.numpy()
        return out

    Unit.forward = spy
    try:
        run()
    finally:
        Unit.forward = before
    return seen


@pytest.mark.parametrize("training", [True, False])
def test_absent_channels_are_zero(batch, training):
    network = small_network()
    form = masked(network, random_mask(network))
    seen = outputs_of_units(network, lambda: form(batch[0], training))
    for name, out in seen.items():
        assert not out[..., ~form.live[name]].any(), name
        if form.live[name].any():
            assert np.abs(out[..., form.live[name]]).max() > 0, name


@pytest.mark.parametrize("training", [True, False])
def test_filter_position_gives_an_absent_channel_a_constant(batch, training):
    """Paper's formula and released code: batch norm of 0 is beta in training."""
    network = small_network()
    stem = network.nodes["stem"]
    stem.norm.running_mean[...] = 0.25
    form = masked(network, random_mask(network), mask_position="filter")
    seen = outputs_of_units(network, lambda: form(batch[0], training, track=False))
    mean = 0.0 if training else 0.25
    root = np.sqrt(0.0 + stem.norm.eps if training else 1.0 + stem.norm.eps)
    scale = stem.norm.gamma.numpy() / root
    constant = np.maximum(stem.norm.beta.numpy() - mean * scale, 0.0)
    absent = ~form.live["stem"]
    assert absent.any()
    wanted = np.broadcast_to(constant[absent], seen["stem"][..., absent].shape)
    np.testing.assert_allclose(seen["stem"][..., absent], wanted, rtol=1e-12)
    assert constant[absent].max() > 0.1


def test_all_ones_is_the_plain_network_bit_for_bit(batch):
    network = small_network()
    for position in ("after-norm", "filter"):
        form = masked(network, np.ones(network.n_maskable), mask_position=position)
        for training in (True, False):
            out = form(batch[0], training, track=False).numpy()
            plain = network(batch[0], training, track=False).numpy()
            np.testing.assert_array_equal(out, plain)


def test_live_entries_one_by_one():
    network = small_network("tied", "A")
    live = propagate(network, random_mask(network))
    entries = live_entries(network, live)
    assert entries.keys() == network.state().keys()
    for name, entry in entries.items():
        node = name.split(".transform.")[0].split(".norm.")[0]
        for index in np.ndindex(entry.shape):
            wanted = live[node][index[0]]
            if name.endswith("weight"):
                wanted = wanted and live[network.inputs[node][0]][index[-1]]
            assert entry[index] == wanted, (name, index)


@pytest.mark.parametrize("make", [
    lambda net: SGD(net, 0.1, momentum=0.9, weight_decay=0.01),
    lambda net: Adam(net, 0.01, weight_decay=0.01),
])  # fmt: skip
def test_update_moves_live_entries_as_the_plain_optimizer_does(batch, make):
    network = small_network()
    plain = clone(network)
    optimizers = make(network), make(plain)
    for number in range(2):
        for net, optimizer in zip((network, plain), optimizers, strict=True):
            form = masked(net, random_mask(net, seed=number), optimizer)
            net.zero_grad()
            F.cross_entropy(form(batch[0], True), batch[1]).backward()
            if net is network:
                before = {name: array.copy() for name, array in net.host_state().items()}
                entries = live_entries(net, form.live)
                form.update()
        if number == 0:
            optimizers[1].step()
    name = "stage1.block1.conv1.transform.weight"
    after = network.host_state()
    assert (after[name] != before[name])[entries[name]].all()
    for name, array in after.items():
        np.testing.assert_array_equal(array[~entries[name]], before[name][~entries[name]])


def test_filter_position_moves_absent_entries_as_released(batch):
    network = small_network()
    optimizer = SGD(network, 0.1, weight_decay=0.1)
    form = masked(network, random_mask(network), optimizer, mask_position="filter")
    before = network.nodes["stem"].transform.weight.numpy().copy()
    F.cross_entropy(form(batch[0], True), batch[1]).backward()
    form.update()
    absent = ~form.live["stem"]
    after = network.nodes["stem"].transform.weight.numpy()
    np.testing.assert_allclose(after[absent], before[absent] * (1 - 0.1 * 0.1), rtol=1e-12)


def test_mask_that_kills_everything(batch):
    network = small_network()
    form = masked(network, np.zeros(network.n_maskable))
    loss = F.cross_entropy(form(batch[0], True), batch[1])
    loss.backward()
    assert loss.item() == pytest.approx(np.log(5), abs=1e-12)
    assert not any(host(parameter.grad).any() for parameter in network.parameters())


def test_interface():
    network = small_network()
    mask = random_mask(network).astype(float)
    form = masked(network, mask)
    assert form.mask.dtype == bool
    assert form.live[INPUT].tolist() == [True] * 3
    assert form.paste() is None
    with pytest.raises(ValueError, match="mask position 'before': choose after-norm or filter"):
        masked(network, mask, mask_position="before")


def test_network_without_groups(batch):
    network = Network("plain", 3)
    network.add("a", Unit.create(3, 4, 3, rng=np.random.default_rng(0)), INPUT)
    assert network.n_maskable == 0
    x = batch[0].astype(np.float32)
    form = masked(network, np.ones(0))
    np.testing.assert_array_equal(form(x, True).numpy(), network(x, True).numpy())
