"""Linear layers masked weight by weight: liveness, repair, cut == masked, counts.

Live weights are found here by walking paths, or by np.ix_ and a dense weight matrix, not with the
code under test. Tolerances are relative to a tensor's largest magnitude.
"""

import itertools
import json

import numpy as np
import pytest
from arrays import host, to_device, traced_memory

import minicst.functional as F
from minicst.autograd import saved_bytes
from minicst.backend import get_backend
from minicst.models import build
from minicst.nn import INPUT, Flatten, Network, SparseLinear, Unit, clone
from minicst.optim import SGD, Adam
from minicst.sparse.accounting import chain_rule_macs, count_macs
from minicst.sparse.expected import (
    expected_counts,
    expected_macs,
    keep_rate_for,
    linear_macs_cost,
)
from minicst.sparse.liveness import minimum_live, propagate, repair
from minicst.sparse.masked_form import live_entries, masked
from minicst.sparse.subnetwork import cut

# name -> (width, side of the images, further options)
NETWORKS = {
    "mlp": (0.25, 6, {}),
    "vgg-small": (0.5, 8, {}),
    "resnet20": (0.25, 8, {"residual": "independent", "shortcut": "A"}),
    "wrn-28-10": (0.03, 8, {}),
    "mobilenetv1": (0.25, 64, {}),
}
OPTIMIZERS = {
    "nesterov": lambda net: SGD(net, 0.05, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "adam": lambda net: Adam(net, 2e-3, weight_decay=5e-3),
    "plain": lambda net: SGD(net, 0.05),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network_of(name, dtype=np.float64, masks="weights"):
    width, side, options = NETWORKS[name]
    network = build(name, 5, width=width, image_size=side, linear_masks=masks, **options)
    return stir(network).astype(dtype), side


def stir(network, seed=0):
    """Give batch norm and biases numbers that show where they leak."""
    rng = np.random.default_rng(seed)
    for norm in network.norms().values():
        norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.data[...] = to_device(rng.normal(0.2, 0.5, norm.beta.shape))
        norm.running_mean[...] = to_device(rng.normal(0, 0.5, norm.gamma.shape))
        norm.running_var[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
    for unit in network.units().values():
        if unit.transform.bias is not None:
            unit.transform.bias.data[...] = to_device(rng.normal(size=unit.transform.c_out))
    return network


def batch_of(side, n=4, channels=3, dtype=np.float64):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, side, side, channels)).astype(dtype), rng.integers(0, 5, n)


def random_mask(network, rate, rng):
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


def chain(*sizes, dtype=np.float64, seed=0):
    """Fully connected network on 1x1 images: sizes[0] inputs, ..., sizes[-1] classes."""
    rng = np.random.default_rng(seed)
    network = Network("chain", sizes[0])
    at = network.add("flatten", Flatten(1), INPUT)
    pairs = list(itertools.pairwise(sizes))
    for i, (c_in, c_out) in enumerate(pairs, 1):
        last = i == len(pairs)
        unit = Unit.create(
            c_in, c_out, bias=last, norm=not last, relu=not last,
            group=f"fc{i}", mask_on="weights", rng=rng,
        )  # fmt: skip
        at = network.add(f"fc{i}", unit, at)
    return stir(network).astype(dtype)


def matrices(network, mask):
    """{unit: bool (c_out, c_in)} of the flat mask, for a network that isn't cut."""
    found = {}
    for name, unit in network.units().items():
        if unit.mask_on == "weights":
            place = network.groups[unit.group]
            found[name] = np.array(mask[place], bool).reshape(unit.transform.c_out, -1)
    return found


def flat(network, **by_unit):
    """Mask with the given matrices, all ones elsewhere."""
    mask = np.ones(network.n_maskable, bool)
    for name, matrix in by_unit.items():
        mask[network.groups[network.nodes[name].group]] = np.asarray(matrix, bool).reshape(-1)
    return mask


# Liveness: paths


def on_a_path(layers):
    """For each layer of a chain, the weights on a path of live weights from an input to a class."""
    sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
    found = [np.zeros(layer.shape, bool) for layer in layers]
    for path in itertools.product(*(range(size) for size in sizes)):
        steps = list(itertools.pairwise(path))
        if all(layer[to, at] for layer, (at, to) in zip(layers, steps, strict=True)):
            for live, (at, to) in zip(found, steps, strict=True):
                live[to, at] = True
    return found


@pytest.mark.parametrize("seed", range(30))
def test_live_weights_are_those_on_a_path(seed):
    network = chain(3, 4, 4, 2)
    rng = np.random.default_rng(seed)
    mask = rng.random(network.n_maskable) < rng.uniform(0.1, 0.7)
    layers = on_a_path(list(matrices(network, mask).values()))
    live = propagate(network, mask)
    entries = live_entries(network, live, mask)
    for i, wanted in enumerate(layers, 1):
        np.testing.assert_array_equal(entries[f"fc{i}.transform.weight"], wanted)
        if i < len(layers):
            np.testing.assert_array_equal(live[f"fc{i}"], wanted.any(axis=1))
    # The output keeps every class as soon as any has a live weight.
    assert live["fc3"].all() == live["fc3"].any() == layers[-1].any()
    if layers[-1].any():
        sub = cut(network, mask)
        for i, wanted in enumerate(layers, 1):
            assert sub.network.nodes[f"fc{i}"].transform.weight.size == wanted.sum()


def test_a_channel_that_no_class_reads_is_dead():
    network, _ = network_of("vgg-small")
    matrix = np.ones((5, 32), bool)
    matrix[:, [3, 7]] = False
    matrix[2, :10] = False  # still read by others
    live = propagate(network, flat(network, classifier=matrix))
    assert np.flatnonzero(~live["conv3"]).tolist() == [3, 7]
    assert live["conv2"].all()


def test_a_stream_channel_stays_where_another_reader_needs_it():
    network, _ = network_of("wrn-28-10")
    c = network.channels("norm")
    matrix = np.ones((5, c), bool)
    matrix[:, 0] = False
    live = propagate(network, flat(network, classifier=matrix))
    assert live["stage3.block3.add"].all()  # block 4's first convolution reads it
    assert np.flatnonzero(~live["stage3.block4.conv2"]).tolist() == [0]


def test_flattened_pixels():
    """A channel is live if any of its pixels is read; its pixels all stay in the flat vector."""
    network = Network("pixels", 3)
    at = network.add("conv", Unit.create(3, 4, 3, padding=1, group="conv"), INPUT)
    at = network.add("flatten", Flatten(4), at)
    out = Unit.create(16, 2, norm=False, relu=False, group="out", mask_on="weights")
    network.add("out", out, at)
    matrix = np.zeros((2, 16), bool)
    matrix[1, 4 * 2 + 3] = True  # pixel 2, channel 3
    mask = flat(network, out=matrix)
    live = propagate(network, mask)
    assert live["conv"].tolist() == [False, False, False, True]
    assert np.flatnonzero(live["flatten"]).tolist() == [3, 7, 11, 15]
    small = cut(network, mask).network
    assert small.nodes["out"].transform.pattern.mask().tolist() == [[0] * 4, [0, 0, 1, 0]]


# Cut == masked


def weight_blocks(network, mask, keep):
    """{array name: bool of the full array}: live entries, from keep_index and the mask."""
    layers = matrices(network, mask)
    found = {}
    for key, array in network.state().items():
        node = key.partition(".transform")[0].partition(".norm.")[0].removesuffix(".norm")
        if node not in network.nodes:  # a node of kind norm: "node.norm.gamma"
            node = key.rsplit(".", 2)[0]
        live = np.zeros(array.shape, bool)
        rows = keep[node]
        if key.endswith("transform.weight"):
            unit = network.nodes[node]
            window = [np.arange(size) for size in array.shape[1:-1]]
            columns = np.arange(1) if unit.is_depthwise else keep[network.inputs[node][0]]
            live[np.ix_(rows, *window, columns)] = True
            if node in layers:
                live &= layers[node]
        else:
            live[rows] = True
        found[key] = live
    return found


def assert_close(actual, wanted, tolerance, what, floor=0.0):
    actual, wanted = host(actual), host(wanted)
    assert actual.shape == wanted.shape, what
    scale = max(float(np.abs(wanted).max(initial=0.0)), floor, 1e-30)
    error = float(np.abs(actual - wanted).max(initial=0.0)) / scale
    assert error <= tolerance, f"{what}: {error:.2e} > {tolerance:.0e}"


def all_state(network, optimizer):
    state = {(name, ""): array.copy() for name, array in network.host_state().items()}
    for name, arrays in host(optimizer.state).items():
        state |= {(name, key): array.copy() for key, array in arrays.items()}
    return state


def compare(network, masks, optimizer, batch, tolerance=1e-10):
    """Train two copies of a network, one cut and one masked; compare everything at each step."""
    x, y = batch
    nets = network, clone(network)
    opts = [optimizer(net) for net in nets]
    for number, mask in enumerate(masks):
        before = [all_state(net, opt) for net, opt in zip(nets, opts, strict=True)]
        sub, definition = cut(nets[0], mask, opts[0]), masked(nets[1], mask, opts[1])
        outputs, losses = [], []
        for form in (sub, definition):
            form.network.zero_grad()
            outputs.append(form(x, training=True, step=number))
            losses.append(F.cross_entropy(outputs[-1], y))
            losses[-1].backward()
        assert_close(*outputs, tolerance, "outputs")
        small = dict(sub.network.named_parameters())
        blocks = weight_blocks(nets[0], mask, sub.keep_index)
        grads = {name: host(p.grad) for name, p in nets[1].named_parameters()}
        floor = 1e-3 * max(np.abs(grad).max() for grad in grads.values())
        for name, whole in grads.items():
            inside = blocks[name]
            assert not whole[~inside].any(), f"grad {name}, absent"
            assert (name in small) == bool(inside.any()), name
            if name in small:
                grad = small[name].grad.reshape(-1)
                assert_close(grad, whole[inside], tolerance, f"grad {name}", floor)
        for form in (sub, definition):
            form.update()
            form.paste()
        after = [all_state(net, opt) for net, opt in zip(nets, opts, strict=True)]
        for key in before[0]:
            assert_close(after[0][key], after[1][key], tolerance, f"{key} after step {number}")
            outside = ~blocks[key[0]]
            for old, new in zip(before, after, strict=True):
                np.testing.assert_array_equal(
                    old[key][outside], new[key][outside], err_msg=f"absent {key}"
                )
        moved = [key for key, old in before[0].items() if not np.array_equal(after[0][key], old)]
        assert len(moved) > sum(block.any() for block in blocks.values()) // 2
        evals = [form(x, training=False) for form in (sub, definition)]
        assert_close(*evals, tolerance, "outputs in eval mode")


@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
@every_network
def test_three_updates_with_three_masks(name, optimizer):
    network, side = network_of(name)
    rng = np.random.default_rng(7)
    masks = [random_mask(network, rate, rng) for rate in (0.7, 0.4, 0.1)]
    assert isinstance(cut(network, masks[0]).network.nodes["classifier"].transform, SparseLinear)
    deep = name == "mobilenetv1"  # 27 layers of batch norm amplify rounding, as in test_cut.py
    compare(network, masks, OPTIMIZERS[optimizer], batch_of(side), 1e-9 if deep else 1e-10)


def test_sparse_and_dense_units_side_by_side():
    """Neurons masked as channels before and behind a layer masked weight by weight."""
    rng = np.random.default_rng(0)
    network = Network("mixed", 3)
    at = network.add("conv", Unit.create(3, 4, 3, group="conv", rng=rng), INPUT)
    at = network.add("flatten", Flatten(16), at)
    at = network.add("a", Unit.create(64, 8, group="a", rng=rng), at)
    at = network.add("b", Unit.create(8, 9, bias=True, group="b", mask_on="weights", rng=rng), at)
    at = network.add("c", Unit.create(9, 7, group="c", rng=rng), at)
    network.add("out", Unit.create(7, 5, bias=True, norm=False, relu=False, rng=rng), at)
    network = stir(network).astype(np.float64)
    masks = [random_mask(network, rate, np.random.default_rng(3)) for rate in (0.8, 0.5, 0.3)]
    assert network.maskable == "channels and weights"
    compare(network, masks, OPTIMIZERS["nesterov"], batch_of(6))


def test_empty_rows_idle_neurons_and_silent_classes():
    network, side = network_of("mlp")
    first, second, last = (np.ones(shape, bool) for shape in ((16, 108), (16, 16), (5, 16)))
    first[3] = False  # no input: absent
    first[4, 1:] = False  # one input
    second[:, 5] = False  # fc1's neuron 5 is read by nothing: absent with all its weights
    last[1] = False  # class 1 is its bias
    last[:, 6] = False
    mask = flat(network, fc1=first, fc2=second, classifier=last)
    sub = cut(network, mask)
    assert np.setdiff1d(np.arange(16), sub.keep_index["fc1"]).tolist() == [3, 5]
    assert np.setdiff1d(np.arange(16), sub.keep_index["fc2"]).tolist() == [6]
    assert sub.network.nodes["fc1"].transform.weight.size == 13 * 108 + 1
    whole = sub.network.nodes["fc2"].transform  # all its weights live
    assert isinstance(whole.weight.data, get_backend().xp.ndarray)
    assert type(whole).__name__ == "Linear"
    x, _ = batch_of(side)
    out = sub(x, training=True, track=False).numpy()
    bias = network.nodes["classifier"].transform.bias.numpy()
    np.testing.assert_array_equal(out[:, 1], bias[1])
    compare(network, [mask, mask], OPTIMIZERS["adam"], batch_of(side))


def test_all_ones_is_the_plain_network():
    for name in NETWORKS:
        network, side = network_of(name)
        ones = np.ones(network.n_maskable)
        sub = cut(network, ones)
        if NETWORKS[name][2].get("shortcut") != "A":  # a padded shortcut loses its zero channels
            assert sub.network.spec() == network.spec()
        assert not any(
            isinstance(unit.transform, SparseLinear) for unit in sub.network.units().values()
        )
        x, _ = batch_of(side)
        np.testing.assert_array_equal(sub(x, True, False).numpy(), network(x, True, False).numpy())
        compare(network, [ones], OPTIMIZERS["plain"], batch_of(side))


def test_float32():
    network, side = network_of("mlp", np.float32)
    mask = random_mask(network, 0.4, np.random.default_rng(0))
    sub = cut(network, mask)
    assert all(array.dtype == np.float32 for array in sub.network.state().values())
    compare(network, [mask], OPTIMIZERS["plain"], batch_of(side, n=16, dtype=np.float32), 1e-5)


def test_filter_position_is_the_papers_formula():
    """Only weights are masked, so that an absent neuron is relu(beta), by formula."""
    network = chain(6, 5, 3)
    rng = np.random.default_rng(0)
    first = rng.random((5, 6)) < 0.5
    first[2] = False
    mask = flat(network, fc1=first)
    x = rng.normal(size=(7, 1, 1, 6))
    form = masked(network, mask, mask_position="filter")
    fc1, fc2 = network.nodes["fc1"], network.nodes["fc2"]
    z = x.reshape(7, 6) @ (fc1.transform.weight.numpy() * first).T
    z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + fc1.norm.eps)
    gamma, beta = fc1.norm.gamma.numpy(), fc1.norm.beta.numpy()
    hidden = np.maximum(gamma * z + beta, 0)
    assert hidden[0, 2] == max(beta[2], 0)
    wanted = hidden @ fc2.transform.weight.numpy().T + fc2.transform.bias.numpy()
    np.testing.assert_allclose(form(x, True, False).numpy(), wanted, rtol=0, atol=1e-12)


