"""Units whose weights have masks of their own: groups, wiring, plain data, errors."""

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.autograd import Parameter, Tensor, gradcheck
from minicst.backend import Pattern
from minicst.models import NETWORKS, build
from minicst.nn import INPUT, Flatten, Linear, Network, SparseLinear, Unit


def network_with(**second):
    network = Network("net", 3)
    at = network.add("flatten", Flatten(4), INPUT)
    at = network.add("a", Unit.create(12, 5, group="a", mask_on="weights"), at)
    network.add("b", Unit.create(5, 2, **second), at)
    return network


def test_a_group_has_an_entry_a_weight_row_by_row():
    network = network_with(group="b")
    assert network.groups == {"a": slice(0, 60), "b": slice(60, 62)}
    assert (network.n_maskable, network.maskable) == (62, "channels and weights")
    assert network.own("a", np.arange(62)).tolist() == list(range(60))
    assert list(network.weight_units()) == ["a"]
    assert "a: unit, 5 channels, group a of weights" in repr(network)
    both = network_with(group="b", mask_on="weights")
    assert (both.n_maskable, both.maskable) == (70, "weights")
    assert build("vgg-tiny").maskable == "channels"


def test_no_other_node_shares_a_group_of_weights():
    network = network_with(group="a")
    with pytest.raises(ValueError, match="'a' is masked weight by weight: no other node"):
        _ = network.groups


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_on": "filters"}, "mask_on 'filters': choose channels or weights"),
        ({"kernel": 3, "group": "g", "mask_on": "weights"}, "convolution can't be masked weight"),
        ({"mask_on": "weights"}, "masked weight by weight has a group"),
        ({"mask_on": "weights", "group": "g", "members": [0]}, "has a group, all of it"),
        ({"pattern": Pattern.of_mask(np.ones((2, 3), bool))}, "sparse linear layer is masked"),
        (
            {"mask_on": "weights", "group": "g", "noise": {"seed": 0, "layer": "a", "bad": [True]}},
            "planted noise replaces maskable channels",
        ),
    ],
)
def test_impossible_units(arguments, message):
    with pytest.raises(ValueError, match=message):
        Unit.create(3, 2, **arguments)


def test_plain_data_of_units_masked_by_channel_is_as_before():
    for name in NETWORKS:
        for node in build(name, width=0.1, image_size=8).spec()["nodes"]:
            assert not {"mask_on", "pattern"} & node["config"].keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_linear_masks_change_no_weight(name):
    plain, by_weight = (
        build(name, 4, width=0.1, image_size=8, linear_masks=masks, seed=3)
        for masks in ("channels", "weights")
    )
    states = plain.host_state(), by_weight.host_state()
    for (key, one), two in zip(states[0].items(), states[1].values(), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=key)
    units = by_weight.units()
    linear = [unit for unit in units.values() if not unit.is_conv]
    assert [unit.mask_on for unit in linear] == ["weights"] * len(linear)
    assert all(unit.mask_on == "channels" for unit in units.values() if unit.is_conv)
    own = {unit.group for unit in plain.units().values() if unit.is_conv}
    others = sum(plain.groups[group].stop - plain.groups[group].start for group in own)
    weights = sum(unit.transform.weight.size for unit in linear)
    assert by_weight.n_maskable == others + weights


def test_unknown_linear_masks():
    with pytest.raises(ValueError, match="linear masks 'neurons': choose channels or weights"):
        build("mlp", linear_masks="neurons")


@pytest.mark.parametrize("bias", [False, True])
def test_masked_layers_by_formula_and_differences(bias):
    """Dense and sparse layers multiply a given mask in; absent weights get no gradient."""
    rng = np.random.default_rng(0)
    exists = rng.random((4, 6)) < 0.7
    for layer in (Linear(6, 4, bias, rng), SparseLinear(Pattern.of_mask(exists), bias)):
        layer.astype(np.float64)
        layer.weight.data[...] = to_device(rng.normal(size=layer.weight.shape))
        if bias:
            layer.bias.data[...] = to_device(rng.normal(size=4))
        mask = rng.random(layer.weight.shape) < 0.5
        dense = np.zeros((4, 6))
        dense[exists if layer.weight.ndim == 1 else ...] = host(layer.weight) * mask
        x = rng.normal(size=(3, 6))
        out = layer(Tensor(x), mask)
        wanted = x @ dense.T + (host(layer.bias) if bias else 0.0)
        np.testing.assert_allclose(host(out), wanted, rtol=0, atol=1e-13)
        out.backward(rng.normal(size=(3, 4)))
        grad = host(layer.weight.grad)
        assert not grad[~mask].any()
        assert grad[mask].all()
        point = Tensor(x, requires_grad=True)

        def run(weight, x, layer=layer, mask=mask):
            layer.weight = weight
            return layer(x, mask)

        gradcheck(run, Parameter(layer.weight.data.copy()), point)


def test_a_sparse_layer_without_mask():
    mask = np.array([[1, 0, 1], [0, 0, 0]], bool)
    layer = SparseLinear(Pattern.of_mask(mask))
    layer.weight.data[...] = to_device([2.0, -1.0])
    layer.bias.data[...] = to_device([0.5, 4.0])
    x = np.array([[1.0, 9.0, 3.0]], np.float32)
    np.testing.assert_array_equal(host(layer(Tensor(x))), [[-0.5, 4.0]])
    assert F.sparse_linear(Tensor(x), layer.weight, layer.pattern).data.tolist() == [[-1.0, 0.0]]