def test_masked_form_asks_for_the_weights():
    network, side = network_of("mlp")
    x, _ = batch_of(side)
    mask = np.ones(network.n_maskable)
    with pytest.raises(ValueError, match=r"'classifier' is masked weight by weight: .* `weights`"):
        network(x, live=propagate(network, mask))


def test_nothing_dense_between_cut_and_paste():
    """Passes of a cut network whose dense weights would be far larger than all else."""
    network = chain(1500, 1500, 5, dtype=np.float32)
    rng = np.random.default_rng(0)
    mask = random_mask(network, 0.01, rng)
    sub = cut(network, mask)
    x, y = rng.normal(size=(4, 1, 1, 1500)).astype(np.float32), np.arange(4)
    F.cross_entropy(sub(x, training=True), y).backward()
    sub.network.zero_grad()
    with traced_memory() as most:
        F.cross_entropy(sub(x, training=True), y).backward()
        peak = most()
    assert peak < 1500 * 1500 / 2  # half of a bool matrix


# Cut of a cut network, spec, two masks


@every_network
def test_cut_of_a_cut_network(name):
    network, side = network_of(name)
    rng = np.random.default_rng(9)
    x, y = batch_of(side)
    for outer_rate, inner_rate in ((0.7, 0.6), (0.4, 0.5)):
        inner = random_mask(network, outer_rate * inner_rate, rng)
        outer = inner | (rng.random(inner.size) < outer_rate)
        net_a, net_b = clone(network), clone(network)
        opt_a, opt_b = OPTIMIZERS["nesterov"](net_a), OPTIMIZERS["nesterov"](net_b)
        first = cut(net_a, outer, opt_a)
        kept = kept_entries(network, first, outer)
        assert first.network.n_maskable == kept.size
        second = cut(first.network, inner[kept], first.optimizer)
        direct = cut(net_b, inner, opt_b)
        assert {k: v.shape for k, v in second.network.state().items()} == {
            k: v.shape for k, v in direct.network.state().items()
        }
        for sub in (second, direct):
            F.cross_entropy(sub(x, training=True), y).backward()
            sub.optimizer.step()
            sub.paste()
        first.paste()
        wanted = net_b.state()
        for key, array in net_a.state().items():
            assert_close(array, wanted[key], 1e-12, key)
        # And a cut network has a masked form of its own.
        small = masked(first.network, inner[kept])
        out = cut(first.network, inner[kept])(x, training=True, track=False)
        assert_close(out, small(x, training=True, track=False), 1e-10, "masked form of a cut")


def kept_entries(network, sub, mask):
    """Number in the full mask of each entry of a cut network's mask."""
    numbers = np.arange(network.n_maskable)
    blocks = weight_blocks(network, mask, sub.keep_index)
    kept = []
    for group in sub.network.groups:
        nodes = [name for name in sub.network.nodes if network.nodes[name].group == group]
        if network.nodes[nodes[0]].mask_on == "weights":
            live = blocks[f"{nodes[0]}.transform.weight"].reshape(-1)
            kept.append(numbers[network.groups[group]][live])
            continue
        own = [network.own(name, numbers)[sub.keep_index[name]] for name in nodes]
        kept.append(np.unique(np.concatenate(own)))
    return np.concatenate(kept)


@every_network
def test_a_cut_network_is_an_ordinary_one(name):
    network, side = network_of(name)
    small = cut(network, random_mask(network, 0.3, np.random.default_rng(2))).network
    spec = json.loads(json.dumps(small.spec()))  # plain data
    twin = Network.from_spec(spec)
    assert twin.spec() == small.spec()
    twin.astype(np.float64).load_state(small.state())
    x, y = batch_of(side)
    np.testing.assert_array_equal(twin(x).numpy(), small(x).numpy())
    assert repr(twin) == repr(small)
    assert "group classifier of weights" in repr(small)
    copy = clone(small)
    optimizer = SGD(copy, 0.1)
    before = F.cross_entropy(copy(x, training=True), y)
    before.backward()
    optimizer.step()
    assert F.cross_entropy(copy(x, training=True), y).item() < before.item()
    # All of its weights are live: its own cut is itself.
    assert cut(small, np.ones(small.n_maskable)).network.spec() == small.spec()


def test_two_sub_networks_and_their_union():
    """Gradients of both add up in the union's; weights of the union in neither are taken back."""
    network, side = network_of("mlp")
    rng = np.random.default_rng(4)
    masks = [random_mask(network, 0.3, rng) for _ in range(2)]
    optimizer = OPTIMIZERS["nesterov"](network)
    subs = [cut(network, mask) for mask in masks]
    union = cut(network, masks[0] | masks[1], optimizer)
    x, y = batch_of(side)
    totals = {name: np.zeros(p.shape, p.dtype) for name, p in network.named_parameters()}
    blocks = [
        weight_blocks(network, mask, sub.keep_index) for mask, sub in zip(masks, subs, strict=True)
    ]
    for sub, block in zip(subs, blocks, strict=True):
        F.cross_entropy(sub(x, training=True, track=False), y).backward()
        sub.add_gradients_to(union)
        for name, parameter in sub.network.named_parameters():
            totals[name][block[name]] += host(parameter.grad).reshape(-1)
    whole = weight_blocks(network, union.mask, union.keep_index)
    for name, parameter in union.network.named_parameters():
        grad = host(parameter.grad).reshape(-1)
        np.testing.assert_array_equal(grad, totals[name][whole[name]])
    before = all_state(network, optimizer)
    union.update()
    union.restore_all_but(subs)
    union.paste()
    neither = 0
    for (name, key), array in all_state(network, optimizer).items():
        outside = ~(blocks[0][name] | blocks[1][name])
        np.testing.assert_array_equal(array[outside], before[name, key][outside])
        neither += int((whole[name] & outside).sum())
    assert neither > 0
    with pytest.raises(ValueError, match="lacks live entries"):
        union.add_gradients_to(subs[0])


# Repair


def test_repair_takes_the_most_probable_weight_that_reads_something_live():
    network = chain(3, 4, 2)
    keep_prob = np.linspace(0.1, 0.9, network.n_maskable)  # the last weight is the likeliest
    first = np.zeros((4, 3), bool)
    first[1, 2] = True
    mask = flat(network, fc1=first, fc2=np.zeros((2, 4)))
    used, added = repair(network, mask, keep_prob)
    layers = matrices(network, used)
    assert added == 1
    np.testing.assert_array_equal(layers["fc1"], first)
    assert np.argwhere(layers["fc2"]).tolist() == [[1, 1]]  # neuron 1 is the only live one
    used, added = repair(network, np.zeros_like(mask), keep_prob)
    layers = matrices(network, used)
    assert added == 2
    assert np.argwhere(layers["fc1"]).tolist() == [[3, 2]]
    assert np.argwhere(layers["fc2"]).tolist() == [[1, 3]]


def test_repair_joins_layers_that_are_not_empty_but_do_not_meet():
    network = chain(2, 3, 2)
    first, last = np.zeros((3, 2), bool), np.zeros((2, 3), bool)
    first[0, 0] = last[0, 1] = True  # neuron 0 is fed, neuron 1 is read
    keep_prob = np.full(network.n_maskable, 0.5)
    keep_prob[network.groups["fc2"]] = [0.1, 0.9, 0.9, 0.3, 0.9, 0.9]
    mask = flat(network, fc1=first, fc2=last)
    with pytest.raises(ValueError, match="lets nothing reach the output"):
        cut(network, mask)
    used, added = repair(network, mask, keep_prob)
    assert added == 1
    # Of the weights of neuron 0 that of class 1 is the likelier.
    assert np.argwhere(matrices(network, used)["fc2"]).tolist() == [[0, 1], [1, 0]]
    assert cut(network, used).keep_index["fc1"].tolist() == [0]


@every_network
def test_nothing_alive_is_repaired(name):
    network, side = network_of(name)
    rng = np.random.default_rng(0)
    mask, added = repair(network, np.zeros(network.n_maskable), rng.random(network.n_maskable))
    assert added == mask.sum() == minimum_live(network)
    sub = cut(network, mask)
    out = sub(batch_of(side)[0], training=True, track=False).data
    assert out.shape == (4, 5)
    # One weight is left for five classes; what is cut again is the same.
    assert sub.network.nodes["classifier"].transform.weight.size == 1
    again = cut(sub.network, np.ones(sub.network.n_maskable))
    assert again.network.spec() == sub.network.spec()
    compare(network, [mask], OPTIMIZERS["plain"], batch_of(side))


def test_repair_in_a_cut_network_takes_weights_that_exist():
    network = chain(3, 4, 2)
    rng = np.random.default_rng(1)
    for _ in range(20):
        small = cut(network, random_mask(network, 0.4, rng)).network
        drawn = rng.random(small.n_maskable) < 0.2
        used, _ = repair(small, drawn, rng.random(small.n_maskable))
        assert (used >= drawn).all()
        assert propagate(small, used)["fc2"].all()


# Counts


def metered(run, side, images, backward, channels=3, dtype=np.float64):
    meter = get_backend().meter
    meter.reset()
    x, y = batch_of(side, images, channels, dtype)
    with meter.in_phase("count"):
        loss = F.cross_entropy(run(x, training=True, track=False), y)
        if backward:
            loss.backward()
    table = {layer: row for layer, row in meter.by_layer("count").items() if any(row.values())}
    meter.reset()
    return table


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "train"])
@every_network
def test_executed_equals_the_meter(name, backward):
    network, side = network_of(name)
    shape = (side, side, 3)
    dense = count_macs(network, shape)
    assert metered(network, side, 3, backward) == dense.executed(3, backward)
    plain, _ = network_of(name, masks="channels")
    assert dense.macs == count_macs(plain, shape).macs
    assert dense.params == count_macs(plain, shape).params == network.n_parameters()
    for seed, rate in enumerate((0.6, 0.2, 0.05)):
        mask = random_mask(network, rate, np.random.default_rng(seed))
        assert metered(masked(network, mask), side, 2, backward) == dense.executed(2, backward)
        count, sub = count_macs(network, shape, mask), cut(network, mask)
        assert metered(sub, side, 3, backward) == count.executed(3, backward)
        own = count_macs(sub.network, shape)
        assert own.executed(3, backward) == count.executed(3, backward)
        assert own.params == count.params == sub.network.n_parameters()
        last = count.layers[-1]
        live = weight_blocks(network, mask, sub.keep_index)["classifier.transform.weight"]
        assert (last.kind, last.macs) == ("linear, by weight", live.sum())
        assert last.params == live.sum() + 5


def test_activation_bytes_equal_the_tape():
    network, side = network_of("mlp", np.float32)
    mask = random_mask(network, 0.3, np.random.default_rng(0))
    sub = cut(network, mask)

    def saved(n):
        x, y = batch_of(side, n, dtype=np.float32)
        loss = F.cross_entropy(sub(x, training=True, track=False), y)
        return saved_bytes(loss) - n * 5 * 8  # softmax - target, float64

    # What doesn't grow with the batch, such as batch norm's statistics, doesn't count.
    assert saved(5) - saved(3) == 2 * count_macs(network, (side, side, 3), mask).activation_bytes


def test_a_mask_that_kills_everything_counts_nothing():
    network, side = network_of("mlp")
    count = count_macs(network, (side, side, 3), np.zeros(network.n_maskable))
    assert (count.macs, count.params, count.activation_bytes) == (0, 0, 0)


def test_chain_rule_methods_do_not_mask_weights():
    network, side = network_of("mlp")
    with pytest.raises(ValueError, match="'classifier' is masked weight by weight: chain-rule"):
        chain_rule_macs(network, (side, side, 3))


# Expectation


def enumerated(network, shape, keep_prob):
    """Mean of (params without the classifier's bias, MACs) over all masks."""
    total = np.zeros(2)
    bias = network.num_classes
    for bits in itertools.product((0, 1), repeat=network.n_maskable):
        mask = np.array(bits, bool)
        chance = np.prod(np.where(mask, keep_prob, 1 - keep_prob))
        count = count_macs(network, shape, mask)
        total += chance * np.array([count.params - bias * (count.macs > 0), count.macs])
    return total


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 2, 2),
        (2, 2, 2, 1),
        *(pytest.param(sizes, marks=pytest.mark.deep) for sizes in ((2, 3, 2), (3, 2, 3))),
    ],
    ids=str,
)
def test_expectation_equals_enumeration(sizes):
    """Two hidden layers and a classifier: all independent, empty ones included."""
    network = chain(*sizes)
    rng = np.random.default_rng(sum(sizes))
    for keep_prob in (rng.uniform(0, 1, network.n_maskable), np.full(network.n_maskable, 0.3)):
        params, macs = expected_counts(network, (1, 1, sizes[0]), keep_prob)
        wanted = enumerated(network, (1, 1, sizes[0]), keep_prob)
        np.testing.assert_allclose((params - sizes[-1], macs), wanted, rtol=1e-12)


def test_expectation_of_channels_that_only_weights_read():
    """A 1x1 convolution of 2 filters that has a mask, then a classifier masked by weights."""
    network = Network("read", 1)
    at = network.add("conv", Unit.create(1, 2, 1, group="conv"), INPUT)
    at = network.add("flatten", Flatten(2), at)
    last = Unit.create(4, 2, norm=False, relu=False, bias=True, group="out", mask_on="weights")
    network.add("out", last, at)
    keep_prob = np.random.default_rng(0).uniform(0.1, 0.9, network.n_maskable)
    params, macs = expected_counts(network, (2, 1, 1), keep_prob)
    wanted = enumerated(network, (2, 1, 1), keep_prob)
    np.testing.assert_allclose((params - 2, macs), wanted, rtol=1e-12)


@pytest.mark.parametrize(("name", "rate"), [("vgg-small", 0.4), ("mlp", 0.1), ("resnet20", 0.6)])
def test_expectation_within_the_standard_error_of_samples(name, rate):
    network, side = network_of(name)
    shape, n = (side, side, 3), network.n_maskable
    rng = np.random.default_rng(0)
    draws = np.array([count_macs(network, shape, rng.random(n) < rate).macs for _ in range(400)])
    error = draws.std(ddof=1) / np.sqrt(draws.size)
    expected = expected_macs(network, shape, np.full(n, rate))
    assert abs(draws.mean() - expected) < 4 * error
    assert error < 0.02 * expected


@every_network
def test_expectation_at_ones_is_the_dense_count(name):
    network, side = network_of(name)
    shape, ones = (side, side, 3), np.ones(network.n_maskable)
    count = count_macs(network, shape)
    assert expected_counts(network, shape, ones) == (count.params, count.macs)
    small = cut(network, random_mask(network, 0.3, np.random.default_rng(0))).network
    params, macs = expected_counts(small, shape, np.ones(small.n_maskable))
    count = count_macs(small, shape)
    assert (params, macs) == pytest.approx((count.params, count.macs), rel=1e-12)


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("name", ["mlp", "vgg-small"])
def test_keep_rate_of_a_share(name, of):
    network, side = network_of(name)
    shape, n = (side, side, 3), network.n_maskable
    rate = keep_rate_for(network, shape, 0.25, of)
    which = ("params", "macs").index(of)
    found = expected_counts(network, shape, np.full(n, rate))[which]
    dense = expected_counts(network, shape, np.ones(n))[which]
    assert found == pytest.approx(0.25 * dense, rel=1e-9)
    assert 0.2 < rate < 0.6


def test_linear_cost():
    network, side = network_of("mlp")
    shape = (side, side, 3)
    costs, constant = linear_macs_cost(network, shape)
    assert constant == 0.0
    assert costs.tolist() == [1.0] * network.n_maskable
    rng = np.random.default_rng(0)
    for keep_prob in (rng.random(costs.size), rng.random(costs.size) ** 3, np.zeros(costs.size)):
        assert costs @ keep_prob >= expected_macs(network, shape, keep_prob) - 1e-9
    network, side = network_of("vgg-small")
    costs, constant = linear_macs_cost(network, (side, side, 3))
    assert costs[network.groups["classifier"]].tolist() == [1.0] * 160
    assert costs.sum() == count_macs(network, (side, side, 3)).macs
    assert constant == 0.0
